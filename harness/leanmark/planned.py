"""What a run is about to do: the suite found and planned, its trials, the time it will take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from leanmark import modules
from leanmark.declare import suite as suites
from leanmark.declare.plan import Estimate, Plan, estimate, make_plan
from leanmark.declare.plan import lowering as lowering_of
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.host import available_cpus
from leanmark.jsonable import canonical_json, from_json
from leanmark.judge import baselines
from leanmark.judge.baselines import Baseline
from leanmark.prepare.artifacts import Store, code_hash, project_of
from leanmark.prepare.origins import Seen, has_own_code
from leanmark.prepare.recipe import Prepared, Trial, from_store
from leanmark.prepare.sources import default_store, source_hash
from leanmark.processes import Code
from leanmark.registry import Workload
from leanmark.results import Cell
from leanmark.rules import fits
from leanmark.runtimes import supported

TrialName = tuple[str, int]  # a cell's id, and a seed


@dataclass(frozen=True)
class Options:
    """How a run differs from what its suite says."""

    out: Path | None = None
    only: tuple[str, ...] = ()
    budget_seconds: float | None = None
    launches: int | None = None
    jobs: int | None = None
    resume: str | None = None
    command: str = ""
    base: str | None = None  # a revision to measure beside
    base_python: Path | None = None
    baseline: Path | None = None  # a stored run to measure beside, or to be judged by
    dirty: bool = False  # whether the work tree may have changes that are in no commit
    measure_all: bool = False  # also what is the same in both versions
    baselines: Path | None = None  # where a pinned baseline is looked for, to measure beside it too
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A plan with what is needed to carry it out.

    seen: what a look at the user's own code showed. broken: by workload, what became of that look where
    its functions gave nothing.
    """

    plan: Plan
    store: Store
    jobs: int
    paths: tuple[Path, ...]
    only: tuple[str, ...] = ()  # the texts by which cells were selected
    beside: bool = False  # whether cells are measured beside another version in place of their references
    seen: Mapping[str, Seen] = field(default_factory=dict[str, Seen])  # by workload; the plug-ins' under ""
    broken: Mapping[str, Prepared] = field(default_factory=dict[str, Prepared])

    @property
    def code(self) -> Code:
        """What its child processes run."""
        return Code(paths=self.paths)

    def needs(self) -> dict[str, str]:
        """The data sets that its cells need, each with a workload that needs it."""
        wanted = {cell.workload for cell in self.plan.cells if cell.skip is None}
        return needs_of(workload for workload in self.plan.suite.workloads if workload.name in wanted)

    def trials(self) -> dict[TrialName, Trial]:
        """Every trial that is to be prepared."""
        cells = [cell for cell in self.plan.cells if cell.skip is None]
        return {(cell.id, seed): self.trial(cell, seed) for cell in cells for seed in self.plan.suite.seeds}

    def trial(self, cell: Cell, seed: int) -> Trial:
        """What is prepared for a cell with one seed."""
        workload = self.plan.workload(cell.workload)
        needed = workload.onnx is None or cell.target.traffic is not None
        lowering = lowering_of(cell.target) if needed else ()
        origin = self._seen(workload.name).origins.get(seed)
        return Trial(workload, cell.steps, seed, lowering, origin, self._seen("").steps)

    def _seen(self, workload: str) -> Seen:
        return self.seen.get(workload, Seen())

    def cached(self, cell: Cell) -> Prepared | None:
        """The first seed's preparation, if it lies in the store, going by what the user's code was last."""
        return from_store(self.trial(cell, self.plan.suite.seeds[0]), self.store, checked=False)

    def looked_at(self) -> dict[str, Workload | None]:
        """Whose code is to be looked at: the workloads that bring their own, and, under "", the plug-ins."""
        wanted = {cell.workload for cell in self.plan.cells if cell.skip is None}
        suite = self.plan.suite
        found = {item.name: item for item in suite.workloads if item.name in wanted and has_own_code(item)}
        return {**found, **({"": None} if suite.plugins and wanted else {})}

    def memory_key(self, name: str) -> str:
        """Under which the store remembers what a look at a workload's or the plug-ins' code showed."""
        suite = self.plan.suite
        facts = [str(suite.folder), name, suite.plugins if not name else asdict(self.plan.workload(name))]
        return sha256(canonical_json([*facts, list(suite.seeds)]).encode()).hexdigest()

    def as_remembered(self) -> Planned:
        """The same, going by what the looks of the last run showed."""
        seen: dict[str, Seen] = {}
        for name in self.looked_at():
            with contextlib.suppress(InvalidInput):
                seen[name] = from_json(Seen, self.store.recall(self.memory_key(name)))
        return replace(self, seen=seen)

    def source_of(self, reference: str) -> Path | None:
        """The file that holds what "package.module:name" names."""
        with modules.import_path(*self.paths):
            return modules.find_source(reference.partition(":")[0])

    def code_of(self, cell: Cell) -> str:
        """Hashes of what runs a cell's artifact; see `code_hash`."""
        origin = self._seen(cell.workload).origins.get(self.plan.suite.seeds[0])
        with modules.import_path(*self.paths):
            workload = self.plan.workload(cell.workload)
            return code_hash(workload, cell.target, None if origin is None else origin.structure)

    def metric_code(self, workload: str) -> str:
        """A hash of what scores a workload, where it is a metric of the user's own; else empty."""
        metric = self.plan.workload(workload).metric
        with modules.import_path(*self.paths):
            return source_hash(metric.partition(":")[0])[:16] if ":" in metric else ""

    def estimate(self) -> Estimate:
        """Expected seconds, knowing what lies in the store."""
        with modules.import_path(*self.paths):
            known = self.as_remembered()
            return estimate(self.plan, lambda cell: known.cached(cell) is not None, self.jobs)


