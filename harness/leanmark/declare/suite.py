"""A suite: YAML in, a checked `Suite` out. The one place where suites are validated.

Every error names file, line, column and what to do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leanmark import modules, registry
from leanmark.declare.document import Document, Location, parse
from leanmark.declare.limits import make_rules
from leanmark.declare.recipes import (
    EAGER,
    REFERENCE,
    Placed,
    Recipe,
    check_chain,
    check_served,
    check_size,
    check_unique,
    unfold_recipes,
)
from leanmark.declare.schema import (
    IMPORT_PATTERN,
    BatchSweep,
    ClaimDeclaration,
    ModelWorkload,
    OnnxWorkload,
    SuiteDeclaration,
    ThreadSweep,
    WorkloadOptions,
    explain,
)
from leanmark.declare.services import Scope, make_scope, make_target, make_traffic
from leanmark.errors import InvalidInput, Position, did_you_mean
from leanmark.registry import Workload
from leanmark.reported import Claim
from leanmark.results import Target
from leanmark.rules import Rules
from leanmark.techniques import training


@dataclass(frozen=True)
class Pattern:
    """A pattern of cells' ids that a suite names: of what, and where it stands."""

    cells: str
    of: str
    where: Position


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
    rules: Rules = field(default_factory=Rules)
    claims: tuple[Claim, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    plugins: tuple[str, ...] = ()
    controls: bool = True
    scopes: Mapping[str, Scope] = field(default_factory=dict[str, Scope])  # by target
    rounds: int = 4

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
    recipes = tuple(unfold_recipes(declared, document))
    names = [workload.name for workload in workloads], [recipe.name for recipe, _ in recipes]
    scopes = dict(_targets(declared, document, *names))
    targets = tuple(scopes)
    for recipe, location in recipes:
        check_chain(recipe, location, workloads, document)
        check_served(recipe, location, [target.traffic is not None for target in targets], document)
    check_size(len(workloads) * len(targets) * (len(recipes) + 2), document)
    return Suite(
        name=declared.suite,
        title=declared.title or declared.suite,
        analysis=declared.analysis,
        file=path.resolve(),
        workloads=workloads,
        seeds=tuple(check_unique(declared.seeds, "seed", ("seeds",), document)),
        recipes=tuple(recipe for recipe, _ in recipes),
        targets=targets,
        prepare_timeout_seconds=declared.prepare.timeout,
        budget_seconds=declared.measure.budget,
        launches=declared.measure.launches,
        rules=make_rules(declared.gate, document),
        claims=tuple(_claims(declared, document, [recipe.name for recipe, _ in recipes])),
        patterns=tuple(_patterns(declared, document)),
        plugins=tuple(declared.plugins),
        controls=declared.controls,
        scopes={target.id: scope for target, scope in scopes.items()},
        rounds=declared.measure.rounds,
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
        with Placed(document, location):
            return registry.get_workload(entry)
    if len(entry) == 1 and isinstance(next(iter(entry.values())), dict):
        return _builtin_on(entry, location, document)
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


def _builtin_on(entry: dict[str, Any], location: Location, document: Document) -> Workload:
    """A built-in workload on another data set: `{lenet-5: {data: mnist}}` is the workload lenet-5-mnist."""
    name, options = next(iter(entry.items()))
    with Placed(document, location):
        registry.get_workload(name)
    try:
        data = WorkloadOptions.model_validate(options).data
    except ValidationError as error:
        raise explain(error, document, (*location, name), WorkloadOptions) from None
    known = [need for item in registry.workloads() for need in item.needs if item.name == f"{name}-{need}"]
    if data not in known:
        where = document.position((*location, name, "data"))
        raise InvalidInput(f"there is no {name} on '{data}'", where=where, do=did_you_mean(data, known))
    return registry.get_workload(f"{name}-{data}")


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


def _patterns(declared: SuiteDeclaration, document: Document) -> Iterator[Pattern]:
    for pattern in declared.gate.cells:
        yield Pattern(pattern, "gate's limits", document.position(("gate", "cells", pattern), key=True))
    for index, entry in enumerate(declared.claims):
        yield Pattern(entry.cell, "published figures", document.position(("claims", index, "cell")))


def _claims(declared: SuiteDeclaration, document: Document, recipes: Sequence[str]) -> Iterator[Claim]:
    known = (REFERENCE, EAGER, *recipes)
    for index, entry in enumerate(declared.claims):
        figures = {
            name: value
            for name in ClaimDeclaration.model_fields
            if name not in ("cell", "source", "than") and (value := getattr(entry, name)) is not None
        }
        if not figures:
            raise InvalidInput(
                "it names no figure",
                where=document.position(("claims", index)),
                do="Add one: smaller: 40, or no_loss: 0.1pp.",
            )
        if entry.than and "error" in figures:
            raise InvalidInput(
                "an error is no comparison",
                where=document.position(("claims", index)),
                do="Leave `than` out, or say `better`.",
            )
        if entry.than and entry.than not in known:
            raise InvalidInput(
                f"published figures are compared with '{entry.than}', which is no recipe",
                where=document.position(("claims", index, "than")),
                do=did_you_mean(entry.than, known),
            )
        yield Claim(entry.cell, entry.source, figures, entry.than)


# --- targets and the rest --------------------------------------------------------


def _targets(
    declared: SuiteDeclaration, document: Document, workloads: Sequence[str], recipes: Sequence[str]
) -> Iterator[tuple[Target, Scope]]:
    seen: set[str] = set()
    traffic = make_traffic(declared, document)
    for index, entry in enumerate(declared.targets):
        location: Location = ("targets", index)
        scope = make_scope(entry, workloads, recipes, location, document)
        with Placed(document, ("targets", index, "runtime")):
            runtime = registry.get_runtime(entry.runtime)
        if entry.device not in runtime.devices:
            raise InvalidInput(
                f"{runtime.name} does not run on {entry.device}", where=document.position(("targets", index, "device"))
            )
        service = make_target(entry, traffic, location, document)
        each = itertools.product(_values(entry.threads), _values(entry.batch))
        loops = [Target(entry.device, entry.runtime, threads, batch) for threads, batch in each]
        for target in loops if service is None else [service]:
            if target.id in seen:
                where = document.position(("targets", index))
                raise InvalidInput(f"the target {target.id} stands here twice", where=where)
            seen.add(target.id)
            yield target, scope


def _values(declared: int | ThreadSweep | BatchSweep) -> list[int]:
    return [declared] if isinstance(declared, int) else declared.sweep
