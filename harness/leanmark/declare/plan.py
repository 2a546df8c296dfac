"""Suite -> cells with stable ids. Pure: reads nothing, imports no torch.

A cell's id is ``workload/recipe/target``; it does not depend on the order of the
suite, so baselines match across edits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from leanmark import effort, registry
from leanmark.declare.recipes import EAGER, REFERENCE, Recipe, final_stage, serves, stage_problem
from leanmark.declare.services import Scope
from leanmark.declare.suite import Suite
from leanmark.errors import InvalidInput
from leanmark.registry import Workload
from leanmark.results import LIES, Cell, Role, Status, Target, is_selected
from leanmark.stages import Service, Stage, TorchModel

# Seconds of measuring for a second of turns: warming up, messages, waiting for copies. (The
# suite `quick` takes about 50 s for 17.6 s of turns.)
_TURN_OVERHEAD = 2.8
# Families whose steps serve others; they say little about a recipe.
_AUXILIARY = frozenset({"export", "training"})
PLAIN = "serve.plain"
LEAST_SLOWDOWN_OF_SERVICES = 20  # percent
# Seconds of a service's block beside its tests: starting processes, filling caches, asking for answers.
_SERVICE_START = 3.0
_PROBES, _PROBE_SECONDS = 6, 6.0

Availability = Callable[[str, str], str | None]  # runtime, device -> why it cannot run here


@dataclass(frozen=True)
class Plan:
    """Everything that a run will do, in order."""

    suite: Suite
    cells: tuple[Cell, ...]

    def blocks(self) -> dict[str, tuple[Cell, ...]]:
        """Cells by block, in order; the reference first."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.block, []).append(cell)
        return {block: tuple(cells) for block, cells in found.items()}

    def workload(self, name: str) -> Workload:
        """The declaration of a cell's workload."""
        return next(workload for workload in self.suite.workloads if workload.name == name)

    def select(self, words: tuple[str, ...]) -> Plan:
        """Only cells whose id is, or else holds, one of the words, with their references.

        Raises InvalidInput for a word that is in none.
        """
        if not words:
            return self
        for word in words:
            if not word or not any(word in cell.id for cell in self.cells):
                raise InvalidInput(f"no cell of '{self.suite.name}' holds '{word}'", do="`leanmark plan` lists them.")
        known = {cell.id for cell in self.cells}
        chosen = [cell for cell in self.cells if is_selected(cell.id, words, known)]
        blocks = {cell.block for cell in chosen}
        anchors = [c for c in self.cells if c.block in blocks and c.role in (Role.REFERENCE, Role.EAGER)]
        kept = {cell.id for cell in (*chosen, *anchors)}
        return replace(self, cells=tuple(cell for cell in self.cells if cell.id in kept))

    def beside(self) -> Plan:
        """Only cells that are shipped: beside their other version they need neither controls nor torch eager.

        Services are skipped: they are measured beside their plain form only.
        """
        shipped = [cell for cell in self.cells if cell.role in (Role.REFERENCE, Role.VARIANT)]
        return replace(self, cells=tuple(map(_skip_service, shipped)))


