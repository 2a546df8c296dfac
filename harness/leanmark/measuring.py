"""Every block of a plan measured: what its artifacts answer, then launch after launch.

What an artifact answers, and what its start costs, is seen in a fresh process of its
own, one for each seed; the latency of the first seed's is measured in launches.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from typing import Any

from leanmark import assembly
from leanmark.assembly import Findings, Inspected
from leanmark.errors import InvalidInput
from leanmark.host import available_cpus
from leanmark.jsonable import from_json, to_json
from leanmark.judge import store as runs
from leanmark.measure import paired, quality
from leanmark.measure.launches import Launch, LaunchFacts
from leanmark.measure.sides import Side, SideError
from leanmark.planned import Planned
from leanmark.prepare.recipe import Prepared
from leanmark.processes import child_threads
from leanmark.progress import Meter
from leanmark.results import Cell, Interval, Role, Status, short_id

# What the processes of one cell showed, by the index of their seed.
_Shown = dict[int, quality.Inspection | SideError]


def measure_all(
    planned: Planned, journal: runs.Journal, meter: Meter, prepared: Mapping[str, tuple[Prepared, ...]]
) -> Findings:
    """Quality, cold start and turns of everything that was prepared."""
    findings = Findings(prepared)
    ready = {
        block: [cell for cell in cells if assembly.runnable(cell, findings)]
        for block, cells in planned.plan.blocks().items()
    }
    total = sum(map(len, ready.values()))
    inspected: dict[str, Inspected] = {}
    launches: dict[str, list[Launch]] = {}
    for name, cells in ready.items():
        block = _Block(name, cells, planned, journal, meter, findings, len(cells) / max(total, 1))
        launches[name] = block.measure()
        inspected |= block.inspected
    meter.reach("measure", 1.0, "measured")
    return replace(findings, inspected=inspected, launches=launches)


class _Block:
    """A reference and its variants on one target, measured together."""

    def __init__(
        self,
        name: str,
        cells: Sequence[Cell],
        planned: Planned,
        journal: runs.Journal,
        meter: Meter,
        findings: Findings,
        share: float,
    ) -> None:
        self.name, self.cells, self.planned, self.journal, self.meter = name, cells, planned, journal, meter
        self.suite, self.findings = planned.plan.suite, findings
        self.reference = next((cell for cell in cells if cell.role is Role.REFERENCE), None)
        self.share = share / self.suite.launches  # of the progress, a launch
        entries = journal.entries()
        self.inspected = {
            entry["cell"]: from_json(Inspected, entry["inspected"])
            for entry in entries
            if entry["kind"] == "inspected" and any(entry["cell"] == cell.id for cell in cells)
        }
        self.launches = [
            _restored(journal, entry) for entry in entries if entry["kind"] == "launch" and entry["block"] == name
        ]

    def measure(self) -> list[Launch]:
        """All launches; those of a resumed run are read back."""
        self.meter.add("measure", self.share * len(self.launches), self.name)
        missing = [cell for cell in self.cells if cell.id not in self.inspected]
        if self.reference is not None and missing and self.reference not in missing:
            missing.insert(0, self.reference)  # its answers are what the others' are compared with
        self._inspect(missing, self._ask_all(missing))
        alive = [cell for cell in self.cells if self._lives(cell)]
        if self.reference in alive:
            self._duel(alive)
        return self.launches

    def _lives(self, cell: Cell) -> bool:
        return self.inspected[cell.id].death is None and all(cell.id not in item.deaths for item in self.launches)

    # --- answers ---

    def _ask_all(self, cells: Sequence[Cell]) -> dict[str, _Shown]:
        """What a fresh process of every cell and seed shows."""
        shown: dict[str, _Shown] = {cell.id: {} for cell in cells}
        sides = {(cell.id, seed): self._side(cell, seed) for cell in cells for seed in range(len(self.suite.seeds))}
        alone = any(map(quality.reads_the_whole_machine, sides.values()))
        with child_threads(1 if alone else self.planned.jobs) as pool:
            futures = {
                pool.submit(quality.inspect, sides[cell.id, seed], answers_only=seed > 0): (cell, seed)
                for cell in cells
                for seed in range(len(self.suite.seeds))
            }
            for future in as_completed(futures):
                cell, seed = futures[future]
                try:
                    shown[cell.id][seed] = future.result()
                except SideError as error:
                    shown[cell.id][seed] = error
                self.meter.tell("measure", f"{short_id(cell.id)}: answers")
        return shown

    def _inspect(self, cells: Sequence[Cell], shown: Mapping[str, _Shown]) -> None:
        """Score what was answered, and put it into the journal."""
        for cell, found in self._assess_all(cells, shown):
            if cell.id not in self.inspected:
                self.inspected[cell.id] = found
                self.journal.append("inspected", cell=cell.id, inspected=to_json(found))

    def _assess_all(self, cells: Sequence[Cell], shown: Mapping[str, _Shown]) -> Iterator[tuple[Cell, Inspected]]:
        anchor = None
        if self.reference is not None and self.reference in cells:
            own = self._assess(self.reference, shown[self.reference.id], None)
            anchor = None if own.death is not None else _answers(shown[self.reference.id])
            yield self.reference, own
        for cell in cells:
            if cell is not self.reference:
                yield cell, self._assess(cell, shown[cell.id], anchor)

    def _assess(self, cell: Cell, shown: _Shown, anchor: list[quality.Answers] | None) -> Inspected:
        """Score the answers; `anchor` is None for the reference, and where it has none itself."""
        for item in shown.values():
            if isinstance(item, SideError):
                return Inspected(death=(item.death.status, item.death.reason))
        answers, start = _answers(shown), shown[0]
        assert answers is not None
        assert isinstance(start, quality.Inspection)
        metric = self.planned.plan.workload(cell.workload).metric
        if metric == "agreement" and anchor is None and cell.role is not Role.REFERENCE:
            return Inspected(
                cold_start=start.cold_start, death=(Status.FAILED, "its reference gave no answers to agree with")
            )
        try:
            score = quality.assess(metric, answers, anchor)
        except Exception as error:  # answers may have any shape
            return Inspected(cold_start=start.cold_start, death=(Status.FAILED, f"metric {metric}: {error}"))
        if not all(map(_is_finite, (score.score, score.difference))):
            reason = f"metric {metric} is no number, or has no finite interval on these examples"
            return Inspected(cold_start=start.cold_start, death=(Status.FAILED, reason))
        moved = None
        if anchor is not None:
            moved = max(quality.largest_difference(a, b) for a, b in zip(answers, anchor, strict=True))
            moved = min(moved, sys.float_info.max)  # JSON has no infinity
        return Inspected(score, start.cold_start, start.energy, start.on_device, moved)

    def _side(self, cell: Cell, seed: int = 0) -> Side:
        prepared = self.findings.prepared[cell.id][seed]
        assert prepared.content is not None
        assert prepared.splits is not None
        artifact = self.planned.store.open(prepared.content)
        return Side(
            name=cell.id,
            artifact=artifact.root,
            target=cell.target,
            splits=self.planned.store.splits(prepared.splits),
            metric=self.planned.plan.workload(cell.workload).metric,
            paths=self.planned.paths,
        )

    # --- turns ---

    def _duel(self, cells: Sequence[Cell]) -> None:
        """The launches that are still to be measured, each into the journal."""
        start = self.meter.shares["measure"] - self.share * len(self.launches)

        def tell(done: float, number: int) -> None:
            label = f"{self.name}: launch {number + 1} of {self.suite.launches}"
            self.meter.reach("measure", start + self.share * (number + done), label)

        measured = paired.measure(
            [self._side(cell) for cell in cells],
            launches=self.suite.launches,
            seconds=self.suite.budget_seconds / self.suite.launches,
            cpus=available_cpus(),
            seed=_stable_seed(self.name),
            before=self.launches,
            progress=tell,
        )
        with contextlib.closing(measured):
            for launch in measured:
                name = f"{_slug(self.name)}-{len(self.launches)}"
                runs.write_samples(self.journal.folder, name, launch.arrays())
                self.journal.append("launch", block=self.name, samples=name, facts=to_json(launch.facts))
                self.launches.append(launch)


def _restored(journal: runs.Journal, entry: Mapping[str, Any]) -> Launch:
    facts = from_json(LaunchFacts, entry["facts"], journal.path)
    try:
        return Launch.restore(facts, runs.read_samples(journal.folder, entry["samples"]))
    except (KeyError, ValueError) as error:
        where = journal.folder / runs.SAMPLES / f"{entry['samples']}.npz"
        raise InvalidInput(f"the samples are damaged: {error}", where=where, do="Start a new run.") from error


def _is_finite(interval: Interval | None) -> bool:
    return interval is None or all(map(math.isfinite, (interval.value, interval.low, interval.high)))


def _answers(shown: _Shown) -> list[quality.Answers] | None:
    """The answers of every seed in order, or None if a seed has none."""
    items = [shown[seed] for seed in sorted(shown)]
    found = [item.answers for item in items if isinstance(item, quality.Inspection)]
    return found if len(found) == len(items) else None


def _stable_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
