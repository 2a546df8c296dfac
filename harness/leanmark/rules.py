"""What the gate tolerates: limits by metric and cell, and what is allowed for a while."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase

CELL = "cell"  # the metric of a finding that is of a cell as a whole


@dataclass(frozen=True)
class Limits:
    """How much worse each metric of a cell may get; None for a metric that is not judged.

    All are fractions of the base's figure, but quality, which is a difference in the metric's
    own unit. Latency has three, one for each way to compare: `latency` for a duel, in which a
    change of `latency_seen` must be shown; `latency_ratios` for ratios to the reference, each
    from its own run; `latency_times` for times of two runs on machines of one class. On shared
    machines such times differ by 7 % by themselves (docs/methodology.md).
    """

    latency: float | None = 0.02
    latency_seen: float | None = None  # by default half as much again as the tolerance
    latency_ratios: float | None = 0.10
    latency_times: float | None = 0.25
    quality: float | None = 0.005
    size: float | None = 0.0
    compressed_size: float | None = None
    parameters: float | None = 0.0
    macs: float | None = 0.0
    cold_start: float | None = None
    memory: float | None = None

    @property
    def must_see(self) -> float:
        """The relative change of latency that a duel must be able to show to lie beyond the tolerance."""
        assert self.latency is not None
        return max(self.latency_seen or 1.5 * self.latency, self.latency + _LEAST_MARGIN)


# A change must be so much larger than the tolerance to be seen beyond it in a time that anyone has.
_LEAST_MARGIN = 0.001


@dataclass(frozen=True)
class Allowance:
    """A finding that does not fail the gate until a day, and why; without a metric, any of these cells'."""

    cell: str  # a pattern as of file names
    reason: str
    until: date  # the last day
    metric: str | None = None

    def covers(self, cell: str, metric: str) -> bool:
        """Whether a finding is one of those, whatever the day is."""
        return fits(cell, self.cell) and self.metric in (None, metric)


def fits(cell: str, pattern: str) -> bool:
    """Whether a cell is the one that is named, or one of those that a pattern as of file names fits."""
    return cell == pattern or fnmatchcase(cell, pattern)


@dataclass(frozen=True)
class Rules:
    """The limits of a suite, those of some of its cells by pattern, and its allowances."""

    limits: Limits = Limits()
    decide_seconds: float = 60.0  # of turns a side that deciding about one suspect may take
    cells: Mapping[str, Limits] = field(default_factory=dict[str, Limits])
    allow: tuple[Allowance, ...] = ()

    def of(self, cell: str) -> Limits:
        """The limits of one cell: of the last pattern that fits it, or the suite's."""
        fitting = [limits for pattern, limits in self.cells.items() if fits(cell, pattern)]
        return fitting[-1] if fitting else self.limits
