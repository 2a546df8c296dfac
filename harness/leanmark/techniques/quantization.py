"""Post-training quantization of programs to integers, by onnxruntime's quantizer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import canonical, canonical_program, import_onnxruntime, nodes, op_counts, op_name, quiet
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, Split
from leanmark.techniques.finetuning import Preserve

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Operators whose work is worth quantizing, and onnxruntime's that do it on integers.
_COMPUTE = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_FUSED = frozenset(["FusedConv", "FusedGemm", "FusedMatMul"])
_FLOAT = frozenset(["float16", "bfloat16", "float32", "float64"])
_INT8 = frozenset(["int8", "uint8"])
_STANDS_FOR = frozenset(["DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape"])


def dynamic_reached(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """Most weights are 8-bit integers, and operators compute with them."""
    return integers_reached("quantize.dynamic", artifact)


def static_reached(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """Most weights are 8-bit integers, and operators compute with them."""
    return integers_reached("quantize.static", artifact)


def integers_reached(name: str, artifact: Artifact) -> Evidence:
    if artifact.stage is not Program:
        return Evidence(name, False, {}, "the final artifact is no ONNX program")
    proto = artifact.proto()
    weights = artifact.tensors().values()
    kinds = sorted({array.dtype.name for array in weights})
    sizes = {kind: sum(array.nbytes for array in weights if array.dtype.name == kind) for kind in kinds}
    integers = sum(array.size for array in weights if array.dtype.name in _INT8)
    floats = sum(array.size for array in weights if array.dtype.name in _FLOAT)
    share = integers / max(1, integers + floats)
    on_integers, on_floats, joined = _compute_nodes(proto)
    facts = {
        "bytes_by_type": sizes,
        "integer_weights": round(share, 6),
        "integer_operators": on_integers,
        "float_operators": on_floats,
        "weights_in_integer_operators": round(joined, 6),
        "conversions": sum(count for op, count in op_counts(proto).items() if op.endswith("QuantizeLinear")),
    }
    if not integers:
        return Evidence(name, False, facts, "no weight is stored as an 8-bit integer")
    if share < 0.5:
        return Evidence(name, False, facts, f"only {share:.0%} of the weights are 8-bit integers")
    if not on_integers:
        return Evidence(name, False, facts, "no operator computes with the integers")
    if joined < 0.5:
        return Evidence(name, False, facts, f"operators compute with only {joined:.0%} of the weights as integers")
    return Evidence(name, True, facts)


def _compute_nodes(proto: ModelProto) -> tuple[int, int, float]:
    """Convolutions and matrix products that work on integers, those on floats, and the share of weights in the former.

    One whose two inputs come from DequantizeLinear counts as an integer one: the
    runtime joins the three into an integer operator where it has one.
    """
    every = list(nodes(proto.graph))
    dequantized = {name for node in every if node.op_type == "DequantizeLinear" for name in node.output}
    on_integers = on_floats = 0
    weights = {True: 0, False: 0}
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in proto.graph.initializer}
    maker = {name: node for node in every for name in node.output}
    for node in every:
        name = op_name(node).rpartition(".")[2]
        if name in _COMPUTE or name in _FUSED:
            joined = all(source in dequantized for source in node.input[:2])
        elif "Integer" in name or name.startswith("QLinear") or name == "QGemm":
            joined = True
        else:
            continue
        on_integers += joined
        on_floats += not joined
        weights[joined] += max((_elements(source, sizes, maker) for source in node.input), default=0)
    return on_integers, on_floats, weights[True] / max(1, sum(weights.values()))


def _elements(name: str, sizes: Mapping[str, int], maker: Mapping[str, NodeProto]) -> int:
    """Elements of the stored tensor that an input is, or stands for; 0 for what is computed."""
    while name not in sizes and name in maker and maker[name].op_type in _STANDS_FOR:
        name = maker[name].input[0]
    return sizes.get(name, 0)


@step(
    "quantize.dynamic",
    family="quantization",
    consumes=Program,
    produces=Program,
    evidence=dynamic_reached,
    libraries=("onnx", "onnxruntime"),
)
def dynamic(
    stage: Program,
    _ctx: Context,
    *,
    per_channel: bool = True,
    weight_type: Literal["int8", "uint8"] = "int8",
    reduce_range: bool = True,
    convolutions: bool = False,
) -> Program:
    """Store weights as 8-bit integers and quantize activations at every call.

    per_channel: a scale for each output channel instead of one for each tensor.
    weight_type: type of the stored weights. uint8 needs no reduced range and is slower.
    reduce_range: use 7 of int8's 8 bits. x86 processors without VNNI add pairs of
    products in 16 bits, which overflow with 8: on such a one, the answers of a LeNet-5
    with random weights moved by 7 % of the largest with 8 bits, by 1 % with 7.
    convolutions: quantize these too. onnxruntime runs them no faster than in fp32, and
    with int8 much slower (LeNet-5: 2.8 times as long in all).
    Batch norms are folded into the convolutions before. No data is needed.
    Evidence: at least half of the program's weights are 8-bit integers, and there are
    operators that compute with integers.
    Source: onnxruntime, Quantize ONNX Models; Jacob et al. 2018, Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    operators = set(IntegerOpsRegistry) - (set() if convolutions else {"Conv"})
    if "Attention" in op_counts(stage.proto()):
        operators.discard("Attention")  # the quantizer takes ONNX's for onnxruntime's older one of the same name
    with quiet(), tempfile.TemporaryDirectory(prefix="leanmark-") as folder:
        source, target = Path(folder) / "plain.onnx", Path(folder) / "quantized.onnx"
        _preprocess(stage, source)
        _attempt(
            quantize_dynamic,
            source,
            target,
            op_types_to_quantize=sorted(operators),
            per_channel=per_channel,
            reduce_range=reduce_range and weight_type == "int8",
            weight_type={"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}[weight_type],
        )
        return _finish(stage, target)


@step(
    "quantize.static",
    family="quantization",
    consumes=Program,
    produces=Program,
    evidence=static_reached,
    libraries=("onnx", "onnxruntime"),
    splits=("calibration",),
)
def static(
    stage: Program,
    ctx: Context,
    *,
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax",
    per_channel: bool = True,
    activations: Literal["uint8", "int8", "uint16", "int16"] = "uint8",
    samples: Annotated[int, Ge(1)] = 200,
    reduce_range: bool = True,
    preserve: tuple[Preserve, ...] = (),
) -> Program:
    """Store weights as int8 and quantize activations by ranges seen in calibration.

    calibration: how an activation's range comes from the values seen: `minmax` takes
    all of it, `percentile` cuts one value in 100,000, `entropy` takes the range that
    loses least information (Kullback-Leibler divergence).
    per_channel: a scale for each output channel of the weights instead of one a tensor.
    activations: their type; the 16-bit ones keep int8 weights and more precision, but
    onnxruntime computes with them in fp32.
    samples: examples of the calibration split to look at, taken from its beginning.
    reduce_range: use 7 of the weights' 8 bits where activations have 8. x86 processors
    without VNNI add pairs of products in 16 bits, which overflow with 8: on such a one,
    the answers of a LeNet-5 with random weights moved by 11 % of the largest with 8 bits,
    by 2 % with 7.
    preserve: `clusters` gives each tensor one scale whatever per_channel says, so that weights that share a value still
    do; batch norms must have been folded before. `sparsity` needs nothing, since zero stays zero.
    The program holds QuantizeLinear and DequantizeLinear pairs, which onnxruntime joins
    with the operators between them. Batch norms are folded into the convolutions before.
    Evidence: at least half of the program's weights are 8-bit integers, and there are
    operators between such pairs.
    Source: onnxruntime, Quantize ONNX Models; Migacz 2017, 8-bit Inference with TensorRT
    (entropy).
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    kinds = {
        "uint8": QuantType.QUInt8,
        "int8": QuantType.QInt8,
        "uint16": QuantType.QUInt16,
        "int16": QuantType.QInt16,
    }
    if "clusters" in preserve and "BatchNormalization" in op_counts(stage.proto()):
        what = "folding a batch norm into a layer parts weights that share a value"
        raise NotApplicable(what, do="Put fuse.batchnorm before the clustering.")
    with quiet(), tempfile.TemporaryDirectory(prefix="leanmark-") as folder:
        source, target, ranges = (Path(folder) / name for name in ("plain.onnx", "quantized.onnx", "ranges.json"))
        _preprocess(stage, source)
        method = _calibrate(source, ranges, ctx.split("calibration").head(samples), calibration)
        _attempt(
            quantize_static,
            source,
            target,
            calibration_cache_path=ranges,
            calibrate_method=method,
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel and "clusters" not in preserve,
            reduce_range=reduce_range and activations in ("uint8", "int8"),
            activation_type=kinds[activations],
            weight_type=QuantType.QInt8,
        )
        return _finish(stage, target)


def _calibrate(model: Path, ranges: Path, split: Split, calibration: str) -> Any:
    """Write the range of every tensor that the quantizer asks for.

    Left to itself, the quantizer searches the entropy's threshold among 128 bins for
    128 levels, where only one candidate is left: the whole range, as with minmax.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator, save_tensors_data
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    method, options = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "entropy": (CalibrationMethod.Entropy, {"num_bins": 512, "num_quantized_bins": 128}),
        "percentile": (CalibrationMethod.Percentile, {"symmetric": False}),
    }[calibration]
    calibrator = create_calibrator(
        model,
        sorted({*QLinearOpsRegistry, *QDQRegistry}),
        augmented_model_path=str(model.with_name("augmented.onnx")),
        calibrate_method=method,
        extra_options=options,
    )
    _attempt(calibrator.collect_data, _reader(split))
    save_tensors_data(calibrator.compute_data(), ranges)
    return method


