"""Quantization-aware training ends as a program that onnxruntime computes with integers, and learns to."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import Program, TorchModel
from leanmark.techniques.training import fit
from leanmark.weights import count_zeros, weight_tensors
from techniques.test_binary import CONTEXT, LABELS, PICTURES, TRAIN
from techniques.test_parts import encoder, resnet
from techniques.test_pruning import apply, evidence, lenet_5, mlp, stored


def trained(make=mlp) -> TorchModel:
    model = make()
    fit(model.module, TRAIN, epochs=6, generator=torch.Generator().manual_seed(0))
    return model


def answers(program: Program) -> np.ndarray:
    session = onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": PICTURES})[0]


def test_integers_answer_as_the_model_did(tmp_path: Path):
    model = trained()
    with torch.no_grad():
        before = model.module(torch.from_numpy(PICTURES)).numpy().argmax(axis=1)
    program = apply("quantize.qat", model, CONTEXT, epochs=1)
    after = answers(program).argmax(axis=1)
    assert (after == LABELS).mean() > (before == LABELS).mean() - 0.02
    found = evidence("quantize.qat", program, tmp_path)
    assert found.effective, found.reason
    assert found.facts["float_operators"] == 0


def test_every_product_runs_on_integers(tmp_path: Path):
    program = apply("quantize.qat", lenet_5(), CONTEXT, epochs=0.2)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(program.onnx, options, providers=["CPUExecutionProvider"])
    import onnx

    found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert (found["QLinearConv"], found["QGemm"]) == (2, 2)
    assert not {"Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm"} & set(found)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "products"), [(resnet, 10), (encoder, 14)])
def test_residuals_norms_and_sequences_do_too(make, products: int, tmp_path: Path):
    program = apply("quantize.qat", make(), CONTEXT, epochs=0.2)
    found = evidence("quantize.qat", program, tmp_path)
    assert found.effective, found.reason
    assert found.facts["integer_operators"] >= products
    assert found.facts["weights_in_integer_operators"] > 0.95
    assert np.isfinite(answers(program)).all()


def test_zeros_stay_where_they_are_to_be_kept(tmp_path: Path):
    pruned = apply("prune.magnitude", trained(), CONTEXT, sparsity=0.8)
    zeros = sum(int((p == 0).sum()) for p in pruned.module.parameters() if p.dim() > 1)
    kept = apply("quantize.qat", pruned, CONTEXT, epochs=0.5, preserve=("sparsity",))
    assert count_zeros(weight_tensors(stored(kept, tmp_path / "kept"))) >= zeros
    again = apply("prune.magnitude", trained(), CONTEXT, sparsity=0.8)
    lost = apply("quantize.qat", again, CONTEXT, epochs=0.5)
    assert count_zeros(weight_tensors(stored(lost, tmp_path / "lost"))) < zeros


@pytest.mark.slow
def test_weights_keep_to_seven_bits_unless_told(tmp_path: Path):
    for reduce_range, top in ((True, 63), (False, 127)):
        program = apply("quantize.qat", mlp(), CONTEXT, epochs=0.2, reduce_range=reduce_range)
        tensors = stored(program, tmp_path / str(top)).tensors().values()
        largest = max(int(np.abs(array.astype(int)).max()) for array in tensors if array.dtype == np.int8)
        assert largest == top


@pytest.mark.slow
def test_the_same_seed_makes_the_same_program():
    first, second = (apply("quantize.qat", mlp(), CONTEXT, epochs=0.2) for _ in range(2))
    assert first.onnx == second.onnx


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 10), nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.first if float(x.sum()) > 0 else self.second
        return layer(x.flatten(1))


def test_models_that_cannot_be_trained_so_say_why():
    other = resnet()
    norm = other.module.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.eps = 1e-3
    with pytest.raises(NotApplicable, match="epsilon"):
        apply("quantize.qat", other, CONTEXT)
    with pytest.raises(PreparationError, match="cannot trace this model"):
        apply("quantize.qat", TorchModel(Untraceable().eval(), "x:y"), CONTEXT)
    with pytest.raises(NotApplicable, match="no weight tensor"):
        apply("quantize.qat", TorchModel(nn.Sequential(nn.Flatten()), "x:y"), CONTEXT)
    broken = mlp()
    with torch.no_grad():
        broken.module.get_parameter("fc1.weight")[0, 0] = float("nan")
    with pytest.raises(PreparationError, match="NaN or infinite"):
        apply("quantize.qat", broken, CONTEXT)
