"""Every block of a plan measured: what its artifacts answer, then launch after launch.

What an artifact answers, and what its start costs, is seen in a fresh process of its
own, one for each seed; the latency of the first seed's is measured in launches.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from leanmark import assembly
from leanmark.assembly import Findings, Inspected
from leanmark.errors import InvalidInput
from leanmark.host import available_cpus
from leanmark.inspecting import Key, Shown, answers, ask, score
from leanmark.jsonable import from_json, to_json
from leanmark.judge import store as runs
from leanmark.measure import paired, services
from leanmark.measure.launches import Launch, LaunchFacts
from leanmark.measure.rounds import BlockServed, Check, Round, Test
from leanmark.measure.sides import Side
from leanmark.planned import Planned
from leanmark.prepare.recipe import Prepared
from leanmark.progress import Meter
from leanmark.results import Cell, Role, short_id
from leanmark.workloads import split_store


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
    services: dict[str, BlockServed] = {}
    answered: dict[Hashable, Inspected] = {}
    for name, cells in ready.items():
        block = _Block(name, cells, planned, journal, meter, findings, len(cells) / max(total, 1))
        if cells and cells[0].target.traffic is not None:
            services[name] = block.measure_services(answered)
        else:
            launches[name] = block.measure()
        inspected |= block.inspected
    meter.reach("measure", 1.0, "measured")
    return replace(findings, inspected=inspected, launches=launches, services=services)


def side_of(planned: Planned, cell: Cell, prepared: Prepared) -> Side:
    """What runs the artifact of a cell that was prepared."""
    assert prepared.content is not None
    assert prepared.splits is not None
    return Side(
        name=cell.id,
        artifact=planned.store.open(prepared.content).root,
        target=cell.target,
        splits=planned.store.splits(prepared.splits),
        metric=planned.plan.workload(cell.workload).metric,
        also=planned.plan.workload(cell.workload).also,
        code=planned.code,
    )


def sides_of(planned: Planned, cells: Sequence[Cell], findings: Findings) -> dict[Key, Side]:
    """The sides of cells, one a seed."""
    return {
        (cell.id, seed): side_of(planned, cell, prepared)
        for cell in cells
        for seed, prepared in enumerate(findings.prepared[cell.id])
    }


def score_all(
    planned: Planned, cells: Sequence[Cell], shown: Mapping[str, Shown], findings: Findings
) -> Iterator[tuple[Cell, Inspected]]:
    """What the cells of one block showed, scored against their reference, which comes first."""
    reference = next((cell for cell in cells if cell.role is Role.REFERENCE), None)
    anchor = None if reference is None else answers(shown[reference.id])
    for cell in sorted(cells, key=lambda cell: cell is not reference):
        metric = planned.plan.workload(cell.workload).metric
        splits = findings.prepared[cell.id][0].splits
        assert splits is not None
        examples = split_store.digest(planned.store.splits(splits), "test")
        own = None if cell is reference else anchor
        found = score(metric, shown[cell.id], own, examples, is_reference=cell is reference)
        if found.quality is not None:
            found = replace(found, quality=replace(found.quality, scored_by=planned.metric_code(cell.workload)))
        yield cell, found


def inspected_before(journal: runs.Journal) -> dict[str, Inspected]:
    """What the journal knows of cells' answers."""
    return {
        entry["cell"]: from_json(Inspected, entry["inspected"])
        for entry in journal.entries()
        if entry["kind"] == "inspected"
    }


def launches_of(journal: runs.Journal, name: str) -> list[Launch]:
    """The launches that a journal has under a name."""
    entries = [entry for entry in journal.entries() if entry["kind"] == "launch" and entry["block"] == name]
    return [_restored(journal, entry) for entry in entries]


