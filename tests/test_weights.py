"""Weights read as numbers off real artifacts: the same tensors, with zero meaning zero."""

import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanmark.errors import PreparationError
from leanmark.stages import Program, TorchModel, save
from leanmark.weights import (
    count_elements,
    count_zeros,
    distinct_values,
    finite_values,
    is_quantized,
    shared_parameters,
    weight_parameters,
    weight_tensors,
)


def quantized(kind: str) -> tuple[bytes, np.ndarray]:
    """A program with one 64 x 48 matrix of which half the weights are zero, quantized as `kind` says."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from leanmark.graphs import import_onnxruntime, quiet

    import_onnxruntime()
    random = np.random.default_rng(0)
    # Shifted, so that zero lies at no round integer by chance.
    matrix = random.uniform(0.2, 1.0, (64, 48)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.5] = 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with quiet(), redirect_stdout(io.StringIO()):
        if kind.startswith("bits"):
            from onnxruntime.quantization import QuantFormat
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            tool = MatMulNBitsQuantizer(
                model,
                bits=int(kind[4]),
                block_size=32,
                is_symmetric="symmetric" in kind,
                quant_format=QuantFormat.QDQ if "qdq" in kind else QuantFormat.QOperator,
            )
            tool.process()
            return tool.model.model.SerializeToString(), matrix
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = f"{os.environ['LEANMARK_CACHE']}/{kind}.onnx"
        onnx.save(model, path)
        unsigned, per_channel = "unsigned" in kind, "channel" in kind
        weight_type = QuantType.QUInt8 if unsigned else QuantType.QInt8
        options = {"WeightSymmetric": "symmetric" in kind}
        quantize_dynamic(path, path, weight_type=weight_type, per_channel=per_channel, extra_options=options)
        return Path(path).read_bytes(), matrix


@pytest.mark.parametrize(
    "kind",
    [
        "signed symmetric",
        "signed",
        "unsigned",
        "unsigned channel",
        "signed channel symmetric",
        "bits4",
        "bits4 symmetric",
        "bits8",
        "bits4 qdq",
        "bits4 qdq symmetric",
    ],
)
def test_zero_points_are_subtracted_before_zeros_are_counted(tmp_path, kind):
    serialized, matrix = quantized(kind)
    artifact = save(Program(serialized), tmp_path)
    (integers,) = [array for array in weight_tensors(artifact).values() if array.dtype.kind == "i"]
    counted = (integers if integers.shape == matrix.shape else integers.T) == 0
    assert np.array_equal(counted, matrix == 0)


def build() -> nn.Module:
    """A convolution, a batch norm and two linear layers, one of them too small to count."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 6), nn.ReLU(), nn.Linear(6, 4)
    )


def test_module_and_artifact_agree_on_what_the_weights_are(tmp_path):
    module = build().eval()
    artifact = save(TorchModel(module, f"{__name__}:build"), tmp_path)
    parameters = weight_parameters(module)
    assert list(parameters) == ["0.weight", "3.weight"]
    tensors = weight_tensors(artifact)
    assert tensors.keys() == parameters.keys()
    assert all(np.array_equal(tensors[name], parameters[name].detach().numpy()) for name in tensors)
    assert count_elements(tensors) == 8 * 9 + 6 * 32
    assert not is_quantized(tensors)


def test_counts():
    tensors = {"a": np.array([[0.0, -0.0, 1.0]]), "b": np.array([[0, 2]], dtype=np.int32)}
    assert count_elements(tensors) == 5
    assert count_zeros(tensors) == 3
    assert distinct_values(tensors["a"]) == 2
    assert is_quantized(tensors)


def test_shared_tensors_are_named_with_their_first_owner():
    module = build()
    assert shared_parameters(module) == {}
    module.append(nn.Linear(6, 4))
    module[6].weight = module[5].weight
    assert shared_parameters(module) == {"6.weight": "5.weight"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_are_named(value):
    with pytest.raises(PreparationError, match=r"'layer\.weight'.*NaN or infinite"):
        finite_values("layer.weight", torch.tensor([[1.0, value]]))
