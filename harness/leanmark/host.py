"""What this process has of its machine: processors and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path


def available_cpus() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def one_per_core(cpus: Sequence[int]) -> list[int]:
    """One processor of each physical core, where several threads of a core count as processors."""
    found: dict[str, int] = {}
    for cpu in cpus:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = str(cpu)
        with contextlib.suppress(OSError):
            siblings = path.read_text().strip()
        found.setdefault(siblings, cpu)
    return list(found.values())


def stolen_seconds(root: Path = Path("/")) -> float | None:
    """Seconds of all processors that the host gave to others since this machine started; None where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((root / "proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")
    return None


def waited_seconds(root: Path = Path("/")) -> float | None:
    """Seconds since the machine started in which some task waited for a processor (PSI); None where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((root / "proc/pressure/cpu").read_text().split("total=", 1)[1].split()[0]) * 1e-6
    return None


def clock_hertz(cpus: Iterable[int], root: Path = Path("/")) -> float | None:
    """The slowest clock of these processors now; None where it cannot be read, as in most virtual machines."""
    with contextlib.suppress(OSError, ValueError):
        paths = (root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq" for cpu in cpus)
        return min(1000.0 * int(path.read_text()) for path in paths)
    return None


def pin(cpus: Iterable[int], pid: int = 0) -> bool:
    """Keep a process, by default the calling thread, on these processors; False where that is not permitted."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(pid, cpus)
    except (OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def pinned(cpus: Iterable[int]) -> Generator[bool]:
    """Keep the calling thread on these processors for a while; tells whether that was permitted."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    try:
        yield pin(cpus)
    finally:
        if before:
            pin(before)


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident since it was started.

    Not from getrusage where it can be helped: on Linux its figure starts with the
    resident size of the process that started this one.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rss_and_uss_bytes() -> tuple[int, int | None]:
    """Resident and unique set size now; unique only where it can be read."""
    import psutil

    process = psutil.Process()
    try:
        full = process.memory_full_info()
        return full.rss, full.uss
    except (psutil.AccessDenied, AttributeError):
        return process.memory_info().rss, None


def available_memory() -> int:
    """Bytes that can be had without pushing other programs out."""
    import psutil

    return psutil.virtual_memory().available
