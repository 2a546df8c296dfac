"""Controls that are not what they say: a harness that shows them as good numbers cannot be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable
from leanmark.graphs import canonical_program, nodes
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel
from leanmark.techniques.pruning import Fraction, least, sparsity_of
from leanmark.techniques.quantization import integers_reached
from leanmark.weights import finite_values, is_weight, weight_parameters

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto


def says_nothing(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Nothing: what it does must be found by others."""
    return Evidence("control.wrong", True, {}, "that answers changed is for the check of exact steps to find")


@step(
    "control.wrong",
    family="control",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=says_nothing,
    exact=1e-5,
)
def wrong(model: TorchModel, ctx: Context) -> TorchModel:
    """Call itself exact, and change one weight: it must be shown as wrong.

    The largest weight of the last layer changes its sign.
    Evidence: none; the answers are compared with those of what it started from.
    Source: own; a mutation in the sense of DeMillo, Lipton, Sayward 1978.
    """
    import torch

    found = weight_parameters(model.module)
    if not found:
        raise NotApplicable("this model has no weight to change")
    name, weight = list(found.items())[-1]
    values = finite_values(name, weight)
    with torch.no_grad():
        weight.view(-1)[int(np.argmax(np.abs(values)))] *= -1
    return model.with_module(model.module)


def answers_are_computed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Whether every output of the final program depends on an input."""
    name = "control.cached"
    if artifact.stage is not Program:
        return Evidence(name, False, {}, "the final artifact is no ONNX program")
    fixed = _fixed_outputs(artifact.proto())
    facts = {"outputs_without_inputs": fixed}
    if fixed:
        return Evidence(name, False, facts, f"output '{fixed[0]}' is the same whatever the input")
    return Evidence(name, True, facts)


def _fixed_outputs(proto: ModelProto) -> list[str]:
    """Outputs whose values no input reaches. Shapes do not count: how many answers there are is no answer."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    reached = {value.name for value in proto.graph.input} - stored
    for node in proto.graph.node:
        if node.op_type != "Shape" and reached.intersection(node.input):
            reached.update(node.output)
    return [value.name for value in proto.graph.output if value.name not in reached]


@step(
    "control.cached",
    family="control",
    consumes=Program,
    produces=Program,
    evidence=answers_are_computed,
    libraries=("onnx", "onnxruntime"),
    splits=("validation",),
)
def cached(stage: Program, ctx: Context) -> Program:
    """Answer every input with the answer to the first validation example: it must be shown as ineffective.

    The fastest of all programs. Evidence: every output of the final program depends on an input.
    Source: own; MLPerf forbids it as caching of results (Reddi et al. 2020, MLPerf Inference Benchmark).
    """
    from onnx import helper, numpy_helper

    from leanmark.graphs import import_onnxruntime

    proto = stage.proto()
    session = import_onnxruntime().InferenceSession(stage.onnx, providers=["CPUExecutionProvider"])
    first = ctx.split("validation").head(1)
    given = {value.name: first.inputs[value.name] for value in session.get_inputs()}
    answers = session.run(None, given)
    source, outputs = proto.graph.input[0].name, [value.name for value in proto.graph.output]
    del proto.graph.node[:]
    del proto.graph.initializer[:]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0], dtype=np.int64), "batch_axis"))
    proto.graph.node.append(helper.make_node("Shape", [source], ["count"], start=0, end=1))
    for number, (name, answer) in enumerate(zip(outputs, answers, strict=True)):
        ones = np.ones(np.ndim(answer) - 1, dtype=np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(answer), f"answer_{number}"))
        proto.graph.initializer.append(numpy_helper.from_array(ones, f"ones_{number}"))
        proto.graph.node.append(helper.make_node("Concat", ["count", f"ones_{number}"], [f"times_{number}"], axis=0))
        proto.graph.node.append(helper.make_node("Tile", [f"answer_{number}", f"times_{number}"], [name]))
    return canonical_program(stage, proto)


def masked_sparsity(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors, masks among them."""
    return sparsity_of("control.masked", artifact, params)


@step(
    "control.masked",
    family="control",
    consumes=Program,
    produces=Program,
    evidence=masked_sparsity,
    libraries=("onnx",),
)
def masked(stage: Program, ctx: Context, *, sparsity: Fraction = 0.9) -> Program:
    """Prune by masks that are left in place: it must be shown as ineffective.

    Every call multiplies each weight with its mask; what is stored is the dense weights and the masks.
    sparsity: share of each tensor that its mask takes out.
    Evidence: zeros counted in the final artifact's tensors, as for any pruning step.
    Source: own; what torch.nn.utils.prune leaves behind without `remove`.
    """
    from onnx import helper, numpy_helper

    proto = stage.proto()
    found = _weights_of_products(proto)
    if not found:
        raise NotApplicable("the program has no weights in floating point to mask")
    masks = []
    for tensor in found:
        values = numpy_helper.to_array(tensor)
        kept = ~least(np.abs(values).reshape(-1), sparsity).reshape(values.shape)
        proto.graph.initializer.append(numpy_helper.from_array(kept.astype(values.dtype), f"{tensor.name}_mask"))
        masks.append(helper.make_node("Mul", [tensor.name, f"{tensor.name}_mask"], [f"{tensor.name}_masked"]))
    _reroute(proto, {tensor.name: f"{tensor.name}_masked" for tensor in found})
    _put_first(proto, masks)
    return canonical_program(stage, proto)


def fake_integers(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Whether weights are stored as integers and operators compute with them."""
    return integers_reached("control.fakequant", artifact)


@step(
    "control.fakequant",
    family="control",
    consumes=Program,
    produces=Program,
    evidence=fake_integers,
    libraries=("onnx",),
)
def fakequant(stage: Program, ctx: Context) -> Program:
    """Round weights to 255 levels at every call, and keep them in floating point: it must be shown as ineffective.

    What a network looks like while it is trained for quantization; as a product it has the quality of int8, and the
    size and more than the time of fp32.
    Evidence: weights of the final program that are stored as integers, as for any quantization.
    Source: own; Jacob et al. 2018 (simulated quantization).
    """
    from onnx import helper, numpy_helper

    proto = stage.proto()
    found = _weights_of_products(proto)
    if not found:
        raise NotApplicable("the program has no weights in floating point to round")
    rounding = []
    for tensor in found:
        values = numpy_helper.to_array(tensor)
        scale = np.array(float(np.abs(values).max()) / 127 or 1.0, dtype=values.dtype)
        proto.graph.initializer.append(numpy_helper.from_array(scale, f"{tensor.name}_scale"))
        source = tensor.name
        for kind in ("Div", "Round", "Mul"):
            target = f"{tensor.name}_{'fake' if kind == 'Mul' else kind.lower()}"
            inputs = [source] if kind == "Round" else [source, f"{tensor.name}_scale"]
            rounding.append(helper.make_node(kind, inputs, [target]))
            source = target
    _reroute(proto, {tensor.name: f"{tensor.name}_fake" for tensor in found})
    _put_first(proto, rounding)
    return canonical_program(stage, proto)


def _weights_of_products(proto: ModelProto) -> list[TensorProto]:
    from onnx import numpy_helper

    read = {
        name for node in nodes(proto.graph) if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input[1:2]
    }

    def is_wanted(array: Array) -> bool:
        return is_weight(array) and array.dtype.kind == "f"

    return [t for t in proto.graph.initializer if t.name in read and is_wanted(numpy_helper.to_array(t))]


def _reroute(proto: ModelProto, names: Mapping[str, str]) -> None:
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]


def _put_first(proto: ModelProto, added: list[Any]) -> None:
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*added, *rest])
