"""The machine, the versions, and what disturbs a measurement on it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanmark import __version__
from leanmark.jsonable import canonical_json
from leanmark.measure.device import read_devices

_LIBRARIES = ("torch", "onnxruntime", "onnxruntime-gpu", "onnx", "onnxscript", "numpy", "scipy", "leanmark")
# What services are run with: no class of machines, since other targets know nothing of it.
_SERVICE_LIBRARIES = ("mlcommons-loadgen", "faiss-cpu", "cachetools", "redis", "orjson")
# Instruction sets that decide which kernels a runtime picks.
_FEATURES = frozenset(
    [
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
        "avx_vnni",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "asimddp",
        "i8mm",
        "sve",
        "sve2",
        "bf16",
    ]
)


def read_environment() -> dict[str, Any]:
    """Everything about this machine that a reader of a number needs, as JSON values."""
    import psutil

    cpu, features = _cpu()
    versions = _versions(_LIBRARIES)
    fixed = {
        "cpu": cpu,
        "features": features,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "release": _distribution(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }
    devices = [device.name for device in read_devices()]
    fixed |= {"devices": devices} if devices else {}
    return {
        **fixed,
        "machine_class": machine_class(fixed),
        "service_versions": _versions(_SERVICE_LIBRARIES),
        "kernel": platform.release(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(os.getloadavg()),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "pressure_cpu_avg10": read_pressure(),
        "hypervisor": _hypervisor(),
    }


def machine_class(fixed: Mapping[str, Any]) -> str:
    """A short name for machines whose absolute times may be compared."""
    return hashlib.sha256(canonical_json(dict(fixed)).encode()).hexdigest()[:12]


def read_commit(folder: Path) -> dict[str, Any]:
    """pytest-benchmark's commit_info of the repository that holds `folder`; empty fields if there is none."""

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
            return done.stdout.strip()
        return None

    identity = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no") if identity else None
    return {
        "id": identity or "unversioned",
        "time": git("show", "-s", "--format=%cI") if identity else None,
        "author_time": git("show", "-s", "--format=%aI") if identity else None,
        "dirty": bool(status),
        "project": Path(git("rev-parse", "--show-toplevel") or folder).name,
        "branch": git("rev-parse", "--abbrev-ref", "HEAD") or "(unknown)",
    }


def _cpu() -> tuple[str, list[str]]:
    name, features = platform.processor() or "unknown", set[str]()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                features = set(value.split()) & _FEATURES
    return name, sorted(features)


def _hypervisor() -> bool | None:
    with contextlib.suppress(OSError):
        return " hypervisor" in Path("/proc/cpuinfo").read_text()
    return None


def _distribution() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.release())
    return platform.release()


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {name: version for name in libraries if (version := _version(name)) is not None}


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return __version__ if library == "leanmark" else None


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return None


def read_pressure(root: Path = Path("/")) -> float | None:
    """Share of the last 10 s in which some task waited for a processor, in percent."""
    text = _read(str(root / "proc/pressure/cpu"))
    if text is None:
        return None
    for field in text.split():
        if field.startswith("avg10="):
            return float(field.removeprefix("avg10="))
    return None
