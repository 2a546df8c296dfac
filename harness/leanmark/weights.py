"""The weight tensors of a model, in torch and in an artifact, by one rule.

A weight tensor has at least two axes and at least `MINIMUM_ELEMENTS` elements:
biases, scales, zero points and shapes are none. Steps change those tensors, and
evidence counts on those tensors, so both must mean the same ones.

Quantized tensors are given as integers with their zero point subtracted, so that
zero means zero; their scales are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import PreparationError
from leanmark.graphs import nodes, op_name
from leanmark.stages import Artifact, Program

if TYPE_CHECKING:
    from onnx import NodeProto
    from torch import Tensor, nn

MINIMUM_ELEMENTS = 64

_FLOATS = frozenset(["float16", "bfloat16", "float32", "float64"])
_INTEGERS = frozenset(["int4", "uint4", "int8", "uint8", "int16", "uint16"])


def weight_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weight tensors of a torch module by name; one that is shared appears once."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.dim() >= 2 and parameter.numel() >= MINIMUM_ELEMENTS and parameter.is_floating_point()
    }


def finite_values(name: str, weight: Tensor) -> Array:
    """A flat float32 copy of a weight tensor. Raises PreparationError where one is NaN or infinite."""
    values = weight.detach().float().cpu().reshape(-1).numpy().copy()
    if not np.isfinite(values).all():
        raise PreparationError(f"weights of '{name}' are NaN or infinite", do="Check how the model was trained.")
    return values


def shared_parameters(module: nn.Module) -> dict[str, str]:
    """Names of parameters that are the same tensor as one named before, with that name."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            found[name] = owner
    return found


def weight_tensors(artifact: Artifact) -> dict[str, Array]:
    """The weight tensors of an artifact by name: float, or integers less their zero point (int32)."""
    if artifact.stage is not Program:
        tensors = artifact.tensors()
        dense = {f"{path}.weight": _expanded(tensors, path, spec) for path, spec in sparse_layers(artifact).items()}
        return {name: array for name, array in (tensors | dense).items() if is_weight(array)}
    from onnx import numpy_helper

    proto = artifact.proto()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    weights = {name: array for name, array in stored.items() if is_weight(array)}
    for node in nodes(proto.graph):
        kind = op_name(node).rpartition(".")[2]
        for position in _BLOCK_INPUTS.get(kind, ()):
            weights.pop(_input(node, position), None)
        name = _input(node, _WEIGHT_INPUT.get(kind, -1))
        if name not in weights or weights[name].dtype.name not in _INTEGERS:
            continue
        if kind == "MatMulNBits":
            weights[name] = _blocks_of_bits(node, stored)
        else:
            weights[name] = _centred(node, kind, weights[name], stored)
    return {name: _as_numbers(array) for name, array in weights.items()}


