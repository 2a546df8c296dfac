"""Energy, where a counter can be read: RAPL for processors, NVML for CUDA devices.

Counters are of a whole package or device, so whatever else runs on it is in them.
Where there is none, energy is null and never estimated under the same name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from leanmark.measure.device import own_handle, start_nvml

# A counter that was read: joules since some moment, or None once it cannot be read any more.
Counter = Callable[[], float | None]


def sources(root: Path = Path("/")) -> tuple[str, ...]:
    """The names of the counters that can be read here."""
    found = [f"RAPL {name}" for name, _ in _packages(root)]
    if _nvml_device() is not None:
        found.append("NVML")
    return tuple(found)


def counter(device: str, root: Path = Path("/")) -> tuple[str, Counter] | None:
    """The counter for what runs on a device, and its name; None where it cannot be read."""
    if device == "cpu":
        packages = _packages(root)
        return ("RAPL", lambda: _joules(file for _, file in packages)) if packages else None
    handle = _nvml_device()
    return None if handle is None else ("NVML", lambda: _nvml_joules(handle))


def _packages(root: Path) -> list[tuple[str, Path]]:
    """RAPL's packages: their names and files. (Cores and memory within them are counted already.)"""
    found: list[tuple[str, Path]] = []
    for folder in sorted(root.glob("sys/class/powercap/*-rapl:*")):
        with contextlib.suppress(OSError, ValueError):
            name, file = (folder / "name").read_text().strip(), folder / "energy_uj"
            int(file.read_text())
            if name.startswith(("package", "psys")) and folder.name.count(":") == 1:
                found.append((name, file))
    return [item for item in found if item[0] != "psys"] or found


def _joules(files: Iterable[Path]) -> float | None:
    try:
        return sum(int(file.read_text()) for file in files) * 1e-6
    except (OSError, ValueError):
        return None


def _nvml_device() -> Any:
    nvml = start_nvml()
    try:
        handle = own_handle(nvml)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no NVML, or a device without the counter
        return None
    return handle


def _nvml_joules(handle: Any) -> float | None:
    try:
        return start_nvml().nvmlDeviceGetTotalEnergyConsumption(handle) * 1e-3
    except Exception:
        return None
