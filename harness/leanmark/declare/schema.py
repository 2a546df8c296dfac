"""What a suite's YAML may hold: the declarations as written, units parsed.

Names are only checked for their form here; `suite` checks what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, WithJsonSchema

from leanmark import registry
from leanmark.declare import units
from leanmark.declare.document import Document, Location
from leanmark.errors import InvalidInput, did_you_mean

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$"
IMPORT_PATTERN = r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _switch(value: object) -> object:
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


def _as_text(pattern: str, *examples: str) -> WithJsonSchema:
    """What an editor is told: the text that a file holds, not the number that it becomes."""
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


Seconds = Annotated[float, BeforeValidator(units.seconds), _as_text(units.TIME_PATTERN, "500ms", "2s", "1min")]
Tolerance = Annotated[
    float, BeforeValidator(units.share), Field(ge=0, le=1), _as_text(units.SHARE_PATTERN, "2%", "0.5pp")
]
Rate = Annotated[float, BeforeValidator(units.rate), _as_text(units.RATE_PATTERN, "300/s")]
Bandwidth = Annotated[float, BeforeValidator(units.bandwidth), _as_text(units.BANDWIDTH_PATTERN, "100Mbit/s")]
Switch = Annotated[bool, BeforeValidator(_switch, json_schema_input_type=Literal["on", "off"] | bool)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
ImportName = Annotated[str, Field(pattern=IMPORT_PATTERN)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Threads = Annotated[int, Field(ge=1, le=1024)]
Batch = Annotated[int, Field(ge=1, le=65536)]


class ThreadSweep(_Strict):
    """Several thread counts, a target each."""

    sweep: list[Threads] = Field(min_length=1)


class BatchSweep(_Strict):
    """Several batch sizes, a target each."""

    sweep: list[Batch] = Field(min_length=1)


def _kind(value: Any) -> str:
    return "sweep" if isinstance(value, dict | ThreadSweep | BatchSweep) else "one"


class TargetDeclaration(_Strict):
    """Where and how variants run; a sweep of threads or batch sizes stands for a target each.

    traffic: the name of what it gets as a service, instead of batches. workloads and recipes: those that it is for;
    all, where none is named.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    runtime: str = "onnxruntime"
    threads: Annotated[Annotated[Threads, Tag("one")] | Annotated[ThreadSweep, Tag("sweep")], Discriminator(_kind)] = 1
    batch: Annotated[Annotated[Batch, Tag("one")] | Annotated[BatchSweep, Tag("sweep")], Discriminator(_kind)] = 1
    traffic: str = ""
    workloads: list[str] = Field(default_factory=list)
    recipes: list[str] = Field(default_factory=list)


Candidates = Annotated[int, Field(ge=1, le=1_000_000)]


class NetworkDeclaration(_Strict):
    """A network in front of a service, simulated: how much goes through, and how long there and back takes."""

    bandwidth: Bandwidth | None = None
    rtt: Seconds | None = None


class StoreDeclaration(_Strict):
    """A store of features that is elsewhere, simulated: how long there and back takes, for any number of rows."""

    rtt: Seconds | None = None


class TrafficDeclaration(_Strict):
    """What is asked of a service: how requests arrive, and what they ask for; see `traffic.Traffic`."""

    scenario: Literal["single-stream", "server", "offline"] = "server"
    rate: Rate = 100.0
    candidates: Candidates | list[Candidates] | Literal["all"] = 1
    top: int = Field(default=20, ge=1, le=1000)
    zipf: float = Field(default=0.0, ge=0, le=5)
    users: int = Field(default=0, ge=0)
    catalogue: int = Field(default=0, ge=0, le=1_000_000)
    requests: int = Field(default=4096, ge=64, le=65536)
    duration: Seconds = 3.0
    limit: Seconds = 0.1
    search: bool = False
    cache: Literal["warm", "cold"] = "warm"
    features: Literal["request", "store"] = "request"
    store: StoreDeclaration = StoreDeclaration()
    examples: Literal["test", "validation", "calibration"] = "test"
    network: NetworkDeclaration = NetworkDeclaration()
    price_an_hour: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)


class MeasureDeclaration(_Strict):
    """How long and how often to measure. `budget` is seconds of turns a cell; `rounds` are those of services."""

    budget: Seconds = 2.0
    launches: int = Field(default=5, ge=4, le=1000)
    rounds: int = Field(default=4, ge=4, le=1000)


