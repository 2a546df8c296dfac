"""Published figures, and what a run says of them. Pure.

A suite may name what a paper reports for a recipe. A run then shows each figure beside
its own, and says whether it was reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from leanmark import hits, scoring, stats
from leanmark.reported import Claim
from leanmark.results import FRACTIONS, Interval, Result, Role, Run, Status
from leanmark.rules import fits

Finding = Literal["reached", "missed", "undecided", "no figure"]
_MEASURED = (Status.OK, Status.NOISY)
# What a cell is compared with may be ineffective: it runs, though a later step undid one of its techniques.
_COMPARABLE = (*_MEASURED, Status.INEFFECTIVE)
Estimator = Callable[[Result, Result], Interval | None]


@dataclass(frozen=True)
class Beside:
    """One published figure beside the run's own; `here` is None where the run has none, and `reason` says why."""

    cell: str
    source: str
    figure: str
    than: str  # the recipe that it was compared with; empty for the reference
    paper: float
    here: Interval | None
    finding: Finding
    reason: str = ""


def beside(run: Run) -> list[Beside]:
    """Every claim of the run's suite on every cell that it is about."""
    others = {(item.cell.block, item.cell.recipe): item for item in run.results}
    references = {item.cell.block: item for item in run.results if item.cell.role is Role.REFERENCE}
    return [
        found
        for claim in run.claims
        for result in run.results
        if fits(result.cell.id, claim.cell)
        for found in _compare(
            claim,
            result,
            others.get((result.cell.block, claim.than)) if claim.than else references.get(result.cell.block),
        )
    ]


def _compare(claim: Claim, result: Result, other: Result | None) -> Iterator[Beside]:
    for figure, paper in claim.figures.items():
        here, reason = None, ""
        if result.status not in _MEASURED:
            reason = f"{result.status.value}: {result.reason}"
        elif other is not None and other.status not in _COMPARABLE:
            reason = f"{other.cell.recipe}: {other.status.value}: {other.reason}"
        elif figure not in FIGURES:  # a document may come from a newer leanmark, or from anybody
            reason = "this leanmark does not know the figure"
        elif other is not None:
            here = FIGURES[figure](result, other)
        finding: Finding = "no figure" if here is None else _finding(figure, paper, here)
        reason = reason or ("it was not measured, or is no fraction" if here is None else "")
        yield Beside(result.cell.id, claim.source, figure, claim.than, paper, here, finding, reason)


def _finding(figure: str, paper: float, here: Interval) -> Finding:
    if figure in SMALLER_IS_BETTER:
        return "reached" if here.high <= paper else "missed" if here.low > paper else "undecided"
    return "reached" if here.low >= paper else "missed" if here.high < paper else "undecided"


# --- figures -----------------------------------------------------------------------


def _factor(of: Callable[[Result], float | None], before: Callable[[Result], float | None]) -> Estimator:
    """How many times less a variant has of something that is counted."""

    def estimate(result: Result, reference: Result) -> Interval | None:
        own, other = of(result), before(reference)
        if not own or not other:
            return None
        value = other / own
        return Interval(value, value, value, 1.0, 0, "counted")

    return estimate


def _nonzero(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.nonzero_parameters


def _weights_before(other: Result) -> float | None:
    """Of the reference all that it has, as papers count it; of another recipe what is not zero."""
    if other.footprint is None or other.cell.role is not Role.REFERENCE:
        return _nonzero(other)
    return other.footprint.parameters


def _size(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.size_bytes


def _macs(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.macs


def _speed(result: Result, other: Result) -> Interval | None:
    ratio = result.against_reference
    if other.cell.role is not Role.REFERENCE:
        ratio = _quotient(ratio, other.against_reference)
    if ratio is None or not 0 < ratio.low <= ratio.value <= ratio.high < math.inf:
        return None
    return Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, ratio.level, ratio.n, ratio.method)


def _quotient(one: Interval | None, other: Interval | None) -> Interval | None:
    """Of two ratios over the same reference; what its noise has in both is counted twice, so it is no narrower."""
    if one is None or other is None:
        return None
    try:
        return stats.log_ratio(one).over(stats.log_ratio(other)).interval(one.level)
    except ValueError:
        return None


def _speed_by_macs(result: Result, other: Result) -> Interval | None:
    """How many times faster, as a share of how many times fewer multiply-accumulates."""
    faster, fewer = _speed(result, other), FIGURES["fewer_macs"](result, other)
    if faster is None or fewer is None:
        return None
    value, low, high = (bound / fewer.value for bound in (faster.value, faster.low, faster.high))
    return Interval(value, low, high, faster.level, faster.n, faster.method)


def _error(result: Result, _: Result) -> Interval | None:
    if result.quality is None or result.quality.metric not in FRACTIONS:
        return None
    score = result.quality.score
    return Interval(1 - score.value, 1 - score.high, 1 - score.low, score.level, score.n, score.method)


def _gain(result: Result, other: Result) -> Interval | None:
    """Score minus the other's, on the same examples."""
    own, theirs = result.quality, other.quality
    if own is None or own.metric not in FRACTIONS:
        return None
    if other.cell.role is Role.REFERENCE:
        return own.difference
    if theirs is None or (own.metric, own.examples, own.scored_by) != (
        theirs.metric,
        theirs.examples,
        theirs.scored_by,
    ):
        return None
    try:
        return scoring.paired_difference(hits.unpack_all(own.hits), hits.unpack_all(theirs.hits))
    except (ValueError, IndexError):  # of a document that holds none, or was damaged
        return None


def _loss(result: Result, other: Result) -> Interval | None:
    """The other's score minus the result's: over seeds, the test examples fixed; of one seed over the examples."""
    gain = _gain(result, other)
    if gain is None:
        return None
    own, theirs = (() if item.quality is None else item.quality.by_seed for item in (result, other))
    gain = scoring.difference_over_seeds(own, theirs, gain.level) or gain
    return Interval(-gain.value, -gain.high, -gain.low, gain.level, gain.n, gain.method)


# Each figure that a suite can name: how a run has it, of a variant and what it is compared with on the same runtime.
FIGURES: Mapping[str, Estimator] = {
    "fewer_weights": _factor(_nonzero, _weights_before),
    "fewer_macs": _factor(_macs, _macs),
    "smaller": _factor(_size, _size),
    "faster": _speed,
    "error": _error,
    "no_loss": _loss,
    "better": _gain,
    "follows_macs": _speed_by_macs,
}
# Of these a run reaches the paper's figure by staying below it. `no_loss` is the largest loss that counts as none.
SMALLER_IS_BETTER = frozenset({"error", "no_loss"})