def _reader(split: Split) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    examples = ({name: array[index : index + 1] for name, array in split.inputs.items()} for index in range(len(split)))

    class Reader(CalibrationDataReader):
        """One example at a time; None after the last."""

        def get_next(self) -> Any:
            return next(examples, None)

    return Reader()


def _preprocess(stage: Program, path: Path) -> None:
    """Write the program as the quantizer wants it: basic optimizations applied."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    given = stage.proto()
    if not _COMPUTE.intersection(op_counts(given)):
        raise NotApplicable("the program has no convolution or matrix product in floating point")
    plain = path.with_name("given.onnx")
    plain.write_bytes(stage.onnx)
    # Symbolic shape inference takes sympy and found nothing more in any model tried.
    _attempt(quant_pre_process, plain, path, skip_symbolic_shape=True)
    proto = onnx.load_model(path)
    # Shapes go too: the quantizer transposes weights and would contradict those written.
    canonical(proto, [tensor.name for tensor in given.graph.initializer])
    onnx.save_model(proto, path)


def _finish(stage: Program, path: Path) -> Program:
    import onnx

    return canonical_program(stage, onnx.load_model(path))


def _attempt(function: Any, *args: Any, **options: Any) -> None:
    try:
        function(*args, **options)
    except Exception as error:
        what = str(error).strip().splitlines()
        raise PreparationError(
            f"onnxruntime cannot quantize this program: {type(error).__name__}: {what[0] if what else 'no message'}"
        ) from error
