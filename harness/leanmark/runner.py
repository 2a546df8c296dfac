"""Plan -> run: order, isolation, resume, progress. Calls the verbs in order.

A run prepares every trial in a child process (`preparing`), then measures block
after block, launch after launch (`measuring`). Each finished piece goes into the
journal, so that a killed run resumes and loses at most the one in hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmark import assembly, modules, versions
from leanmark.assembly import Findings
from leanmark.comparing import compare_all, screening_of
from leanmark.declare.plan import Plan
from leanmark.declare.schema import NAME_PATTERN
from leanmark.errors import InvalidInput, StorageFull
from leanmark.jsonable import canonical_json, from_json, to_json
from leanmark.judge import merging
from leanmark.judge import store as runs
from leanmark.measure import environment
from leanmark.measure.launches import stretch_seconds
from leanmark.measuring import launches_of, measure_all
from leanmark.planned import Options, Planned, TrialName, plan_suite
from leanmark.preparation import describe
from leanmark.prepare.recipe import Prepared
from leanmark.preparing import look, prepare_all
from leanmark.processes import kill_all
from leanmark.progress import Advance, Meter
from leanmark.results import Base, Run
from leanmark.versions import Version
from leanmark.workloads import data_sets

_CONTROL_TOLERANCE = 0.02


class RunStopped(Exception):
    """A run was interrupted or its disk is full; it can be resumed."""

    def __init__(self, folder: Path, cause: BaseException) -> None:
        self.folder, self.cause = folder, cause
        super().__init__(str(cause))


def run_suite(name: str, options: Options, advance: Advance) -> tuple[Run, Path]:
    """Run a suite; returns the run and its folder.

    Raises LeanmarkError, or RunStopped once there is something to resume. Whatever
    ends it, no child process is left behind.
    """
    planned = plan_suite(name, options)
    data_sets.require(planned.needs())
    meter = Meter(advance, _weights(planned))
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(modules.import_path(*planned.paths))
            planned = look(planned, meter)
            others = stack.enter_context(versions.beside(planned, options, meter))
            journal = _open_journal(planned, options, others)
            try:
                measured = _measure(planned, options, journal, meter, others)
                return _document(planned, journal, *measured, time.monotonic() - started), journal.folder
            except (KeyboardInterrupt, StorageFull) as cause:
                raise RunStopped(journal.folder, cause) from None
    finally:
        kill_all()


def _weights(planned: Planned) -> dict[str, float]:
    """The phases of a run and about how many seconds each takes."""
    expected = planned.estimate()
    weights = {"prepare": expected.prepare_seconds, "measure": expected.measure_seconds}
    if planned.beside:
        weights = {"base": expected.prepare_seconds + 1.0, **weights, "answers": expected.measure_seconds / 2}
        weights["decide"] = weights["measure"] / 2
    return weights


def _measure(
    planned: Planned, options: Options, journal: runs.Journal, meter: Meter, others: Sequence[Version]
) -> tuple[Findings, tuple[Base, ...], tuple[str, ...]]:
    """All phases, beside other versions where there are any, else beside its own references; and what went wrong."""
    failed: dict[TrialName, Prepared] = {}
    for entry in journal.entries():
        if entry["kind"] == "prepared":
            before = from_json(Prepared, entry["prepared"], journal.path)
            if before.content is None:  # what lies in the store is looked up there
                failed[entry["cell"], entry["seed"]] = before

    def keep(name: TrialName, prepared: Prepared) -> None:
        journal.append("prepared", cell=name[0], seed=name[1], prepared=to_json(prepared))

    prepared = prepare_all(planned, failed, keep, meter)
    if not others:
        findings = measure_all(planned, journal, meter, prepared)
        found = assembly.results(planned.plan, findings)
        controls = assembly.control_warnings(found, findings, _control_tolerance(planned.plan))
        return findings, (), (*controls, *assembly.device_warnings(found))
    return compare_all(planned, journal, meter, prepared, others, everything=options.measure_all)


def _document(
    planned: Planned,
    journal: runs.Journal,
    findings: Findings,
    bases: tuple[Base, ...],
    warnings: tuple[str, ...],
    seconds: float,
) -> Run:
    """The run as it is stored."""
    plan, begin = planned.plan, journal.entries()[0]
    code = describe(planned, findings.prepared).code
    launches = [launch.facts for found in findings.launches.values() for launch in found]
    run = Run(
        id=journal.folder.name,
        suite=plan.suite.name,
        title=plan.suite.title,
        started=begin["started"],
        seconds=seconds,
        command=begin["command"],
        seeds=plan.suite.seeds,
        environment=begin["environment"],
        commit=begin["commit"],
        results=tuple(replace(item, code=code[item.cell.id]) for item in assembly.results(plan, findings)),
        warnings=(*warnings, *assembly.machine_warnings(launches)),
        only=planned.only,
        rules=plan.suite.rules,
        bases=bases,
        claims=plan.suite.claims,
    )
    runs.write_run(journal.folder, run, _stretches(plan, findings))
    return run


def _control_tolerance(plan: Plan) -> float:
    """How far an A/A control may lie off: what the gate tolerates, or its default where latency is not judged."""
    tolerance = plan.suite.rules.limits.latency
    return _CONTROL_TOLERANCE if tolerance is None else tolerance


def _open_journal(planned: Planned, options: Options, others: Sequence[Version]) -> runs.Journal:
    """The journal of a new run, or of the one to resume."""
    root = options.out or runs.default_runs()
    suite = planned.plan.suite
    digest = _digest(planned, options, others)
    if options.resume is not None:
        journal = runs.Journal(runs.find_run(options.resume, root, finished=False))
        _check_same_plan(journal, digest)
        return journal
    header = {
        "suite": suite.name,
        "title": suite.title,
        "file": str(suite.file),
        "digest": digest,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": len(planned.plan.cells),
        "environment": environment.read_environment(),
        "commit": environment.read_commit(suite.folder),
        "command": options.command,
    }
    journal = runs.Journal(_new_folder(root, suite.name))
    try:
        journal.append("begin", **header)
    except BaseException:  # nothing was begun, so nothing stays
        shutil.rmtree(journal.folder, ignore_errors=True)
        raise
    return journal


def _digest(planned: Planned, options: Options, others: Sequence[Version]) -> str:
    """A hash of all that decides what the run will hold: plan, seeds, metrics, data, code, and the other versions."""
    suite = planned.plan.suite
    keys = [trial.keys().final for trial in planned.trials().values()]
    metrics = [workload.metric for workload in suite.workloads]
    plan = [to_json(cell) for cell in planned.plan.cells]
    claims = [to_json(claim) for claim in suite.claims]
    decisive: list[Any] = [plan, keys, metrics, list(suite.seeds), suite.budget_seconds, suite.launches, claims]
    for version in others:
        decisive += [version.kind, version.id, options.measure_all, to_json(suite.rules), version.code.python]
        decisive += [dict(version.digests), {cell: list(found) for cell, found in version.contents.items()}]
        decisive += [planned.code_of(cell) for cell in planned.plan.cells]
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()


def _check_same_plan(journal: runs.Journal, digest: str) -> None:
    if (journal.folder / runs.DOCUMENT).exists():
        raise InvalidInput(f"the run {journal.folder.name} is complete", do="Start a new one without --resume.")
    if journal.entries()[0].get("digest") != digest:
        raise InvalidInput(
            f"the run {journal.folder.name} was begun with another plan",
            do="Resume with the same suite file and options, or start a new run.",
        )


def merge_runs(names: Sequence[str], root: Path) -> tuple[Run, Path]:
    """Join stored runs of one suite that have different seeds to a run of its own; returns it and its folder.

    Raises InvalidInput where they do not fit together.
    """
    folders = [runs.find_run(name, root, finished=True) for name in names]
    found = [runs.read_run(folder) for folder in folders]
    merged = merging.merge(found)
    first = next(index for index, run in enumerate(found) if run.seeds[0] == merged.seeds[0])
    # Its latency is the first seed's, and so are the samples of it, where they still are.
    try:
        stretches = stretches_of(found[first], _folder_of(folders[first]))
    except InvalidInput as error:
        stretches = {}
        told = f"the samples of {found[first].id} are not at hand, so pytest-benchmark's figures are left out ({error})"
        merged = replace(merged, warnings=(*merged.warnings, " ".join(told.split())))
    folder = _new_folder(root, merged.suite)
    merged = replace(merged, id=folder.name)
    try:
        runs.write_run(folder, merged, stretches)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return merged, folder


def _folder_of(path: Path) -> Path:
    """The folder of a run that may be named by its document."""
    return path if path.is_dir() else path.parent


def stretches_of(run: Run, folder: Path) -> dict[str, list[float]]:
    """Seconds a call of every stretch that each cell of a finished run had to itself."""
    journal = runs.Journal(folder)
    blocks = {result.cell.block for result in run.results}
    names = {block: screening_of(block) if run.bases else block for block in blocks}
    launches = {block: launches_of(journal, name) for block, name in names.items()}
    return {item.cell.id: stretch_seconds(launches[item.cell.block], item.cell.id) for item in run.results}


def _stretches(plan: Plan, findings: Findings) -> dict[str, list[float]]:
    """Seconds a call of every stretch that each cell had to itself."""
    return {cell.id: stretch_seconds(findings.launches.get(cell.block, ()), cell.id) for cell in plan.cells}


def _new_folder(root: Path, suite: str) -> Path:
    """A fresh folder for a run, named by time and suite. Raises InvalidInput for a name that no suite can have."""
    if not re.fullmatch(NAME_PATTERN, suite):  # of a document that may come from anybody
        raise InvalidInput(f"'{suite}' is no name of a suite", do="The run's document is damaged.")
    return runs.create_folder(root, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{suite}")
