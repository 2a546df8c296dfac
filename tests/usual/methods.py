"""The methods people use now, on the networks of the power benchmark, for the time of a duel.

Each runs first the one side, then the other, in processes of their own, as these tools
are used and with their own defaults, for half of the time each; starting is not counted.
Both sides are the same network, so a regression is a false alarm. An exact slowdown
multiplies every time of the second side, so the same samples also tell whether it would
have been seen. It is how these methods are commonly used that is tried here: calls in a
row are not independent, which Mann and Whitney's test supposes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from leanmark.measure.sides import Side
from leanmark.processes import thread_environment

HERE = Path(__file__).parent
TOLERANCE = 0.05
SIGNIFICANT = 0.05
# pyperf's own defaults; each value takes the time's share, its warm-up included.
_PYPERF_PROCESSES, _PYPERF_VALUES, _PYPERF_WARMUPS = 20, 3, 1
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Said:
    """What a method said of one comparison."""

    method: str
    regressed: bool  # of a network against itself
    slower_regressed: tuple[bool, ...]  # the same, had every time of the second side been so much longer
    ratio: float  # of the averages that it compares
    seconds: float  # of wall time


@dataclass(frozen=True)
class Comparison:
    """What all methods said, and the samples that they went by."""

    said: tuple[Said, ...]
    samples: dict[str, np.ndarray]


def compare(sides: tuple[Side, Side], seconds: float, slowdowns: Sequence[float], folder: Path) -> Comparison:
    """Every method once, `seconds` for both sides of each; slowdowns: by which the second side is also made longer."""
    folder.mkdir(parents=True, exist_ok=True)
    said: list[Said] = []
    samples: dict[str, np.ndarray] = {}
    for method in (_in_a_row, _pytest_benchmark, _pyperf):
        begun = time.perf_counter()
        found, kept = method(sides, seconds / 2, [1 + slowdown for slowdown in slowdowns], folder)
        wall = time.perf_counter() - begun
        said += [Said(name, same, slower, ratio, wall) for name, same, slower, ratio in found]
        samples |= kept
    return Comparison(tuple(said), samples)


_Found = tuple[list[tuple[str, bool, tuple[bool, ...], float]], dict[str, np.ndarray]]


def _in_a_row(sides: tuple[Side, Side], seconds: float, longer: Sequence[float], folder: Path) -> _Found:
    """Two samples of calls, judged by a limit for their medians, and by Mann and Whitney's test (1947)."""
    calls: list[np.ndarray] = []
    for side in sides:
        file = folder / "calls.npy"
        _python(side, "contestant.py", str(seconds), str(file))
        calls.append(np.load(file))
    before, after = calls
    ratio = float(np.median(after) / np.median(before))

    def is_beyond(at: float) -> bool:
        return bool(mannwhitneyu(after * at, before, alternative="greater").pvalue < SIGNIFICANT / 2)

    found = [
        ("sequential medians, more than 5 %", ratio > 1 + TOLERANCE, _beyond_tolerance(ratio, longer), ratio),
        ("Mann-Whitney, p < 0.05", is_beyond(1.0), tuple(map(is_beyond, longer)), ratio),
    ]
    return found, {"calls_before": before.astype(np.uint32), "calls_after": after.astype(np.uint32)}


def _beyond_tolerance(ratio: float, longer: Sequence[float]) -> tuple[bool, ...]:
    return tuple(ratio * factor > 1 + TOLERANCE for factor in longer)


def _pytest_benchmark(sides: tuple[Side, Side], seconds: float, longer: Sequence[float], folder: Path) -> _Found:
    """Two sessions, the second with --benchmark-compare-fail=median:5%."""
    storage = folder / f"storage-{time.monotonic_ns()}"
    common = [
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(HERE),
        "--confcutdir", str(HERE), f"--benchmark-storage=file://{storage}", f"--benchmark-max-time={seconds}",
        str(HERE / "for_pytest.py"),
    ]  # fmt: skip
    _python(sides[0], *common, "--benchmark-save=before")
    (saved,) = storage.rglob("*_before.json")
    after = folder / "after.json"
    after.unlink(missing_ok=True)
    fail = f"--benchmark-compare-fail=median:{TOLERANCE:.0%}"
    output = _python(sides[1], *common, "--benchmark-compare", fail, f"--benchmark-json={after}", check=_ended_as_meant)
    medians = [json.loads(file.read_text())["benchmarks"][0]["stats"]["median"] for file in (saved, after)]
    ratio = medians[1] / medians[0]
    regressed = "Performance has regressed" in output
    slower = _beyond_tolerance(ratio, longer)
    return [("pytest-benchmark, median:5%", regressed, slower, ratio)], {"pytest_medians": np.array(medians)}


def _ended_as_meant(code: int, output: str) -> bool:
    """Whether pytest ended well, or because of a regression."""
    return code == 0 or "Performance has regressed" in output


def _pyperf(sides: tuple[Side, Side], seconds: float, longer: Sequence[float], folder: Path) -> _Found:
    """Two runs, and `pyperf compare_to`, which tests the difference of the means (Student)."""
    files = [folder / name for name in ("before.json", "after.json")]
    for side, file in zip(sides, files, strict=True):
        file.unlink(missing_ok=True)
        amount = [
            "--processes",
            str(_PYPERF_PROCESSES),
            "--values",
            str(_PYPERF_VALUES),
            "--warmups",
            str(_PYPERF_WARMUPS),
        ]
        each = seconds / (_PYPERF_PROCESSES * (_PYPERF_WARMUPS + _PYPERF_VALUES))
        _python(side, "for_pyperf.py", "--copy-env", "-q", *amount, "--min-time", f"{each:.3f}", "-o", str(file))
    slower = tuple(_is_slower(files[0], _lengthened(files[1], factor)) for factor in longer)
    values = [np.array(_pyperf_values(file)) for file in files]
    ratio = float(values[1].mean() / values[0].mean())
    kept = {"pyperf_before": values[0], "pyperf_after": values[1]}
    return [("pyperf compare_to", _is_slower(*files), slower, ratio)], kept


def _lengthened(file: Path, factor: float) -> Path:
    """The same run with all its values so much longer."""
    document = json.loads(file.read_text())
    for run in document["benchmarks"][0]["runs"]:
        run["values"] = [value * factor for value in run.get("values", [])]
    slower = file.with_name("slower.json")
    slower.write_text(json.dumps(document))
    return slower


def _pyperf_values(file: Path) -> list[float]:
    runs = json.loads(file.read_text())["benchmarks"][0]["runs"]
    return [value for run in runs for value in run.get("values", [])]


def _is_slower(before: Path, after: Path) -> bool:
    """Whether pyperf finds the second significantly slower."""
    command = [sys.executable, "-m", "pyperf", "compare_to", str(before), str(after)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return bool(re.search(r"\d+\.\d+x slower", output))


def _python(side: Side, *arguments: str, check: Callable[[int, str], bool] = lambda code, _: code == 0) -> str:
    """Run a Python process that knows its side; returns what it printed. Raises RuntimeError."""
    opening: dict[str, Any] = {**side.opening(), "fresh": False, "warm_seconds": 0.0}
    environment = {**os.environ, **thread_environment(side.target.threads), "LEANMARK_CONTESTANT": json.dumps(opening)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
    )
    output = done.stdout + done.stderr
    if not check(done.returncode, output):
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode}: {output[-2000:]}")
    return output
