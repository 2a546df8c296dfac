"""The other version of a suite's cells: what a revision's own code, or a baseline's artifacts, make of them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from leanmark import environments, revisions
from leanmark.channel import PROTOCOL_VERSION
from leanmark.errors import InvalidInput, NothingToCompare
from leanmark.graphs import external_locations
from leanmark.jobs import Done, Job, Progress, run_jobs
from leanmark.jsonable import from_json
from leanmark.judge import baselines
from leanmark.judge.baselines import Baseline
from leanmark.measure.environment import read_environment
from leanmark.planned import Options, Planned, at_hand
from leanmark.preparation import Preparation
from leanmark.prepare.recipe import Prepared
from leanmark.processes import Code
from leanmark.progress import Meter
from leanmark.registry import Workload
from leanmark.results import SCHEMA_VERSION, Cell, Result, Status
from leanmark.revisions import Checkout
from leanmark.rules import Rules
from leanmark.stages import Artifact, TorchModel

# What is said where something is missing that the base does not bring, such as data that are not under version control.
_WANTING = re.compile(r"FileNotFoundError|No such file|No module named|NotADirectoryError")
_LIMIT_SECONDS = 7 * 86400.0  # each trial has its own limit


@dataclass(frozen=True)
class Version:
    """What a run is measured beside.

    results: what is known of its cells before anything is measured. contents: the artifacts of those
    that can be run, one a seed, by content hash in the store. code: what runs them; digests: hashes of
    that by cell. tag: what its sides are called after their cells. problems: why a cell cannot be run,
    where there is more to say than that there is none. lost: cells that failed for want of their model or data.
    scoring: by workload, hashes of its own metric and of its test examples, where they are known.
    """

    kind: Literal["revision", "baseline"]
    name: str
    id: str
    results: Mapping[str, Result]
    contents: Mapping[str, tuple[str, ...]]
    code: Code
    digests: Mapping[str, str]
    rules: Rules = field(default_factory=Rules)
    tag: str = "base"
    notes: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict[str, str])
    lost: frozenset[str] = frozenset()
    scoring: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])


@contextlib.contextmanager
def beside(planned: Planned, options: Options, meter: Meter) -> Generator[tuple[Version, ...]]:
    """What a run is measured beside, for as long as this lasts; nothing where it is measured by itself.

    The second, where there is one, is the pinned baseline: drift that each change keeps within the tolerance
    shows against it.
    """
    if options.base is not None:
        with _of_revision(planned, options, meter) as (version, checkout, suite):
            yield version, *_anchor(planned, suite, _as_of(checkout, options.baselines))
    elif options.baseline is not None and planned.beside:
        version, suite = _of_baseline(planned, baselines.read(options.baseline)), planned.plan.suite.name
        yield version, *(item for item in _anchor(planned, suite, options.baselines) if item.id != version.id)
    else:
        yield ()


def _as_of(checkout: Checkout, folder: Path | None) -> Path | None:
    """A folder as the base has it, so that a change cannot do away with what it is judged by."""
    if folder is None:
        return None
    # Not resolved: what is a link here may be a folder there.
    here = Path(os.path.normpath(Path.cwd().resolve() / folder))
    return checkout.root / here.relative_to(checkout.top) if here.is_relative_to(checkout.top) else folder


def _anchor(planned: Planned, suite: str, folder: Path | None) -> Iterator[Version]:
    """The pinned baseline of a suite: to be run, where its artifacts are there, or to be read.

    Raises InvalidInput for one that is damaged.
    """
    if folder is None or not folder.is_dir():
        return
    for item in baselines.fitting(suite, read_environment()["machine_class"], folder, pinned_only=True):
        if not item.is_beside_its_artifacts:
            item = replace(item, artifacts=None)
        yield replace(_of_baseline(planned, item), tag="anchor")


def _of_baseline(planned: Planned, baseline: Baseline) -> Version:
    """A baseline, with its artifacts where it has them. Raises InvalidInput."""
    baseline, carried, notes = _with_threads_of(planned, baseline, at_hand(planned.store, baseline))
    contents, problems = _unpacked(planned, baseline, carried)
    return Version(
        "baseline",
        baseline.name,
        baseline.run.id,
        {result.cell.id: result for result in baseline.run.results},
        contents,
        planned.code,
        {result.cell.id: result.code for result in baseline.run.results},
        baseline.run.rules,
        notes=notes,
        problems=problems,
    )


def _with_threads_of(
    planned: Planned, baseline: Baseline, carried: Mapping[str, tuple[str, ...]]
) -> tuple[Baseline, Mapping[str, tuple[str, ...]], tuple[str, ...]]:
    """A baseline, and its artifacts by cell, with the suite's number of threads where that is all that differs; and
    what is said of it.

    An artifact holds no number of threads, and both versions run here. What the baseline's own run timed is left out.
    """

    def apart(cell: Cell) -> tuple[object, ...]:
        return cell.workload, cell.recipe, cell.role, replace(cell.target, threads=0)

    before = {apart(result.cell): result for result in reversed(baseline.run.results)}
    known = {result.cell.id for result in baseline.run.results}
    here = {cell.id: before.get(apart(cell)) for cell in planned.plan.cells if cell.id not in known}
    moved = {name: result for name, result in here.items() if result is not None}
    if not moved or not carried:
        return baseline, carried, ()
    gone = {result.cell.id for result in moved.values()} - {cell.id for cell in planned.plan.cells}
    cells = {cell.id: cell for cell in planned.plan.cells}
    untimed: dict[str, Any] = dict.fromkeys(("timing", "against_reference", "against_eager"))
    results = [replace(result, cell=cells[name], **untimed) for name, result in moved.items()]
    contents = {name: carried.get(result.cell.id, ()) for name, result in moved.items()}
    kept = tuple(result for result in baseline.run.results if result.cell.id not in gone)
    threads = sorted({result.cell.target.threads for result in moved.values()})
    note = f"{baseline.name} was taken with threads: {threads[0]}; both versions are run with the suite's here"
    run = replace(baseline.run, results=(*kept, *results))
    return replace(baseline, run=run), {**carried, **contents}, (note,)


def _unpacked(
    planned: Planned, baseline: Baseline, carried: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The baseline's artifacts in the store, by cell; and why some are left out.

    A baseline comes with a pull request: what is taken is data, and the only code that it makes run is what
    the suite here names itself.
    """
    stored = planned.store.holds(content for hashes in carried.values() for content in hashes)
    read = _nothing if stored and not baseline.is_beside_its_artifacts else baselines.artifact_files(baseline)
    known = {result.cell.id: result for result in baseline.run.results}
    cells = {cell.id: cell for cell in planned.plan.cells if cell.id in known}
    contents: dict[str, tuple[str, ...]] = {}
    problems: dict[str, str] = {}
    for name, hashes in carried.items():
        if name not in cells:
            continue
        problem = ""
        for content in hashes:
            artifact = planned.store.adopt(content, lambda file, content=content: read(content, file))
            workload = planned.plan.workload(cells[name].workload)
            problem = problem or _distrust(artifact, workload)
            if artifact.stage is TorchModel and not problem:
                now = planned.code_of(cells[name]).partition(".")[0]
                if now != known[name].code.partition(".")[0]:
                    problem = f"it holds weights, and the code of {workload.model} or of what it imports has changed"
        count = _in_common(planned.plan.suite.seeds, baseline.run.seeds)
        if not count:
            problem = problem or "it is of another seed"
        if problem:
            problems[name] = f"the artifact of {baseline.name} is not run: {problem}"
        else:
            contents[name] = hashes[:count]
    return contents, problems


