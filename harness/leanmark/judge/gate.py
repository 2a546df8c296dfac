"""Run and base -> verdicts. Pure: reads nothing, loads no model and no plug-in.

What was measured side by side is judged by that; what is known from documents only, by
what two documents can tell. See docs/methodology.md, "The gate".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date

from leanmark.judge import allowing
from leanmark.judge.latency import by_documents, duel
from leanmark.judge.metrics import exact, quality, starts
from leanmark.judge.opponents import Opponent, Stored, documented, measured
from leanmark.judgement import Basis, Change, Judgement, Unjudged
from leanmark.results import Comparison, Result, Role, Run, Status, Verdict, is_selected
from leanmark.rules import CELL, Limits

_NOT_JUDGED = (Status.SKIPPED, Status.NOT_APPLICABLE)
_FINE = (Status.OK, Status.NOISY)
_WANTED = {
    Status.TIMEOUT: "more time to prepare it (prepare: timeout)",
    Status.OUT_OF_MEMORY: "a machine with more memory",
}
_ENVIRONMENT = ("cpu", "cores", "system", "release", "python", "versions")
_SIZES = ("size", "compressed_size", "parameters", "macs")


def judge(run: Run, stored: Sequence[Stored], today: date) -> Judgement:
    """The verdict on every cell and metric, against what the run was measured beside and against stored baselines."""
    bases = list(measured(run))
    for item in stored:
        bases.append(replace(documented(run, item), is_anchor=item.pinned and bool(bases)))
    excused = frozenset(cell for base in bases[:1] for cell, item in base.results.items() if item.status not in _FINE)
    bases = [replace(base, excused=excused) if base.is_anchor else base for base in bases]
    changes: list[Change] = []
    unjudged: list[Unjudged] = []
    for base in bases:
        for item in _against(run, base):
            if isinstance(item, Change):
                changes.append(item)
            else:
                unjudged.append(replace(item, against=base.name))
    allowed = tuple(allowing.allowed(change, run.rules, today) for change in changes)
    notes = [
        *run.warnings,
        *(note for base in bases for note in (*base.notes, *allowing.changed_rules(run.rules, base.rules, base.name))),
        *(note for base in bases for note in _failed_there(run, base)),
    ]
    return Judgement(
        run.id,
        run.suite,
        tuple(base.name for base in bases),
        allowed,
        tuple(unjudged),
        (*dict.fromkeys(notes), *allowing.notes(run.rules, allowed, today)),
        _commit(run),
        run.command,
        {key: run.environment[key] for key in _ENVIRONMENT if key in run.environment},
    )


def _commit(run: Run) -> str:
    identity = str(run.commit.get("id") or "")
    known = "" if identity == "unversioned" else identity[:12]
    return known + (" with local changes" if known and run.commit.get("dirty") is True else "")


def _failed_there(run: Run, base: Opponent) -> Iterator[str]:
    """Cells that are fine here and failed in the base: they are called new, but why they failed may be no news."""
    fine = {result.cell.id for result in run.results if result.status in _FINE}
    failed = [result for result in base.results.values() if result.status.is_failure and result.cell.id in fine]
    if failed:
        first = failed[0]
        yield (
            f"{len(failed)} of the cells failed in {base.name} and could not be compared, first {first.cell.id}: "
            f"{first.status.value}: {first.reason}"
        )


# --- one cell ---------------------------------------------------------------------


def _against(run: Run, base: Opponent) -> Iterator[Change | Unjudged]:
    heads = {result.cell.id: result for result in run.results}
    known = {*heads, *base.results}
    for cell in (*heads, *(cell for cell in base.results if cell not in heads)):
        role = (heads.get(cell) or base.results[cell]).cell.role
        if role is Role.CONTROL or (role is Role.EAGER and run.bases):
            continue  # a control says something of the machine; beside another version nothing is compared with eager
        if cell not in heads and run.only and not is_selected(cell, run.only, known):
            continue  # it was not asked for
        alike = _same_reference(cell, heads, base)
        yield from _cell(cell, heads.get(cell), base.results.get(cell), base, run.rules.of(cell), alike)


def _same_reference(cell: str, heads: Mapping[str, Result], base: Opponent) -> bool:
    """Whether the reference of a cell's block is one artifact, run by one code, in both versions."""
    own = [heads[cell]] if cell in heads else []
    for result in heads.values():
        if own and result.cell.role is Role.REFERENCE and result.cell.block == own[0].cell.block:
            then = base.results.get(result.cell.id)
            now = (result.artifact, result.more_artifacts, result.code)
            return then is not None and now == (then.artifact, then.more_artifacts, then.code)
    return True


