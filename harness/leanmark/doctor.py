"""`leanmark doctor`: what this machine is, what disturbs a measurement on it, what can be read, what to change."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from leanmark.host import available_cpus, pinned, stolen_seconds
from leanmark.jsonable import Json
from leanmark.measure import energy, environment
from leanmark.measure.device import read_devices
from leanmark.processes import CAN_FORK
from leanmark.results import Device

_SAMPLE_SECONDS = 1.0
_BUSY_PROCESS = 0.1  # of a processor
_BUSY_PRESSURE = 5.0  # percent of time in which a task waited
_STEAL = 0.01
_JUMPS = 1.1


class State(StrEnum):
    """Whether something helps or harms a measurement."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing about the machine, and what to do about it."""

    subject: str
    state: State
    says: str
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """What was read; None where this system does not tell."""

    environment: dict[str, Json]
    processors: int  # that may be used
    processors_online: int
    pinning: bool
    forking: bool
    governors: tuple[str, ...] = ()
    turbo: bool | None = None
    smt: bool | None = None
    quota: float | None = None  # processors that the control group may use
    throttled: int | None = None  # periods of the sample in which the group was held back
    pressure: float | None = None  # percent of the last 10 s
    steal: float | None = None  # share of the sample
    swap_bytes: int | None = None
    frequency: bool = False
    energy: tuple[str, ...] = ()
    jumps: tuple[float, ...] = ()  # by processor: 90th over 10th percentile of the same work
    others: tuple[tuple[str, int, float], ...] = ()  # name, process id, processors used
    devices: tuple[Device, ...] = ()


def diagnose(machine: Machine) -> tuple[Finding, ...]:
    """What all that means for a measurement. Pure."""
    return tuple(finding for part in (_processors, _speed, _company, _readable, _devices) for finding in part(machine))


def _finding(subject: str, good: bool | None, says: str, advice: str = "") -> Finding:
    state = State.UNKNOWN if good is None else State.GOOD if good else State.BAD
    return Finding(subject, state, says, advice if state is State.BAD else "")


def _processors(machine: Machine) -> list[Finding]:
    count = machine.processors
    some = f"{count} of {machine.processors_online} processors may be used"
    found = [
        _finding(
            "processors",
            count > 1,
            some,
            "With one processor, leanmark itself and everything that starts takes time from what is measured.",
        ),
        _finding(
            "pinning",
            machine.pinning,
            "processes can be pinned to processors" if machine.pinning else "processes cannot be pinned",
            "Both sides of a duel should share a core; without pinning they scatter several times as much.",
        ),
        _finding(
            "copies",
            machine.forking,
            "workers are copies of one interpreter" if machine.forking else "every worker is started afresh",
            "Starts take longer here, so the same budget has fewer copies.",
        ),
    ]
    if machine.quota is not None:
        enough = machine.quota >= count
        found.append(
            _finding(
                "quota",
                enough and not machine.throttled,
                f"{machine.quota:g} processors for the control group, held back {machine.throttled or 0} times",
                "A quota stops processes in the middle of a call. Give the container whole processors (--cpuset-cpus).",
            )
        )
    if machine.environment.get("hypervisor"):
        found.append(
            Finding("virtual machine", State.UNKNOWN, "the processors are virtual; what else runs on them is not shown")
        )
    return found


def _speed(machine: Machine) -> list[Finding]:
    found: list[Finding] = []
    governors = sorted(set(machine.governors))
    found.append(
        _finding(
            "governor",
            None if not governors else governors == ["performance"],
            f"frequency governor: {', '.join(governors)}" if governors else "no frequency governor can be read",
            "Set it: cpupower frequency-set -g performance",
        )
    )
    if machine.turbo is not None:
        found.append(
            _finding(
                "turbo",
                not machine.turbo,
                "turbo is on" if machine.turbo else "turbo is off",
                "Clocks then depend on heat and on the neighbours; switch it off for absolute times.",
            )
        )
    if machine.smt is not None:
        found.append(
            _finding(
                "hyper-threading",
                not machine.smt,
                "processors share cores" if machine.smt else "no processor shares its core",
                "Measure on one processor of each core, or write off to /sys/devices/system/cpu/smt/control",
            )
        )
    if machine.jumps:
        worst = max(machine.jumps)
        found.append(
            _finding(
                "steadiness",
                worst < _JUMPS,
                "the same work takes up to " + ", ".join(f"{jump:.2f}x" for jump in machine.jumps) + " by processor",
                "Cores change their speed while they work; short turns and pairing take most of it out.",
            )
        )
    return found


def _company(machine: Machine) -> list[Finding]:
    found: list[Finding] = []
    names = ", ".join(f"{name} ({pid}): {used:.0%} of a processor" for name, pid, used in machine.others)
    found.append(_finding("other programs", not machine.others, names or "none is busy", "Wait for them, or end them."))
    if machine.pressure is not None:
        found.append(
            _finding(
                "pressure",
                machine.pressure < _BUSY_PRESSURE,
                f"some task waited for a processor {machine.pressure:g} % of the last 10 s",
                "Other programs want the processors too.",
            )
        )
    if machine.steal is not None:
        found.append(
            _finding(
                "steal",
                machine.steal < _STEAL,
                f"the host took {machine.steal:.1%} of the time",
                "Another guest has the processors. Nothing inside this machine helps; use a dedicated one.",
            )
        )
    if machine.swap_bytes:
        found.append(
            _finding("swap", False, f"{machine.swap_bytes / 1e6:.0f} MB are swapped out", "Free memory before a run.")
        )
    return found


