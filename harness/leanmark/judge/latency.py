"""Verdicts on latency: by duels, in two stages, or by what two documents tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from leanmark import deciding, stats
from leanmark.judge.metrics import log_ratio, point
from leanmark.judge.opponents import Opponent, decision_level
from leanmark.judgement import Basis, Change, Unjudged
from leanmark.results import Comparison, Result, Role, Status, Verdict
from leanmark.rules import Limits, Rules


def suspects(comparisons: Mapping[str, Comparison], rules: Rules) -> dict[str, int | None]:
    """The cells whose screening did not show them unchanged, each with the launches that should decide.

    None where no number of launches would.
    """
    open_cells: dict[str, stats.LogRatio] = {}
    for cell, item in comparisons.items():
        tolerance = rules.of(cell).latency
        if item.screened is None or tolerance is None:
            continue
        ratio = log_ratio(item.screened, cell)
        if stats.judge(ratio, tolerance) is not Verdict.UNCHANGED:
            open_cells[cell] = ratio
    level = decision_level(len(open_cells))
    return {cell: _deciding_launches(ratio, rules.of(cell), level) for cell, ratio in open_cells.items()}


def duel(cell: str, comparison: Comparison, base: Opponent, limits: Limits) -> Change:
    """The screening where it shows no change; else the decision, and nothing but the decision."""
    change = Change(cell, "latency", Verdict.INCONCLUSIVE, Basis.DUEL, base.name, tolerance=limits.latency)
    shown = comparison.decided or comparison.screened
    if shown is None:
        wanted = "a run that measures it"
        return replace(change, reason=comparison.problem or "it was not measured", wanted=wanted)
    assert limits.latency is not None
    ratio = log_ratio(shown, cell)
    level = base.level if comparison.decided is not None else stats.VERDICT_LEVEL
    verdict = stats.judge(ratio, limits.latency, level)
    reason = comparison.problem
    if comparison.decided is None and verdict is not Verdict.UNCHANGED:
        verdict, reason = Verdict.INCONCLUSIVE, reason or "it was screened only, and nothing decided about it"
    wanted = ""
    if verdict is Verdict.INCONCLUSIVE:
        launches = _deciding_launches(ratio, limits, level)
        wanted = _budget(launches, comparison.seconds)
        reason = reason or "the interval reaches over a limit of the tolerance"
    taken = comparison.seconds * shown.n
    return replace(change, verdict=verdict, change=ratio.interval(level), reason=reason, wanted=wanted, seconds=taken)


def _budget(launches: int | None, seconds: float) -> str:
    if launches is None:
        return "no number of launches: it scatters too much"
    return f"{launches} launches, {launches * seconds:.3g} s of turns a side (gate: budget: {launches * seconds:.0f}s)"


def by_documents(head: Result, before: Result, base: Opponent, limits: Limits) -> Iterator[Change | Unjudged]:
    """By the ratio that each run has to its own reference; references by their times, on one class of machine."""
    cell = head.cell.id
    if head.cell.role is not Role.REFERENCE:
        if limits.latency_ratios is not None:
            if head.against_reference is None and base.beside:
                yield Unjudged(
                    cell, "latency", f"it was measured beside {base.beside} only, and has no ratio of its own"
                )
            else:
                yield _ratios(head, before, base, limits.latency_ratios)
    elif base.beside:
        yield Unjudged(cell, "latency", f"it was measured beside {base.beside} only")
    elif not base.same_class:
        yield Unjudged(cell, "latency", "its time on another class of machine says nothing; measure with --base")
    elif limits.latency_times is not None:
        yield _times(head, before, base, limits.latency_times)


def _ratios(head: Result, before: Result, base: Opponent, tolerance: float) -> Change:
    cell, after, then = head.cell.id, head.against_reference, before.against_reference
    change = Change(cell, "latency", Verdict.INCONCLUSIVE, Basis.RATIOS, base.name, tolerance=tolerance)
    if after is None or then is None:
        return replace(change, reason="a run has no ratio to its reference", wanted="a run of the whole suite")
    if Status.NOISY in (head.status, before.status):
        return replace(change, reason="other programs disturbed one of the runs", wanted="a run without them")
    ratio = log_ratio(after, cell).over(log_ratio(then, cell))
    verdict = stats.judge(ratio, tolerance)
    unsure = verdict is Verdict.INCONCLUSIVE
    return replace(
        change,
        verdict=verdict,
        change=ratio.interval(stats.VERDICT_LEVEL),
        reason="the two runs' intervals together reach over a limit of the tolerance" if unsure else "",
        wanted="a run beside the base (--base), or more launches in both runs" if unsure else "",
    )


def _times(head: Result, before: Result, base: Opponent, tolerance: float) -> Change:
    """Medians of two runs. Their intervals would not hold what passes between two runs, so the tolerance must."""
    change = Change(head.cell.id, "latency", Verdict.INCONCLUSIVE, Basis.TIMES, base.name, tolerance=tolerance)
    if head.timing is None or before.timing is None or head.timing.noisy or before.timing.noisy:
        return replace(change, reason="a run has no undisturbed time", wanted="a run without other programs")
    after, then = head.timing.median, before.timing.median
    if not (0 < then < math.inf and 0 < after < math.inf):
        return replace(change, reason="a run has no positive time", wanted="a run that measures it")
    return replace(point(change, then, after, tolerance), before=then, after=after)


def _deciding_launches(ratio: stats.LogRatio, limits: Limits, level: float) -> int | None:
    assert limits.latency is not None
    return deciding.launches(ratio, limits.latency, limits.must_see, level)
