"""Facts read off an ONNX model, and quiet for the libraries that write them.

Everything here reads the model as it is: subgraphs are counted too, and nothing is
inferred from what a step was asked to do.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanmark.stages import Artifact, Program

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


@contextmanager
def quiet() -> Generator[None]:
    """No warnings, log lines or prints from the libraries called inside; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported so that it writes nothing about this machine.

    Version 1.31 leaves a device id and an event file under the user's cache otherwise.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.HasField("g") else []
            for body in (*inner, *attribute.graphs):
                yield from nodes(body)


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """What is the same in every call, by name: initializers, and what Constant nodes give as tensors."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in nodes(graph):
        value = next((attribute for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            found[node.output[0]] = value.t
    return found


def external_locations(path: Path) -> set[str]:
    """Every file that a model says its tensors lie in, wherever in it they are."""
    import onnx

    found: set[str] = set()
    waiting: list[Any] = [onnx.load_model(path, load_external_data=False)]
    while waiting:
        message = waiting.pop()
        if isinstance(message, onnx.TensorProto):
            found |= {entry.value for entry in message.external_data if entry.key == "location"}
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else list(value)
    return found


def op_name(node: NodeProto) -> str:
    """The operator's name, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def op_counts(proto: ModelProto) -> dict[str, int]:
    """How many nodes of each operator a model has, by name."""
    counts = Counter(op_name(node) for node in nodes(proto.graph))
    for function in proto.functions:
        counts.update(op_name(node) for node in function.node)
    return dict(sorted(counts.items()))


def reference_ops(artifact: Artifact) -> dict[str, int] | None:
    """Operators of the unmodified program, or None where there is none to compare with."""
    reference = artifact.reference
    if reference is None or reference.stage is not Program:
        return None
    return op_counts(reference.proto())


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Operators whose count changed, with how many there are more now."""
    changes = {name: after.get(name, 0) - before.get(name, 0) for name in sorted({*before, *after})}
    return {name: change for name, change in changes.items() if change}


def is_quantized(ops: Mapping[str, int]) -> bool:
    """Whether some operator of a model computes with or converts to integers."""
    return any("Quantize" in name or "Integer" in name or "QLinear" in name for name in ops)


def leftovers(proto: ModelProto) -> dict[str, int]:
    """Nodes of the main graph that do no work, by kind.

    no_op: Identity and Dropout. constant: Constant nodes, which could be initializers.
    unused: nobody reads what they compute. duplicate: the same computation again.
    """
    graph = proto.graph
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    returned = {value.name for value in graph.output}
    used = _used_nodes(graph)
    seen: set[tuple[bytes, ...]] = set()
    counts = {"no_op": 0, "constant": 0, "unused": 0, "duplicate": 0}
    for index, node in enumerate(graph.node):
        # What goes in and comes out unchanged still needs one node between the two.
        bridge = node.op_type == "Identity" and node.input[0] in given and node.output[0] in returned
        if index not in used:
            counts["unused"] += 1
        elif node.op_type in ("Identity", "Dropout") and not bridge:
            counts["no_op"] += 1
        elif node.op_type == "Constant":
            counts["constant"] += 1
        elif node.op_type not in _RANDOM and not returned.intersection(node.output):
            computation = _computation(node)
            counts["duplicate"] += computation in seen
            seen.add(computation)
    return counts


_RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)


def _computation(node: NodeProto) -> tuple[bytes, ...]:
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    return (op_name(node).encode(), *(name.encode() for name in node.input), b"", *attributes)


def _used_nodes(graph: GraphProto) -> set[int]:
    """Positions of the nodes that an output depends on; nodes are in topological order."""
    needed = {value.name for value in graph.output}
    used: set[int] = set()
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        if needed.intersection(node.output):
            used.add(index)
            needed.update(_reads(node))
    return used


def _reads(node: NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.HasField("g") else []
        for body in (*inner, *attribute.graphs):
            yield from (value.name for value in body.output)
            for child in body.node:
                yield from _reads(child)


def canonical_program(stage: Program, proto: ModelProto) -> Program:
    """The stage with another model, whose initializers keep their names; see `canonical`."""
    canonical(proto, [tensor.name for tensor in proto.graph.initializer])
    return replace(stage, onnx=proto.SerializeToString(deterministic=True))


def canonical(proto: ModelProto, keep: Iterable[str]) -> None:
    """Order and name what a library made up, in place, by what feeds what.

    onnxruntime and its quantizer walk hash tables, so that two processes order and name
    the same nodes differently. Inputs, outputs and the initializers in `keep` keep their
    names; nodes come in the order in which a walk back from the outputs needs them, and
    are numbered with the values between them. Nodes that no output needs, unused
    operator sets, and intermediate shapes, which the runtime infers, go.
    """
    graph = proto.graph
    _order_nodes(graph)
    kept = {value.name for value in (*graph.input, *graph.output)} | set(keep)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    names: dict[str, str] = {}
    used: dict[str, None] = {}
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        for position, name in enumerate(node.output):
            if name and name not in kept:
                names[name] = f"{node.name}_{position}" if position else f"{node.name}_output"
        used |= dict.fromkeys(name for name in _reads(node) if name in stored)
        _replace(node.attribute, sorted(node.attribute, key=lambda attribute: attribute.name))
    used |= dict.fromkeys(value.name for value in graph.output if value.name in stored)
    names |= {name: f"constant_{index}" for index, name in enumerate(used) if name not in kept}
    _replace(graph.initializer, [stored[name] for name in used])
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        _rename(node, names)
    del graph.value_info[:]
    domains = {"", *(node.domain for node in nodes(graph))}
    domains |= {domain for function in proto.functions for domain in (function.domain, *_domains(function.node))}
    versions = sorted(proto.opset_import, key=lambda entry: entry.domain)
    _replace(proto.opset_import, [entry for entry in versions if entry.domain in domains])


def _order_nodes(graph: GraphProto) -> None:
    """Depth first from the outputs, inputs in order: the same for the same structure."""
    maker = {name: node for node in graph.node for name in node.output if name}
    ordered: dict[int, NodeProto] = {}
    stack = [maker[value.name] for value in reversed(graph.output) if value.name in maker]
    while stack:
        node = stack[-1]
        waiting = [maker[name] for name in _reads(node) if name in maker and id(maker[name]) not in ordered]
        if waiting and id(node) not in ordered:
            stack.extend(reversed(waiting))
            continue
        ordered.setdefault(id(node), node)
        stack.pop()
    _replace(graph.node, list(ordered.values()))


def _replace(field: Any, entries: list[Any]) -> None:
    """Put copies of `entries` into a repeated field in place of what it holds."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)


def _domains(listed: Iterable[NodeProto]) -> set[str]:
    return {node.domain for node in listed}


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.HasField("g") else []
        for body in (*inner, *attribute.graphs):
            for value in body.output:
                value.name = names.get(value.name, value.name)
            for child in body.node:
                _rename(child, names)