def _readable(machine: Machine) -> list[Finding]:
    sources = ", ".join(machine.energy)
    return [
        _finding(
            "energy",
            bool(machine.energy) or None,
            f"energy can be read: {sources}" if sources else "no energy counter can be read; energy will be empty",
        ),
        _finding(
            "frequency",
            machine.frequency or None,
            "the clock can be read" if machine.frequency else "the clock cannot be read",
        ),
    ]


def _devices(machine: Machine) -> list[Finding]:
    found: list[Finding] = []
    if not machine.devices:
        return [
            _finding(
                "devices",
                None,
                "no CUDA device can be read (that takes an NVIDIA driver, and pip install leanmark[cuda])",
            )
        ]
    for device in machine.devices:
        others = [str(pid) for pid in device.strangers]
        found.append(
            _finding(
                device.name,
                not others and not device.throttled,
                "; ".join(
                    filter(
                        None,
                        [
                            f"used by {', '.join(others)}" if others else "nobody else uses it",
                            f"slowed down by {', '.join(device.throttled)}" if device.throttled else "",
                        ],
                    )
                ),
                "Wait until nobody else computes on it, and for it to cool down.",
            )
        )
    return found


# --- reading ------------------------------------------------------------------------------


def read_machine(root: Path = Path("/")) -> Machine:
    """Read this machine; takes a few seconds. `root` is where /proc and /sys are looked for."""
    import psutil

    cpus = available_cpus()
    begun, stolen, first, held = time.monotonic(), stolen_seconds(root), _processes(), _throttled(root)
    jumps = tuple(_jumps(cpu) for cpu in cpus[:8])
    time.sleep(max(0.0, _SAMPLE_SECONDS - 0.3 * len(jumps)))
    seconds, now, second = time.monotonic() - begun, stolen_seconds(root), _processes()
    online = os.cpu_count() or len(cpus)
    with pinned(cpus[:1]) as pinning:
        pass
    governors = [_text(path) for path in sorted(root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"))]
    return Machine(
        environment=environment.read_environment(),
        processors=len(cpus),
        processors_online=online,
        pinning=pinning,
        forking=CAN_FORK,
        governors=tuple(filter(None, governors)),
        turbo=_turbo(root),
        smt=_flag(root / "sys/devices/system/cpu/smt/active"),
        quota=_quota(root),
        throttled=None if held is None else (_throttled(root) or held) - held,
        pressure=environment.read_pressure(root),
        steal=None if stolen is None or now is None else (now - stolen) / (seconds * online),
        swap_bytes=psutil.swap_memory().used,
        frequency=any(root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq")),
        energy=energy.sources(root),
        jumps=jumps,
        others=_busy(first, second),
        devices=read_devices(),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _flag(path: Path) -> bool | None:
    text = _text(path)
    return None if text not in ("0", "1") else text == "1"


def _turbo(root: Path) -> bool | None:
    off = _flag(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    return _flag(root / "sys/devices/system/cpu/cpufreq/boost") if off is None else not off


def _quota(root: Path) -> float | None:
    text = _text(root / "sys/fs/cgroup/cpu.max")
    if text is None or text.startswith("max"):
        return None
    quota, period = text.split()
    return int(quota) / int(period)


def _throttled(root: Path) -> int | None:
    for line in (_text(root / "sys/fs/cgroup/cpu.stat") or "").splitlines():
        if line.startswith("nr_throttled "):
            return int(line.split()[1])
    return None


def _jumps(cpu: int, seconds: float = 0.3) -> float:
    """How much longer the same work takes at its slowest than at its fastest: 90th over 10th percentile."""
    taken: list[int] = []
    with pinned([cpu]):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            begun = time.perf_counter_ns()
            sum(range(20_000))
            taken.append(time.perf_counter_ns() - begun)
    tenths = statistics.quantiles(taken, n=10)
    return tenths[8] / tenths[0]


def _processes() -> dict[int, tuple[str, float, float]]:
    """By process id: name, processor seconds so far, and when that was read."""
    import psutil

    found: dict[int, tuple[str, float, float]] = {}
    for process in psutil.process_iter(["name", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None and process.pid != os.getpid():
            found[process.pid] = (process.info["name"] or "?", times.user + times.system, time.monotonic())
    return found


def _busy(
    first: dict[int, tuple[str, float, float]], second: dict[int, tuple[str, float, float]]
) -> tuple[tuple[str, int, float], ...]:
    found: list[tuple[str, int, float]] = []
    for pid, (name, used, at) in second.items():
        if pid in first:
            share = (used - first[pid][1]) / max(at - first[pid][2], 1e-9)
            if share >= _BUSY_PROCESS:
                found.append((name, pid, share))
    return tuple(sorted(found, key=lambda item: -item[2])[:5])
