"""`leanmark gate`, `compare` and `baseline`: documents read, judged, stored. Loads no plug-in and no model."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from leanmark.declare import suite as suites
from leanmark.errors import InvalidInput, NothingToCompare, telling
from leanmark.judge import baselines, gate, store
from leanmark.judge.baselines import Baseline
from leanmark.judge.opponents import Stored
from leanmark.judgement import Judgement
from leanmark.measure.environment import read_environment
from leanmark.planned import Options, find_suite
from leanmark.prepare.artifacts import Store
from leanmark.prepare.sources import default_store
from leanmark.results import Run, Status


def options(
    out: Path | None = None,
    only: Sequence[str] | None = None,
    budget_seconds: float | None = None,
    launches: int | None = None,
    jobs: int | None = None,
    resume: str | None = None,
    base: str | None = None,
    base_python: Path | None = None,
    baseline: str | None = None,
    folder: Path | None = None,
    dirty: bool = False,
    measure_all: bool = False,
    seeds: Sequence[int] | None = None,
    command: str = "",
) -> Options:
    """What a command line says of a run. Raises InvalidInput where it contradicts itself."""
    if base is not None and baseline is not None:
        raise InvalidInput("a run is measured beside one other version", do="Give either --base or --baseline.")
    if base is None and (base_python is not None or dirty):
        raise InvalidInput("--base-python and --dirty are for a run beside a revision", do="Name it with --base.")
    if measure_all and base is None and baseline is None:
        raise InvalidInput("--measure-all is for a run beside another version", do="Name it: --base or --baseline.")
    places = folder or baselines.default_folder()
    stored = None if baseline is None else baselines.find(baseline, places).path
    return Options(
        out,
        tuple(only or ()),
        budget_seconds,
        launches,
        jobs,
        resume,
        command or shlex.join(["leanmark", *sys.argv[1:]]),
        base,
        base_python,
        stored,
        dirty,
        measure_all,
        places,
        tuple(seeds or ()),
    )


def check_target(target: str, runs: Path) -> None:
    """Raises InvalidInput for what is neither a suite nor a run."""
    try:
        find_suite(target)
    except InvalidInput as error:
        raise InvalidInput(
            f"there is neither a suite '{target}' nor such a run in {runs.absolute()}", do=error.do
        ) from error


def remarks(run: Run) -> Iterator[str]:
    """What a run that becomes a baseline does not hold."""
    bad = [result for result in run.results if result.status not in (Status.OK, Status.NOISY)]
    if bad:
        shown = ", ".join(f"{result.cell.id} ({result.status.value})" for result in bad[:3])
        yield f"{len(bad)} of {len(run.results)} cells are not ok, so nothing protects them: {shown}"
    if run.commit.get("dirty") is True:
        yield "it was measured with changes that are in no commit"


def default_baseline(suite: str, folder: Path) -> str:
    """The stored baseline of a suite that is to be measured here. Raises NothingToCompare where there is none."""
    name = suites.load(find_suite(suite)).name
    found = baselines.fitting(name, read_environment()["machine_class"], folder)
    if not found:
        raise _no_baseline(name, folder)
    return str(found[0].path)


def _no_baseline(suite: str, folder: Path) -> NothingToCompare:
    return NothingToCompare(
        f"there is no baseline of '{suite}' in {folder.absolute()}",
        do="Store a run as one with `leanmark baseline save RUN`, or measure beside a revision with --base.",
    )


def judge_run(run: Run, baseline: str | None, folder: Path) -> Judgement:
    """The verdicts on a run: by what it was measured beside, by a named baseline, or by the one that is stored.

    A pinned baseline of the suite is always compared with too. Raises InvalidInput, and NothingToCompare where there
    is nothing to compare with.
    """
    found = _chosen(run, baseline, folder)
    if not found and not run.bases:
        raise _no_baseline(run.suite, folder)
    beside = {base.id for base in run.bases}
    stored = [Stored(item.name, item.run, item.is_pinned) for item in found if item.run.id not in beside]
    return _judged(run, stored)


def _judged(run: Run, stored: Sequence[Stored]) -> Judgement:
    """The verdicts. Raises InvalidInput where a document holds numbers that no measurement gives."""
    try:
        return gate.judge(run, stored, datetime.now(UTC).date())
    except (ArithmeticError, ValueError) as error:
        raise InvalidInput(f"a document holds numbers that nothing measures: {error}", do="Measure again.") from error


def _chosen(run: Run, named: str | None, folder: Path) -> list[Baseline]:
    machine = str(run.environment.get("machine_class", ""))
    only = bool(run.bases) and named is None
    fitting = baselines.fitting(run.suite, machine, folder, pinned_only=only)
    pinned = [item for item in fitting if item.is_pinned]
    if named is not None:
        chosen = baselines.find(named, folder)
        baselines.check_suite(chosen, run.suite)
        return [chosen, *(item for item in pinned if item.path.resolve() != chosen.path.resolve())]
    return pinned if run.bases else fitting


def compare_runs(first: str, second: str, runs: Path, folder: Path) -> Judgement:
    """What changed from the second to the first, each a run or a baseline. Raises InvalidInput."""
    head, base = (_document(name, runs, folder) for name in (first, second))
    for name, item in ((first, head), (second, base)):
        if item.run.bases:
            raise InvalidInput(
                f"{name} was measured beside {item.run.bases[0].name}, so it has no ratios of its own",
                do="`leanmark gate` judges it; to compare runs, run the suite without --base.",
            )
    if head.run.suite != base.run.suite:
        raise InvalidInput(f"{first} is of the suite '{head.run.suite}', {second} of '{base.run.suite}'")
    return _judged(head.run, [base])


def _document(name: str, runs: Path, folder: Path) -> Stored:
    """A run, or, where there is none of that name, a baseline."""
    if store.is_run(name, runs) and not baselines.is_baseline(Path(name)):
        run = store.read_run(store.find_run(name, runs, finished=True))
        return Stored(run.id, run)
    try:
        baseline = baselines.find(name, folder)
    except InvalidInput as error:
        if Path(name).exists():
            raise
        raise InvalidInput(
            f"there is neither a run '{name}' in {runs.absolute()} nor a baseline in {folder.absolute()}", do=error.do
        ) from None
    return Stored(baseline.name, baseline.run)


def save_baseline(run: Run, folder: Path, *, with_artifacts: bool) -> Baseline:
    """Store a run as the baseline of its suite and machine class. Raises InvalidInput."""
    return baselines.save(run, folder, _files if with_artifacts else None)


def _files(content: str) -> Mapping[str, Path]:
    """The files of an artifact in the store."""
    artifact = Store(default_store()).open(content)
    artifact.check()
    return {path.name: path for path in artifact.files()}


def write_outputs(outputs: Sequence[tuple[Path, str]]) -> None:
    """Put each text into its file, in place of what it held."""
    for path, text in outputs:
        with telling(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        store.write_atomically(path, text)


def append_summary(text: str) -> None:
    """Add to the summary of the step, where this is a step of a GitHub workflow."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with telling(Path(path)), Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
