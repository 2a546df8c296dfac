"""A suite: YAML in, a checked `Suite` out. The one place where suites are validated.

Every error names file, line, column and what to do.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from leanmark import modules, registry
from leanmark.declare.document import Document, Location, parse
from leanmark.declare.schema import (
    IMPORT_PATTERN,
    NAME_PATTERN,
    ModelWorkload,
    OnnxWorkload,
    SuiteDeclaration,
    explain,
)
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.registry import Workload
from leanmark.results import StepSpec, Target
from leanmark.stages import Stage
from leanmark.techniques import training

T = TypeVar("T")
REFERENCE = "fp32"
EAGER = "fp32-eager"
MAX_CELLS = 10_000


@dataclass(frozen=True)
class Recipe:
    """A name and its steps, sweeps unfolded and defaults filled in."""

    name: str
    steps: tuple[StepSpec, ...]


@dataclass(frozen=True)
class Suite:
    """A checked suite."""

    name: str
    title: str
    analysis: str
    file: Path
    workloads: tuple[Workload, ...]
    seeds: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    targets: tuple[Target, ...]
    prepare_timeout_seconds: float
    budget_seconds: float
    launches: int
    tolerances: Mapping[str, float] = field(default_factory=dict[str, float])
    plugins: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the suite's own modules and files are looked for."""
        return self.file.parent


def load(path: Path) -> Suite:
    """Read and check a suite. Raises InvalidInput with file, line and what to do."""
    document = parse(path)
    if not isinstance(document.value, dict):
        raise InvalidInput("is not a suite", where=document.position(()), do="A suite begins with `suite: NAME`.")
    try:
        declared = SuiteDeclaration.model_validate(document.value)
    except ValidationError as error:
        raise explain(error, document, (), SuiteDeclaration) from None
    folder = path.resolve().parent
    with modules.import_path(folder):
        registry.load_builtins()  # so that a name which a plug-in takes twice is found in the plug-in
        for index, plugin in enumerate(declared.plugins):
            _check_name(plugin, ("plugins", index), document)
            registry.load_plugin(plugin, document.position(("plugins", index)))
    workloads = tuple(_workloads(declared, document, folder))
    recipes = tuple(_recipes(declared, document))
    targets = tuple(_targets(declared, document))
    for recipe, location in recipes:
        _check_chain(recipe, location, workloads, document)
    _check_size(len(workloads) * len(targets) * (len(recipes) + 2), document)
    return Suite(
        name=declared.suite,
        title=declared.title or declared.suite,
        analysis=declared.analysis,
        file=path.resolve(),
        workloads=workloads,
        seeds=tuple(_unique(declared.seeds, "seed", ("seeds",), document)),
        recipes=tuple(recipe for recipe, _ in recipes),
        targets=targets,
        prepare_timeout_seconds=declared.prepare.timeout,
        budget_seconds=declared.measure.budget,
        launches=declared.measure.launches,
        tolerances={
            "latency": declared.gate.latency.tolerance,
            "quality": declared.gate.quality.tolerance,
            "size": declared.gate.size.tolerance,
        },
        plugins=tuple(declared.plugins),
    )


# --- workloads -------------------------------------------------------------------


def _workloads(declared: SuiteDeclaration, document: Document, folder: Path) -> Iterator[Workload]:
    seen: set[str] = set()
    for index, entry in enumerate(declared.workloads):
        location: Location = ("workloads", index)
        workload = _workload(entry, location, document, folder)
        if workload.name in seen:
            raise InvalidInput(
                f"the workload '{workload.name}' stands here twice",
                where=document.position(location),
                do="Remove one, or give one another `name`.",
            )
        seen.add(workload.name)
        yield workload


def _workload(entry: str | dict[str, Any], location: Location, document: Document, folder: Path) -> Workload:
    if isinstance(entry, str):
        with _Placed(document, location):
            return registry.get_workload(entry)
    kind = OnnxWorkload if "onnx" in entry else ModelWorkload
    try:
        own = kind.model_validate(entry)
    except ValidationError as error:
        raise explain(error, document, location, kind) from None
    if isinstance(own, OnnxWorkload):
        paths = {key: _file(getattr(own, key), (*location, key), document, folder) for key in ("onnx", "inputs")}
        name = own.name or re.sub(r"[^A-Za-z0-9._+-]", "-", Path(own.onnx).stem).lstrip("._+-") or "model"
        _check_metric(own.metric, location, document, folder)
        return Workload(name=name, title=own.title, metric=own.metric, onnx=paths["onnx"], inputs=paths["inputs"])
    for key in ("model", "data"):
        _check_import(getattr(own, key), (*location, key), document, folder)
    _check_metric(own.metric, location, document, folder)
    _check_training(own.train, location, document)
    return Workload(own.name, own.title, own.model, own.config, own.data, own.metric, own.train)


