"""Services: what answers requests in its plain form, and what is computed before they come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.serving.config import Index, ServiceConfig
from leanmark.serving.payloads import FORMATS, Field, Format
from leanmark.stages import Artifact, Context, Program, Service, Split, TorchModel
from leanmark.techniques.export import EXAMPLES, program_of
from leanmark.traffic import Served

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir")
_FIELD_TYPES: Mapping[str, Literal["float32", "int64"]] = {"float32": "float32", "int64": "int64"}
_COPY_NOISE = 0.05  # of each feature's own spread
_SEARCHED = 20
_QUERIES = 200


def config_of(artifact: Artifact) -> ServiceConfig | None:
    """How the final artifact answers; None where it is no service."""
    return ServiceConfig.read(artifact.manifest["service"]) if artifact.stage is Service else None


def no_service(name: str) -> Evidence:
    """What is to be said of a step whose recipe did not end as a service."""
    return Evidence(name, False, {}, "the final artifact is no service")


def changed(stage: Service, **config: Any) -> Service:
    """The service with another configuration."""
    return replace(stage, config=replace(ServiceConfig.read(stage.config), **config).as_json())


# --- the plain form -----------------------------------------------------------------


def is_service(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The artifact is a service with its programs."""
    config = config_of(artifact)
    if config is None:
        return no_service("serve.plain")
    longest = max((item.shape[0] for item in config.items if item.name in config.sequence), default=0)
    facts = {"kind": config.kind, "programs": artifact.programs, "items": _items(artifact.tables()), "longest": longest}
    return Evidence("serve.plain", True, facts)


@step(
    "serve.plain",
    family="export",
    consumes=(TorchModel, Program),
    produces=Service,
    evidence=is_service,
    exact=1e-4,
    libraries=LIBRARIES,
    splits=("validation",),
)
def plain(
    stage: TorchModel | Program,
    ctx: Context,
    *,
    entries: Annotated[int, Ge(0), Le(1_000_000)] = 0,
    seed: Annotated[int, Ge(0)] = 0,
) -> Service:
    """Make a service of a model, in its plain form: no cache, no batches, JSON.

    entries: items of the catalogue; where these are more than the workload has, its own are there again and again, with
    noise of 5 % of each feature's spread. 0: those of the workload. seed: of the noise.

    A model that ranks becomes a program for a row of a query and an item, or one for each tower where it has two,
    beside tables of their features. Any other model answers a request's examples one by one. `plan` adds this step
    where a target has traffic.
    Evidence: the final artifact is a service; its programs and how many items it knows.
    Source: Crankshaw et al. 2017, Clipper: A Low-Latency Online Prediction Serving System.
    """
    if isinstance(stage, Program):
        return _of_program(stage)
    from leanmark.networks.rankers import Ranker

    module = stage.module
    if isinstance(module, Ranker):
        return _of_ranker(module, stage, entries, seed)
    examples = ctx.split("validation").head(EXAMPLES)
    lengths: Mapping[str, int] = getattr(module, "sequence_inputs", {})
    onnx = program_of(module, examples, lengths=lengths)
    fields = tuple(_field(name, array.dtype.name, array.shape[1:]) for name, array in examples.inputs.items())
    config = ServiceConfig("rows", (), fields, answer=_answer_shape(module, examples), sequence=tuple(lengths))
    return Service({"rows": onnx}, {}, config.as_json(), stage.delivery)


def _field(name: str, kind: str, shape: tuple[int, ...]) -> Field:
    if kind not in _FIELD_TYPES:
        raise NotApplicable(f"a request carries float32 and int64, and '{name}' is {kind}")
    return Field(name, _FIELD_TYPES[kind], tuple(shape))


def _answer_shape(module: nn.Module, examples: Split) -> tuple[int, ...]:
    import torch

    with torch.inference_mode():
        answer = module(*(torch.from_numpy(np.array(array)) for array in examples.inputs.values()))
    if not isinstance(answer, torch.Tensor):
        raise NotApplicable("a service answers with one array, and this model gives several")
    return tuple(answer.shape[1:])


def _of_program(stage: Program) -> Service:
    from onnx import helper

    graph = stage.proto().graph
    weights = {tensor.name for tensor in graph.initializer}

    def shape(value: Any) -> tuple[int, ...]:
        found = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if not found or found[0] > 0 or not all(found[1:]):
            raise NotApplicable(f"'{value.name}' of the program does not have any number of rows of one shape")
        return tuple(found[1:])

    fields = tuple(
        _field(
            value.name,
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            shape(value),
        )
        for value in graph.input
        if value.name not in weights
    )
    if len(graph.output) != 1:
        raise NotApplicable("a service answers with one array, and this program gives several")
    config = ServiceConfig("rows", (), fields, answer=shape(graph.output[0]))
    return Service({"rows": stage.onnx}, {}, config.as_json(), stage.delivery)


