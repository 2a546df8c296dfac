"""Paired measurement: sides alive at once on the same cores, taking short turns in random order.

A block is a reference and its variants. It is measured in launches, each a fresh set
of worker processes; within a launch every round gives each side one turn, and what
counts is the ratio of turns of the same round. See docs/methodology.md.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmark import registry, stats
from leanmark.channel import PROTOCOL_VERSION, ChannelClosed
from leanmark.processes import Child, Death
from leanmark.results import ColdStart, Status, Target, Timing, from_json

Array = NDArray[Any]

OPEN_TIMEOUT_SECONDS = 120.0
TURN_SECONDS = 0.004
MINIMUM_ROUNDS = 5
_WARM_SECONDS = 0.01
_WARM_TREND = 0.05
_WARM_LIMIT = 6
# A turn is disturbed when less than this share of its wall time was computing.
_UNDISTURBED_SHARE = 0.9


@dataclass(frozen=True)
class Side:
    """What a worker runs: an artifact, where, and on which inputs."""

    name: str
    artifact: Path
    target: Target
    splits: Path
    metric: str = "accuracy"
    paths: tuple[Path, ...] = ()
    extra_call_every: int | None = None

    def opening(self) -> dict[str, Any]:
        """The message that opens a worker."""
        runtime = registry.get_runtime(self.target.runtime)
        return {
            "op": "open",
            "artifact": str(self.artifact),
            "loader": runtime.loader,
            "library": runtime.libraries[0],
            "device": self.target.device,
            "threads": self.target.threads,
            "batch": self.target.batch,
            "splits": str(self.splits),
            "metric": self.metric,
        }


@dataclass(frozen=True)
class LaunchFacts:
    """What is known about a launch beside its turns."""

    sides: tuple[str, ...]
    calls_a_turn: int
    pinned: bool
    cpus: tuple[int, ...]
    start_seconds: float
    deaths: dict[str, Death]


@dataclass(frozen=True)
class Launch:
    """The turns of one launch.

    seconds: shape (rounds, sides), wall time of a turn over its nominal calls.
    cpu_share: shape (rounds, sides), processor time over wall time.
    calls: side -> nanoseconds of every single call, shape (rounds, calls).
    """

    facts: LaunchFacts
    seconds: Array
    cpu_share: Array
    calls: dict[str, Array]

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that lived to its end, in the order of the columns."""
        return self.facts.sides

    @property
    def deaths(self) -> dict[str, Death]:
        """The sides that did not, and why."""
        return self.facts.deaths

    def log_ratios(self, side: str, reference: str) -> Array:
        """Log of side over reference, a value a round."""
        a, b = self.sides.index(side), self.sides.index(reference)
        return np.log(self.seconds[:, a] / self.seconds[:, b])

    def disturbed(self, side: str) -> Array:
        """Which turns of a side were disturbed from outside."""
        return self.cpu_share[:, self.sides.index(side)] < _UNDISTURBED_SHARE

    def disturbed_share(self) -> float:
        """The share of all turns that were disturbed."""
        return float(np.mean(self.cpu_share < _UNDISTURBED_SHARE)) if self.cpu_share.size else 0.0

    def arrays(self) -> dict[str, Array]:
        """Its numbers under names that a file can have."""
        calls = {f"calls_{index}": self.calls[side] for index, side in enumerate(self.sides)}
        return {"seconds": self.seconds, "cpu_share": self.cpu_share, **calls}

    @staticmethod
    def restore(facts: LaunchFacts, arrays: Mapping[str, Array]) -> Launch:
        """The launch that `facts` and `arrays` came from."""
        calls = {side: arrays[f"calls_{index}"] for index, side in enumerate(facts.sides)}
        return Launch(facts, arrays["seconds"], arrays["cpu_share"], calls)


class SideError(Exception):
    """A side that could not be opened or stopped answering."""

    def __init__(self, death: Death) -> None:
        self.death = death
        super().__init__(death.reason)