def _check_training(settings: Mapping[str, Any] | None, location: Location, document: Document) -> None:
    """The settings must be those of `training.fit`, in the ranges that fine-tuning has too."""
    if settings is None:
        return
    place: Location = (*location, "train")
    for key in settings:
        if key not in training.SETTINGS:
            raise InvalidInput(
                f"unknown key '{key}'",
                where=document.position((*place, key), key=True),
                do=did_you_mean(key, training.SETTINGS),
            )
    if "epochs" not in settings:
        raise InvalidInput("'epochs' is missing", where=document.position(place), do="Write `train: {epochs: 10}`.")
    model = registry.get_step("train.finetune").parameters
    try:
        model.model_validate({key: value for key, value in settings.items() if key in model.model_fields})
    except ValidationError as error:
        raise explain(error, document, place, model, what="train: ") from None


def _file(name: str, location: Location, document: Document, folder: Path) -> str:
    path = folder / name
    if not path.is_file():
        raise InvalidInput(
            f"the file '{name}' does not exist", where=document.position(location), do=f"Looked in {folder}."
        )
    return str(path.resolve())


def _check_metric(metric: str, location: Location, document: Document, folder: Path) -> None:
    known = ("accuracy", "agreement")
    if ":" in metric:
        _check_import(metric, (*location, "metric"), document, folder)
    elif metric not in known:
        raise InvalidInput(
            f"unknown metric '{metric}'",
            where=document.position((*location, "metric")),
            do=f"{did_you_mean(metric, known)} A function of your own is written package.module:function.",
        )


def _check_name(module: str, location: Location, document: Document) -> None:
    if modules.is_pythons_own(module):
        raise InvalidInput(
            f"'{module}' is the name of a module of Python's own",
            where=document.position(location),
            do="Give your module another name.",
        )


def _check_import(reference: str, location: Location, document: Document, folder: Path) -> None:
    if not re.fullmatch(IMPORT_PATTERN, reference):
        raise InvalidInput(f"'{reference}' is not of the form package.module:name", where=document.position(location))
    module = reference.partition(":")[0]
    _check_name(module, location, document)
    with modules.import_path(folder):
        if modules.find_source(module) is None:
            raise InvalidInput(
                f"there is no module '{module}'",
                where=document.position(location),
                do=f"It is looked for in {folder} and among the installed packages.",
            )


# --- recipes ---------------------------------------------------------------------


def _recipes(declared: SuiteDeclaration, document: Document) -> list[tuple[Recipe, Location]]:
    found: dict[str, tuple[Recipe, Location]] = {}
    for name, entries in declared.recipes.items():
        location: Location = ("recipes", name)
        if not re.fullmatch(NAME_PATTERN, name):
            raise InvalidInput(
                f"'{name}' is no name for a recipe",
                where=document.position(location, key=True),
                do="Use letters, digits and . _ + - only.",
            )
        if name in (REFERENCE, EAGER):
            raise InvalidInput(
                f"the name '{name}' is reserved for a reference", where=document.position(location, key=True)
            )
        if not entries:
            raise InvalidInput(
                f"recipe '{name}' has no steps",
                where=document.position(location, key=True),
                do="The reference without steps is added to every suite by itself.",
            )
        for recipe in itertools.islice(_unfold(name, entries, location, document), MAX_CELLS + 1):
            _check_size(len(found), document)
            if recipe.name in found:
                raise InvalidInput(
                    f"two recipes are named '{recipe.name}'", where=document.position(location, key=True)
                )
            found[recipe.name] = (recipe, location)
    if declared.controls:
        present = {step.name for recipe, _ in found.values() for step in recipe.steps}
        for name, control, params in (
            ("same", "control.identity", {}),
            ("slower-3", "control.slowdown", {"percent": 3}),
        ):
            if control not in present:
                if name in found:
                    raise InvalidInput(
                        f"the name '{name}' is that of a control, which is added to this suite",
                        where=document.position(("recipes", name), key=True),
                        do="Give the recipe another name, or write `controls: off`.",
                    )
                found[name] = (Recipe(name, (registry.get_step(control).validate(params),)), ())
    if not found:
        raise InvalidInput("the suite has no recipe and no control", where=document.position(()), do="Add `recipes:`.")
    return list(found.values())


def _unfold(
    name: str, entries: Sequence[str | dict[str, Any]], location: Location, document: Document
) -> Iterator[Recipe]:
    """All recipes that the sweeps of one declared recipe stand for."""
    choices: list[list[tuple[str, StepSpec]]] = []
    for index, entry in enumerate(entries):
        choices.append(list(_step_choices(entry, (*location, index), document)))
    for combination in itertools.product(*choices):
        labels = [label for label, _ in combination if label]
        suffix = f"[{','.join(labels)}]" if labels else ""
        yield Recipe(name + suffix, tuple(spec for _, spec in combination))


