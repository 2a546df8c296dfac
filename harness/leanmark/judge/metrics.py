"""Verdicts on sizes, quality and starts. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from leanmark import deciding, hits, scoring, stats
from leanmark.errors import InvalidInput
from leanmark.judge.opponents import Opponent, decision_level
from leanmark.judgement import Basis, Change, Unjudged
from leanmark.results import Comparison, Interval, Quality, Result, Verdict


def exact(
    metric: str, head: Result, before: Result, base: Opponent, tolerance: float | None
) -> Iterator[Change | Unjudged]:
    """By two figures that have no noise."""
    if tolerance is None:
        return
    if before.footprint is None:
        if head.footprint is not None:
            yield Unjudged(head.cell.id, metric, f"{base.name} does not say it")
        return
    attribute = {"size": "size_bytes", "compressed_size": "compressed_bytes"}.get(metric, metric)
    after, then = getattr(head.footprint, attribute, None), getattr(before.footprint, attribute)
    if then is None:
        return
    if after is None:
        yield Change(
            head.cell.id, metric, Verdict.INCONCLUSIVE, Basis.EXACT, base.name, then, None, None, tolerance,
            "it was known and is no longer",
        )  # fmt: skip
        return
    change = Change(head.cell.id, metric, Verdict.UNCHANGED, Basis.EXACT, base.name, then, after, None, tolerance)
    if after == then or then <= 0:
        yield change if after == then else replace(change, verdict=Verdict.REGRESSED)
    else:
        yield point(change, then, after, tolerance)


def quality(
    head: Result,
    before: Result,
    comparison: Comparison,
    base: Opponent,
    tolerance: float,
    *,
    same_reference: bool = True,
) -> Iterator[Change | Unjudged]:
    """By the answers to the same examples where they are known, else by two scores.

    same_reference: whether the reference that `agreement` is with is one artifact, run by one code, in both.
    """
    after, then, cell = head.quality, before.quality, head.cell.id
    if after is None or then is None:
        if comparison.problem:
            yield Change(
                cell, "quality", Verdict.INCONCLUSIVE, Basis.ANSWERS, base.name, tolerance=tolerance,
                reason=comparison.problem, wanted="a base whose answers can be had",
            )  # fmt: skip
        elif after is not None:
            yield Unjudged(cell, "quality", f"{base.name} does not say it")
        return
    if after.metric != then.metric:
        yield Unjudged(cell, "quality", f"its metric is {after.metric} and was {then.metric}")
        return
    if comparison.quality is None and after.scored_by != then.scored_by and then.scored_by:
        if base.is_anchor:
            yield Unjudged(cell, "quality", f"the code of its metric, {after.metric}, has changed since")
            return
        yield Change(
            cell, "quality", Verdict.INCONCLUSIVE, Basis.SCORES, base.name, then.score.value, after.score.value,
            None, tolerance, f"the code of its metric, {after.metric}, has changed since", "a run beside it (--base)",
            scored=after.metric,
        )  # fmt: skip
        return
    if comparison.quality is None and _is_same(head, before, after, then):
        yield Change(
            cell, "quality", Verdict.UNCHANGED, Basis.ANSWERS, base.name, then.score.value, after.score.value,
            None, tolerance, "one artifact, run by one code on the same examples", scored=after.metric,
        )  # fmt: skip
        return
    if comparison.quality is None and after.metric == "agreement" and not same_reference:
        yield Change(
            cell, "quality", Verdict.INCONCLUSIVE, Basis.SCORES, base.name, then.score.value, after.score.value,
            None, tolerance, "it is agreement with a reference that has changed", "a run beside it (--base)",
            scored=after.metric,
        )  # fmt: skip
        return
    basis, difference, moved = _difference(after, then, comparison, same_seeds=base.same_seeds)
    # Answers that are the same can still be worse by a metric of degrees.
    same = moved == 0 and difference.value == 0
    verdict = Verdict.UNCHANGED if same else stats.judge_difference(difference, tolerance)
    if verdict in (Verdict.REGRESSED, Verdict.IMPROVED):  # among many cells, some move so far by chance
        difference = at_level(difference, base.quality_level, len(after.by_seed))
        verdict = stats.judge_difference(difference, tolerance)
    # Both figures by one yardstick: `agreement` is with one reference in each version's own run, with another here.
    score = then.score.value + difference.value if comparison.quality is not None else after.score.value
    change = Change(
        cell, "quality", verdict, basis, base.name, then.score.value, score, difference, tolerance, scored=after.metric
    )
    if verdict is Verdict.INCONCLUSIVE:
        examples = deciding.examples(difference, tolerance)
        wanted = (
            "no number of examples: it lies on the tolerance" if examples is None else f"{examples:,} test examples"
        )
        lost = abs(difference.value) > tolerance
        reason = "the interval reaches over zero" if lost else "the interval reaches over a limit of the tolerance"
        change = replace(change, reason=reason, wanted=wanted)
    yield change


def _is_same(head: Result, before: Result, after: Quality, then: Quality) -> bool:
    """Whether two documents speak of one artifact, run by one code on the same examples and scored by one metric."""
    known = head.artifact is not None and bool(head.code) and bool(after.examples)
    return known and (head.artifact, head.more_artifacts, head.code, after.examples, after.scored_by) == (
        before.artifact, before.more_artifacts, before.code, then.examples, then.scored_by,
    )  # fmt: skip


def _difference(
    after: Quality, then: Quality, comparison: Comparison, *, same_seeds: bool
) -> tuple[Basis, Interval, float | None]:
    """How quality changed, what that rests on, and 0 where not one answer did."""
    if comparison.quality is not None:
        return Basis.ANSWERS, comparison.quality, comparison.answers_changed
    alike = same_seeds and after.examples and after.examples == then.examples
    if alike and len(after.hits) == len(then.hits) > 0:
        try:
            own, other = (hits.unpack_all(item.hits) for item in (after, then))
            return Basis.ANSWERS, scoring.paired_difference(own, other), 0.0 if after.hits == then.hits else None
        except ValueError:  # a document that was edited: what it says of its scores is what is left
            pass
    reach = math.hypot(after.score.high - after.score.low, then.score.high - then.score.low) / 2
    value, count = after.score.value - then.score.value, min(after.score.n, then.score.n)
    interval = Interval(value, value - reach, value + reach, after.score.level, count, "two intervals, not paired")
    return Basis.SCORES, interval, None


def at_level(difference: Interval, level: float, seeds: int = 1) -> Interval:
    """An interval of a difference as it is at another level.

    Its reach is taken for that of a normal distribution, or, over several seeds, of Student's.
    """

    def reach(of: float) -> float:
        return stats.normal(0.5 + of / 2) if seeds < 2 else stats.student(0.5 + of / 2, seeds - 1)

    wider = reach(level) / reach(difference.level)
    low, high = (difference.value + wider * (end - difference.value) for end in (difference.low, difference.high))
    return replace(difference, low=low, high=high, level=level)


def starts(
    metric: str, cell: str, interval: Interval | None, base: Opponent, tolerance: float | None
) -> Iterator[Change | Unjudged]:
    """By pairs of starts, in fresh processes; a document's single ones tell nothing."""
    if tolerance is None:
        return
    if not base.measured:
        yield Unjudged(cell, metric, "single starts of two runs say nothing; measure with --base")
        return
    change = Change(cell, metric, Verdict.INCONCLUSIVE, Basis.STARTS, base.name, tolerance=tolerance)
    if interval is None:
        reason = "it was not measured"
        yield Unjudged(cell, metric, reason) if base.is_anchor else replace(change, reason=reason)
        return
    count = sum(getattr(item, metric) is not None for item in base.comparisons.values())
    ratio, level = log_ratio(interval, cell), decision_level(count)
    verdict = stats.judge(ratio, tolerance, level)
    unsure = verdict is Verdict.INCONCLUSIVE
    yield replace(
        change,
        verdict=verdict,
        change=ratio.interval(level),
        reason="the interval reaches over a limit of the tolerance" if unsure else "",
        wanted="a larger tolerance, or a quieter machine" if unsure else "",
    )


def point(change: Change, before: float, after: float, tolerance: float) -> Change:
    """The verdict on two figures without intervals."""
    ratio = after / before
    verdict = Verdict.UNCHANGED
    if ratio > 1 + tolerance:
        verdict = Verdict.REGRESSED
    elif ratio < 1 / (1 + tolerance):
        verdict = Verdict.IMPROVED
    return replace(change, verdict=verdict, change=Interval(ratio, ratio, ratio, 1.0, 1, "no interval"))


def log_ratio(interval: Interval, cell: str) -> stats.LogRatio:
    """What an interval of a document says of a cell. Raises InvalidInput for one that no measurement gives."""
    try:
        return stats.log_ratio(interval)
    except ValueError as error:
        raise InvalidInput(
            f"a document holds {error}", where=cell, do="It was edited or damaged; measure again."
        ) from error
