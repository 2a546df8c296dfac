"""A run beside another version of its cells: answers of both, turns of both, and who of them is a suspect.

In two stages: every cell is screened; those that the screening does not show unchanged are
decided about once, on fresh launches, as many as its scatter says are needed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from leanmark import stats
from leanmark.assembly import Findings, Inspected, device_warnings, results, runnable
from leanmark.inspecting import Key, Shown, answers, ask
from leanmark.jsonable import from_json, to_json
from leanmark.judge import latency
from leanmark.judge.store import Journal
from leanmark.measure import quality
from leanmark.measure.launches import Launch, compare
from leanmark.measure.sides import Side, SideError
from leanmark.measure.starts import paired_starts
from leanmark.measuring import inspected_before, play, score_all, side_of, sides_of
from leanmark.planned import Planned
from leanmark.preparation import describe
from leanmark.prepare.recipe import Prepared
from leanmark.progress import Meter
from leanmark.results import Base, Cell, Comparison, Interval, Result, Role, Status, Verdict, short_id
from leanmark.versions import Version


@dataclass(frozen=True)
class _Compared:
    """What the journal keeps of one cell: the base's answers scored, and how they compare."""

    base: Inspected
    comparison: Comparison


def compare_all(
    planned: Planned,
    journal: Journal,
    meter: Meter,
    prepared: Mapping[str, tuple[Prepared, ...]],
    versions: Sequence[Version],
    *,
    everything: bool,
) -> tuple[Findings, tuple[Base, ...], tuple[str, ...]]:
    """What the run's cells are beside other versions of them, and what their controls say against that.

    everything: also cells that are the same in both. What is the same as in the first version is not
    compared with the others: it was when it last changed.
    """
    found = Findings(prepared)
    bases: list[Base] = []
    warnings: list[str] = []
    for version in versions:
        done = {cell for base in bases for cell, item in base.comparisons.items() if item.same}
        if version.tag == "anchor" and not version.contents:  # numbers, to be read as such
            done = {cell.id for cell in planned.plan.cells}
        part = _Comparing(planned, journal, meter, found, version, everything, frozenset(done), 1 / len(versions))
        part.answers()
        launches = part.screen()
        for name, deciding in part.decide().items():
            launches[name] += [launch for launch in deciding if launch.deaths]  # why a side has no figure
        found = replace(
            found,
            inspected=part.inspected,
            launches={name: (*found.launches.get(name, ()), *launches.get(name, ())) for name in part.blocks},
            compared={**part.comparisons, **found.compared},
        )
        bases.append(part.base())
        warnings += part.warnings
    meter.reach("measure", 1.0, "measured")
    return found, tuple(bases), (*warnings, *device_warnings(results(planned.plan, found)))


