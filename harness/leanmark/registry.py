"""Names to steps, workloads and runtimes: built in, from plug-ins, or from a suite.

Nothing here imports torch. A step's parameters are its keyword-only arguments,
validated by pydantic; its docstring is its documentation.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leanmark.errors import InvalidInput, Position, did_you_mean
from leanmark.results import Evidence, StepSpec
from leanmark.stages import Artifact, Program, Service, Stage, TorchModel
from leanmark.traffic import Served

if TYPE_CHECKING:
    from pydantic import BaseModel

StepFunction = Callable[..., Any]
EvidenceFunction = Callable[[Artifact, Mapping[str, Any]], Evidence]
ObservedFunction = Callable[[Evidence, Served], Evidence]
ANY_STAGE: tuple[type[Stage], ...] = (TorchModel, Program, Service)


@dataclass(frozen=True)
class Step:
    """One technique: what it does, what it needs, and how to tell that it took effect."""

    name: str
    family: str
    consumes: tuple[type[Stage], ...]
    produces: type[Stage] | None  # None: the stage that came in
    function: StepFunction
    evidence: EvidenceFunction
    exact: float | None
    libraries: tuple[str, ...]
    splits: tuple[str, ...]  # the splits that it reads
    runtimes: tuple[str, ...] = ()  # the only ones that it works for; empty for any
    needs: tuple[str, ...] = ()  # runtimes that must be able to run on the CPU, where it is prepared
    observed: ObservedFunction | None = None  # its evidence with what the service was seen to do under traffic

    @property
    def doc(self) -> str:
        """The documentation page, as plain text."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.doc.split("\n", 1)[0]

    @property
    def parameters(self) -> type[BaseModel]:
        """The pydantic model of the step's parameters; unknown ones are refused."""
        return _parameters(self.function, self.name)

    def validate(self, params: Mapping[str, Any]) -> StepSpec:
        """Parameters completed with their defaults. Raises pydantic.ValidationError."""
        return StepSpec(self.name, self.parameters.model_validate(dict(params)).model_dump(mode="json"))


@dataclass(frozen=True)
class Workload:
    """A reference model with its data splits, its metric, and how its weights come to be.

    `model`, `data` and a `metric` with a colon name importable functions as
    "package.module:function". `train` holds the parameters of the built-in
    training; None means that `model` returns its weights. `onnx` and `inputs`
    are paths of a model that exists as a file only. `needs` are the data sets that
    must have been fetched. `epoch_seconds` is about how long an epoch of training takes
    on one core, for estimates. `initial` names a function that gives entries of the model's state, arrays by name,
    with which training begins, or which are all there is: published weights, features that are known. `also` names
    further metrics as functions, which give a score an example; they are shown, and the gate does not judge them.
    """

    name: str
    title: str = ""
    model: str | None = None
    config: Mapping[str, Any] | None = None
    data: str | None = None
    metric: str = "accuracy"
    train: Mapping[str, Any] | None = None
    onnx: str | None = None
    inputs: str | None = None
    needs: tuple[str, ...] = ()
    epoch_seconds: float = 3.0
    initial: str | None = None
    also: tuple[str, ...] = ()

    @property
    def stage(self) -> type[Stage]:
        """What the recipe starts from."""
        return Program if self.onnx is not None else TorchModel


@dataclass(frozen=True)
class Runtime:
    """Something that executes an artifact.

    `loader` is "module:function"; the first of `libraries` is the module that it
    imports, so that a worker can tell the import's cost from the artifact's.
    """

    name: str
    title: str
    executes: type[Stage]
    devices: tuple[str, ...]
    loader: str
    libraries: tuple[str, ...]
    lowering: tuple[StepSpec, ...] = ()  # from a TorchModel to what it executes
    start_seconds: float = 1.0  # about what a fresh process takes; for estimates and order
    load_seconds: float = 0.05  # of that, loading an artifact and the first call, which every copy does anew


_steps: dict[str, Step] = {}
_workloads: dict[str, Workload] = {}
_runtimes: dict[str, Runtime] = {}
_loaded: set[str] = set()


