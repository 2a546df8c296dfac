"""Plan -> run: order, isolation, resume, progress. Calls the verbs in order.

A run prepares every trial in a child process, inspects every artifact in a fresh
one, then measures block after block, launch after launch. Each finished piece goes
into the journal, so that a killed run resumes and loses at most the one in hand.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmark import assembly, registry
from leanmark.assembly import Findings, Inspected
from leanmark.declare.plan import Plan, trial_seconds
from leanmark.errors import InvalidInput, StorageFull
from leanmark.judge import store as runs
from leanmark.measure import environment, quality
from leanmark.measure.paired import Launch, LaunchFacts, run_launch, turn_seconds
from leanmark.measure.sides import Side, SideError, available_cpus
from leanmark.planned import Options, Planned, plan_suite
from leanmark.prepare.recipe import Prepared, Trial, from_store, trial_message
from leanmark.processes import Done, Job, Progress, child_threads, kill_all, run_jobs
from leanmark.progress import Advance, Meter
from leanmark.results import Cell, Interval, Role, Run, Status, canonical_json, from_json, to_json

# A launch with more disturbed turns than this is measured once more.
_REPEAT_SHARE = 0.3
_INSPECT_SECONDS = 1.5


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
    with registry.import_path(*planned.paths):
        execution = _Execution(planned, options, advance)
        try:
            return execution.run(), execution.folder
        except (KeyboardInterrupt, StorageFull) as cause:
            raise RunStopped(execution.folder, cause) from None
        finally:
            kill_all()


class _Execution:
    """One run of a plan, from its journal on."""

    def __init__(self, planned: Planned, options: Options, advance: Advance) -> None:
        self.planned, self.options = planned, options
        self.plan, self.suite, self.store = planned.plan, planned.plan.suite, planned.store
        root = options.out or runs.default_runs()
        self.begun = time.monotonic()
        expected = planned.estimate()
        active = sum(cell.skip is None for cell in self.plan.cells)
        self.meter = Meter(
            advance,
            {"prepare": expected.prepare_seconds, "inspect": active * _INSPECT_SECONDS / planned.jobs,
             "measure": expected.measure_seconds},
        )  # fmt: skip
        if options.resume is not None:
            self.folder = runs.find_run(options.resume, root)
            self.journal = runs.Journal(self.folder)
            self.entries = self.journal.entries()
            self._check_same_suite(self.entries[0])
        else:
            self.folder = _new_folder(root, self.suite.name)
            self.journal = runs.Journal(self.folder)
            self.journal.append("begin", **self._header())
            self.entries = self.journal.entries()

    def _header(self) -> dict[str, Any]:
        return {
            "suite": self.suite.name,
            "title": self.suite.title,
            "file": str(self.suite.file),
            "digest": self._digest(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "cells": len(self.plan.cells),
            "environment": environment.read_environment(),
            "commit": environment.read_commit(self.suite.folder),
            "command": self.options.command,
        }

    def _digest(self) -> str:
        """A hash of all that decides what the run will hold: plan, seeds, metrics, data and code."""
        keys = [
            self.planned.trial(cell, seed).keys().final
            for cell in self.plan.cells
            if cell.skip is None
            for seed in self.suite.seeds
        ]
        metrics = [workload.metric for workload in self.suite.workloads]
        plan = [to_json(cell) for cell in self.plan.cells]
        decisive = [plan, keys, metrics, list(self.suite.seeds), self.suite.budget_seconds, self.suite.launches]
        return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()

    def _check_same_suite(self, begin: dict[str, Any]) -> None:
        if (self.folder / runs.DOCUMENT).exists():
            raise InvalidInput(f"the run {self.folder.name} is complete", do="Start a new one without --resume.")
        if begin.get("digest") != self._digest():
            raise InvalidInput(
                f"the run {self.folder.name} was begun with another plan",
                do="Resume with the same suite file and options, or start a new run.",
            )

    def run(self) -> Run:
        """All phases, then the document."""
        prepared = self._prepare()
        findings = Findings(prepared)
        findings = replace(findings, inspected=self._inspect(findings))
        findings = replace(findings, launches=self._measure(findings))
        found = assembly.results(self.plan, findings)
        begin = self.entries[0]
        warnings = assembly.control_warnings(found, findings.launches, self.suite.tolerances["latency"])
        if any(not launch.facts.pinned for launches in findings.launches.values() for launch in launches):
            warnings = (*warnings, "workers could not be pinned to processors; intervals are wider for it")
        run = Run(
            id=self.folder.name,
            suite=self.suite.name,
            title=self.suite.title,
            started=begin["started"],
            seconds=time.monotonic() - self.begun,
            command=begin["command"],
            seeds=self.suite.seeds,
            environment=begin["environment"],
            commit=begin["commit"],
            results=found,
            warnings=warnings,
        )
        runs.write_run(self.folder, run, _turns(self.plan, findings))
        return run

    # --- prepare ---

    def _prepare(self) -> dict[str, tuple[Prepared, ...]]:
        """Every trial of every cell: from the store, or in a child process."""
        trials = {
            (cell.id, seed): self.planned.trial(cell, seed)
            for cell in self.plan.cells if cell.skip is None for seed in self.suite.seeds
        }  # fmt: skip
        done: dict[tuple[str, int], Prepared] = {}
        for entry in self.entries:
            if entry["kind"] == "prepared":
                before = from_json(Prepared, entry["prepared"])
                if before.content is None:  # what lies in the store is looked up there
                    done[entry["cell"], entry["seed"]] = before
        for name, trial in trials.items():
            if name not in done and (cached := from_store(trial, self.store)) is not None:
                done[name] = cached
        waiting = {name: trial for name, trial in trials.items() if name not in done}
        for phase in (True, False):  # base models first: everything else starts from them
            batch = {name: trial for name, trial in waiting.items() if (not trial.steps) is phase}
            failed = {(trials[name].workload.name, name[1]): outcome for name, outcome in done.items()
                      if not trials[name].steps and outcome.content is None}  # fmt: skip
            for name, trial in list(batch.items()):
                cause = failed.get((trial.workload.name, name[1]))
                if cause is not None:
                    done[name] = replace(cause, reason=f"its reference model could not be made: {cause.reason}")
                    del batch[name]
            for name, outcome in self._prepare_batch(batch, sum(map(_seconds, waiting.values()))):
                done[name] = outcome
        self.meter.reach("prepare", 1.0, "prepared")
        cells = [cell for cell in self.plan.cells if cell.skip is None]
        return {cell.id: tuple(done[cell.id, seed] for seed in self.suite.seeds) for cell in cells}

    def _prepare_batch(
        self, batch: dict[tuple[str, int], Trial], total_seconds: float
    ) -> Iterator[tuple[tuple[str, int], Prepared]]:
        jobs = {f"{cell}#{seed}": (cell, seed) for cell, seed in batch}
        queue = [
            Job(
                name,
                "leanmark.prepare.child",
                trial_message(batch[key], self.store, self.suite.plugins),
                self.suite.prepare_timeout_seconds,
                paths=self.planned.paths,
            )
            for name, key in jobs.items()
        ]
        finished = self.meter.shares["prepare"]
        under_way: dict[str, float] = {}
        for event in run_jobs(queue, self.planned.jobs):
            key = jobs[event.job.name]
            share = _seconds(batch[key]) / total_seconds
            if isinstance(event, Progress):
                under_way[event.job.name] = share * event.fraction if not batch[key].steps else 0.0
                self.meter.reach("prepare", finished + sum(under_way.values()), f"{_short(key[0])}: {event.text}")
                continue
            outcome = _outcome(event)
            self.journal.append("prepared", cell=key[0], seed=key[1], prepared=to_json(outcome))
            finished += share
            under_way.pop(event.job.name, None)
            self.meter.reach("prepare", finished + sum(under_way.values()), f"{_short(key[0])}: prepared")
            yield key, outcome

    # --- inspect ---

    def _inspect(self, findings: Findings) -> dict[str, Inspected]:
        """Every artifact in a fresh process: start, memory, answers, size."""
        done = {
            entry["cell"]: from_json(Inspected, entry["inspected"])
            for entry in self.entries
            if entry["kind"] == "inspected"
        }
        for cells in self.plan.blocks().values():
            ready = [cell for cell in cells if assembly.runnable(cell, findings)]
            missing = [cell for cell in ready if cell.id not in done]
            if not missing:
                continue
            reference = next((cell for cell in ready if cell.role is Role.REFERENCE), None)
            wanted = [*([reference] if reference and reference not in missing else []), *missing]
            for cell, inspected in self._inspect_block(wanted, reference, findings):
                if cell.id not in done:
                    done[cell.id] = inspected
                    self.journal.append("inspected", cell=cell.id, inspected=to_json(inspected))
        self.meter.reach("inspect", 1.0, "inspected")
        return done

    def _inspect_block(
        self, cells: Sequence[Cell], reference: Cell | None, findings: Findings
    ) -> Iterator[tuple[Cell, Inspected]]:
        seeds = range(len(self.suite.seeds))
        share = 1 / sum(cell.skip is None for cell in self.plan.cells) / len(seeds)
        gathered: dict[str, dict[int, quality.Inspection | SideError]] = {cell.id: {} for cell in cells}
        with child_threads(self.planned.jobs) as pool:
            futures = {
                pool.submit(quality.inspect, self._side(cell, findings, seed)): (cell, seed)
                for cell in cells
                for seed in seeds
            }
            for future in as_completed(futures):
                cell, seed = futures[future]
                try:
                    gathered[cell.id][seed] = future.result()
                except SideError as error:
                    gathered[cell.id][seed] = error
                self.meter.add("inspect", share, f"{_short(cell.id)}: answers")
        anchor = None if reference is None else _answers(gathered[reference.id])
        if reference is not None and self._assess(reference, gathered[reference.id], None).death is not None:
            anchor = None
        for cell in cells:
            yield cell, self._assess(cell, gathered[cell.id], None if cell is reference else anchor)

    def _assess(
        self, cell: Cell, gathered: Mapping[int, quality.Inspection | SideError], anchor: list[quality.Answers] | None
    ) -> Inspected:
        """Score the answers; `anchor` is None for the reference, and where it has none itself."""
        for item in gathered.values():
            if isinstance(item, SideError):
                return Inspected(death=(item.death.status, item.death.reason))
        answers, start = _answers(gathered), gathered[0]
        assert answers is not None
        assert isinstance(start, quality.Inspection)
        metric = self.plan.workload(cell.workload).metric
        if metric == "agreement" and anchor is None and cell.role is not Role.REFERENCE:
            return Inspected(
                cold_start=start.cold_start, death=(Status.FAILED, "its reference gave no answers to agree with")
            )
        try:
            score = quality.assess(metric, answers, anchor)
        except (ValueError, KeyError) as error:
            return Inspected(cold_start=start.cold_start, death=(Status.FAILED, f"metric {metric}: {error}"))
        if not all(map(_is_finite, (score.score, score.difference))):
            reason = f"metric {metric} is no number, or has no finite interval on these examples"
            return Inspected(cold_start=start.cold_start, death=(Status.FAILED, reason))
        moved = None
        if anchor is not None:
            moved = max(quality.largest_difference(a, b) for a, b in zip(answers, anchor, strict=True))
            moved = min(moved, sys.float_info.max)  # JSON has no infinity
        return Inspected(score, start.cold_start, difference=moved)

    def _side(self, cell: Cell, findings: Findings, seed: int = 0) -> Side:
        prepared = findings.prepared[cell.id][seed]
        assert prepared.content is not None
        assert prepared.splits is not None
        artifact = self.store.open(prepared.content)
        return Side(
            name=cell.id,
            artifact=artifact.root,
            target=cell.target,
            splits=self.store.splits(prepared.splits),
            metric=self.plan.workload(cell.workload).metric,
            paths=self.planned.paths,
            extra_call_every=artifact.delivery.extra_call_every,
        )

    # --- measure ---

    def _measure(self, findings: Findings) -> dict[str, list[Launch]]:
        """All launches of all blocks; those of a resumed run are read back."""
        blocks = {
            block: [cell for cell in cells if self._measurable(cell, findings)]
            for block, cells in self.plan.blocks().items()
        }
        total = sum(map(len, blocks.values()))
        measured: dict[str, list[Launch]] = {}
        for block, cells in blocks.items():
            if not any(cell.role is Role.REFERENCE for cell in cells):
                continue
            share = len(cells) / max(total, 1) / self.suite.launches
            measured[block] = self._stored_launches(block)
            self.meter.add("measure", share * len(measured[block]), block)
            while len(measured[block]) < self.suite.launches:
                dead = {name for launch in measured[block] for name in launch.deaths}
                if cells[0].id in dead:  # the reference
                    break
                alive = [cell for cell in cells if cell.id not in dead]
                measured[block].append(self._launch(block, alive, findings, measured[block], share))
        self.meter.reach("measure", 1.0, "measured")
        return measured

    def _measurable(self, cell: Cell, findings: Findings) -> bool:
        inspected = findings.inspected.get(cell.id)
        return assembly.runnable(cell, findings) and inspected is not None and inspected.death is None

    def _launch(
        self, block: str, cells: Sequence[Cell], findings: Findings, before: Sequence[Launch], share: float
    ) -> Launch:
        number = len(before)
        sides = [self._side(cell, findings) for cell in cells]
        label = f"{block}: launch {number + 1} of {self.suite.launches}"

        def attempt() -> Launch:
            start = self.meter.shares["measure"]
            return run_launch(
                sides,
                number=number,
                seconds=self.suite.budget_seconds / self.suite.launches,
                cpus=available_cpus(),
                seed=_stable_seed(block),
                before=before[0] if before else None,
                progress=lambda done: self.meter.reach("measure", start + share * done, label),
            )

        self.meter.tell("measure", label)
        launch = attempt()
        if launch.disturbed_share() > _REPEAT_SHARE:
            self.meter.tell("measure", f"{label}, again: other programs disturbed it")
            launch = min(launch, attempt(), key=lambda item: (len(item.deaths), item.disturbed_share()))
        name = f"{_slug(block)}-{number}"
        runs.write_samples(self.folder, name, launch.arrays())
        self.journal.append("launch", block=block, samples=name, facts=to_json(launch.facts))
        return launch

    def _stored_launches(self, block: str) -> list[Launch]:
        return [
            Launch.restore(from_json(LaunchFacts, entry["facts"]), runs.read_samples(self.folder, entry["samples"]))
            for entry in self.entries
            if entry["kind"] == "launch" and entry["block"] == block
        ]


def _is_finite(interval: Interval | None) -> bool:
    return interval is None or all(map(math.isfinite, (interval.value, interval.low, interval.high)))


def _seconds(trial: Trial) -> float:
    return trial_seconds(trial.workload, len(trial.steps))


def _outcome(done: Done) -> Prepared:
    """What a child answered, or the status of how it died."""
    if done.death is not None:
        return Prepared(done.death.status, done.death.reason)
    assert done.answer is not None
    if "full" in done.answer:
        raise StorageFull("the disk is full", where=done.answer["full"])
    return from_json(Prepared, done.answer["prepared"])


def _answers(gathered: Mapping[int, quality.Inspection | SideError]) -> list[quality.Answers] | None:
    """The answers of every seed in order, or None if a seed has none."""
    items = [gathered[seed] for seed in sorted(gathered)]
    found = [item.answers for item in items if isinstance(item, quality.Inspection)]
    return found if len(found) == len(items) else None


def _turns(plan: Plan, findings: Findings) -> dict[str, list[float]]:
    """Seconds a call of every turn of every cell."""
    return {cell.id: turn_seconds(findings.launches.get(cell.block, ()), cell.id).tolist() for cell in plan.cells}


def _new_folder(root: Path, suite: str) -> Path:
    """A fresh folder for a run, named by time and suite."""
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{suite}"
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    folder = next(root / name for name in names if not (root / name).exists())
    runs.create_folder(folder)
    return folder


def _stable_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def _short(cell: str) -> str:
    """A cell's id without its target."""
    return cell.rpartition("/")[0]
