"""What measuring costs, and whether one side alone is right: `tox run -e bench`.

One thread, sides pinned together. Prints a line a figure, with its aim; nothing fails.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import Figure, print_figures
from leanmark import power, registry, stats
from leanmark.host import available_cpus
from leanmark.measure import paired
from leanmark.measure.launches import Launch, LaunchFacts, compare, timing
from leanmark.measure.sides import Bases, Seats, Side, Worker
from leanmark.measure.table import Amount, Groups, Table
from leanmark.processes import kill_all, thread_environment

SIZES = [(runtime, ms) for ms in (0.1, 1, 10) for runtime in power.RUNTIMES]


def one_side(runtime: str, milliseconds: float, folder: Path, copies: int) -> list[Figure]:
    """Median and mean of a side, as a launch finds them, over those of a bare loop in the same process.

    In every copy: turns with another side, then the stretch that the figures of one side come from, with a loop that
    does nothing but call before and after it. Medians of the copies' figures, of which every 20 give one sample.
    """
    sides = power.both_sides(power.Setting(runtime, milliseconds, busy=False), folder)
    cpus = available_cpus()
    names = [side.name for side in sides]
    bases = Bases(sides, cpus)
    ratios: list[tuple[float, float]] = []
    medians: list[float] = []
    try:
        for copy in range(copies):
            workers = [bases.worker(side, cpus) for side in sides]
            for worker in workers:
                worker.open(0.03)
            one = Table(np.random.default_rng(copy), Groups.of(names, pairs=False))
            one.seat(Seats(tuple(workers), {}, 0), set(names))
            one.pin(cpus[-1:])
            guess = one.warm_up()
            calls, rounds = paired.calls_a_turn(guess[names[0]]), max(1, round(0.02 / max(0.001, guess[names[0]])))
            one.play(Amount(calls, 1, 1, rounds, 60.0), 0, lambda _: None)
            loops = [bare_loop(workers[0], guess[names[0]])]
            one.play_alone(0, guess)
            loops.append(bare_loop(workers[0], guess[names[0]]))
            found = timing([one.gather(names, FACTS)], names[0])
            if found is not None:
                middle, mean = (sum(values) / len(loops) for values in zip(*loops, strict=True))
                medians.append(found.median)
                ratios.append((found.median / middle, 1 / found.calls_per_second / mean))
            for worker in workers:
                worker.close()
    finally:
        bases.close()
    what = f"one side over a bare loop, {runtime}, {1e3 * float(np.median(medians)):.2f} ms"
    samples = [np.median(ratios[at : at + 20], axis=0).tolist() for at in range(0, len(ratios), 20)]
    return [
        Figure(f"{kind} of {what}", "x", values, 1.03)
        for kind, values in zip(("median", "mean"), zip(*samples, strict=True), strict=True)
    ]


FACTS = {"calls_a_turn": 1, "untimed": 1, "pinned": True, "overlapped": False, "cpus": (0,), "start_seconds": 0.0}
FACTS |= {"wall_seconds": 1.0, "steal_share": None}


def bare_loop(worker: Worker, guess: float) -> tuple[float, float]:
    """Median and mean seconds a call of a loop that does nothing else, for 20 ms."""
    calls = max(2, round(0.02 / guess))
    answer = worker.ask(60.0, op="loop", calls=calls)
    return float(np.median(answer["calls_ns"])) * 1e-9, answer["wall_ns"] * 1e-9 / calls


def a_block(runtime: str, milliseconds: float, cells: int, folder: Path, count: int) -> list[Figure]:
    """Of the wall time of a block, the share of its calls; of a core, the share that the parent takes."""
    reference, other = power.both_sides(power.Setting(runtime, milliseconds, busy=False), folder)
    sides = [reference, *(replace(other, name=f"variant {number}") for number in range(cells - 1))]
    shares: list[float] = []
    parents: list[float] = []
    for seed in range(count):
        begun, cpu = time.perf_counter(), time.process_time()
        launches = list(paired.measure(sides, launches=8, seconds=0.8, cpus=available_cpus(), seed=seed))
        wall = time.perf_counter() - begun
        shares.append(sum(map(_call_seconds, launches)) / wall)
        parents.append((time.process_time() - cpu) / wall)
    what = f"{cells} cells, {runtime}, {milliseconds} ms"
    aim = 0.35 if runtime == "torch" else 0.6
    return [
        Figure(f"share of a block in calls, {what}", "", tuple(shares), aim, at_least=True),
        Figure(f"of a core, the parent takes to give turns, {what}", "", tuple(parents), None),
    ]


def _call_seconds(launch: Launch) -> float:
    calls = launch.facts.calls_a_turn + launch.facts.untimed
    return float(launch.seconds.sum()) * calls + float(launch.solo.sum()) * 1e-9


def waiting(folder: Path, count: int) -> Figure:
    """Of a core, what the parent takes while a turn of two seconds is played."""
    side: Side = power.both_sides(power.Setting("onnxruntime", 1, busy=False), folder)[0]
    worker = Worker(side)
    try:
        worker.open()
        shares: list[float] = []
        for _ in range(count):
            begun, cpu = time.perf_counter(), time.process_time()
            worker.ask(60.0, op="turn", calls=2000, start=0, untimed=1, each=False)
            shares.append((time.process_time() - cpu) / (time.perf_counter() - begun))
    finally:
        worker.close()
    return Figure("of a core, the parent takes, while it waits", "", tuple(shares), 0.02)


def judging(cells: int) -> Figure:
    """Seconds for estimate, interval and verdict of so many cells of 1,000 stored turns a side, in 10 launches."""
    random = np.random.default_rng(0)
    facts = LaunchFacts(("variant", "reference"), 2, 1, True, True, (0,), 0.0, 1.0, None, (1.0, 1.0), {})
    taken = 0.0
    for _ in range(cells // 100):
        blocks: list[list[Launch]] = []
        for _ in range(100):
            turns = 1e-3 * np.exp(random.choice([0.0, 0.15], (10, 100, 2)) + random.normal(0, 0.03, (10, 100, 2)))
            share = np.where(random.random(turns.shape) < 0.05, 0.5, 1.0)
            copies, alone = np.repeat(np.arange(10), 10), (np.zeros((2, 0, 0)), np.zeros((2, 0)))
            blocks.append([Launch(facts, turns[at], share[at], copies, *alone) for at in range(10)])
        begun = time.perf_counter()
        for block in blocks:
            ratio = compare(block, "variant", "reference")
            ratio.interval()
            stats.judge(ratio, 0.005)
        taken += time.perf_counter() - begun
    return Figure(f"judging {cells:,} cells of 1,000 turns", "s", (taken,), 10)


def figures(count: int, folder: Path) -> Iterator[Figure]:
    yield judging(10_000)
    yield waiting(folder, count)
    for runtime in power.RUNTIMES:
        yield from a_block(runtime, 1, 8, folder, count)
    for runtime, milliseconds in SIZES:
        yield from one_side(runtime, milliseconds, folder, 20 * count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="how often to repeat each")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    registry.load_builtins()
    os.environ.update(thread_environment(1))
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = list(figures(options.count, Path(folder)))
    finally:
        kill_all()
    print_figures(found, as_json=options.json)


if __name__ == "__main__":
    main()
