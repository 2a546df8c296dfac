"""Published figures, and what a run says of them. Pure.

A suite may name what a paper reports for a recipe. A run then shows each figure beside
its own, and says whether it was reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from leanmark.results import FRACTIONS, Claim, Interval, Result, Role, Run, Status
from leanmark.rules import fits

Finding = Literal["reached", "missed", "undecided", "no figure"]
Estimator = Callable[[Result, Result], Interval | None]


@dataclass(frozen=True)
class Beside:
    """One published figure beside the run's own; `here` is None where the run has none, and `reason` says why."""

    cell: str
    source: str
    figure: str
    paper: float
    here: Interval | None
    finding: Finding
    reason: str = ""


def beside(run: Run) -> list[Beside]:
    """Every claim of the run's suite on every cell that it is about."""
    references = {item.cell.block: item for item in run.results if item.cell.role is Role.REFERENCE}
    return [
        found
        for claim in run.claims
        for result in run.results
        if fits(result.cell.id, claim.cell)
        for found in _compare(claim, result, references.get(result.cell.block))
    ]


def _compare(claim: Claim, result: Result, reference: Result | None) -> Iterator[Beside]:
    for figure, paper in claim.figures.items():
        here, reason = None, ""
        if result.status not in (Status.OK, Status.NOISY):
            reason = f"{result.status.value}: {result.reason}"
        elif figure not in FIGURES:  # a document may come from a newer leanmark, or from anybody
            reason = "this leanmark does not know the figure"
        elif reference is not None:
            here = FIGURES[figure](result, reference)
        if here is None:
            reason = reason or "it was not measured, or is no fraction"
            yield Beside(result.cell.id, claim.source, figure, paper, None, "no figure", reason)
        else:
            yield Beside(result.cell.id, claim.source, figure, paper, here, _finding(figure, paper, here))


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


def _parameters(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.parameters


def _size(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.size_bytes


def _macs(result: Result) -> float | None:
    return None if result.footprint is None else result.footprint.macs


def _speed(result: Result, _: Result) -> Interval | None:
    ratio = result.against_reference
    if ratio is None or not 0 < ratio.low <= ratio.value <= ratio.high < math.inf:
        return None
    return Interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low, ratio.level, ratio.n, ratio.method)


def _error(result: Result, _: Result) -> Interval | None:
    if result.quality is None or result.quality.metric not in FRACTIONS:
        return None
    score = result.quality.score
    return Interval(1 - score.value, 1 - score.high, 1 - score.low, score.level, score.n, score.method)


def _loss(result: Result, _: Result) -> Interval | None:
    if result.quality is None or result.quality.difference is None or result.quality.metric not in FRACTIONS:
        return None
    moved = result.quality.difference
    return Interval(-moved.value, -moved.high, -moved.low, moved.level, moved.n, moved.method)


# Each figure that a suite can name: how a run has it, of the variant and its reference on the same runtime.
FIGURES: Mapping[str, Estimator] = {
    "fewer_weights": _factor(_nonzero, _parameters),
    "fewer_macs": _factor(_macs, _macs),
    "smaller": _factor(_size, _size),
    "faster": _speed,
    "error": _error,
    "no_loss": _loss,
}
# Of these a run reaches the paper's figure by staying below it. `no_loss` is the largest loss that counts as none.
SMALLER_IS_BETTER = frozenset({"error", "no_loss"})