def _of_ranker(module: Any, stage: TorchModel, entries: int, seed: int) -> Service:
    import torch

    from leanmark.networks.rankers import Towers

    with torch.inference_mode():
        tables = {
            name: table(torch.arange(table.learned.num_embeddings)).numpy()
            for name, table in (("query", module.query), ("item", module.item))
        }
    known = len(tables["item"])
    tables["item"] = _replicated(tables["item"], entries, seed)
    rows = {name: table[:EXAMPLES] for name, table in tables.items()}
    query, item = (Field(name, "float32", (tables[name].shape[1],)) for name in ("query", "item"))
    network = module.network
    if isinstance(network, Towers):
        towers = {"query": network.query, "item": network.item}
        programs = {name: program_of(tower, Split({name: rows[name]})) for name, tower in towers.items()}
        tables["bias"] = network.bias.detach().numpy().astype(np.float32)
        config = ServiceConfig("towers", (query,), (item,), entries=known)
    else:
        programs = {"rows": program_of(network, Split(rows))}
        config = ServiceConfig("rows", (query,), (item,), entries=known)
    return Service(programs, tables, config.as_json(), stage.delivery)


def _replicated(items: Array, entries: int, seed: int) -> Array:
    """The items again and again with noise, so many in all; the first are the items themselves."""
    if entries <= len(items):
        return items
    more = items[np.arange(entries - len(items)) % len(items)]
    noise = np.random.default_rng([seed, entries]).standard_normal(more.shape, np.float32)
    return np.concatenate([items, more + _COPY_NOISE * items.std(axis=0) * noise]).astype(np.float32)


def _items(tables: Mapping[str, Array]) -> int:
    return len(tables["item"] if "item" in tables else tables.get("embedding", ()))


# --- what requests carry ------------------------------------------------------------