class PrepareDeclaration(_Strict):
    """Limits of preparing one recipe."""

    timeout: Seconds = 1800.0


class ToleranceDeclaration(_Strict):
    """How much worse a metric may get before the gate fails."""

    tolerance: Tolerance


class LatencyDeclaration(_Strict):
    """How much slower a cell may get: in a duel, by ratios of two runs, by times of two runs.

    `must_see` is the change that a duel must be able to show beyond the tolerance; what that takes is measured.
    """

    tolerance: Tolerance | None = None
    must_see: Tolerance | None = None
    ratios: Tolerance | None = None
    times: Tolerance | None = None


def _unless_off(value: object) -> object:
    return None if value in ("off", False) else value


Judged = Annotated[
    ToleranceDeclaration | None,
    BeforeValidator(_unless_off, json_schema_input_type=ToleranceDeclaration | Literal["off"]),
]
JudgedLatency = Annotated[
    LatencyDeclaration | None, BeforeValidator(_unless_off, json_schema_input_type=LatencyDeclaration | Literal["off"])
]


class LimitsDeclaration(_Strict):
    """Tolerances of the gate; what is left out stays as it is, and what is `off` is not judged."""

    latency: JudgedLatency = None
    quality: Judged = None
    size: Judged = None
    compressed_size: Judged = None
    parameters: Judged = None
    macs: Judged = None
    cold_start: Judged = None
    memory: Judged = None


def _day(value: object) -> date:
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("a day is written 2026-12-31") from None


class AllowDeclaration(_Strict):
    """Findings that do not fail the gate until a day, and why."""

    cell: str = Field(min_length=1)
    metric: str | None = None
    reason: str = Field(min_length=1)
    until: Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]


class GateDeclaration(LimitsDeclaration):
    """Tolerances of the gate, those of some cells by pattern, and what is allowed for a while.

    `budget` is seconds of turns a side that deciding about one suspect may take.
    """

    budget: Seconds = 60.0
    cells: dict[str, LimitsDeclaration] = Field(default_factory=dict)
    allow: list[AllowDeclaration] = Field(default_factory=list)


Factor = Annotated[float, Field(gt=0)]


class ClaimDeclaration(_Strict):
    """What a paper reports for some cells: how many times less or faster, and the error.

    `no_loss` is the margin within which a loss of the metric counts as none; `better` how much better it is at least;
    `follows_macs` the share of what it has fewer MACs that it is faster by. `than` is the recipe that cells are
    compared with, in place of fp32.
    """

    cell: str = Field(min_length=1)
    source: str = Field(min_length=1)
    fewer_weights: Factor | None = None
    fewer_macs: Factor | None = None
    smaller: Factor | None = None
    faster: Factor | None = None
    error: Tolerance | None = None
    no_loss: Tolerance | None = None
    better: Tolerance | None = None
    follows_macs: Tolerance | None = None
    than: str = ""


class WorkloadOptions(_Strict):
    """What a built-in workload can be given: another data set."""

    data: str


class ModelWorkload(_Strict):
    """A user's own torch model."""

    name: Name
    model: ImportName
    data: ImportName
    metric: str = "accuracy"
    config: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] | None = None
    title: str = ""


class OnnxWorkload(_Strict):
    """A user's own ONNX file."""

    onnx: str
    inputs: str
    name: Name | None = None
    metric: str = "agreement"
    title: str = ""


