"""Fewer bits a weight without calibration: half precision, and integers that are expanded in the product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable
from leanmark.graphs import canonical_program, import_onnxruntime, nodes, op_counts, quiet
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program

if TYPE_CHECKING:
    from onnx import ModelProto

_COMPUTE = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_FLOATS = frozenset(["bfloat16", "float16", "float32", "float64"])


def _bytes_by_type(artifact: Artifact) -> dict[str, int]:
    found: dict[str, int] = {}
    for array in artifact.tensors().values():
        found[array.dtype.name] = found.get(array.dtype.name, 0) + array.nbytes
    return dict(sorted(found.items()))


def halves_stored(artifact: Artifact, _: Mapping[str, Any]) -> Evidence:
    """Most of the final program's floating-point weights have 16 bits."""
    name, sizes = "quantize.half", _bytes_by_type(artifact)
    half, floats = sizes.get("float16", 0), sum(size for kind, size in sizes.items() if kind in _FLOATS)
    facts: dict[str, Any] = {"bytes_by_type": sizes}
    if artifact.stage is not Program:
        return Evidence(name, False, facts, "the final artifact is no ONNX program")
    facts["casts"] = op_counts(artifact.proto()).get("Cast", 0)
    if not half or 2 * half < floats:
        return Evidence(name, False, facts, f"{half:,} of {floats:,} bytes of floating-point weights are 16-bit ones")
    return Evidence(name, True, facts)


@step(
    "quantize.half",
    family="quantization",
    consumes=Program,
    produces=Program,
    evidence=halves_stored,
    libraries=("onnx", "onnxruntime"),
)
def half(stage: Program, _ctx: Context) -> Program:
    """Store and compute in 16-bit floating point (IEEE half precision); inputs and outputs stay as they are.

    Half the bytes. On processors without half-precision arithmetic onnxruntime computes in fp32 all the same, and
    casts in front and behind: expect it to be slower there.
    Evidence: at least half of the bytes of the final program's floating-point weights are 16-bit ones.
    Source: Micikevicius et al. 2018, Mixed Precision Training; onnxruntime, Create Float16 Models.
    """
    import_onnxruntime()
    from onnx import TensorProto
    from onnxruntime.transformers.float16 import convert_float_to_float16

    given = stage.proto()
    kinds = {array.data_type for array in given.graph.initializer}
    if TensorProto.FLOAT not in kinds:
        raise NotApplicable("the program has no weights in 32-bit floating point")
    with quiet():
        proto = convert_float_to_float16(given, keep_io_types=True)
    return canonical_program(stage, proto)


def integers_packed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Products with packed weights of so many bits, and the bytes of these."""
    name = "quantize.weights"
    if artifact.stage is not Program:
        return Evidence(name, False, {}, "the final artifact is no ONNX program")
    proto, tensors = artifact.proto(), artifact.tensors()
    packed = [node for node in nodes(proto.graph) if node.op_type == "MatMulNBits"]
    bits = {next(int(entry.i) for entry in node.attribute if entry.name == "bits") for node in packed}
    own = sum(tensors[node.input[1]].nbytes for node in packed if node.input[1] in tensors)
    whole = sum(array.nbytes for array in tensors.values())
    facts = {"products": len(packed), "packed_bytes": own, "bytes": whole, "bytes_by_type": _bytes_by_type(artifact)}
    if not packed:
        return Evidence(name, False, facts, "no product of the final program has packed weights")
    if bits != {int(params["bits"])}:
        return Evidence(name, False, facts, f"weights are packed in {sorted(bits)} bits, not {params['bits']}")
    if 2 * own < whole:
        return Evidence(name, False, facts, f"only {own:,} of the {whole:,} bytes of weights are packed")
    return Evidence(name, True, facts)


@step(
    "quantize.weights",
    family="quantization",
    consumes=Program,
    produces=Program,
    evidence=integers_packed,
    libraries=("onnx", "onnxruntime"),
)
def weights(
    stage: Program,
    _ctx: Context,
    *,
    bits: Literal[4, 8] = 8,
    block_size: Literal[16, 32, 64, 128, 256] = 32,
    symmetric: bool = True,
) -> Program:
    """Store the weights of matrix products as integers of 8 or 4 bits; activations stay in floating point.

    bits: of a weight. block_size: weights in a row that share a scale. symmetric: no zero points.
    Products of activations and constant matrices change, convolutions do not. The integers are expanded within the
    product, block by block: less memory traffic, more arithmetic.
    Evidence: products with packed weights of so many bits, at least half of the program's bytes.
    Source: onnxruntime, MatMulNBits; Frantar et al. 2023, GPTQ (weight-only quantization).
    """
    import_onnxruntime()
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    proto = _with_plain_products(stage.proto())
    constant = {tensor.name for tensor in proto.graph.initializer}
    if not any(node.op_type == "MatMul" and node.input[1] in constant for node in nodes(proto.graph)):
        raise NotApplicable("the program has no product with a constant matrix")
    with quiet():
        quantizer: Any = MatMulNBitsQuantizer(proto, bits=bits, block_size=block_size, is_symmetric=symmetric)
        quantizer.process()
    return canonical_program(stage, quantizer.model.model)


def _with_plain_products(proto: ModelProto) -> ModelProto:
    """Gemm as MatMul and Add: the quantizer passes Gemm by without a word."""
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        plain = values.get("alpha", 1.0) == values.get("beta", 1.0) == 1.0 and not values.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in stored:
            found.append(node)
            continue
        name = node.input[1]
        if values.get("transB", 0):
            matrix = np.ascontiguousarray(numpy_helper.to_array(stored[name]).T)
            name = f"{name}_transposed"
            proto.graph.initializer.append(numpy_helper.from_array(matrix, name))
        has_bias = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_product" if has_bias else node.output[0]
        found.append(helper.make_node("MatMul", [node.input[0], name], [product]))
        if has_bias:
            found.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    del proto.graph.node[:]
    proto.graph.node.extend(found)
    return proto