def _cell(
    cell: str, head: Result | None, before: Result | None, base: Opponent, limits: Limits, same_reference: bool
) -> Iterator[Change | Unjudged]:
    def whole(verdict: Verdict, reason: str) -> Change:
        return Change(cell, CELL, verdict, Basis.STATUS, base.name, reason=reason)

    comparison = base.comparisons.get(cell, Comparison())
    if comparison.same:
        yield Change(cell, CELL, Verdict.UNCHANGED, Basis.SAME, base.name, reason=comparison.same)
    elif head is None:
        assert before is not None
        if base.is_anchor:
            yield Unjudged(cell, CELL, f"it was in {base.name} and is no longer in the suite")
        elif before.status in _FINE:
            yield whole(Verdict.MISSING, f"it was {before.status.value} and is no longer in the suite")
        else:
            yield Unjudged(cell, CELL, f"gone, and was {before.status.value} before")
    elif before is None:
        state = "" if head.status in _FINE else f", and it is {head.status.value} here: {head.reason}"
        yield whole(Verdict.NEW, f"{base.name} has no such cell{state}")
    elif head.status in _NOT_JUDGED:
        was_fine = before.status in _FINE and not (base.beside or base.is_anchor)
        yield Unjudged(cell, CELL, f"{head.status.value}: {head.reason}", was_fine=was_fine)
    elif head.status not in _FINE and cell in base.excused:
        yield Unjudged(cell, CELL, f"{head.status.value}, as in what the change is of: {head.reason}")
    elif head.status not in _FINE:
        if before.status in _FINE or before.status in _NOT_JUDGED:
            yield whole(Verdict.BROKEN, f"{head.status.value}: {head.reason}")
        else:
            yield Unjudged(cell, CELL, f"{head.status.value}, and was {before.status.value} before")
    elif before.status in _WANTED:
        change = whole(Verdict.INCONCLUSIVE, f"the base was {before.status.value}: {before.reason}")
        yield replace(change, wanted=_WANTED[before.status])
    elif before.status not in _FINE and comparison.lost:
        wanted = "a base with all that it needs: it has what is under version control, and nothing else"
        yield replace(whole(Verdict.INCONCLUSIVE, comparison.problem), wanted=wanted)
    elif before.status not in _FINE:
        yield whole(Verdict.NEW, f"it was {before.status.value} before and is {head.status.value} now")
    else:
        yield from _metrics(head, before, comparison, base, limits, same_reference)


def _metrics(
    head: Result, before: Result, comparison: Comparison, base: Opponent, limits: Limits, same_reference: bool
) -> Iterator[Change | Unjudged]:
    for metric in _SIZES:
        yield from exact(metric, head, before, base, getattr(limits, metric))
    if limits.quality is not None:
        yield from quality(head, before, comparison, base, limits.quality, same_reference=same_reference)
    if limits.latency is not None and base.measured:
        if base.is_anchor and comparison.screened is None:
            yield Unjudged(head.cell.id, "latency", comparison.problem or "it was not measured")
        else:
            yield duel(head.cell.id, comparison, base, limits)
    elif not base.measured:
        yield from by_documents(head, before, base, limits)
    for metric in ("cold_start", "memory"):
        yield from starts(metric, head.cell.id, getattr(comparison, metric), base, getattr(limits, metric))
