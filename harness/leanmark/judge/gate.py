"""Run and base -> verdicts. Pure: reads nothing, loads no model and no plug-in.

What was measured side by side is judged by that; what is known from documents only, by
what two documents can tell. See docs/methodology.md, "The gate".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from leanmark import hits, stats
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.judge import allowing
from leanmark.judgement import Basis, Change, Judgement, Unjudged
from leanmark.results import Comparison, Interval, Quality, Result, Role, Run, Status, Verdict, is_selected
from leanmark.rules import CELL, Limits, Rules

_NOT_JUDGED = (Status.SKIPPED, Status.NOT_APPLICABLE)
_FINE = (Status.OK, Status.NOISY)
_SIZES = ("size", "compressed_size", "parameters", "macs")


@dataclass(frozen=True)
class Stored:
    """A baseline as its document tells it."""

    name: str
    run: Run


@dataclass(frozen=True)
class _Base:
    """What a run is compared with: measured beside it, or a document only."""

    name: str
    results: Mapping[str, Result]
    comparisons: Mapping[str, Comparison]
    measured: bool
    same_class: bool
    rules: Rules
    notes: tuple[str, ...] = ()
    beside: str = ""  # what else the run was measured beside, where that is not this
    same_seeds: bool = True

    @property
    def level(self) -> float:
        """That of a decision: corrected for the number of suspects."""
        return decision_level(sum(item.decided is not None for item in self.comparisons.values()))


def judge(run: Run, stored: Sequence[Stored], today: date) -> Judgement:
    """The verdict on every cell and metric, against what the run was measured beside and against stored baselines."""
    bases = [*_measured(run), *(_documented(run, item) for item in stored)]
    changes: list[Change] = []
    unjudged: list[Unjudged] = []
    for base in bases:
        for item in _against(run, base):
            if isinstance(item, Change):
                changes.append(item)
            else:
                unjudged.append(item)
    allowed = tuple(allowing.allowed(change, run.rules, today) for change in changes)
    notes = [
        *run.warnings,
        *(note for base in bases for note in (*base.notes, *allowing.changed_rules(run.rules, base.rules, base.name))),
    ]
    return Judgement(
        run.id,
        run.suite,
        tuple(base.name for base in bases),
        allowed,
        tuple(unjudged),
        (*dict.fromkeys(notes), *allowing.notes(run.rules, allowed, today)),
    )


def suspects(comparisons: Mapping[str, Comparison], rules: Rules) -> dict[str, int | None]:
    """The cells whose screening did not show them unchanged, each with the launches that should decide.

    None where no number of launches would.
    """
    open_cells: dict[str, stats.LogRatio] = {}
    for cell, item in comparisons.items():
        tolerance = rules.of(cell).latency
        if item.screened is None or tolerance is None:
            continue
        ratio = _log_ratio(item.screened, cell)
        if stats.judge(ratio, tolerance) is not Verdict.UNCHANGED:
            open_cells[cell] = ratio
    level = decision_level(len(open_cells))
    return {cell: _deciding_launches(ratio, rules.of(cell), level) for cell, ratio in open_cells.items()}


def decision_level(count: int) -> float:
    """The level of an interval that decides about one of so many suspects (Bonferroni)."""
    return 1 - (1 - stats.VERDICT_LEVEL) / max(1, count)


def _deciding_launches(ratio: stats.LogRatio, limits: Limits, level: float) -> int | None:
    assert limits.latency is not None
    return stats.deciding_launches(ratio, limits.latency, limits.must_see, level)


# --- what a run is compared with ---------------------------------------------------


def _measured(run: Run) -> Iterator[_Base]:
    for base in run.bases:
        name = base.name if base.kind == "baseline" else f"{base.name} ({base.id[:10]})"
        results = {result.cell.id: result for result in base.results}
        yield _Base(name, results, base.comparisons, True, True, base.rules, base.notes)


def _documented(run: Run, stored: Stored) -> _Base:
    here, there = (str(item.environment.get("machine_class", "")) for item in (run, stored.run))
    results = {result.cell.id: result for result in stored.run.results}
    beside = run.bases[0].name if run.bases else ""
    same_class = bool(here) and here == there
    same_seeds = run.seeds == stored.run.seeds
    return _Base(stored.name, results, {}, False, same_class, stored.run.rules, beside=beside, same_seeds=same_seeds)


# --- one cell ---------------------------------------------------------------------


def _against(run: Run, base: _Base) -> Iterator[Change | Unjudged]:
    heads = {result.cell.id: result for result in run.results}
    known = {*heads, *base.results}
    for cell in (*heads, *(cell for cell in base.results if cell not in heads)):
        role = (heads.get(cell) or base.results[cell]).cell.role
        if role is Role.CONTROL or (role is Role.EAGER and run.bases):
            continue  # a control says something of the machine; beside another version nothing is compared with eager
        if cell not in heads and run.only and not is_selected(cell, run.only, known):
            continue  # it was not asked for
        yield from _cell(cell, heads.get(cell), base.results.get(cell), base, run.rules.of(cell))


def _cell(
    cell: str, head: Result | None, before: Result | None, base: _Base, limits: Limits
) -> Iterator[Change | Unjudged]:
    def whole(verdict: Verdict, reason: str) -> Change:
        return Change(cell, CELL, verdict, Basis.STATUS, base.name, reason=reason)

    comparison = base.comparisons.get(cell, Comparison())
    if comparison.same:
        yield Change(cell, CELL, Verdict.UNCHANGED, Basis.SAME, base.name, reason=comparison.same)
    elif head is None:
        assert before is not None
        if before.status in _FINE:
            yield whole(Verdict.MISSING, f"it was {before.status.value} and is no longer in the suite")
        else:
            yield Unjudged(cell, CELL, f"gone, and was {before.status.value} before")
    elif before is None:
        state = "" if head.status in _FINE else f", and it is {head.status.value} here: {head.reason}"
        yield whole(Verdict.NEW, f"{base.name} has no such cell{state}")
    elif head.status in _NOT_JUDGED:
        yield Unjudged(cell, CELL, f"{head.status.value}: {head.reason}")
    elif head.status not in _FINE:
        if before.status in _FINE or before.status in _NOT_JUDGED:
            yield whole(Verdict.BROKEN, f"{head.status.value}: {head.reason}")
        else:
            yield Unjudged(cell, CELL, f"{head.status.value}, and was {before.status.value} before")
    elif before.status in (Status.TIMEOUT, Status.OUT_OF_MEMORY):
        yield whole(Verdict.INCONCLUSIVE, f"the base was {before.status.value}: {before.reason}")
    elif before.status not in _FINE:
        yield whole(Verdict.NEW, f"it was {before.status.value} before and is {head.status.value} now")
    else:
        yield from _metrics(head, before, comparison, base, limits)


def _metrics(
    head: Result, before: Result, comparison: Comparison, base: _Base, limits: Limits
) -> Iterator[Change | Unjudged]:
    for metric in _SIZES:
        yield from _exact(metric, head, before, base, getattr(limits, metric))
    if limits.quality is not None:
        yield from _quality(head, before, comparison, base, limits.quality)
    if limits.latency is not None and base.measured:
        yield _duel(head.cell.id, comparison, base, limits)
    elif not base.measured:
        yield from _by_documents(head, before, base, limits)
    for metric in ("cold_start", "memory"):
        yield from _starts(metric, head.cell.id, getattr(comparison, metric), base, getattr(limits, metric))


# --- latency ----------------------------------------------------------------------


def _duel(cell: str, comparison: Comparison, base: _Base, limits: Limits) -> Change:
    """The screening where it shows no change; else the decision, and nothing but the decision."""
    change = Change(cell, "latency", Verdict.INCONCLUSIVE, Basis.DUEL, base.name, tolerance=limits.latency)
    shown = comparison.decided or comparison.screened
    if shown is None:
        return replace(change, reason=comparison.problem or "it was not measured")
    assert limits.latency is not None
    ratio = _log_ratio(shown, cell)
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
    return replace(change, verdict=verdict, change=ratio.interval(level), reason=reason, wanted=wanted)


def _log_ratio(interval: Interval, cell: str) -> stats.LogRatio:
    try:
        return stats.log_ratio(interval)
    except ValueError as error:
        raise InvalidInput(
            f"a document holds {error}", where=cell, do="It was edited or damaged; measure again."
        ) from error


def _budget(launches: int | None, seconds: float) -> str:
    if launches is None:
        return "no number of launches: it scatters too much"
    return f"{launches} launches, {launches * seconds:.3g} s of turns a side"


def _by_documents(head: Result, before: Result, base: _Base, limits: Limits) -> Iterator[Change | Unjudged]:
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


def _ratios(head: Result, before: Result, base: _Base, tolerance: float) -> Change:
    cell, after, then = head.cell.id, head.against_reference, before.against_reference
    change = Change(cell, "latency", Verdict.INCONCLUSIVE, Basis.RATIOS, base.name, tolerance=tolerance)
    if after is None or then is None:
        return replace(change, reason="a run has no ratio to its reference", wanted="a run of the whole suite")
    if Status.NOISY in (head.status, before.status):
        return replace(change, reason="other programs disturbed one of the runs", wanted="a run without them")
    ratio = _log_ratio(after, cell).over(_log_ratio(then, cell))
    verdict = stats.judge(ratio, tolerance)
    unsure = verdict is Verdict.INCONCLUSIVE
    return replace(
        change,
        verdict=verdict,
        change=ratio.interval(stats.VERDICT_LEVEL),
        reason="the two runs' intervals together reach over a limit of the tolerance" if unsure else "",
        wanted="a run beside the base (--base), or more launches in both runs" if unsure else "",
    )


def _times(head: Result, before: Result, base: _Base, tolerance: float) -> Change:
    """Medians of two runs. Their intervals would not hold what passes between two runs, so the tolerance must."""
    change = Change(head.cell.id, "latency", Verdict.INCONCLUSIVE, Basis.TIMES, base.name, tolerance=tolerance)
    if head.timing is None or before.timing is None or head.timing.noisy or before.timing.noisy:
        return replace(change, reason="a run has no undisturbed time")
    after, then = head.timing.median, before.timing.median
    if not (0 < then < math.inf and 0 < after < math.inf):
        return replace(change, reason="a run has no positive time")
    return replace(_point(change, then, after, tolerance), before=then, after=after)


def _point(change: Change, before: float, after: float, tolerance: float) -> Change:
    """The verdict on two figures without intervals."""
    ratio = after / before
    verdict = Verdict.UNCHANGED
    if ratio > 1 + tolerance:
        verdict = Verdict.REGRESSED
    elif ratio < 1 / (1 + tolerance):
        verdict = Verdict.IMPROVED
    return replace(change, verdict=verdict, change=Interval(ratio, ratio, ratio, 1.0, 1, "no interval"))


# --- sizes, quality, starts -------------------------------------------------------


def _exact(metric: str, head: Result, before: Result, base: _Base, tolerance: float | None) -> Iterator[Change]:
    if tolerance is None or before.footprint is None:
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
        yield _point(change, then, after, tolerance)


def _quality(
    head: Result, before: Result, comparison: Comparison, base: _Base, tolerance: float
) -> Iterator[Change | Unjudged]:
    after, then, cell = head.quality, before.quality, head.cell.id
    if after is None or then is None:
        if comparison.problem:
            yield Change(
                cell, "quality", Verdict.INCONCLUSIVE, Basis.ANSWERS, base.name, tolerance=tolerance,
                reason=comparison.problem,
            )  # fmt: skip
        return
    if after.metric != then.metric:
        yield Unjudged(cell, "quality", f"its metric is {after.metric} and was {then.metric}")
        return
    basis, difference, moved = _difference(after, then, comparison, same_seeds=base.same_seeds)
    # Answers that are the same can still be worse by a metric of degrees.
    same = moved == 0 and difference.value == 0
    verdict = Verdict.UNCHANGED if same else stats.judge_difference(difference, tolerance)
    change = Change(
        cell, "quality", verdict, basis, base.name, then.score.value, after.score.value, difference, tolerance
    )
    if verdict is Verdict.INCONCLUSIVE:
        examples = stats.deciding_examples(difference, tolerance)
        wanted = (
            "no number of examples: it lies on the tolerance" if examples is None else f"{examples:,} test examples"
        )
        change = replace(change, reason="the interval reaches over a limit of the tolerance", wanted=wanted)
    yield change


def _difference(
    after: Quality, then: Quality, comparison: Comparison, *, same_seeds: bool
) -> tuple[Basis, Interval, float | None]:
    """How quality changed, what that rests on, and 0 where not one answer did."""
    if comparison.quality is not None:
        return Basis.ANSWERS, comparison.quality, comparison.answers_changed
    alike = same_seeds and after.examples and after.examples == then.examples
    if alike and len(after.hits) == len(then.hits) > 0:
        try:
            own, other = (np.stack([hits.unpack(text) for text in item.hits]) for item in (after, then))
            return Basis.ANSWERS, stats.paired_difference(own, other), 0.0 if after.hits == then.hits else None
        except ValueError:  # a document that was edited: what it says of its scores is what is left
            pass
    reach = math.hypot(after.score.high - after.score.low, then.score.high - then.score.low) / 2
    value, count = after.score.value - then.score.value, min(after.score.n, then.score.n)
    interval = Interval(value, value - reach, value + reach, after.score.level, count, "two intervals, not paired")
    return Basis.SCORES, interval, None


def _starts(
    metric: str, cell: str, interval: Interval | None, base: _Base, tolerance: float | None
) -> Iterator[Change | Unjudged]:
    if tolerance is None:
        return
    if not base.measured:
        yield Unjudged(cell, metric, "single starts of two runs say nothing; measure with --base")
        return
    change = Change(cell, metric, Verdict.INCONCLUSIVE, Basis.STARTS, base.name, tolerance=tolerance)
    if interval is None:
        yield replace(change, reason="it was not measured")
        return
    count = sum(getattr(item, metric) is not None for item in base.comparisons.values())
    ratio, level = _log_ratio(interval, cell), decision_level(count)
    verdict = stats.judge(ratio, tolerance, level)
    unsure = verdict is Verdict.INCONCLUSIVE
    yield replace(
        change,
        verdict=verdict,
        change=ratio.interval(level),
        reason="the interval reaches over a limit of the tolerance" if unsure else "",
        wanted="a larger tolerance, or a quieter machine" if unsure else "",
    )
