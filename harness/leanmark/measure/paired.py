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
from typing import Any

from leanmark import stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.measure.sides import Opened, Side, SideError, Worker, open_workers
from leanmark.processes import Death
from leanmark.results import Timing

TURN_SECONDS = 0.001
MINIMUM_ROUNDS = 5
# A slowdown that has turns of its own gets the time of so many cells: long turns are
# further apart, and a run that cannot see its own control is worth little.
_CONTROL_SHARE = 5
_WARM_SECONDS = 0.01
_WARM_TREND = 0.05
_WARM_LIMIT = 6
# A turn is disturbed when less than this share of its wall time was computing.
UNDISTURBED_SHARE = 0.9


@dataclass(frozen=True)
class Group:
    """Sides that meet each other, and the calls that each of them makes in a turn."""

    sides: tuple[str, ...]
    calls_a_turn: int


@dataclass(frozen=True)
class Turns:
    """The turns of a group.

    seconds: shape (rounds, sides), wall time of a turn over its nominal calls.
    cpu_share: shape (rounds, sides), processor time over wall time.
    calls: shape (sides, rounds, calls), nanoseconds of every single call.
    """

    group: Group
    seconds: Array
    cpu_share: Array
    calls: Array


@dataclass(frozen=True)
class LaunchFacts:
    """What is known about a launch beside its turns."""

    groups: tuple[Group, ...]
    pinned: bool
    cpus: tuple[int, ...]
    start_seconds: float
    deaths: dict[str, Death]


@dataclass(frozen=True)
class Launch:
    """One launch: its facts, and the turns of each group."""

    facts: LaunchFacts
    turns: tuple[Turns, ...]

    @property
    def deaths(self) -> dict[str, Death]:
        """The sides that did not live to its end, and why."""
        return self.facts.deaths

    def of(self, *sides: str) -> tuple[Turns, list[int]] | None:
        """The first group where all of these sides met, and their columns; None if there is none."""
        for turns in self.turns:
            if set(sides) <= set(turns.group.sides):
                return turns, [turns.group.sides.index(side) for side in sides]
        return None

    def log_ratios(self, side: str, reference: str) -> Array | None:
        """Log of side over reference, a value a round; None if they never met."""
        found = self.of(side, reference)
        if found is None:
            return None
        turns, (a, b) = found
        return np.log(turns.seconds[:, a] / turns.seconds[:, b])

    def disturbed_share(self) -> float:
        """The share of all turns that were disturbed from outside."""
        shares = [turns.cpu_share.reshape(-1) for turns in self.turns]
        return float(np.mean(np.concatenate(shares) < UNDISTURBED_SHARE)) if shares else 0.0

    def arrays(self) -> dict[str, Array]:
        """Its numbers under names that a file can have."""
        return {
            f"{index}_{name}": getattr(turns, name)
            for index, turns in enumerate(self.turns)
            for name in ("seconds", "cpu_share", "calls")
        }

    @staticmethod
    def restore(facts: LaunchFacts, arrays: Mapping[str, Array]) -> Launch:
        """The launch that `facts` and `arrays` came from. Raises KeyError or ValueError if they do not fit."""
        turns = tuple(
            Turns(group, arrays[f"{index}_seconds"], arrays[f"{index}_cpu_share"], arrays[f"{index}_calls"])
            for index, group in enumerate(facts.groups)
        )
        for item in turns:
            rounds, sides = len(item.seconds), len(item.group.sides)
            shapes = (item.seconds.shape, item.cpu_share.shape, item.calls.shape[:2])
            if shapes != ((rounds, sides), (rounds, sides), (sides, rounds)) or item.calls.ndim != 3:
                raise ValueError("an array has another shape than its launch")
            if not all(np.isfinite(array).all() and (array >= 0).all() for array in (item.seconds, item.cpu_share)):
                raise ValueError("a time is not finite")
        return Launch(facts, turns)


