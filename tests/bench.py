"""leanmark's own times and memory, as a user meets them: `tox run -e bench`.

Each command is a whole process; the first `run quick` starts from an empty store, the
second from a full one. Prints a table and, with --json, a document. The limits are
targets, printed beside the figures; nothing here fails a build.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Figure:
    """A measured value; samples are in `unit`."""

    name: str
    unit: str
    samples: tuple[float, ...]
    target: float | None  # None: there is none
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass(frozen=True)
class Usage:
    """One process with its children: seconds, and peak resident megabytes of each."""

    seconds: float
    parent: float
    worker: float
    code: int


def leanmark(*arguments: str, store: Path, cwd: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("leanmark")), *arguments]
    environment = {**os.environ, "LEANMARK_CACHE": str(store)}
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def watch(process: subprocess.Popen[bytes]) -> Usage:
    """Wait for a process; sample the resident memory of it and of each of its children."""
    begun, peaks, done = time.perf_counter(), {"parent": 0.0, "worker": 0.0}, threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            try:
                own = psutil.Process(process.pid)
                peaks["parent"] = max(peaks["parent"], own.memory_info().rss / 1e6)
                for child in own.children(recursive=True):
                    peaks["worker"] = max(peaks["worker"], child.memory_info().rss / 1e6)
            except psutil.Error:
                continue

    thread = threading.Thread(target=sample)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - begun
    done.set()
    thread.join()
    return Usage(seconds, peaks["parent"], peaks["worker"], code)


def small(name: str, arguments: list[str], target: float, store: Path, cwd: Path, count: int) -> Figure:
    """A quick command, over and over, the first time not counted."""
    samples: list[float] = []
    for _ in range(count + 1):
        begun = time.perf_counter()
        code = leanmark(*arguments, store=store, cwd=cwd).wait()
        samples.append(time.perf_counter() - begun)
        assert code == 0, (arguments, code)
    return Figure(name, "s", tuple(samples[1:]), target)


def interrupted(store: Path, cwd: Path, count: int) -> Figure:
    """Seconds from Ctrl-C to the end, while a block is measured, with no child left."""
    samples: list[float] = []
    for _ in range(count):
        runs = cwd / "interrupted"
        before = set(runs.glob("*")) if runs.exists() else set()
        process = leanmark("run", "quick", "--out", str(runs), store=store, cwd=cwd)
        while not any(
            '"launch"' in path.read_text() for run in set(runs.glob("*")) - before for path in run.glob("journal.jsonl")
        ):
            time.sleep(0.2)
            assert process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True)
        begun = time.perf_counter()
        process.send_signal(signal.SIGINT)
        code = process.wait()
        samples.append(time.perf_counter() - begun)
        assert code == 130, code
        assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return Figure("Ctrl-C until the end", "s", tuple(samples), 2.0)


def figures(count: int, cwd: Path) -> list[Figure]:
    store = cwd / "store"
    runs = [watch(leanmark("run", "quick", store=store, cwd=cwd)) for _ in range(1 + count)]
    assert not any(run.code for run in runs), [run.code for run in runs]
    first, later = runs[0], runs[1:]
    return [
        Figure("first `run quick`, training included", "s", (first.seconds,), 240),
        Figure("second `run quick`", "s", tuple(run.seconds for run in later), 90),
        Figure("peak memory of the parent", "MB", tuple(run.parent for run in runs), 400),
        Figure("peak memory of a worker", "MB", tuple(run.worker for run in runs), 1000),
        small("`leanmark --help`", ["--help"], 0.3, store, cwd, 5 * count),
        small("`leanmark plan quick`", ["plan", "quick"], 0.5, store, cwd, 5 * count),
        interrupted(store, cwd, count),
    ]


def print_figures(found: list[Figure], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(figure) for figure in found], indent=1))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    for figure in found:
        spread = f"{min(figure.samples):.3g} to {max(figure.samples):.3g}"
        line = f"{figure.name:60} {figure.median:8.3g} {figure.unit:2}  ({spread}, n={len(figure.samples)})"
        aim = "at least" if figure.at_least else "at most"
        print(line if figure.target is None else f"{line}  aim: {aim} {figure.target:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2, help="how often to repeat what a store makes quick")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = figures(options.count, Path(folder))
    print_figures(found, as_json=options.json)


if __name__ == "__main__":
    main()
