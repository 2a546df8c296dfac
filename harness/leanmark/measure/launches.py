"""What a launch leaves behind: its turns, and what they say about a side and about a pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    pinned: bool
    overlapped: bool  # whether others were starting on another core meanwhile
    cpus: tuple[int, ...]
    start_seconds: float  # waiting for workers to start
    wall_seconds: float
    deaths: dict[str, Death]


@dataclass(frozen=True)
class Launch:
    """One launch: its facts and its turns.

    seconds: shape (rounds, sides), wall time of a turn over its calls.
    cpu_share: shape (rounds, sides), processor time over wall time.
    copies: shape (rounds,), the copy that played a round.
    calls: shape (sides, rounds, calls), nanoseconds of every single call.
    """

    facts: LaunchFacts
    seconds: Array
    cpu_share: Array
    copies: Array
    calls: Array

    @property
    def deaths(self) -> dict[str, Death]:
        """The sides that did not live to its end, and why."""
        return self.facts.deaths

    def column(self, side: str) -> int | None:
        return self.facts.sides.index(side) if side in self.facts.sides else None

    def disturbed(self, column: int) -> Array:
        """Which turns of a side were disturbed from outside; shape (rounds,)."""
        return self.cpu_share[:, column] < UNDISTURBED_SHARE

    def counted(self, column: int) -> Array:
        """Which turns of a side count: the undisturbed ones, or all where those are fewer than half."""
        undisturbed = ~self.disturbed(column)
        return undisturbed if undisturbed.mean() >= 0.5 else np.ones_like(undisturbed)

    def pairs(self, side: str, reference: str) -> Array | None:
        """Log ratios of close turns of side over reference; None if they never met."""
        a, b = self.column(side), self.column(reference)
        if a is None or b is None:
            return None
        own, other = (np.where(self.counted(column), self.seconds[:, column], np.nan) for column in (a, b))
        pairs = stats.close_pairs(own, other, self.copies)
        return pairs if pairs.size else None

    def arrays(self) -> dict[str, Array]:
        """Its numbers under names that a file can have."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @staticmethod
    def restore(facts: LaunchFacts, arrays: Mapping[str, Array]) -> Launch:
        """The launch that `facts` and `arrays` came from. Raises KeyError or ValueError if they do not fit."""
        launch = Launch(facts, *(arrays[name] for name in _ARRAYS))
        rounds, sides = len(launch.seconds), len(facts.sides)
        shapes = (launch.seconds.shape, launch.cpu_share.shape, launch.copies.shape, launch.calls.shape[:2])
        if shapes != ((rounds, sides), (rounds, sides), (rounds,), (sides, rounds)) or launch.calls.ndim != 3:
            raise ValueError("an array has another shape than its launch")
        if not all(np.isfinite(array).all() and (array >= 0).all() for array in (launch.seconds, launch.cpu_share)):
            raise ValueError("a time is not finite")
        return launch


_ARRAYS = ("seconds", "cpu_share", "copies", "calls")


def compare(launches: Sequence[Launch], side: str, reference: str) -> stats.LogRatio:
    """The log ratio of side over reference. Raises ValueError with too few launches."""
    met = (launch.pairs(side, reference) for launch in launches)
    return stats.paired_log_ratio([pairs for pairs in met if pairs is not None])


def timing(launches: Sequence[Launch], side: str) -> Timing | None:
    """Latency of one side alone over all its launches, disturbed turns left out where enough others are."""
    own = [(launch, column) for launch in launches if (column := launch.column(side)) is not None]
    if not own:
        return None
    calls = np.concatenate([launch.calls[at][launch.counted(at)].reshape(-1) for launch, at in own]) * 1e-9
    return Timing(
        calls=int(calls.size),
        launches=len(own),
        minimum=float(calls.min()),
        median=float(np.median(calls)),
        p90=stats.percentile(calls, 0.90),
        p95=stats.percentile(calls, 0.95),
        p99=stats.percentile(calls, 0.99),
        calls_per_second=1.0 / float(np.median(turn_seconds(launches, side))),
        cpu_per_wall=float(np.median(np.concatenate([launch.cpu_share[:, at] for launch, at in own]))),
        disturbed_turns=float(np.mean(np.concatenate([launch.disturbed(at) for launch, at in own]))),
    )


def turn_seconds(launches: Sequence[Launch], side: str) -> Array:
    """Seconds a call of every turn of a side that counts."""
    own = [(launch, column) for launch in launches if (column := launch.column(side)) is not None]
    return np.concatenate([launch.seconds[launch.counted(at), at] for launch, at in own]) if own else np.empty(0)
