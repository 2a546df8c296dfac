"""Plan -> run: order, isolation, resume, progress. Calls the verbs in order.

A run prepares every trial in a child process (`preparing`), then measures block
after block, launch after launch (`measuring`). Each finished piece goes into the
journal, so that a killed run resumes and loses at most the one in hand.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmark import assembly, modules
from leanmark.assembly import Findings
from leanmark.declare.plan import Plan
from leanmark.errors import InvalidInput, StorageFull
from leanmark.jsonable import canonical_json, to_json
from leanmark.judge import store as runs
from leanmark.measure import environment
from leanmark.measure.launches import stretch_seconds
from leanmark.measuring import measure_all
from leanmark.planned import Options, Planned, plan_suite
from leanmark.preparing import prepare_all
from leanmark.processes import kill_all
from leanmark.progress import Advance, Meter
from leanmark.results import Run


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
    with modules.import_path(*planned.paths):
        journal = _open_journal(planned, options)
        try:
            return _run(planned, journal, advance), journal.folder
        except (KeyboardInterrupt, StorageFull) as cause:
            raise RunStopped(journal.folder, cause) from None
        finally:
            kill_all()


def _run(planned: Planned, journal: runs.Journal, advance: Advance) -> Run:
    """All phases, then the document."""
    started = time.monotonic()
    expected = planned.estimate()
    meter = Meter(advance, {"prepare": expected.prepare_seconds, "measure": expected.measure_seconds})
    prepared = prepare_all(planned, journal, meter)
    findings = measure_all(planned, journal, meter, prepared)
    plan, begin = planned.plan, journal.entries()[0]
    found = assembly.results(plan, findings)
    warnings = assembly.control_warnings(found, findings.launches, plan.suite.tolerances["latency"])
    if any(not launch.facts.pinned for launches in findings.launches.values() for launch in launches):
        warnings = (*warnings, "workers could not be pinned to processors; intervals are wider for it")
    run = Run(
        id=journal.folder.name,
        suite=plan.suite.name,
        title=plan.suite.title,
        started=begin["started"],
        seconds=time.monotonic() - started,
        command=begin["command"],
        seeds=plan.suite.seeds,
        environment=begin["environment"],
        commit=begin["commit"],
        results=found,
        warnings=warnings,
    )
    runs.write_run(journal.folder, run, _stretches(plan, findings))
    return run


def _open_journal(planned: Planned, options: Options) -> runs.Journal:
    """The journal of a new run, or of the one to resume."""
    root = options.out or runs.default_runs()
    suite = planned.plan.suite
    digest = _digest(planned)
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


def _digest(planned: Planned) -> str:
    """A hash of all that decides what the run will hold: plan, seeds, metrics, data and code."""
    suite = planned.plan.suite
    keys = [trial.keys().final for trial in planned.trials().values()]
    metrics = [workload.metric for workload in suite.workloads]
    plan = [to_json(cell) for cell in planned.plan.cells]
    decisive: list[Any] = [plan, keys, metrics, list(suite.seeds), suite.budget_seconds, suite.launches]
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()


def _check_same_plan(journal: runs.Journal, digest: str) -> None:
    if (journal.folder / runs.DOCUMENT).exists():
        raise InvalidInput(f"the run {journal.folder.name} is complete", do="Start a new one without --resume.")
    if journal.entries()[0].get("digest") != digest:
        raise InvalidInput(
            f"the run {journal.folder.name} was begun with another plan",
            do="Resume with the same suite file and options, or start a new run.",
        )


def _stretches(plan: Plan, findings: Findings) -> dict[str, list[float]]:
    """Seconds a call of every stretch that each cell had to itself."""
    return {cell.id: stretch_seconds(findings.launches.get(cell.block, ()), cell.id) for cell in plan.cells}


def _new_folder(root: Path, suite: str) -> Path:
    """A fresh folder for a run, named by time and suite."""
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{suite}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    folder = next(root / name for name in names if not (root / name).exists())
    runs.create_folder(folder)
    return folder