def sparse_layers(artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """The layers of a torch artifact that compute with sparse weights, by path, as its manifest describes them."""
    found: dict[str, Mapping[str, Any]] = {}
    pending = list(artifact.manifest.get("modules", {}).items())
    while pending:
        path, spec = pending.pop()
        if spec["type"] == "SparseLinear":
            found[path] = spec
        inner = [*spec.get("children", ()), *spec.get("inside", {}).items()]
        pending += [(f"{path}.{key}" if path else key, child) for key, child in inner]
    return dict(sorted(found.items()))


def _expanded(tensors: Mapping[str, Array], path: str, spec: Mapping[str, Any]) -> Array:
    """The matrix that a layer's compressed sparse rows stand for."""
    rows, columns, values = (tensors[f"{path}.{name}" if path else name] for name in ("rows", "columns", "values"))
    matrix = np.zeros((spec["args"]["out_features"], spec["args"]["in_features"]), dtype=values.dtype)
    matrix[np.repeat(np.arange(len(rows) - 1), np.diff(rows)), columns] = values
    return matrix


def is_quantized(weights: Mapping[str, Array]) -> bool:
    """Whether some weight tensor holds integers."""
    return any(array.dtype.kind == "i" for array in weights.values())


def count_elements(weights: Mapping[str, Array]) -> int:
    """Elements of all the tensors together."""
    return sum(array.size for array in weights.values())


def count_zeros(weights: Mapping[str, Array]) -> int:
    """Elements that are zero, of all the tensors together."""
    return sum(array.size - int(np.count_nonzero(array)) for array in weights.values())


def distinct_values(array: Array) -> int:
    """How many values a tensor holds; 0.0 and -0.0 are one."""
    return int(np.unique(array).size)


def is_weight(array: Array) -> bool:
    return array.ndim >= 2 and array.size >= MINIMUM_ELEMENTS and array.dtype.name in _FLOATS | _INTEGERS


def _as_numbers(array: Array) -> Array:
    """In a dtype that numpy itself can count and sort."""
    if array.dtype.name in _INTEGERS:
        return array.astype(np.int32)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


# --- zero points ------------------------------------------------------------------------

# Where an operator takes its quantized weights and their zero point, and the axis of the
# weights along which the zero points of a per-channel quantization lie; None: the node says.
_ZERO_POINT: dict[str, tuple[int, int, int | None]] = {
    "DequantizeLinear": (0, 2, None),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
    "QGemm": (3, 5, None),
    "MatMulInteger": (1, 3, -1),
    "ConvInteger": (1, 3, 0),
    "MatMulIntegerToFloat": (1, 5, -1),
    "DynamicQuantizeMatMul": (1, 3, -1),
}
_WEIGHT_INPUT = {kind: weight for kind, (weight, _, _) in _ZERO_POINT.items()} | {"MatMulNBits": 1}

# Scales and zero points that have one for each block have two axes too.
_BLOCK_INPUTS = {"DequantizeLinear": (1, 2), "MatMulNBits": (2, 3)}


def _input(node: NodeProto, index: int) -> str:
    return node.input[index] if 0 <= index < len(node.input) else ""


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def _channel_axis(node: NodeProto, kind: str) -> int:
    _, _, axis = _ZERO_POINT[kind]
    if axis is not None:
        return axis
    if kind == "QGemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return _attribute(node, "axis", 1)


def _centred(node: NodeProto, kind: str, weight: Array, stored: Mapping[str, Array]) -> Array:
    values = weight.astype(np.int32)
    zero = stored.get(_input(node, _ZERO_POINT[kind][1]))
    if zero is None:  # left out: zero
        return values
    zero = zero.astype(np.int32)
    if zero.size == 1:
        return values - zero.reshape(())
    axis = _channel_axis(node, kind) % values.ndim
    length = values.shape[axis]
    if zero.ndim == values.ndim:  # a zero point for each block along the axis
        return values - np.repeat(zero, -(-length // zero.shape[axis]), axis=axis).take(np.arange(length), axis=axis)
    shape = [1] * values.ndim
    shape[axis] = zero.size
    return values - zero.reshape(shape)


def _blocks_of_bits(node: NodeProto, stored: Mapping[str, Array]) -> Array:
    """The (N, K) integers of onnxruntime's MatMulNBits, which packs 2, 4 or 8 bits in blocks along K."""
    bits, inner = _attribute(node, "bits", 4), _attribute(node, "K", 0)
    packed = stored[_input(node, 1)]
    rows, blocks = packed.shape[0], packed.shape[1]
    values = _unpack(packed.reshape(rows, -1), bits)[:, : blocks * _attribute(node, "block_size", 32)]
    zero = stored.get(_input(node, 3))
    if zero is None:
        zeros: Array = np.full((rows, blocks), 1 << (bits - 1), dtype=np.int32)
    elif zero.dtype.name == "uint8":
        zeros = _unpack(zero.reshape(rows, -1), bits)[:, :blocks]
    else:
        zeros = np.rint(zero.reshape(rows, blocks)).astype(np.int32)
    centred = values.reshape(rows, blocks, -1) - zeros[:, :, None]
    return centred.reshape(rows, -1)[:, :inner]


def _unpack(rows: Array, bits: int) -> Array:
    """Integers of `bits` bits from bytes, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((rows[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(rows.shape[0], -1).astype(np.int32)