class Worker:
    """A live worker process for one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.child = Child("leanmark.measure.worker", threads=side.target.threads, paths=side.paths)
        self.cold_start: ColdStart | None = None

    def begin_open(self) -> None:
        """Ask the worker to load its artifact; `finish_open` waits for it."""
        try:
            self.child.channel.send(self.side.opening())
        except ChannelClosed:
            raise SideError(self.child.death()) from None

    def finish_open(self) -> None:
        """Wait until the artifact is loaded and has answered once."""
        answer = self._receive(OPEN_TIMEOUT_SECONDS)
        if answer["protocol"] != PROTOCOL_VERSION:
            raise SideError(Death(Status.FAILED, f"it speaks version {answer['protocol']} of the worker protocol"))
        peak = {"rss_peak_bytes": answer["peak"]}
        self.cold_start = from_json(ColdStart, {**answer["cold_start"], **peak})

    def ask(self, timeout: float, **message: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises SideError."""
        try:
            self.child.channel.send(message)
        except ChannelClosed:
            raise SideError(self.child.death()) from None
        return self._receive(timeout)

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            answer = self.child.channel.receive(timeout)
        except ChannelClosed:
            raise SideError(self.child.death()) from None
        except TimeoutError:
            raise SideError(Death(Status.TIMEOUT, f"it did not answer within {timeout:g} s")) from None
        if "error" in answer:
            text = str(answer["error"])
            memory = "can't allocate memory" in text or text.startswith("MemoryError")
            raise SideError(Death(Status.OUT_OF_MEMORY if memory else Status.FAILED, text[:500]))
        return answer

    def close(self) -> None:
        self.child.kill()


def available_cpus() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def open_workers(sides: Sequence[Side], deaths: dict[str, Death]) -> Generator[list[Worker]]:
    """Workers for all sides that can be opened; the others' deaths are recorded."""
    workers: list[Worker] = []
    alive: list[Worker] = []
    try:
        for side in sides:
            workers.append(Worker(side))
        for action in (Worker.begin_open, Worker.finish_open):
            alive = []
            for worker in workers:
                if worker.side.name in deaths:
                    continue
                try:
                    action(worker)
                    alive.append(worker)
                except SideError as error:
                    deaths[worker.side.name] = error.death
        yield alive
    finally:
        for worker in workers:
            worker.close()