def _nothing(content: str, _: str) -> bytes:
    raise InvalidInput(f"the artifact {content[:12]} has just gone from the store", do="Save the baseline again.")


def _distrust(artifact: Artifact, workload: Workload) -> str:
    """Why an artifact that somebody else made is not to be run here; empty where it may be."""
    if artifact.stage is TorchModel:
        named = (artifact.manifest.get("builder"), artifact.manifest.get("config"))
        own = (workload.model, dict(workload.config or {}))
        return "" if named == own else f"it is built by {named[0]!r}, which is not what the suite names"
    beside = {"model.onnx", "weights.packed"}
    if not set(artifact.manifest["files"]) <= beside:
        return "it has files that no program of leanmark's has"
    try:
        found = external_locations(artifact.root / "model.onnx") - {"weights.packed"}
    except Exception as error:  # a forged protobuf raises whatever its parser does
        return f"it holds no program that can be read: {error}"
    return f"its weights are said to lie in {sorted(found)[0][:100]!r}" if found else ""


@contextlib.contextmanager
def _of_revision(planned: Planned, options: Options, meter: Meter) -> Generator[tuple[Version, Checkout, str]]:
    """The revision that the options name, prepared by its own code, and what it calls the suite; its work tree is there
    for as long as this lasts.

    Raises InvalidInput where there is no such revision, NothingToCompare where it cannot be prepared.
    """
    assert options.base is not None
    suite = planned.plan.suite
    with revisions.checkout(suite.folder, options.base, dirty=options.dirty) as checkout:
        file = checkout.counterpart(suite.file)
        if file is None:
            raise NothingToCompare(
                f"the suite {suite.file} is not in the repository {checkout.top}",
                do="Put the suite under version control, or gate against a stored baseline with --baseline.",
            )
        if not file.is_file():
            raise NothingToCompare(f"{options.base} has no {suite.file.relative_to(checkout.top)} yet")
        meter.tell("base", f"{options.base}: environment")
        python = environments.python_of(checkout, options.base_python, suite.folder)
        notes = _notes(planned, checkout) if python == sys.executable else ()
        code = Code(python, sources=checkout.sources(), folder=_folder(checkout, file))
        preparation = _prepared(planned, options, code, file, meter)
        _check_apart(preparation, checkout)
        wanting = {name for name, reason in preparation.broken.items() if _WANTING.search(reason)} - {*planned.broken}
        lost = {cell.id for cell in preparation.cells if cell.workload in wanting}
        if preparation.suite != suite.name:
            notes += (f"the suite is called {suite.name} here and {preparation.suite} in {options.base}",)
        version = Version(
            "revision",
            options.base,
            checkout.commit,
            {cell.id: _result(preparation, index) for index, cell in enumerate(preparation.cells)},
            _of_same_seeds(preparation, planned.plan.suite.seeds),
            replace(code, paths=preparation.paths),
            preparation.code,
            preparation.rules,
            notes=notes,
            problems={
                cell.id: f"{options.base} has no model or data: {preparation.broken[cell.workload]}"
                for cell in preparation.cells
                if cell.id in lost
            },
            lost=frozenset(lost),
            scoring=preparation.scoring,
        )
        yield version, checkout, preparation.suite


