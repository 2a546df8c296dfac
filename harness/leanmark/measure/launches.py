"""What a launch leaves behind: its turns, and what they say about a side and about a pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from leanmark import stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.processes import Death
from leanmark.results import Timing

# A turn is disturbed when less than this share of its wall time was computing.
UNDISTURBED_SHARE = 0.9


@dataclass(frozen=True)
class LaunchFacts:
    """What is known about a launch beside its turns."""

    sides: tuple[str, ...]  # those that lived to the end, in the order of the columns
    calls_a_turn: int
    untimed: int  # calls before each turn
    pinned: bool
    overlapped: bool  # whether others were starting on another core meanwhile
    cpus: tuple[int, ...]
    start_seconds: float  # waiting for workers to start
    wall_seconds: float
    steal_share: float | None  # of all processors, what the host gave to others meanwhile
    busy: tuple[float, ...]  # of each side: processor time over wall time of a turn that nothing disturbed
    deaths: dict[str, Death]
    waiting_share: float | None = None  # of its wall time, some task of the machine waited for a processor (PSI)
    clock_hertz: float | None = None  # of the slowest of its processors, at its end


@dataclass(frozen=True)
class Launch:
    """One launch: its facts, the turns of its sides, and a stretch of calls in each copy that a side has to itself.

    seconds: shape (rounds, sides), wall time of a turn over its calls.
    cpu_share: shape (rounds, sides), processor time over wall time.
    copies: shape (rounds,), the copy that played a round.
    solo: shape (sides, copies, calls), nanoseconds of each call in a row; 0 where a side made fewer.
    solo_share: shape (sides, copies), processor time over wall time.
    """

    facts: LaunchFacts
    seconds: Array
    cpu_share: Array
    copies: Array
    solo: Array
    solo_share: Array

    @property
    def deaths(self) -> dict[str, Death]:
        """The sides that did not live to its end, and why."""
        return self.facts.deaths

    def column(self, side: str) -> int | None:
        return self.facts.sides.index(side) if side in self.facts.sides else None

    @cached_property
    def undisturbed(self) -> Array:
        """Which turns nothing disturbed from outside; shape (rounds, sides)."""
        return self.cpu_share >= UNDISTURBED_SHARE * np.array(self.facts.busy)

    def disturbed(self, column: int) -> Array:
        """Which turns of a side were disturbed; shape (rounds,)."""
        return ~self.undisturbed[:, column]

    def pairs(self, side: str, reference: str) -> Array | None:
        """Log ratios of close turns of side over reference; None if they never met."""
        pairs, _ = _pairs([self], side, reference)
        return pairs if pairs.size else None

    def arrays(self) -> dict[str, Array]:
        """Its numbers under names that a file can have."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @staticmethod
    def restore(facts: LaunchFacts, arrays: Mapping[str, Array]) -> Launch:
        """The launch that `facts` and `arrays` came from. Raises KeyError or ValueError if they do not fit."""
        launch = Launch(facts, *(arrays[name] for name in _ARRAYS))
        rounds, sides = len(launch.seconds), len(facts.sides)
        shapes = (launch.seconds.shape, launch.cpu_share.shape, launch.copies.shape, launch.solo.shape[:2])
        wanted = ((rounds, sides), (rounds, sides), (rounds,), launch.solo_share.shape)
        if shapes != wanted or launch.solo.ndim != 3 or len(launch.solo) != sides or len(facts.busy) != sides:
            raise ValueError("an array has another shape than its launch")
        if not all(np.isfinite(array).all() and (array >= 0).all() for array in (launch.seconds, launch.cpu_share)):
            raise ValueError("a time is not finite")
        return launch


_ARRAYS = ("seconds", "cpu_share", "copies", "solo", "solo_share")


def compare(launches: Sequence[Launch], side: str, reference: str) -> stats.LogRatio:
    """The log ratio of side over reference. Raises ValueError with too few launches."""
    return stats.balanced(*_pairs(launches, side, reference))


def _pairs(launches: Sequence[Launch], side: str, reference: str) -> tuple[Array, Array]:
    """The pairs of all launches in which two sides met, one launch after the other, and how many each has.

    Of a launch count the undisturbed turns of both sides, or, where a side has few of them, all turns of both.
    """
    met = [
        (launch, [a, b])
        for launch in launches
        if (a := launch.column(side)) is not None and (b := launch.column(reference)) is not None and len(launch.copies)
    ]
    if not met:
        return np.empty(0), np.empty(0, dtype=np.int64)
    rounds = np.array([len(launch.copies) for launch, _ in met])
    starts = np.cumsum(rounds) - rounds
    seconds, good = (
        np.concatenate([getattr(launch, name).take(both, axis=1) for launch, both in met])
        for name in ("seconds", "undisturbed")
    )
    few = np.add.reduceat(good, starts, axis=0, dtype=np.int64).min(axis=1) < rounds / 2
    good |= np.repeat(few, rounds)[:, None]
    copies = np.concatenate([launch.copies for launch, _ in met]) + np.repeat(starts, rounds)  # none is two launches'
    own, other = np.where(good, seconds, np.nan).T
    table = stats.pair_table(own, other, copies)
    valid = np.isfinite(table)
    sizes = np.add.reduceat(valid.sum(axis=1), starts)
    return table[valid], sizes[sizes > 0]


def timing(launches: Sequence[Launch], side: str) -> Timing | None:
    """Latency of one side alone, in stretches of calls in a row; None without any.

    Not from turns: the first calls after the other side's are slower than those in a row.
    """
    own = [(launch, column) for launch in launches if (column := launch.column(side)) is not None]
    stretches = solo_stretches(launches, side)
    if not stretches:
        return None
    calls = np.concatenate(stretches)
    return Timing(
        calls=int(calls.size),
        launches=len(own),
        minimum=float(calls.min()),
        median=float(np.median(calls)),
        p90=stats.percentile(calls, 0.90),
        p95=stats.percentile(calls, 0.95),
        p99=stats.percentile(calls, 0.99),
        calls_per_second=1.0 / float(np.median(stretch_seconds(launches, side))),
        cpu_per_wall=float(np.median(np.concatenate([launch.cpu_share[:, at] for launch, at in own]))),
        disturbed_turns=float(np.mean(np.concatenate([launch.disturbed(at) for launch, at in own]))),
    )


def stretch_seconds(launches: Sequence[Launch], side: str) -> list[float]:
    """Seconds a call of each stretch that a side had to itself."""
    return [float(stretch.mean()) for stretch in solo_stretches(launches, side)]


def solo_stretches(launches: Sequence[Launch], side: str) -> list[Array]:
    """Seconds of the calls of a side in each stretch; without disturbed stretches, unless most were."""
    found: list[tuple[bool, Array]] = []
    for launch in launches:
        column = launch.column(side)
        if column is None:
            continue
        for calls, share in zip(launch.solo[column], launch.solo_share[column], strict=True):
            if calls.any():
                found.append((bool(share >= UNDISTURBED_SHARE * launch.facts.busy[column]), calls[calls > 0] * 1e-9))
    good = [calls for undisturbed, calls in found if undisturbed]
    return good if 2 * len(good) >= len(found) else [calls for _, calls in found]