def _step_choices(
    entry: str | dict[str, Any], location: Location, document: Document
) -> Iterator[tuple[str, StepSpec]]:
    if isinstance(entry, dict) and len(entry) != 1:
        raise InvalidInput(
            "a step is one name with its parameters",
            where=document.position(location),
            do="Write `- name` or `- {name: {parameter: value}}`.",
        )
    name, params = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
    params = {} if params is None else params
    inner: Location = location if isinstance(entry, str) else (*location, name)
    with _Placed(document, inner, key=True):
        step = registry.get_step(name)
    if not isinstance(params, dict):
        raise InvalidInput(f"the parameters of {name} are not a mapping", where=document.position(inner))
    swept = {
        key: value["sweep"] for key, value in params.items() if isinstance(value, dict) and set(value) == {"sweep"}
    }
    for key, values in swept.items():
        if not isinstance(values, list) or not values:
            raise InvalidInput(f"the sweep of {name}.{key} is empty", where=document.position((*inner, key)))
        _unique([str(value) for value in values], "value", (*inner, key, "sweep"), document)
    _check_size(math.prod(map(len, swept.values())), document)
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        try:
            spec = step.validate({**params, **chosen})
        except ValidationError as error:
            raise explain(error, document, inner, step.parameters, what=f"{name}: ") from None
        yield ",".join(f"{key}={_label(value)}" for key, value in chosen.items()), spec


def _label(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", f"{value:g}" if isinstance(value, float) else str(value))


def _check_chain(recipe: Recipe, location: Location, workloads: Sequence[Workload], document: Document) -> None:
    """A recipe must fit at least one workload; the message is about the first."""
    problems = [stage_problem(recipe, workload.stage) for workload in workloads]
    if all(problems):
        problem = problems[0]
        assert problem is not None
        index, what, advice = problem
        raise InvalidInput(
            f"recipe '{recipe.name}' step {index + 1}: {what}",
            where=document.position((*location, index)),
            do=advice,
        )


def stage_problem(recipe: Recipe, start: type[Stage]) -> tuple[int, str, str] | None:
    """The first step whose stage does not fit: its index, what is wrong, what to do."""
    stage, origin = start, "the workload"
    for index, spec in enumerate(recipe.steps):
        step = registry.get_step(spec.name)
        if stage not in step.consumes:
            wanted = step.consumes[0]
            bridges = [
                bridge.name
                for bridge in registry.steps()
                if stage in bridge.consumes and bridge.produces is wanted and wanted not in bridge.consumes
            ]
            what = f"{step.name} consumes a {wanted.__name__}, but {origin} produces a {stage.__name__}"
            return index, what, f"Put {' or '.join(bridges)} between them." if bridges else "Reorder the steps."
        stage, origin = step.produces or stage, step.name
    return None


def final_stage(recipe: Recipe, start: type[Stage]) -> type[Stage]:
    """What a recipe that fits ends with."""
    for spec in recipe.steps:
        start = registry.get_step(spec.name).produces or start
    return start


# --- targets and the rest --------------------------------------------------------


def _targets(declared: SuiteDeclaration, document: Document) -> Iterator[Target]:
    seen: set[str] = set()
    for index, entry in enumerate(declared.targets):
        with _Placed(document, ("targets", index, "runtime")):
            runtime = registry.get_runtime(entry.runtime)
        if entry.device not in runtime.devices:
            raise InvalidInput(
                f"{runtime.name} does not run on {entry.device}", where=document.position(("targets", index, "device"))
            )
        target = Target(entry.device, entry.runtime, entry.threads, entry.batch)
        if target.id in seen:
            raise InvalidInput(f"the target {target.id} stands here twice", where=document.position(("targets", index)))
        seen.add(target.id)
        yield target


def _check_size(cells: int, document: Document) -> None:
    if cells > MAX_CELLS:
        raise InvalidInput(
            f"the suite has {cells:,} cells; at most {MAX_CELLS:,} are possible",
            where=document.position(()),
            do="Divide it into several suites.",
        )


def _unique(values: Sequence[T], kind: str, location: Location, document: Document) -> Sequence[T]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise InvalidInput(f"the {kind} {value} stands here twice", where=document.position((*location, index)))
    return values


class _Placed:
    """Give the errors of a block a position in the document."""

    def __init__(self, document: Document, location: Location, *, key: bool = False) -> None:
        self.document, self.location, self.key = document, location, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidInput) and error.where is None:
            where = self.document.position(self.location, key=self.key)
            raise InvalidInput(error.what, where=where, do=error.do) from None