def run_launch(
    sides: Sequence[Side],
    *,
    number: int,
    seconds: float,
    cpus: Sequence[int],
    seed: int,
    calls_a_turn: int | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Launch:
    """One launch: fresh workers for all sides, then rounds of turns for `seconds` a side.

    The first side is the reference; turns are as many calls as it makes in about
    4 ms, or what `calls_a_turn` says. A side that dies is left out and reported;
    if it is the reference, the launch has no turns.
    """
    deaths: dict[str, Death] = {}
    begun = time.perf_counter()
    threads = max(side.target.threads for side in sides)
    chosen = tuple(cpus[(number + offset) % len(cpus)] for offset in range(min(threads, len(cpus))))
    with open_workers(sides, deaths) as workers, _out_of_the_way(cpus, chosen):
        start_seconds = time.perf_counter() - begun
        table = _Table(workers, deaths)
        pinned = table.pin(chosen)
        guess = table.warm_up()
        calls = calls_a_turn or turn_length(sides, guess.get(sides[0].name, TURN_SECONDS))
        table.play(calls, seconds, guess, np.random.default_rng([seed, number]), progress)
        return Launch(
            LaunchFacts(tuple(table.kept()), calls, pinned, chosen, start_seconds, deaths),
            seconds=table.column("wall"),
            cpu_share=table.column("cpu"),
            calls={name: np.stack(table.calls[name]) for name in table.kept()},
        )


def turn_length(sides: Sequence[Side], seconds_a_call: float) -> int:
    """Calls in a turn: about 4 ms of the reference, and whole periods of a slowdown."""
    period = math.lcm(*(side.extra_call_every or 1 for side in sides))
    return max(1, math.ceil(TURN_SECONDS / max(seconds_a_call, 1e-9) / period)) * period


class _Table:
    """The sides of one launch around a table, taking turns."""

    def __init__(self, workers: list[Worker], deaths: dict[str, Death]) -> None:
        self.workers = {worker.side.name: worker for worker in workers}
        self.deaths = deaths
        self.position = 0
        self.rounds: list[dict[str, dict[str, float]]] = []
        self.calls: dict[str, list[Array]] = {name: [] for name in self.workers}

    def kept(self) -> list[str]:
        """Sides that lived to the end and have turns."""
        return [name for name in self.workers if self.rounds and name not in self.deaths]

    def column(self, key: str) -> Array:
        return np.array([[turn[name][key] for name in self.kept()] for turn in self.rounds], dtype=np.float64)

    def pin(self, cpus: tuple[int, ...]) -> bool:
        answers = [self._ask(name, 10.0, op="pin", cpus=list(cpus)) for name in list(self.workers)]
        return all(answer is not None and answer["pinned"] for answer in answers)

    def warm_up(self) -> dict[str, float]:
        """Turns until a side's trend is flat, within a limit; returns seconds a call."""
        guess: dict[str, float] = {}
        for name in list(self.workers):
            before, calls = math.inf, 3
            for _ in range(_WARM_LIMIT):
                turn = self._turn(name, calls, 60.0)
                if turn is None:
                    break
                now = float(np.median(turn[1])) * 1e-9
                guess[name] = now
                if calls * now >= _WARM_SECONDS / 2 and abs(now / before - 1) < _WARM_TREND:
                    break
                before, calls = now, max(1, min(100_000, math.ceil(_WARM_SECONDS / max(now, 1e-9))))
        return guess

    def play(
        self,
        calls: int,
        seconds: float,
        guess: dict[str, float],
        random: np.random.Generator,
        progress: Callable[[float], None],
    ) -> None:
        """Rounds in random order until the time is used up, at least a few."""
        alive = [name for name in self.workers if name not in self.deaths]
        round_seconds = sum(guess.get(name, 0.0) for name in alive) * (calls + 1)
        rounds = max(MINIMUM_ROUNDS, round(seconds * len(alive) / max(round_seconds, 1e-9)))
        limit = 30.0 + 20 * round_seconds
        for number in range(rounds):
            turns: dict[str, dict[str, float]] = {}
            for index in random.permutation(len(alive)):
                name = alive[index]
                if name in self.deaths:
                    continue
                turn = self._turn(name, calls, limit)
                if turn is not None:
                    header, singles = turn
                    wall = header["wall_ns"] * 1e-9
                    turns[name] = {"wall": wall / calls, "cpu": header["cpu_ns"] * 1e-9 / wall}
                    self.calls[name].append(singles)
            self.rounds.append(turns)
            self.position += calls
            progress((number + 1) / rounds)

    def _turn(self, name: str, calls: int, limit: float) -> tuple[dict[str, Any], Array] | None:
        answer = self._ask(name, limit, op="turn", calls=calls, start=self.position)
        return None if answer is None else (answer, answer["calls_ns"])

    def _ask(self, name: str, timeout: float, **message: Any) -> dict[str, Any] | None:
        try:
            return self.workers[name].ask(timeout, **message)
        except SideError as error:
            self.deaths[name] = error.death
            return None


@contextmanager
def _out_of_the_way(cpus: Sequence[int], chosen: Sequence[int]) -> Generator[None]:
    """Keep the parent off the measured processors while it waits, where it can be."""
    others = set(cpus) - set(chosen)
    if not others or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, others)
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(launches: Sequence[Launch], side: str, reference: str) -> stats.LogRatio:
    """The log ratio of side over reference. Raises ValueError with too few launches."""
    both = [launch for launch in launches if side in launch.sides and reference in launch.sides]
    return stats.paired_log_ratio([launch.log_ratios(side, reference) for launch in both])


def timing(launches: Sequence[Launch], side: str) -> Timing | None:
    """Latency of one side alone over all its launches."""
    own = [launch for launch in launches if side in launch.sides]
    if not own:
        return None
    calls = np.concatenate([launch.calls[side].reshape(-1) for launch in own]).astype(np.float64) * 1e-9
    turns = np.concatenate([launch.seconds[:, launch.sides.index(side)] for launch in own])
    shares = np.concatenate([launch.cpu_share[:, launch.sides.index(side)] for launch in own])
    return Timing(
        calls=int(calls.size),
        launches=len(own),
        minimum=float(calls.min()),
        median=float(np.median(calls)),
        p90=stats.percentile(calls, 0.90),
        p95=stats.percentile(calls, 0.95),
        p99=stats.percentile(calls, 0.99),
        calls_per_second=1.0 / float(np.median(turns)),
        cpu_per_wall=float(np.median(shares)),
        disturbed_turns=float(np.mean(np.concatenate([launch.disturbed(side) for launch in own]))),
    )