class _Comparing:
    """The cells of a run that differ from their other version, block after block."""

    def __init__(
        self,
        planned: Planned,
        journal: Journal,
        meter: Meter,
        findings: Findings,
        version: Version,
        everything: bool,
        done: frozenset[str],
        share: float,
    ) -> None:
        """done: cells that need not be compared. share: of the progress."""
        self.planned, self.journal, self.meter, self.findings, self.share = planned, journal, meter, findings, share
        self.version, self.rules = version, planned.plan.suite.rules
        self.warnings: list[str] = []
        self.own = describe(planned, findings.prepared)
        self.contents = self.own.contents()
        self.comparisons: dict[str, Comparison] = {}
        self.bases: dict[str, Inspected] = {}
        if not everything and version.code.python == sys.executable:
            same = Comparison(same=f"artifact, code and versions are those of {version.name}")
            self.comparisons = {cell.id: same for cell in planned.plan.cells if self._is_alike(cell)}
        for entry in journal.entries():
            if entry["kind"] == "compared" and entry["beside"] == version.tag:
                known = from_json(_Compared, entry["compared"], journal.path)
                self.comparisons[entry["cell"]], self.bases[entry["cell"]] = known.comparison, known.base
        self.inspected = inspected_before(journal)
        self.blocks = {
            name: [
                cell for cell in cells if runnable(cell, findings) and cell.id not in done and not self._is_same(cell)
            ]
            for name, cells in planned.plan.blocks().items()
        }

    def _is_alike(self, cell: Cell) -> bool:
        """Whether a cell's artifacts, and what runs them, are the other version's, and preparing came to the same."""
        version, content, code = self.version, self.contents.get(cell.id), self.own.code[cell.id]
        if content is None or (content, code) != (version.contents.get(cell.id), version.digests.get(cell.id)):
            return False
        made = min((item.status for item in self.findings.prepared[cell.id]), key=list(Status).index)
        then = version.results[cell.id].status
        return made is (Status.OK if then is Status.NOISY else then)  # noisy is how a baseline was measured

    def _is_same(self, cell: Cell) -> bool:
        return bool(self.comparisons.get(cell.id, Comparison()).same)

    # --- sides ---

    def _before(self, cell: Cell) -> str:
        """What the other version's side of a cell is called."""
        return f"{cell.id}@{self.version.tag}"

    def _base_side(self, cell: Cell, seed: int) -> Side:
        """The other version's artifact on this version's inputs: both sides get the same."""
        head = side_of(self.planned, cell, self.findings.prepared[cell.id][0])
        content = self.version.contents[cell.id][seed]
        return replace(
            head,
            name=self._before(cell),
            artifact=self.planned.store.open(content).root,
            metric="",  # one metric scores both versions, and it is the head's
            also=(),
            code=self.version.code,
        )

    def _seeds(self, cell: Cell) -> int:
        """How many seeds both versions have; none where the other has no such cell."""
        return min(len(self.version.contents.get(cell.id, ())), len(self.findings.prepared[cell.id]))

    # --- answers ---

    def answers(self) -> None:
        """Quality and starts of both versions, cell by cell into the journal."""
        total = sum(map(len, self.blocks.values()))
        for cells in self.blocks.values():
            missing = [cell for cell in cells if cell.id not in self.inspected or cell.id not in self.comparisons]
            if missing:
                self._ask(missing)
            self.meter.add("answers", self.share * len(cells) / max(total, 1), "answers")

    def _ask(self, cells: Sequence[Cell]) -> None:
        block = self.planned.plan.blocks()[cells[0].block]
        reference = next(cell for cell in block if cell.role is Role.REFERENCE)
        asked = [*cells]
        if reference not in asked and runnable(reference, self.findings):
            asked.insert(0, reference)  # its answers are what the others' are compared with
        sides: dict[Key, Side] = sides_of(self.planned, asked, self.findings)
        for cell in asked:
            sides |= {(self._before(cell), seed): self._base_side(cell, seed) for seed in range(self._seeds(cell))}
        shown = ask(sides, self.planned.jobs, lambda name: self.meter.tell("answers", f"{short_id(name)}: answers"))
        self._rescore(asked, shown)
        for cell, found in score_all(self.planned, asked, shown, self.findings):
            if cell in cells and cell.id not in self.inspected:
                self.inspected[cell.id] = found
                self.journal.append("inspected", cell=cell.id, inspected=to_json(found))
        anchor = answers(shown.get(self._before(reference), {})) or answers(shown.get(reference.id, {}))
        for cell in cells:
            self._compare(cell, shown, anchor)

    def _rescore(self, asked: Sequence[Cell], shown: Mapping[str, Shown]) -> None:
        """Put what a metric of the user's own says of the base's answers into what was shown."""
        for cell in asked:
            side = side_of(self.planned, cell, self.findings.prepared[cell.id][0])
            for seed, item in shown.get(self._before(cell), {}).items() if ":" in side.metric else ():
                if isinstance(item, quality.Inspection):
                    try:
                        found: quality.Inspection | SideError = replace(
                            item, answers=quality.rescore(side, item.answers)
                        )
                    except SideError as error:
                        found = SideError(replace(error.death, reason=f"metric {side.metric}: {error.death.reason}"))
                    shown[self._before(cell)][seed] = found

    def _compare(self, cell: Cell, shown: Mapping[str, Shown], anchor: list[quality.Answers] | None) -> None:
        """What the answers of both versions say, and, where they are judged, their starts."""
        before = shown.get(self._before(cell))
        if before is None:
            nothing = f"{self.version.name} has nothing of it that runs"
            problem, lost = self.version.problems.get(cell.id, nothing), cell.id in self.version.lost
            found = _Compared(Inspected(), Comparison(problem=problem, lost=lost))
        else:
            found = self._compared(cell, shown[cell.id], before, anchor)
        self.comparisons[cell.id], self.bases[cell.id] = found.comparison, found.base
        self.journal.append("compared", cell=cell.id, beside=self.version.tag, compared=to_json(found))

    def _compared(self, cell: Cell, shown: Shown, before: Shown, anchor: list[quality.Answers] | None) -> _Compared:
        for item in before.values():
            if isinstance(item, SideError):
                problem = f"the artifact of {self.version.name} does not run on these inputs: {item.death.reason}"
                return _Compared(Inspected(death=(item.death.status, problem)), Comparison(problem=problem))
        head = answers(shown)
        start, base = before[0], answers(before)
        assert isinstance(start, quality.Inspection)
        assert base is not None
        own = Inspected(cold_start=start.cold_start)
        if head is None:
            return _Compared(own, Comparison(problem="it does not run"))
        metric = self.planned.plan.workload(cell.workload).metric
        head = head[: len(base)]
        against = None if anchor is None else anchor[: len(base)]
        try:
            difference, moved = quality.compare(metric, head, base, against)
            score = quality.assess(metric, base, against if metric == "agreement" else None)
        except Exception as error:  # answers may have any shape
            problem = f"metric {metric}: {error}"
            return _Compared(replace(own, death=(Status.FAILED, problem)), Comparison(problem=problem))
        if not (difference.is_finite and score.score.is_finite):
            problem = f"metric {metric} is no number in one of both versions"
            return _Compared(replace(own, death=(Status.FAILED, problem)), Comparison(problem=problem))
        own = replace(own, quality=score)
        comparison = Comparison(quality=difference, answers_changed=moved)
        limits = self.rules.of(cell.id)
        if limits.cold_start is not None or limits.memory is not None:
            try:
                self.meter.tell("answers", f"{short_id(cell.id)}: starts")
                head_side = side_of(self.planned, cell, self.findings.prepared[cell.id][0])
                cold, memory = paired_starts(head_side, self._base_side(cell, 0), _seed(cell.id))
                comparison = replace(comparison, cold_start=cold, memory=memory)
            except SideError as error:
                comparison = replace(comparison, problem=f"its starts: {error.death.reason}")
        return _Compared(own, comparison)

    # --- turns ---

    def screen(self) -> dict[str, list[Launch]]:
        """Every cell that can be run in both versions, for the suite's budget."""
        suite = self.planned.plan.suite
        todo = {name: [cell for cell in cells if self._can_duel(cell)] for name, cells in self.blocks.items()}
        total = sum(map(len, todo.values()))
        found: dict[str, list[Launch]] = {}
        for name, cells in todo.items():
            if cells:
                share = self.share * len(cells) / total
                found[name] = self._play(
                    screening_of(name, self.version.tag), "measure", share, cells, suite.launches, solo=True
                )
                self._note(cells, found[name], "screened")
                self._note_control(cells[0], found[name])
        return found

    def decide(self) -> dict[str, list[Launch]]:
        """The suspects, on fresh launches only."""
        found: dict[str, list[Launch]] = {}
        suspects = latency.suspects(self.comparisons, self.rules)
        most = max(stats.MINIMUM_LAUNCHES, int(self.rules.decide_seconds / self._seconds))
        for name, cells in self.blocks.items():
            todo: list[Cell] = []
            launches = stats.MINIMUM_LAUNCHES
            for cell in cells:
                if cell.id not in suspects or self.comparisons[cell.id].problem:
                    continue
                wanted = suspects[cell.id]
                if wanted is None or wanted > _HOPELESS * most:
                    reason = (
                        f"deciding about it takes more than {self.rules.decide_seconds:g} s of turns a side, which "
                        "the suite's gate has for that"
                    )
                    self.comparisons[cell.id] = replace(self.comparisons[cell.id], problem=reason)
                    continue
                todo.append(cell)
                launches = max(launches, min(wanted, most))
            if todo:
                found[name] = self._play(
                    f"{name} decide{_suffix(self.version.tag)}", "decide", self.share, todo, launches, solo=False
                )
                self._note(todo, found[name], "decided")
        return found

    @property
    def _seconds(self) -> float:
        """Of turns a side, a launch."""
        suite = self.planned.plan.suite
        return suite.budget_seconds / suite.launches

    def _can_duel(self, cell: Cell) -> bool:
        """Whether both versions run, and took effect: what did not is judged by that."""
        statuses = [item.status for item in self.findings.prepared[cell.id]]
        return (
            self._seeds(cell) > 0
            and {*statuses, self.version.results[cell.id].status} <= {Status.OK, Status.NOISY}
            and not self.comparisons[cell.id].problem
            and self.inspected[cell.id].death is None
            and self.rules.of(cell.id).latency is not None
        )

    def _play(
        self, name: str, phase: str, share: float, cells: Sequence[Cell], launches: int, *, solo: bool
    ) -> list[Launch]:
        start, part = self.meter.shares[phase], share / launches

        def tell(done: float, number: int) -> None:
            what = f"{name}: {len(cells)} of them, launch {number + 1} of {launches}"
            self.meter.reach(phase, start + part * (number + done), what)

        sides = [side for cell in cells for side in (self._base_side(cell, 0), self._head_side(cell))]
        if solo and self.planned.plan.suite.controls:  # the first cell against itself
            sides += [replace(self._base_side(cells[0], 0), name=name) for name in _CONTROL]
        return play(self.journal, name, sides, launches, self._seconds, tell, pairs=True, solo=solo)

    def _head_side(self, cell: Cell) -> Side:
        return side_of(self.planned, cell, self.findings.prepared[cell.id][0])

    def _note(self, cells: Sequence[Cell], launches: Sequence[Launch], stage: str) -> None:
        """Put what launches say into the comparisons."""
        for cell in cells:
            before = self._before(cell)
            comparison = replace(self.comparisons[cell.id], seconds=self._seconds)
            death = next((launch.deaths[before] for launch in launches if before in launch.deaths), None)
            try:
                interval: Interval | None = compare(launches, cell.id, before).interval()
            except ValueError:
                interval = None
            if death is not None or interval is None:
                what = "too few launches have both" if death is None else f"the base's side ended: {death.reason}"
                comparison = replace(comparison, problem=what)
            elif stage == "screened":
                comparison = replace(comparison, screened=interval)
            else:
                comparison = replace(comparison, decided=interval)
            self.comparisons[cell.id] = comparison

    def _note_control(self, cell: Cell, launches: Sequence[Launch]) -> None:
        """An artifact against itself must not look like a change."""
        tolerance = self.rules.limits.latency
        try:
            ratio = compare(launches, _CONTROL[1], _CONTROL[0])
        except ValueError:
            return
        if tolerance is not None and stats.judge(ratio, tolerance) in (Verdict.REGRESSED, Verdict.IMPROVED):
            shown = ratio.interval(stats.VERDICT_LEVEL)
            self.warnings.append(
                f"control failed: {cell.id} of {self.version.name} against itself reads "
                f"{shown.value:.3f}x [{shown.low:.3f}, {shown.high:.3f}]; do not trust differences of this size"
            )

    # --- what was found ---

    def base(self) -> Base:
        """The other version, with what was seen of it."""
        version = self.version
        results = tuple(self._seen(result) for result in version.results.values())
        notes = (*version.notes, *self._scored_otherwise())
        return Base(version.kind, version.name, version.id, results, self.comparisons, version.rules, notes)

    def _scored_otherwise(self) -> Iterator[str]:
        """Where a change brings a metric or test data of its own, by which it then looks good."""
        for workload, (metric, examples) in self.own.scoring.items():
            before = self.version.scoring.get(workload, (metric, examples))
            for what, here, there in (("metric", metric, before[0]), ("test examples", examples, before[1])):
                if here != there:
                    yield f"{workload}: the {what} changed; {self.version.name} was judged by the new one too"

    def _seen(self, result: Result) -> Result:
        seen, head = self.bases.get(result.cell.id), self.inspected.get(result.cell.id)
        if seen is None:
            return result
        if seen.death is not None and head is not None and head.death is not None:  # broken in both versions
            return replace(result, status=seen.death[0], reason=seen.death[1])
        # What was not run here is still known by what its document says.
        return replace(result, quality=seen.quality or result.quality, cold_start=seen.cold_start)


# The two sides of the control: one artifact, run by one code.
_CONTROL = ("control@base", "control")
# A suspect that takes so many times the gate's budget is not tried.
_HOPELESS = 4


def screening_of(block: str, tag: str = "base") -> str:
    """What the launches are called in which a block's cells are screened beside a version."""
    return f"{block} screen{_suffix(tag)}"


def _suffix(tag: str) -> str:
    return "" if tag == "base" else f" {tag}"


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