def step(
    name: str,
    *,
    family: str,
    consumes: type[Stage] | tuple[type[Stage], ...],
    produces: type[Stage] | None,
    evidence: EvidenceFunction,
    exact: float | None = None,
    libraries: tuple[str, ...] = ("torch",),
    splits: tuple[str, ...] = (),
    runtimes: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    observed: ObservedFunction | None = None,
) -> Callable[[StepFunction], StepFunction]:
    """Register a function as the step `name`.

    `exact` says that the step changes no answer by more than this much, relative
    to the largest answer. `libraries` are the distributions whose version decides
    what comes out; with the step's source they make its artifacts' key. `runtimes` are those that
    the step is for: on others it is not applicable. `needs` are runtimes that it uses itself, on
    the CPU: it is skipped where one of them cannot run. `observed` completes the evidence of a service's
    step by what its traffic showed, such as hits of a cache.
    """

    def register(function: StepFunction) -> StepFunction:
        stages = consumes if isinstance(consumes, tuple) else (consumes,)
        made = Step(
            name, family, stages, produces, function, evidence, exact, libraries, splits, runtimes, needs, observed
        )
        _add(_steps, name, made)
        return function

    return register


def register_workload(workload: Workload) -> Workload:
    """Make a workload known by its name."""
    _add(_workloads, workload.name, workload)
    return workload


def register_runtime(runtime: Runtime) -> Runtime:
    """Make a runtime known by its name."""
    _add(_runtimes, runtime.name, runtime)
    return runtime


def _add(table: dict[str, Any], name: str, entry: Any) -> None:
    known = table.get(name)
    if known is not None and _origin(known) != _origin(entry):
        raise InvalidInput(f"two plug-ins register the name '{name}'", do="Rename one of them or load only one.")
    table[name] = entry


def _origin(entry: Any) -> Any:
    return (entry.function.__module__, entry.function.__qualname__) if isinstance(entry, Step) else entry


def load_builtins() -> None:
    """Import every built-in step, workload and runtime, and the installed plug-ins."""
    for package in ("leanmark.techniques", "leanmark.workloads"):
        if package not in _loaded:
            _loaded.add(package)
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{module.name}")
    for module in ("leanmark.runtimes", "leanmark.openvino_runtime"):
        importlib.import_module(module)
    if "entry points" not in _loaded:
        from importlib.metadata import entry_points

        _loaded.add("entry points")
        points = entry_points()
        for group in ("leanmark.steps", "leanmark.workloads", "leanmark.runtimes"):
            for point in points.select(group=group):
                load_plugin(point.value.split(":", 1)[0])


def load_plugin(module: str, where: Position | None = None) -> None:
    """Import a module that registers steps, workloads or runtimes; `where` is the place that names it."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is leanmark's
            importlib.import_module(module)
    except InvalidInput as error:
        raise InvalidInput(f"the plug-in '{module}': {error.what}", where=where, do=error.do) from error
    except (Exception, SystemExit) as error:
        raise InvalidInput(
            f"the plug-in '{module}' cannot be imported: {type(error).__name__}: {error}",
            where=where,
            do="Mend it, install it, or take it out of the suite.",
        ) from error


def get_step(name: str) -> Step:
    """The step of this name. Raises InvalidInput with the nearest name."""
    return _get(_steps, "step", name)


def get_workload(name: str) -> Workload:
    """The workload of this name. Raises InvalidInput with the nearest name."""
    return _get(_workloads, "workload", name)


def get_runtime(name: str) -> Runtime:
    """The runtime of this name. Raises InvalidInput with the nearest name."""
    return _get(_runtimes, "runtime", name)


def steps() -> list[Step]:
    """Every known step, by name."""
    load_builtins()
    return [_steps[name] for name in sorted(_steps)]


def workloads() -> list[Workload]:
    """Every known workload, by name."""
    load_builtins()
    return [_workloads[name] for name in sorted(_workloads)]


def runtimes() -> list[Runtime]:
    """Every known runtime, by name."""
    load_builtins()
    return [_runtimes[name] for name in sorted(_runtimes)]


def _get(table: dict[str, Any], kind: str, name: str) -> Any:
    load_builtins()
    if name not in table:
        raise InvalidInput(f"unknown {kind} '{name}'", do=did_you_mean(name, table))
    return table[name]


_models: dict[str, type[BaseModel]] = {}


def _parameters(function: StepFunction, name: str) -> type[BaseModel]:
    if name not in _models:
        from pydantic import ConfigDict, create_model

        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {
            key: (hints[key], ... if parameter.default is parameter.empty else parameter.default)
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        _models[name] = create_model(name, __config__=ConfigDict(extra="forbid", strict=False), **fields)
    return _models[name]