def _folder(checkout: Checkout, suite: Path) -> Path | None:
    """Where the revision's code runs, so that it finds its own files by the paths by which the head's finds its own."""
    here = checkout.counterpart(Path.cwd())
    return here if here is None or here.is_dir() else suite.parent


def _prepared(planned: Planned, options: Options, code: Code, file: Path, meter: Meter) -> Preparation:
    """What the revision's own code makes of its suite."""
    message = {
        "suite": str(file),
        "only": list(options.only),
        "jobs": planned.jobs,
        "store": str(planned.store.root),
    }
    job = Job("base", "leanmark.preparation", message, _LIMIT_SECONDS, threads=1, code=code)
    for event in run_jobs([job], 1):
        if isinstance(event, Progress):
            meter.reach("base", event.fraction, f"{options.base}: {event.text.removeprefix('prepare: ')}")
        else:
            meter.reach("base", 1.0, f"{options.base}: prepared")
            return _checked(event, str(options.base))
    raise AssertionError("a job is done in the end")


def _checked(done: Done, name: str) -> Preparation:
    """The answer, if it is one that this program understands. Raises NothingToCompare."""
    if done.death is not None:
        raise NothingToCompare(f"{name} cannot be prepared: {done.death.reason}", do="Mend it, or name another base.")
    assert done.answer is not None
    if "error" in done.answer:
        raise NothingToCompare(f"{name} cannot be prepared: {done.answer['error']}", where=done.answer["where"])
    found = done.answer["preparation"]
    for what, spoken in {"protocol": PROTOCOL_VERSION, "schema_version": SCHEMA_VERSION}.items():
        if found.get(what) != spoken:
            raise NothingToCompare(
                f"the leanmark of {name} has {what.replace('_', ' ')} {found.get(what)}, this one {spoken}",
                do="Let one leanmark measure both: --base-python with an interpreter that has this version.",
            )
    try:
        return from_json(Preparation, found)
    except InvalidInput as error:  # it says that it speaks the same, and does not
        raise NothingToCompare(f"what the leanmark of {name} prepared cannot be read: {error.what}") from error


