"""What a run is compared with: a version that was measured beside it, or a document. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from leanmark import stats
from leanmark.results import Comparison, Result, Run
from leanmark.rules import Rules


@dataclass(frozen=True)
class Stored:
    """A baseline as its document tells it."""

    name: str
    run: Run
    pinned: bool = False


@dataclass(frozen=True)
class Opponent:
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
    is_anchor: bool = False  # a pinned one, beside what the change is of
    other_answers: int = 0  # so many cells do not answer as they did
    excused: frozenset[str] = frozenset()  # cells that are not fine in what the change is of either

    @property
    def level(self) -> float:
        """That of a decision on latency: corrected for the number of suspects."""
        return decision_level(sum(item.decided is not None for item in self.comparisons.values()))

    @property
    def quality_level(self) -> float:
        """That at which a loss of quality must be shown: corrected for the cells that answer otherwise."""
        return 1 - (1 - stats.LEVEL) / max(1, self.other_answers)


def decision_level(count: int) -> float:
    """The level of an interval that decides about one of so many suspects (Bonferroni)."""
    return 1 - (1 - stats.VERDICT_LEVEL) / max(1, count)


def measured(run: Run) -> Iterator[Opponent]:
    """The versions that a run was measured beside."""
    for number, base in enumerate(run.bases):
        short = base.id[:10]
        name = base.name if base.kind == "baseline" else short if base.name == base.id else f"{base.name} ({short})"
        results = {result.cell.id: result for result in base.results}
        found = Opponent(name, results, base.comparisons, True, True, base.rules, base.notes, is_anchor=number > 0)
        yield replace(found, other_answers=_other_answers(run, found))


def documented(run: Run, stored: Stored) -> Opponent:
    """A baseline whose numbers are all that is known of it."""
    here, there = (str(item.environment.get("machine_class", "")) for item in (run, stored.run))
    results = {result.cell.id: result for result in stored.run.results}
    beside = run.bases[0].name if run.bases else ""
    same_class = bool(here) and here == there
    same_seeds = run.seeds == stored.run.seeds
    found = Opponent(
        stored.name, results, {}, False, same_class, stored.run.rules, beside=beside, same_seeds=same_seeds
    )
    return replace(found, other_answers=_other_answers(run, found))


def _other_answers(run: Run, base: Opponent) -> int:
    """How many cells do not answer as they did, as far as is known."""
    count = 0
    for result in run.results:
        before, comparison = base.results.get(result.cell.id), base.comparisons.get(result.cell.id)
        if comparison is not None and comparison.quality is not None:
            count += comparison.answers_changed != 0
        elif result.quality is not None and before is not None and before.quality is not None:
            after, then = result.quality, before.quality
            known = after.hits and then.hits  # a baseline's figures are rounded
            alike = (
                after.hits == then.hits if known else math.isclose(after.score.value, then.score.value, rel_tol=1e-5)
            )
            count += not alike
    return count
