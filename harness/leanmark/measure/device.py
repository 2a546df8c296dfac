"""A CUDA device as its driver sees it: who computes on it, how fast its clock is, and what slows it down.

Read through NVML, where pynvml is installed; without it nothing is known, and nothing is made up.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from leanmark.results import Device

_THROTTLING = {
    "SwPowerCap": "its power limit",
    "HwSlowdown": "its hardware, for heat or power",
    "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat",
    "HwPowerBrakeSlowdown": "the power supply",
}


def read_devices(own: frozenset[int] = frozenset()) -> tuple[Device, ...]:
    """All CUDA devices; none where NVML cannot be asked. `own` are processes that are no strangers."""
    nvml = start_nvml()
    if nvml is None:
        return ()
    found: list[Device] = []
    with contextlib.suppress(nvml.NVMLError):
        for index in range(nvml.nvmlDeviceGetCount()):
            found.append(_device(nvml, nvml.nvmlDeviceGetHandleByIndex(index), own))
    return tuple(found)


def read_own_device(own: frozenset[int]) -> Device | None:
    """The CUDA device that this process computes on: the first that it may see."""
    nvml = start_nvml()
    if nvml is None:
        return None
    with contextlib.suppress(nvml.NVMLError):
        return _device(nvml, own_handle(nvml), own)
    return None


def own_handle(nvml: Any) -> Any:
    """NVML's handle of the first device that CUDA_VISIBLE_DEVICES allows."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdigit() or not first:
        return nvml.nvmlDeviceGetHandleByIndex(int(first or 0))
    return nvml.nvmlDeviceGetHandleByUUID(first)


def start_nvml() -> Any:
    """The module pynvml, started; None without library or driver."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or one that does not fit
        return None
    return pynvml


def _device(nvml: Any, handle: Any, own: frozenset[int]) -> Device:
    name = nvml.nvmlDeviceGetName(handle)
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    bits = {text: getattr(nvml, f"nvmlClocksThrottleReason{key}", 0) for key, text in _THROTTLING.items()}
    running = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    return Device(
        name=name.decode() if isinstance(name, bytes) else name,
        strangers=tuple(sorted(running - own)),
        clock_mhz=nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        clock_limit_mhz=nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        throttled=tuple(dict.fromkeys(text for text, bit in bits.items() if reasons & bit)),
    )