def needs_of(workloads: Iterable[Workload]) -> dict[str, str]:
    """The data sets that must have been fetched, each with the first workload that needs it."""
    needs: dict[str, str] = {}
    for workload in workloads:
        for name in workload.needs:
            needs.setdefault(name, workload.name)
    return needs


def find_suite(name: str) -> Path:
    """A suite by path, or a built-in one by name. Raises InvalidInput with the nearest name."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    known = {path.stem: path for path in builtin_suites()}
    if name not in known:
        raise InvalidInput(f"there is no suite '{name}'", do=f"{did_you_mean(name, known)} A file ends in .yaml.")
    return known[name]


def builtin_suites() -> list[Path]:
    """The suites that leanmark ships."""
    package = Path(__file__).parent
    shipped = package / "_suites"
    folder = shipped if shipped.is_dir() else package.parents[1] / "suites"
    return sorted(folder.glob("*.yaml"))


def plan_suite(name: str, options: Options) -> Planned:
    """Load a suite and plan it, with the options applied. Imports no torch."""
    suite = suites.load(find_suite(name))
    if len(set(options.seeds)) != len(options.seeds):
        raise InvalidInput("a seed is named twice", do="Each counts once.")
    suite = replace(
        suite,
        budget_seconds=options.budget_seconds or suite.budget_seconds,
        launches=options.launches or suite.launches,
        seeds=options.seeds or suite.seeds,
    )
    whole = make_plan(suite, supported)
    for pattern in suite.patterns:
        if not any(fits(cell.id, pattern.cells) for cell in whole.cells):
            raise InvalidInput(
                f"the {pattern.of} for '{pattern.cells}' fit no cell",
                where=pattern.where,
                do="`leanmark plan` lists the cells.",
            )
    plan = whole.select(options.only)
    store = Store(default_store(), project_of(suite.folder))
    beside = options.base is not None
    if options.baseline is not None:
        baseline = baselines.read(options.baseline)
        baselines.check_suite(baseline, suite.name)
        beside = bool(at_hand(store, baseline))
    if beside:
        plan = plan.beside()
    references = [name for item in suite.workloads for name in (item.model, item.data, item.metric)]
    own = suite.plugins or any(name and ":" in name and not _is_builtin(name) for name in references)
    jobs = options.jobs or len(available_cpus())
    return Planned(
        plan,
        store,
        jobs,
        (suite.folder,) if own else (),
        options.only,
        beside,
    )


def at_hand(store: Store, baseline: Baseline) -> Mapping[str, tuple[str, ...]]:
    """A baseline's artifacts by cell, where they can be run again: beside it, or all of them still in the store."""
    contents = baseline.contents
    if baseline.artifacts is not None or store.holds(content for hashes in contents.values() for content in hashes):
        return contents
    return {}


def _is_builtin(reference: str) -> bool:
    return reference.startswith("leanmark.")
