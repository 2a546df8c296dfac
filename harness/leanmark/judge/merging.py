"""Runs of one suite with different seeds, joined to one run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from leanmark import hits, scoring
from leanmark.errors import InvalidInput
from leanmark.results import Cell, Footprint, Interval, Quality, Result, Role, Run, Score, Status

# Which of several seeds' statuses a cell gets: the first of these. What failed comes before what was left out.
_PRECEDENCE = (
    Status.NOT_APPLICABLE,
    Status.FAILED,
    Status.TIMEOUT,
    Status.OUT_OF_MEMORY,
    Status.WRONG,
    Status.INEFFECTIVE,
    Status.SKIPPED,
    Status.NOISY,
    Status.OK,
)


def merge(runs: Sequence[Run]) -> Run:
    """One run that has the seeds of all.

    runs: of one suite with the same cells, each with seeds of its own. Quality is that of all seeds: computed anew from
    the answers where documents hold which were right, else by each run's interval and the seeds' scatter. Sizes are the
    largest of any seed's; latency, memory and evidence are those of the first seed, as in any run. A cell that failed
    with one seed has failed.

    Raises InvalidInput where runs do not fit together, or hold numbers that nothing measures.
    """
    if len(runs) < 2:
        raise InvalidInput("there is only one run", do="Name two runs or more.")
    try:
        return _merged(sorted(runs, key=lambda run: run.seeds))
    except (ValueError, ArithmeticError) as error:
        raise InvalidInput(f"a document holds numbers that nothing measures: {error}", do="Run it again.") from error


def _merged(runs: Sequence[Run]) -> Run:
    for run in runs:
        _check_alone(run)
    for first, second in combinations(runs, 2):
        _check_together(first, second)
    found = [{result.cell.id: result for result in run.results} for run in runs]
    merged = {cell: _merge([of_run[cell] for of_run in found], runs) for cell in found[0]}
    references = {item.cell.block: cell for cell, item in merged.items() if item.cell.role is Role.REFERENCE}
    for cell, result in merged.items():
        if result.quality is not None:
            reference = references.get(result.cell.block)
            own = [item for of_run in found if (item := of_run[cell].quality) is not None]
            theirs = [] if reference is None else [of_run[reference].quality for of_run in found]
            merged[cell] = replace(result, quality=_quality(own, [item for item in theirs if item is not None]))
    return replace(
        runs[0],
        seconds=sum(run.seconds for run in runs),
        seeds=tuple(seed for run in runs for seed in run.seeds),
        results=tuple(merged.values()),
        warnings=(_told(runs), *_differences(runs), *dict.fromkeys(text for run in runs for text in run.warnings)),
        complete=all(run.complete for run in runs),
    )


def _check_alone(run: Run) -> None:
    if run.bases:
        raise InvalidInput(f"{run.id} was measured beside another version", do="Merge runs without --base.")
    if not run.seeds or len(set(run.seeds)) != len(run.seeds):
        raise InvalidInput(f"{run.id} has no seeds, or one twice")
    for item in run.results:
        quality = item.quality
        if quality is not None and not len(run.seeds) == len(quality.by_seed) >= len(quality.hits):
            raise InvalidInput(f"{run.id} has {len(quality.by_seed)} scores of {item.cell.id} for {run.seeds}")


def _check_together(first: Run, second: Run) -> None:
    both = f"{first.id} and {second.id}"
    if first.suite != second.suite:
        raise InvalidInput(f"{both} are of other suites: {first.suite} and {second.suite}")
    shared = set(first.seeds) & set(second.seeds)
    if shared:
        which = ", ".join(map(str, sorted(shared)))
        raise InvalidInput(f"{both} both have seed {which}", do="Each seed counts once: leave one of them out.")
    one, other = ({item.cell.id: item for item in run.results} for run in (first, second))
    if one.keys() != other.keys():
        cell = sorted(one.keys() ^ other.keys())[0]
        raise InvalidInput(f"only one of {both} has the cell {cell}", do="Run both with the same suite and options.")
    for cell in one:
        if _declared(one[cell].cell) != _declared(other[cell].cell):
            raise InvalidInput(f"the cell {cell} has other steps or another target in {both}")
        if one[cell].cell.role is Role.REFERENCE and _structure(one[cell]) != _structure(other[cell]):
            raise InvalidInput(f"the reference {cell} is another model in {both}")
    if first.claims != second.claims:
        raise InvalidInput(f"{both} name other published figures", do="A margin is declared before, not after.")


def _declared(cell: Cell) -> Cell:
    return replace(cell, skip=None)  # which may be the machine's fault


def _structure(result: Result) -> tuple[int | None, int | None]:
    size = result.footprint
    return (None, None) if size is None else (size.parameters, size.macs)


def _merge(results: Sequence[Result], runs: Sequence[Run]) -> Result:
    """Everything but quality."""
    first = results[0]
    worst, of_run = first, runs[0]
    for result, run in zip(results[1:], runs[1:], strict=True):
        # What only kept its latency from being known, or trusted, says nothing of the first seed's.
        of_latency = result.status in (Status.NOISY, Status.OK) or (
            result.status is Status.SKIPPED and result.quality is not None
        )
        if not of_latency and _PRECEDENCE.index(result.status) < _PRECEDENCE.index(worst.status):
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
        footprint=_largest([result.footprint for result in results]),
    )


def _largest(found: Sequence[Footprint | None]) -> Footprint | None:
    """The largest of every size: what pruning leaves and codes take may differ from seed to seed."""
    sizes = [item for item in found if item is not None]
    if found[0] is None or len(sizes) != len(found):
        return found[0]
    nonzero = [item.nonzero_parameters for item in sizes if item.nonzero_parameters is not None]
    return replace(
        found[0],
        nonzero_parameters=max(nonzero) if len(nonzero) == len(sizes) else None,
        size_bytes=max(item.size_bytes for item in sizes),
        compressed_bytes=max(item.compressed_bytes for item in sizes),
    )


def _quality(own: Sequence[Quality], reference: Sequence[Quality]) -> Quality:
    """One cell's quality over all seeds, and its difference from its reference's where that has all seeds too."""
    first = own[0]
    for item in own:
        if (item.examples, item.scored_by, item.metric) != (first.examples, first.scored_by, first.metric):
            raise InvalidInput("the runs were scored on other test examples, or by another metric")
    by_seed = tuple(score for item in own for score in item.by_seed)
    packed = tuple(text for item in own for text in item.hits)
    differences = [item.difference for item in own if item.difference is not None]
    known = tuple(text for item in reference for text in item.hits) if differences else ()
    difference: Interval | None = None
    if len(packed) == len(by_seed):
        scores = hits.unpack_all(packed)
        score = scoring.mean_score(scores)
        if len(known) == len(packed):
            difference = scoring.paired_difference(scores, hits.unpack_all(known))
    else:
        score = scoring.joined_means([item.score for item in own], by_seed)
        before = tuple(value for item in reference for value in item.by_seed)
        if len(differences) == len(own) and len(before) == len(by_seed):
            gaps = [one - other for one, other in zip(by_seed, before, strict=True)]
            difference = scoring.joined_means(differences, gaps)
    if not all(part is None or part.is_finite for part in (score, difference)):
        raise InvalidInput(f"{first.metric} has no finite interval on so few examples")
    moved = [(item.answers_changed, len(item.by_seed)) for item in own if item.answers_changed is not None]
    changed = sum(share * seeds for share, seeds in moved) / len(by_seed) if len(moved) == len(own) else None
    return replace(
        first,
        score=score,
        by_seed=by_seed,
        difference=difference,
        answers_changed=changed,
        hits=packed,
        also=_also(own, reference),
    )


def _also(own: Sequence[Quality], reference: Sequence[Quality]) -> dict[str, Score]:
    """Further metrics over all seeds, by each run's interval and the seeds' scatter; those that every run has."""
    found: dict[str, Score] = {}
    for name in own[0].also:
        items = [item.also[name] for item in own if name in item.also]
        before = [value for item in reference if name in item.also for value in item.also[name].by_seed]
        by_seed = tuple(score for item in items for score in item.by_seed)
        if len(items) != len(own):
            continue
        differences = [item.difference for item in items if item.difference is not None]
        difference: Interval | None = None
        if len(differences) == len(own) and len(before) == len(by_seed):
            gaps = [one - other for one, other in zip(by_seed, before, strict=True)]
            difference = scoring.joined_means(differences, gaps)
        found[name] = Score(scoring.joined_means([item.score for item in items], by_seed), by_seed, difference)
    return found


def _told(runs: Sequence[Run]) -> str:
    parts = [f"{run.id} (seed {', '.join(map(str, run.seeds))})" for run in runs]
    return (
        f"merged from {', '.join(parts)}; latency, memory and evidence are those of {runs[0].id}, sizes the largest of "
        "any seed's"
    )


def _differences(runs: Sequence[Run]) -> list[str]:
    """What was not the same when the runs were made."""
    found: list[str] = []
    for key, what in (("machine_class", "machine classes"), ("versions", "versions of libraries")):
        if any(run.environment.get(key) != runs[0].environment.get(key) for run in runs):
            found.append(f"the merged runs were made with other {what}")
    if any(run.commit.get("id") != runs[0].commit.get("id") for run in runs):
        found.append("the merged runs were made at other commits")
    if any(run.commit.get("dirty") for run in runs):
        found.append("some of the merged runs were made with changes that are in no commit")
    codes = [{item.cell.id: item.code for item in run.results} for run in runs]
    if any(code != codes[0] for code in codes):
        found.append("the merged runs were made by other code")
    if any(run.rules != runs[0].rules for run in runs):
        found.append(f"the merged runs have other limits; {runs[0].id}'s stand here")
    return found