def speaks(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The service's requests and answers are in the format."""
    config = config_of(artifact)
    if config is None:
        return no_service("inputs.payload")
    return Evidence(
        "inputs.payload",
        config.payload == params["format"],
        {"format": config.payload},
        "" if config.payload == params["format"] else f"a later step made it {config.payload}",
    )


def payload_observed(evidence: Evidence, served: Served) -> Evidence:
    """With the bytes of a request and an answer, and the seconds that reading a request took."""
    more = {"request_bytes": served.bytes_in, "answer_bytes": served.bytes_out}
    seconds = served.facts.get("decode_seconds")
    return replace(evidence, facts={**evidence.facts, **more, "decode_seconds": seconds})


@step(
    "inputs.payload",
    family="payload",
    consumes=Service,
    produces=Service,
    evidence=speaks,
    exact=1e-6,
    libraries=("orjson", "msgpack", "protobuf", "pyarrow"),
    observed=payload_observed,
)
def payload(stage: Service, ctx: Context, *, format: Format) -> Service:  # noqa: A002 - it is what formats are called
    """Speak another format: of features in requests, and of answers.

    format: json; tf-example, TensorFlow's message in Protocol Buffers; msgpack; arrow, a stream of Arrow's; raw, the
    bytes of the arrays. Floats are in single precision in all of them, but for JSON, which has decimals.
    Evidence: the format of the final artifact; under traffic bytes of a request and of an answer, and the seconds that
    reading a request takes.
    Source: Protocol Buffers, Encoding; the MessagePack specification; Arrow Columnar Format.
    """
    assert format in FORMATS
    return changed(stage, payload=format)


# --- what is computed before -----------------------------------------------------


def has_embeddings(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """Every item's embedding lies in a table, and no program for items is left."""
    config = config_of(artifact)
    if config is None:
        return no_service("inputs.precompute")
    tables = artifact.tables()
    there = config.precomputed and "embedding" in tables and "item" not in artifact.programs
    facts = {"items": _items(tables), "bytes": int(tables["embedding"].nbytes) if there else 0}
    return Evidence("inputs.precompute", there, facts, "" if there else "it holds no table of embeddings")


def lookups_observed(evidence: Evidence, served: Served) -> Evidence:
    """With how many embeddings were looked up, a request."""
    lookups = float(served.facts.get("lookups", 0.0))
    found = replace(evidence, facts={**evidence.facts, "lookups_a_request": lookups})
    if evidence.effective and not lookups and not served.facts.get("searched"):
        return replace(found, effective=False, reason="no embedding was looked up under traffic")
    return found


@step(
    "inputs.precompute",
    family="precomputed inputs",
    consumes=Service,
    produces=Service,
    evidence=has_embeddings,
    exact=1e-4,
    libraries=("onnxruntime",),
    observed=lookups_observed,
)
def precompute(stage: Service, ctx: Context) -> Service:
    """Compute every item's embedding now, and look it up when it is asked about.

    The item tower is left out of the service. Requests name items by their number.
    Evidence: a table of embeddings in the final artifact, its bytes; under traffic how many were looked up a request.
    Source: Covington, Adams, Sargin 2016, Deep Neural Networks for YouTube Recommendations.
    """
    config = ServiceConfig.read(stage.config)
    if config.kind != "towers" or config.precomputed:
        raise NotApplicable(
            "only a service of two towers has embeddings of items that hold for every query",
            do="Put serve.two_tower first.",
        )
    embedding = _run(stage.programs["item"], {config.items[0].name: stage.tables["item"]})
    programs = {name: onnx for name, onnx in stage.programs.items() if name != "item"}
    tables = {**{name: table for name, table in stage.tables.items() if name != "item"}, "embedding": embedding}
    return replace(changed(stage, precomputed=True), programs=programs, tables=tables)


def _run(onnx: bytes, arrays: Mapping[str, Array]) -> Array:
    """What a program gives, a piece of rows after the other."""
    from leanmark.graphs import import_onnxruntime

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    count = len(next(iter(arrays.values())))
    pieces = range(0, count, 8192)
    found = [session.run(None, {name: array[at : at + 8192] for name, array in arrays.items()})[0] for at in pieces]
    return np.concatenate([np.asarray(part) for part in found]).astype(np.float32)


# --- search ----------------------------------------------------------------------


def finds(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The index finds what looking at everything finds: recall of the first 20 over up to 200 queries."""
    config = config_of(artifact)
    if config is None or config.index is None:
        return replace(no_service("serve.ann"), reason="the final artifact has no index")
    from leanmark.serving.making import built_index

    tables = artifact.tables()
    items = np.ascontiguousarray(tables["embedding"])
    queries = _run(
        artifact.part("query").proto().SerializeToString(), {config.query[0].name: tables["query"][:_QUERIES]}
    )
    wanted = built_index(Index("exact"), items, None).search(queries, _SEARCHED)[1]
    found = built_index(config.index, items, tables.get("centroids")).search(queries, _SEARCHED)[1]
    recall = float(
        np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(wanted.tolist(), found.tolist(), strict=True)])
    )
    copies = len(items) - config.entries
    facts = {"index": config.index.kind, "items": len(items), "copies": copies, f"recall_at_{_SEARCHED}": recall}
    if config.index.kind == "ivf":
        facts["looked_at"] = config.index.probes / config.index.lists
    return Evidence("serve.ann", recall > 0, facts, "" if recall > 0 else "it finds none of the first 20 items")


def searches_observed(evidence: Evidence, served: Served) -> Evidence:
    """An index is of use only where the whole catalogue is asked about."""
    if evidence.effective and not served.facts.get("searched"):
        return replace(evidence, effective=False, reason="requests name their candidates, so nothing is searched for")
    return evidence


@step(
    "serve.ann",
    family="two-tower",
    consumes=Service,
    produces=Service,
    evidence=finds,
    libraries=("faiss-cpu", "onnxruntime"),
    observed=searches_observed,
)
def ann(
    stage: Service,
    ctx: Context,
    *,
    kind: Literal["exact", "ivf", "hnsw"] = "ivf",
    lists: Annotated[int, Ge(1), Le(65536)] = 64,
    probes: Annotated[int, Ge(1), Le(65536)] = 8,
    links: Annotated[int, Ge(4), Le(128)] = 32,
    effort: Annotated[int, Ge(8), Le(4096)] = 64,
) -> Service:
    """Search the catalogue for the items that fit a query best, by an index of their embeddings.

    kind: exact, which looks at all of them; ivf, lists of neighbours, of which the nearest are looked at; hnsw, a graph
    of neighbours. lists, probes: of ivf, how many lists there are, and how many are looked at. links, effort: of hnsw,
    how many neighbours each item is linked to, and how many candidates a search keeps.

    The index is built when the service starts; the centres of lists are found now.
    Evidence: recall of the first 20 against exact search, with queries of the workload; under traffic, that requests
    are about the whole catalogue.
    Source: Johnson, Douze, Jégou 2017, Billion-scale similarity search with GPUs; Malkov, Yashunin 2018, HNSW.
    """
    config = ServiceConfig.read(stage.config)
    if not config.precomputed:
        raise NotApplicable("an index is of embeddings that are there", do="Put inputs.precompute before it.")
    embedding = np.ascontiguousarray(stage.tables["embedding"])
    if kind != "ivf":
        index = Index(kind, links=links, effort=effort) if kind == "hnsw" else Index(kind)
        return changed(stage, index=index)
    if lists > len(embedding) or probes > lists:
        raise NotApplicable(f"{lists} lists with {probes} looked at do not fit {len(embedding)} items")
    import faiss

    faiss.omp_set_num_threads(1)
    means = faiss.Kmeans(embedding.shape[1], lists, niter=10, seed=ctx.seed, spherical=True, min_points_per_centroid=1)
    means.train(embedding)
    tables = {**stage.tables, "centroids": np.asarray(means.centroids, np.float32)}
    return replace(changed(stage, index=Index("ivf", lists=lists, probes=probes)), tables=tables)
