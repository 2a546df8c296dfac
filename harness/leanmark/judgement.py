"""What the gate says: the verdict on every metric of every cell, and what that means for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from leanmark.errors import EXIT_INCONCLUSIVE, EXIT_NOTHING_TO_COMPARE, EXIT_OK, EXIT_REGRESSED
from leanmark.results import Interval, Verdict


class Basis(StrEnum):
    """What a verdict rests on."""

    DUEL = "duel"
    SAME = "nothing to measure"
    RATIOS = "in-run ratios"
    TIMES = "times of two runs"
    ANSWERS = "the same examples"
    SCORES = "two scores"
    EXACT = "exact"
    STARTS = "paired starts"
    STATUS = "status"


@dataclass(frozen=True)
class Change:
    """What became of one metric of one cell from base to head.

    change: head over base for latency, cold start, memory and sizes, head minus base for quality.
    wanted: what would decide, where the verdict is inconclusive.
    allowed: the reason why a finding does not fail the gate.
    scored: the name of the metric that quality is of. seconds: of turns a side that a duel took.
    """

    cell: str
    metric: str
    verdict: Verdict
    basis: Basis
    against: str
    before: float | None = None
    after: float | None = None
    change: Interval | None = None
    tolerance: float | None = None
    reason: str = ""
    wanted: str = ""
    allowed: str = ""
    scored: str = ""
    seconds: float | None = None

    @property
    def fails(self) -> bool:
        """Whether it is a finding that nobody allowed."""
        return self.verdict.is_finding and not self.allowed


@dataclass(frozen=True)
class Unjudged:
    """A cell, or a metric of one, about which nothing is said, and why. was_fine: it was judged before."""

    cell: str
    metric: str
    reason: str
    against: str = ""
    was_fine: bool = False


@dataclass(frozen=True)
class Judgement:
    """All verdicts on a run."""

    run: str
    suite: str
    against: tuple[str, ...]
    changes: tuple[Change, ...]
    unjudged: tuple[Unjudged, ...] = ()
    notes: tuple[str, ...] = ()
    commit: str = ""  # of the run, where it is known
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def findings(self) -> tuple[Change, ...]:
        """What fails the gate."""
        return tuple(change for change in self.changes if change.fails)

    @property
    def inconclusive(self) -> tuple[Change, ...]:
        """What could not be decided, and is not allowed."""
        return tuple(item for item in self.changes if item.verdict is Verdict.INCONCLUSIVE and not item.allowed)

    @property
    def exit_code(self) -> int:
        """1 with a finding, else 3 with something inconclusive, else 4 where nothing could be compared, else 0."""
        if self.findings:
            return EXIT_REGRESSED
        if self.inconclusive:
            return EXIT_INCONCLUSIVE
        compared = any(change.verdict is not Verdict.NEW for change in self.changes)
        return EXIT_OK if compared else EXIT_NOTHING_TO_COMPARE
