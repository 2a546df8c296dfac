"""Runs of one suite with different seeds, joined to one run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from leanmark import hits, stats
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.results import Quality, Result, Role, Run, Status

# What measuring beside others says of a cell; latency is the first run's alone.
_OF_LATENCY = (Status.NOISY, Status.OK)


def merge(runs: Sequence[Run]) -> Run:
    """One run that has the seeds of all.

    runs: of one suite with the same cells, each with seeds of its own. Quality is that of all seeds, computed anew
    from the answers; latency, memory, sizes and evidence are those of the first seed, as in any run. A cell that
    failed with one seed has failed.

    Raises InvalidInput where runs do not fit together.
    """
    if len(runs) < 2:
        raise InvalidInput("there is only one run", do="Name two runs or more.")
    runs = sorted(runs, key=lambda run: run.seeds)
    for first, second in combinations(runs, 2):
        _check(first, second)
    first = runs[0]
    found = [{result.cell.id: result for result in run.results} for run in runs]
    merged = {cell: _merge([of_run[cell] for of_run in found], runs) for cell in found[0]}
    references = {item.cell.block: cell for cell, item in merged.items() if item.cell.role is Role.REFERENCE}
    for cell, result in merged.items():
        reference = references.get(result.cell.block)
        if reference is not None and result.quality is not None:
            own, theirs = ([of_run[name].quality for of_run in found] for name in (cell, reference))
            merged[cell] = replace(result, quality=_quality(own, theirs))
    return replace(
        first,
        seconds=sum(run.seconds for run in runs),
        seeds=tuple(seed for run in runs for seed in run.seeds),
        results=tuple(merged.values()),
        warnings=(_told(runs), *_differences(runs), *dict.fromkeys(text for run in runs for text in run.warnings)),
        complete=all(run.complete for run in runs),
    )


def _check(first: Run, second: Run) -> None:
    both = f"{first.id} and {second.id}"
    if first.suite != second.suite:
        raise InvalidInput(f"{both} are of other suites: {first.suite} and {second.suite}")
    for run in (first, second):
        if run.bases:
            raise InvalidInput(f"{run.id} was measured beside another version", do="Merge runs without --base.")
    shared = set(first.seeds) & set(second.seeds)
    if shared:
        which = ", ".join(map(str, sorted(shared)))
        raise InvalidInput(f"{both} both have seed {which}", do="Each seed counts once: leave one of them out.")
    one, other = ({item.cell.id: item.cell.steps for item in run.results} for run in (first, second))
    if one.keys() != other.keys():
        cell = sorted(one.keys() ^ other.keys())[0]
        raise InvalidInput(f"only one of {both} has the cell {cell}", do="Run both with the same suite and options.")
    changed = [cell for cell, steps in one.items() if steps != other[cell]]
    if changed:
        raise InvalidInput(f"the cell {changed[0]} has other steps or parameters in {both}")


def _merge(results: Sequence[Result], runs: Sequence[Run]) -> Result:
    """Everything but quality."""
    first = results[0]
    worst, of_run = first, runs[0]
    order = list(Status)
    for result, run in zip(results[1:], runs[1:], strict=True):
        if result.status not in _OF_LATENCY and order.index(result.status) < order.index(worst.status):
            worst, of_run = result, run
    reason = worst.reason if worst is first else f"in {of_run.id}: {worst.reason}"
    contents = [item for result in results for item in (result.artifact, *result.more_artifacts) if item is not None]
    whole = all(result.quality is not None for result in results)
    return replace(
        first,
        status=worst.status,
        reason=reason,
        more_artifacts=tuple(contents[1:]) if first.artifact is not None else (),
        quality=first.quality if whole else None,
    )


def _quality(own: Sequence[Quality | None], theirs: Sequence[Quality | None]) -> Quality | None:
    """One cell's quality over all seeds, and its difference from its reference's over the seeds that have one."""
    mine = [item for item in own if item is not None]
    others = [item for item in theirs if item is not None]
    first = mine[0]
    if any((item.examples, item.scored_by, item.metric) != (first.examples, first.scored_by, first.metric)
           for item in mine):  # fmt: skip
        raise InvalidInput("the runs were scored on other test examples, or by another metric")
    by_seed = tuple(score for item in mine for score in item.by_seed)
    packed = tuple(text for item in mine for text in item.hits)
    paired = len(others) == len(own) and first.difference is not None
    known = tuple(text for item in others for text in item.hits) if paired else ()
    moved = [item.answers_changed for item in mine if item.answers_changed is not None]
    if len(packed) == len(by_seed):
        scores = hits.unpack_all(packed)
        score = stats.mean_score(scores)
        difference = stats.paired_difference(scores, hits.unpack_all(known)) if len(known) == len(packed) else None
    else:
        score = stats.student_mean(np.array(by_seed))
        before = tuple(value for item in others for value in item.by_seed) if paired else ()
        gaps = np.array(by_seed) - np.array(before) if len(before) == len(by_seed) else None
        difference = None if gaps is None else stats.student_mean(gaps)
    changed = float(np.mean(moved)) if len(moved) == len(mine) else None
    return replace(first, score=score, by_seed=by_seed, difference=difference, answers_changed=changed, hits=packed)


def _told(runs: Sequence[Run]) -> str:
    parts = [f"{run.id} (seed {', '.join(map(str, run.seeds))})" for run in runs]
    return f"merged from {', '.join(parts)}; latency, memory, sizes and evidence are those of {runs[0].id}"


def _differences(runs: Sequence[Run]) -> list[str]:
    """What was not the same when the runs were made."""
    found: list[str] = []
    for key, what in (("machine_class", "machine classes"), ("versions", "versions of libraries")):
        if any(run.environment.get(key) != runs[0].environment.get(key) for run in runs):
            found.append(f"the merged runs were made with other {what}")
    if any(run.commit.get("id") != runs[0].commit.get("id") for run in runs):
        found.append("the merged runs were made at other commits")
    return found