def run_launch(
    sides: Sequence[Side],
    *,
    number: int,
    seconds: float,
    cpus: Sequence[int],
    seed: int,
    before: Launch | None = None,
    opened: Opened = lambda *_: None,
    progress: Callable[[float], None] = lambda _: None,
) -> Launch:
    """One launch: fresh workers for all sides, then rounds of turns for `seconds` a side.

    The first side is the reference. Turns are as long as those of `before`, a launch of
    the same sides; without one, about 1 ms of the reference. `opened` may ask something
    of each worker before anything is timed. A side that dies is left out and reported;
    if it is the reference, the launch has no turns.
    """
    deaths: dict[str, Death] = {}
    begun = time.perf_counter()
    threads = max(side.target.threads for side in sides)
    chosen = tuple(cpus[(number + offset) % len(cpus)] for offset in range(min(threads, len(cpus))))
    with open_workers(sides, deaths, opened) as workers, _out_of_the_way(cpus, chosen):
        start_seconds = time.perf_counter() - begun
        table = _Table(workers, deaths)
        pinned = table.pin(chosen)
        guess = table.warm_up()
        known = before.facts.groups if before is not None else ()
        groups = known or make_groups(sides, guess.get(sides[0].name, TURN_SECONDS))
        turns = table.play(groups, seconds, guess, np.random.default_rng([seed, number]), progress)
        kept = tuple(item.group for item in turns)
        return Launch(LaunchFacts(kept, pinned, chosen, start_seconds, deaths), turns)


def make_groups(sides: Sequence[Side], seconds_a_call: float) -> tuple[Group, ...]:
    """Turns of about 1 ms for all; a slowdown meets the reference in turns of whole periods.

    Short turns follow each other so closely that what disturbs one disturbs its pair
    too. A slowdown that makes one call more in every n needs n calls to show; where
    those fit into a turn, it sits with the others.
    """
    calls = max(1, math.ceil(TURN_SECONDS / max(seconds_a_call, 1e-9)))
    fitting = math.lcm(
        *(side.extra_call_every for side in sides if side.extra_call_every and side.extra_call_every <= calls)
    )
    calls = math.ceil(calls / fitting) * fitting
    main = [side.name for side in sides if not side.extra_call_every or calls % side.extra_call_every == 0]
    longer: dict[int, list[str]] = {}
    for side in sides:
        if side.extra_call_every and side.name not in main:
            longer.setdefault(side.extra_call_every, []).append(side.name)
    reference = sides[0].name
    extra = (Group((reference, *names), period * math.ceil(calls / period)) for period, names in longer.items())
    return (Group(tuple(main), calls), *extra)


@dataclass(frozen=True)
class _Turn:
    seconds: float  # a nominal call
    cpu_share: float
    calls: Array