def play(
    journal: runs.Journal,
    name: str,
    sides: Sequence[Side],
    launches: int,
    seconds: float,
    tell: Callable[[float, int], None],
    *,
    pairs: bool = False,
    solo: bool = True,
) -> list[Launch]:
    """Launches of some sides, `seconds` of turns a side; each into the journal under `name`, from which a resumed run
    reads those that it has. pairs: every two sides are a version and the one before it."""
    done = launches_of(journal, name)
    measured = paired.measure(
        sides,
        launches=launches,
        seconds=seconds,
        cpus=available_cpus(),
        seed=_stable_seed(name),
        before=done,
        solo=solo,
        alike=pairs,
        pairs=pairs,
        progress=tell,
    )
    with contextlib.closing(measured):
        for launch in measured:
            file = f"{_slug(name)}-{len(done)}"
            runs.write_samples(journal.folder, file, launch.arrays())
            journal.append("launch", block=name, samples=file, facts=to_json(launch.facts))
            done.append(launch)
    return done


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
        self.findings, self.share = findings, share  # of the progress
        before = inspected_before(journal)
        self.inspected = {cell.id: before[cell.id] for cell in cells if cell.id in before}

    def measure(self) -> list[Launch]:
        """Answers, then all launches; what a resumed run has is read back."""
        alive = self._alive()
        return self._play(alive) if alive and alive[0].role is Role.REFERENCE else []

    def measure_services(self, answered: dict[Hashable, Inspected]) -> BlockServed:
        """Answers, then rounds of tests, the search for the highest rate, and answers under traffic.

        answered: what other blocks have seen of the same services; what they answer, asked alone, no traffic changes.
        """
        keys = {cell.id: self._answered_alike(cell) for cell in self.cells}
        for cell in self.cells:
            if cell.id not in self.inspected and keys[cell.id] in answered:
                self.inspected[cell.id] = answered[keys[cell.id]]
                self.journal.append("inspected", cell=cell.id, inspected=to_json(self.inspected[cell.id]))
        alive = self._alive()
        answered.update({keys[cell.id]: self.inspected[cell.id] for cell in self.cells})
        if not alive or alive[0].role is not Role.REFERENCE:
            return BlockServed()
        start = self.meter.shares["measure"]
        return services.play(
            [side_of(self.planned, cell, self.findings.prepared[cell.id][0]) for cell in alive],
            self.planned.plan.suite.rounds,
            available_cpus(),
            {cell.id: assembly.exact_limit(cell) for cell in alive},
            served_before(self.journal, self.name),
            lambda kind, found: self.journal.append("served", block=self.name, what=kind, found=_plain(found)),
            lambda part, text: self.meter.reach("measure", start + self.share * part, text),
        )

    def _answered_alike(self, cell: Cell) -> Hashable:
        """What decides about a service's answers: it, the plain one that it is beside, and what requests bring."""
        traffic = cell.target.traffic
        assert traffic is not None
        contents = [tuple(item.content for item in self.findings.prepared[own.id]) for own in (cell, self.cells[0])]
        return (cell.workload, *contents, cell.target.threads, traffic.features, traffic.candidates is None)

    def _alive(self) -> list[Cell]:
        """The cells that gave answers, the reference first."""
        missing = [cell for cell in self.cells if cell.id not in self.inspected]
        reference = next((cell for cell in self.cells if cell.role is Role.REFERENCE), None)
        if reference is not None and missing and reference not in missing:
            missing.insert(0, reference)  # its answers are what the others' are compared with
        self._inspect(missing)
        return [cell for cell in self.cells if self.inspected[cell.id].death is None]

    def _inspect(self, cells: Sequence[Cell]) -> None:
        """Collect and score answers, and put what is new into the journal."""
        shown = ask(
            sides_of(self.planned, cells, self.findings),
            self.planned.jobs,
            lambda cell: self.meter.tell("measure", f"{short_id(cell)}: answers"),
        )
        for cell, found in score_all(self.planned, cells, shown, self.findings):
            if cell.id not in self.inspected:
                self.inspected[cell.id] = found
                self.journal.append("inspected", cell=cell.id, inspected=to_json(found))

    def _play(self, cells: Sequence[Cell]) -> list[Launch]:
        suite, start = self.planned.plan.suite, self.meter.shares["measure"]
        share = self.share / suite.launches

        def tell(done: float, number: int) -> None:
            label = f"{self.name}: launch {number + 1} of {suite.launches}"
            self.meter.reach("measure", start + share * (number + done), label)

        sides = [side_of(self.planned, cell, self.findings.prepared[cell.id][0]) for cell in cells]
        launches = play(self.journal, self.name, sides, suite.launches, suite.budget_seconds / suite.launches, tell)
        self.meter.reach("measure", start + self.share, self.name)
        return launches


def served_before(journal: runs.Journal, block: str) -> BlockServed:
    """What a journal has of a block of services."""
    found = BlockServed()
    for entry in journal.entries():
        if entry["kind"] != "served" or entry["block"] != block:
            continue
        if entry["what"] == "round":
            found = replace(found, rounds=(*found.rounds, from_json(Round, entry["found"], journal.path)))
        elif entry["what"] == "probes":
            tests = {
                side: tuple(from_json(Test, item, journal.path) for item in items)
                for side, items in entry["found"].items()
            }
            found = replace(found, probes=tests)
        else:
            checks = {side: from_json(Check, item, journal.path) for side, item in entry["found"].items()}
            found = replace(found, checks=checks)
    return found


def _plain(found: Any) -> Any:
    """A round, or probes or checks by side, as JSON."""
    if isinstance(found, Mapping):
        return {
            side: [to_json(i) for i in item] if isinstance(item, tuple) else to_json(item)
            for side, item in found.items()
        }
    return to_json(found)


def _restored(journal: runs.Journal, entry: Mapping[str, Any]) -> Launch:
    facts = from_json(LaunchFacts, entry["facts"], journal.path)
    try:
        return Launch.restore(facts, runs.read_samples(journal.folder, entry["samples"]))
    except (KeyError, ValueError) as error:
        where = journal.folder / runs.SAMPLES / f"{entry['samples']}.npz"
        raise InvalidInput(f"the samples are damaged: {error}", where=where, do="Start a new run.") from error


def _stable_seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)