class SuiteDeclaration(_Strict):
    """The file, as written. What names mean is checked afterwards."""

    suite: Name
    title: str = ""
    analysis: str = ""
    workloads: list[str | dict[str, Any]] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[0], min_length=1)
    recipes: dict[str, list[str | dict[str, Any]]] = Field(default_factory=dict)
    traffic: dict[str, TrafficDeclaration] = Field(default_factory=dict)
    targets: list[TargetDeclaration] = Field(min_length=1)
    prepare: PrepareDeclaration = PrepareDeclaration()
    measure: MeasureDeclaration = MeasureDeclaration()
    gate: GateDeclaration = GateDeclaration()
    claims: list[ClaimDeclaration] = Field(default_factory=list)
    controls: Switch = True
    plugins: list[str] = Field(default_factory=list)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a suite, for editors."""
    schema = SuiteDeclaration.model_json_schema()
    own = {"ModelWorkload": ModelWorkload, "OnnxWorkload": OnnxWorkload}
    options: dict[str, Any] = {"type": "object", "minProperties": 1, "maxProperties": 1}
    schema["$defs"] |= {name: model.model_json_schema() for name, model in own.items()}
    schema["$defs"]["WorkloadOptions"] = WorkloadOptions.model_json_schema()
    workload_names = [workload.name for workload in registry.workloads()]
    options["properties"] = {name: {"$ref": "#/$defs/WorkloadOptions"} for name in workload_names}
    options["additionalProperties"] = False
    schema["properties"]["workloads"]["items"] = {
        "anyOf": [{"enum": workload_names}, {"type": "string"}, options, *({"$ref": f"#/$defs/{name}"} for name in own)]
    }
    _drop_numeric_defaults(schema)
    step_schemas = {step.name: step.parameters.model_json_schema() for step in registry.steps()}
    step_object = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {
            step.name: {
                "description": step.summary,
                "type": ["object", "null"],
                "properties": _open_to_sweeps(step_schemas[step.name]),
            }
            for step in registry.steps()
        },
        "additionalProperties": False,
    }
    step_choice = {"anyOf": [{"enum": [step.name for step in registry.steps()]}, step_object]}
    # A plug-in's steps are known only once it is loaded, which no editor does.
    anything = {"anyOf": [*step_choice["anyOf"], {"type": "string"}, {"type": "object", "maxProperties": 1}]}
    schema["properties"]["recipes"]["additionalProperties"] = {"type": "array"}
    schema["if"] = {"required": ["plugins"]}
    schema["then"], schema["else"] = (
        {"properties": {"recipes": _recipes(choice)}} for choice in (anything, step_choice)
    )
    runtime_names = [runtime.name for runtime in registry.runtimes()]
    schema["$defs"]["TargetDeclaration"]["properties"]["runtime"]["enum"] = runtime_names
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "leanmark suite"}


def _recipes(step: Mapping[str, Any]) -> dict[str, Any]:
    return {"additionalProperties": {"type": "array", "items": step}}


def _drop_numeric_defaults(schema: Any) -> None:
    """Take out defaults that are numbers where a file holds a text with a unit."""
    if isinstance(schema, dict):
        if schema.get("type") == "string" and not isinstance(schema.get("default", ""), str):
            del schema["default"]
        if isinstance(schema.get("default"), dict):
            del schema["default"]
        for value in schema.values():
            _drop_numeric_defaults(value)
    elif isinstance(schema, list):
        for value in schema:
            _drop_numeric_defaults(value)


def _open_to_sweeps(schema: Mapping[str, Any]) -> dict[str, Any]:
    sweep = {"type": "object", "required": ["sweep"], "properties": {"sweep": {"type": "array", "minItems": 1}}}
    return {name: {"anyOf": [value, sweep]} for name, value in schema.get("properties", {}).items()}


def explain(
    error: ValidationError, document: Document, base: Location, model: type[BaseModel], what: str = ""
) -> InvalidInput:
    """The first of pydantic's findings as one sentence with its position."""
    found = error.errors()
    # A misspelt key is unknown and missing at once; the first says more.
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    location: Location = (*base, *first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"][:-1])
        return InvalidInput(
            f"{what}unknown key '{first['loc'][-1]}'",
            where=document.position(location, key=True),
            do=did_you_mean(str(first["loc"][-1]), known),
        )
    if first["type"] == "missing":
        return InvalidInput(f"{what}'{first['loc'][-1]}' is missing", where=document.position(location[:-1]))
    name = ".".join(str(part) for part in first["loc"] if part in _known_parts(document, base, first["loc"]))
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = re.sub(r"^(Value error|Assertion failed), ", "", first["msg"])
    return InvalidInput(
        f"{what}{name or 'suite'} = {shown}: {message[:1].lower()}{message[1:]}",
        where=document.position(location),
    )


def _known_parts(document: Document, base: Location, parts: tuple[str | int, ...]) -> set[str | int]:
    """The parts of pydantic's location that exist in the file (it adds union members)."""
    return {part for index, part in enumerate(parts) if (*base, *parts[: index + 1]) in document.values}


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    current: Any = model
    is_name = False  # of an entry of a mapping, which is no field
    for part in path:
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        arguments = getattr(annotation, "__args__", ())
        is_name = getattr(annotation, "__origin__", None) is dict
        candidates = [annotation, *arguments]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)