def _result(preparation: Preparation, index: int) -> Result:
    """What preparing tells of a cell."""
    cell = preparation.cells[index]
    if cell.skip is not None:
        return Result(cell, *cell.skip)
    prepared = preparation.prepared[cell.id]
    worst = min(prepared, key=lambda item: list(Status).index(item.status))
    first: Prepared = prepared[0]
    return Result(
        cell,
        worst.status,
        worst.reason,
        artifact=first.content,
        footprint=first.final.footprint,
        cost=first.cost,
        evidence=first.final.evidence,
    )


def _of_same_seeds(preparation: Preparation, seeds: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
    """The artifacts of the first seeds that both versions have in common: trials of other seeds are others."""
    count = _in_common(seeds, preparation.seeds)
    return {cell: hashes[:count] for cell, hashes in preparation.contents().items() if count}


def _in_common(seeds: tuple[int, ...], others: tuple[int, ...]) -> int:
    """How many seeds both begin with."""
    same = [own == other for own, other in zip(seeds, others, strict=False)]
    return same.index(False) if False in same else len(same)


def _notes(planned: Planned, checkout: Checkout) -> tuple[str, ...]:
    """What a reader must know of code that one interpreter gives both versions.

    Raises NothingToCompare where that is the repository's own: its installed copy would stand for both.
    """
    suite = planned.plan.suite
    for package, folder in environments.copied_from(checkout):
        raise _copied(package, f"was installed from {folder}")
    named = [name for item in suite.workloads for name in (item.model, item.data, item.metric) if name and ":" in name]
    found: list[str] = []
    for reference in dict.fromkeys((*named, *suite.plugins)):
        module = reference.partition(":")[0]
        source = None if module.split(".")[0] == "leanmark" else planned.source_of(module)
        if source is None:
            continue
        installed = bool({"site-packages", "dist-packages"} & set(source.parts))
        if not installed and checkout.counterpart(source) is not None:
            continue
        own = checkout.tracked(module, suite.folder)
        if own:
            raise _copied(module, f"is imported from {source}, not from {own}")
        found.append(f"{module} is imported from {source}, which is no part of the repository: both versions run it")
    return tuple(found)


def _check_apart(preparation: Preparation, checkout: Checkout) -> None:
    """Raises NothingToCompare where the base's code took modules or files from the work tree: those are the head's."""
    if checkout.root.is_relative_to(checkout.top):
        return
    for path in map(Path.resolve, preparation.imported):
        if path.is_relative_to(checkout.top):
            raise NothingToCompare(
                f"{checkout.revision} imports {path}, which is the work tree's: both versions would run it",
                do="Put its folder on the path (a src layout, or PYTHONPATH), or use --base-python.",
            )
    for path in map(Path.resolve, preparation.read):
        if path.is_relative_to(checkout.top) and checkout.has(path):
            raise NothingToCompare(
                f"{checkout.revision} reads {path}, which is the work tree's",
                do="Let the code name it relative to its own file, or run leanmark inside of the repository.",
            )


def _copied(what: str, how: str) -> NothingToCompare:
    return NothingToCompare(
        f"{what} {how} by copying: both versions would run that copy",
        do="Install it with pip install -e, or name the base's own interpreter with --base-python.",
    )