class _Table:
    """The sides of one launch around a table, taking turns."""

    def __init__(self, workers: list[Worker], deaths: dict[str, Death]) -> None:
        self.workers = {worker.side.name: worker for worker in workers}
        self.deaths = deaths
        self.position = 0

    def pin(self, cpus: tuple[int, ...]) -> bool:
        answers = [self._ask(name, 10.0, op="pin", cpus=list(cpus)) for name in list(self.workers)]
        return all(answer is not None and answer["pinned"] for answer in answers)

    def warm_up(self) -> dict[str, float]:
        """Turns until a side's trend is flat, within a limit; returns seconds a call."""
        guess: dict[str, float] = {}
        for name in self.workers:
            if name in self.deaths:
                continue
            before, calls = math.inf, 3
            for _ in range(_WARM_LIMIT):
                turn = self._ask(name, 60.0, op="turn", calls=calls, start=0)
                if turn is None:
                    break
                now = float(np.median(turn["calls_ns"])) * 1e-9
                guess[name] = now
                if calls * now >= _WARM_SECONDS / 2 and abs(now / before - 1) < _WARM_TREND:
                    break
                before, calls = now, max(1, min(100_000, math.ceil(_WARM_SECONDS / max(now, 1e-9))))
        return guess

    def play(
        self,
        groups: Sequence[Group],
        seconds: float,
        guess: dict[str, float],
        random: np.random.Generator,
        progress: Callable[[float], None],
    ) -> tuple[Turns, ...]:
        """Rounds of every group, evenly mixed, until each side had its time; at least a few."""
        schedule: list[tuple[float, int]] = []
        limits: list[float] = []
        for index, group in enumerate(groups):
            if group.sides[0] in self.deaths or group.sides[0] not in guess:
                limits.append(0.0)  # without its reference a group has nothing to compare
                continue
            round_seconds = sum(guess.get(name, 0.0) for name in group.sides) * (group.calls_a_turn + 1)
            own_seconds = seconds * len(group.sides) * (1 if index == 0 else _CONTROL_SHARE)
            rounds = max(MINIMUM_ROUNDS, round(own_seconds / max(round_seconds, 1e-9)))
            schedule += [((number + 0.5) / rounds, index) for number in range(rounds)]
            limits.append(30.0 + 20 * round_seconds)
        played: list[list[dict[str, _Turn]]] = [[] for _ in groups]
        for number, (_, index) in enumerate(sorted(schedule)):
            played[index].append(self._round(groups[index], limits[index], random))
            if number % 10 == 0:
                progress(number / len(schedule))
        found = (self._gather(group, rounds) for group, rounds in zip(groups, played, strict=True))
        return tuple(turns for turns in found if turns is not None)

    def _round(self, group: Group, limit: float, random: np.random.Generator) -> dict[str, _Turn]:
        """One turn of every side that lives, in random order."""
        turns: dict[str, _Turn] = {}
        for index in random.permutation(len(group.sides)):
            name = group.sides[index]
            answer = None
            if name in self.workers and name not in self.deaths:
                answer = self._ask(name, limit, op="turn", calls=group.calls_a_turn, start=self.position)
            if answer is not None:
                wall = answer["wall_ns"] * 1e-9
                share = answer["cpu_ns"] * 1e-9 / wall
                turns[name] = _Turn(wall / group.calls_a_turn, share, answer["calls_ns"])
        self.position += group.calls_a_turn
        return turns

    def _gather(self, group: Group, rounds: Sequence[Mapping[str, _Turn]]) -> Turns | None:
        """The turns of the sides that lived to the end; None if none did."""
        kept = tuple(name for name in group.sides if name in self.workers and name not in self.deaths)
        if not kept or not rounds:
            return None
        return Turns(
            Group(kept, group.calls_a_turn),
            np.array([[turns[name].seconds for name in kept] for turns in rounds]),
            np.array([[turns[name].cpu_share for name in kept] for turns in rounds]),
            np.array([[turns[name].calls for turns in rounds] for name in kept]),
        )

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
    met = (launch.log_ratios(side, reference) for launch in launches)
    return stats.paired_log_ratio([ratios for ratios in met if ratios is not None])


def timing(launches: Sequence[Launch], side: str) -> Timing | None:
    """Latency of one side alone over all its launches."""
    own = [(turns, columns[0]) for turns, columns in filter(None, (launch.of(side) for launch in launches))]
    if not own:
        return None
    calls = np.concatenate([turns.calls[column].reshape(-1) for turns, column in own]) * 1e-9
    shares = np.concatenate([turns.cpu_share[:, column] for turns, column in own])
    return Timing(
        calls=int(calls.size),
        launches=len(own),
        minimum=float(calls.min()),
        median=float(np.median(calls)),
        p90=stats.percentile(calls, 0.90),
        p95=stats.percentile(calls, 0.95),
        p99=stats.percentile(calls, 0.99),
        calls_per_second=1.0 / float(np.median(turn_seconds(launches, side))),
        cpu_per_wall=float(np.median(shares)),
        disturbed_turns=float(np.mean(shares < UNDISTURBED_SHARE)),
    )


def turn_seconds(launches: Sequence[Launch], side: str) -> Array:
    """Seconds a call of every turn of a side."""
    own = [found for launch in launches if (found := launch.of(side)) is not None]
    return np.concatenate([turns.seconds[:, columns[0]] for turns, columns in own]) if own else np.empty(0)
