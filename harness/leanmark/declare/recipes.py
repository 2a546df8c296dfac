"""The recipes of a suite: sweeps unfolded, parameters completed, stages checked, controls added."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from leanmark import registry
from leanmark.declare.document import Document, Location
from leanmark.declare.schema import NAME_PATTERN, SuiteDeclaration, explain
from leanmark.errors import InvalidInput
from leanmark.registry import Workload
from leanmark.results import StepSpec
from leanmark.stages import Service, Stage

T = TypeVar("T")
REFERENCE = "fp32"
EAGER = "fp32-eager"
MAX_CELLS = 10_000


@dataclass(frozen=True)
class Recipe:
    """A name and its steps, sweeps unfolded and defaults filled in."""

    name: str
    steps: tuple[StepSpec, ...]


def unfold_recipes(declared: SuiteDeclaration, document: Document) -> list[tuple[Recipe, Location]]:
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
            check_size(len(found), document)
            if recipe.name in found:
                raise InvalidInput(
                    f"two recipes are named '{recipe.name}'", where=document.position(location, key=True)
                )
            found[recipe.name] = (recipe, location)
    if declared.controls:
        present = {step.name for recipe, _ in found.values() for step in recipe.steps}
        served = any(target.traffic for target in declared.targets)
        looped = any(not target.traffic for target in declared.targets)
        controls = [("same", "control.identity", {}), ("slower-3", "control.slowdown", {"percent": 3})]
        # Of a service only more than that can be seen: much of a request's time is not its program's.
        controls += [("slower-50", "control.slowdown", {"percent": 50})] if served else []
        for name, control, params in controls[:1] + controls[1 if looped else 2 :]:
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
    with Placed(document, inner, key=True):
        step = registry.get_step(name)
    if not isinstance(params, dict):
        raise InvalidInput(f"the parameters of {name} are not a mapping", where=document.position(inner))
    swept = {
        key: value["sweep"] for key, value in params.items() if isinstance(value, dict) and set(value) == {"sweep"}
    }
    for key, values in swept.items():
        if not isinstance(values, list) or not values:
            raise InvalidInput(f"the sweep of {name}.{key} is empty", where=document.position((*inner, key)))
        check_unique([str(value) for value in values], "value", (*inner, key, "sweep"), document)
    check_size(math.prod(map(len, swept.values())), document)
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        try:
            spec = step.validate({**params, **chosen})
        except ValidationError as error:
            raise explain(error, document, inner, step.parameters, what=f"{name}: ") from None
        yield ",".join(f"{key}={_label(value)}" for key, value in chosen.items()), spec


def _label(value: object) -> str:
    shown = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "-", shown)


def check_chain(recipe: Recipe, location: Location, workloads: Sequence[Workload], document: Document) -> None:
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
        if serves(spec):
            stage = Service  # what is no service yet is made one, in its plain form
        if stage not in step.consumes:
            wanted = step.consumes[0]
            bridges = [
                bridge.name
                for bridge in registry.steps()
                if stage in bridge.consumes
                and bridge.produces is wanted
                and wanted not in bridge.consumes
                and bridge.family == "export"  # others do more than that
            ]
            what = f"{step.name} consumes a {wanted.__name__}, but {origin} produces a {stage.__name__}"
            return index, what, f"Put {' or '.join(bridges)} between them." if bridges else "Reorder the steps."
        stage, origin = step.produces or stage, step.name
    return None


def final_stage(recipe: Recipe, start: type[Stage]) -> type[Stage]:
    """What a recipe that fits ends with."""
    for spec in recipe.steps:
        start = Service if serves(spec) else registry.get_step(spec.name).produces or start
    return start


def serves(spec: StepSpec) -> bool:
    """Whether a step is done to a service, or makes one."""
    step = registry.get_step(spec.name)
    return step.consumes == (Service,) or step.produces is Service


def check_served(recipe: Recipe, location: Location, traffic: Sequence[bool], document: Document) -> None:
    """A recipe of a service needs a target with traffic."""
    if any(map(serves, recipe.steps)) and not any(traffic):
        raise InvalidInput(
            f"recipe '{recipe.name}' makes a service, and no target has traffic",
            where=document.position(location, key=True),
            do="Declare `traffic:`, and name it in a target: `- {traffic: NAME}`.",
        )


# --- checks that the rest of a suite needs too ---


def check_size(cells: int, document: Document) -> None:
    if cells > MAX_CELLS:
        raise InvalidInput(
            f"the suite has {cells:,} cells; at most {MAX_CELLS:,} are possible",
            where=document.position(()),
            do="Divide it into several suites.",
        )


def check_unique(values: Sequence[T], kind: str, location: Location, document: Document) -> Sequence[T]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise InvalidInput(f"the {kind} {value} stands here twice", where=document.position((*location, index)))
    return values


class Placed:
    """Give the errors of a block a position in the document."""

    def __init__(self, document: Document, location: Location, *, key: bool = False) -> None:
        self.document, self.location, self.key = document, location, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidInput) and error.where is None:
            where = self.document.position(self.location, key=self.key)
            raise InvalidInput(error.what, where=where, do=error.do) from None