def _skip_service(cell: Cell) -> Cell:
    if cell.target.traffic is None or cell.skip is not None:
        return cell
    return replace(cell, skip=(Status.SKIPPED, "services are not measured beside another version"))


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of a run."""

    prepare_seconds: float
    measure_seconds: float

    @property
    def seconds(self) -> float:
        return self.prepare_seconds + self.measure_seconds


def make_plan(suite: Suite, available: Availability = lambda *_: None) -> Plan:
    """All cells of a suite: both references and every recipe, for each workload and target."""
    cells: list[Cell] = []
    for workload in suite.workloads:
        for target in suite.targets:
            wanted = suite.scopes.get(target.id, Scope()).workloads
            if not wanted or workload.name in wanted:
                cells += _block(suite, workload, target, available)
    return Plan(suite, tuple(cells))


def _block(suite: Suite, workload: Workload, target: Target, available: Availability) -> Iterator[Cell]:
    block = f"{workload.name}/{target.id}"
    empty = Recipe(REFERENCE, ())
    yield _cell(workload, empty, target, block, Role.REFERENCE, available)
    if target.runtime != "torch" and target.traffic is None:
        eager = replace(target, runtime="torch")
        cell = _cell(workload, replace(empty, name=EAGER), eager, block, Role.EAGER, available)
        yield replace(cell, id=f"{workload.name}/{EAGER}/{target.id}")
    for recipe in _recipes_on(suite, target):
        is_control = _families(recipe) == ("control",) or any(step.name in LIES for step in recipe.steps)
        role = Role.CONTROL if is_control else Role.VARIANT
        yield _cell(workload, recipe, target, block, role, available)


def _recipes_on(suite: Suite, target: Target) -> Iterator[Recipe]:
    """Those that a target is for; what makes a service only where there is traffic."""
    wanted = suite.scopes.get(target.id, Scope()).recipes
    for recipe in suite.recipes:
        slowed = [spec.params["percent"] for spec in recipe.steps if spec.name == "control.slowdown"]
        if target.traffic is None:
            fits = not any(map(serves, recipe.steps)) and not (slowed and slowed[0] >= LEAST_SLOWDOWN_OF_SERVICES)
        else:
            fits = not slowed or slowed[0] >= LEAST_SLOWDOWN_OF_SERVICES
        if fits and (not wanted or recipe.name.partition("[")[0] in wanted):
            yield recipe


def _cell(workload: Workload, recipe: Recipe, target: Target, block: str, role: Role, available: Availability) -> Cell:
    steps, lowering, skip = recipe.steps, 0, None
    problem = stage_problem(recipe, workload.stage)
    elsewhere = next((step for step in recipe.steps if not _is_for(step.name, target.runtime)), None)
    if problem is not None:
        skip = (Status.NOT_APPLICABLE, problem[1])
    elif elsewhere is not None:
        skip = (Status.NOT_APPLICABLE, f"{elsewhere.name} is for {' and '.join(_runtimes_of(elsewhere.name))}")
    else:
        steps = _served(steps, target)
        added = _lowering(Service if steps != recipe.steps else final_stage(recipe, workload.stage), target)
        if added is None:
            runtime = registry.get_runtime(target.runtime)
            stage = final_stage(recipe, workload.stage).__name__
            skip = (
                Status.NOT_APPLICABLE,
                f"it ends as a {stage}, and {runtime.title} runs a {runtime.executes.__name__}",
            )
        else:
            steps, lowering = (*steps, *added), len(added)
    used = dict.fromkeys(name for step in recipe.steps for name in registry.get_step(step.name).needs)
    needed = [("services", "cpu")] if target.traffic is not None else []
    needed += [(target.runtime, target.device), *((name, "cpu") for name in used)]
    reason = next((why for why in itertools.starmap(available, needed) if why is not None), None)
    if skip is None and reason is not None:
        skip = (Status.SKIPPED, reason)
    return Cell(
        id=f"{workload.name}/{recipe.name}/{target.id}",
        workload=workload.name,
        recipe=recipe.name,
        steps=steps,
        target=target,
        block=block,
        role=role,
        families=_families(recipe),
        lowering=lowering,
        skip=skip,
    )


def _runtimes_of(step: str) -> tuple[str, ...]:
    return registry.get_step(step).runtimes


def _is_for(step: str, runtime: str) -> bool:
    return not _runtimes_of(step) or runtime in _runtimes_of(step)


def _families(recipe: Recipe) -> tuple[str, ...]:
    """The families of a recipe's techniques; training and export only where there is no other."""
    found = dict.fromkeys(registry.get_step(step.name).family for step in recipe.steps)
    return tuple(family for family in found if family not in _AUXILIARY) or tuple(found)


def _lowering(stage: type[Stage], target: Target) -> tuple[registry.StepSpec, ...] | None:
    """The steps that bring a stage to what the runtime executes; None if there are none."""
    runtime = registry.get_runtime(target.runtime)
    if target.traffic is not None:
        return () if stage is Service else lowering(target)
    if stage is runtime.executes:
        return ()
    return runtime.lowering if stage is TorchModel and runtime.lowering else None


def lowering(target: Target) -> tuple[registry.StepSpec, ...]:
    """The steps from a torch model to what a target runs."""
    if target.traffic is None:
        return registry.get_runtime(target.runtime).lowering
    return (registry.get_step(PLAIN).validate({"entries": target.traffic.catalogue, "seed": target.traffic.seed}),)


def _served(steps: tuple[registry.StepSpec, ...], target: Target) -> tuple[registry.StepSpec, ...]:
    """A recipe's steps, with what makes a service in its plain form before the first that is done to one."""
    first = next((index for index, spec in enumerate(steps) if serves(spec)), None)
    if target.traffic is None or first is None or steps[first].name == PLAIN:
        return steps
    return (*steps[:first], *lowering(target), *steps[first:])


def estimate(plan: Plan, cached: Callable[[Cell], bool], jobs: int) -> Estimate:
    """Expected time of a run; `cached` tells whether a cell lies in the store, prepared.

    Each trial is started once for its answers; what launches start lies beside their turns.
    """
    cells = [cell for cell in plan.cells if cell.skip is None]
    there = {cell.id for cell in cells if cached(cell)}
    parts = {cell.id: effort.beginnings(plan.workload(cell.workload), cell.steps) for cell in cells}
    one_seed = effort.unshared(
        {name: parts[name] for name in parts if name not in there},
        there={key for name in there for key, _ in parts[name]},
    )
    prepare = sum(one_seed.values()) * len(plan.suite.seeds)
    measure = 0.0
    for block in plan.blocks().values():
        active = [cell for cell in block if cell.skip is None]
        traffic = active[0].target.traffic if active else None
        if traffic is not None:
            each = 2 * plan.suite.rounds * max(traffic.seconds, traffic.queries / traffic.rate) + _SERVICE_START
            measure += len(active) * (each + (_PROBES * _PROBE_SECONDS if traffic.search else 0.0))
            continue
        starts = sum(registry.get_runtime(cell.target.runtime).start_seconds for cell in active)
        starts *= len(plan.suite.seeds)
        measure += len(active) * plan.suite.budget_seconds * _TURN_OVERHEAD + starts / jobs
    return Estimate(prepare / jobs, measure)
