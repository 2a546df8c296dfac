"""A first layer of rank-constrained filters: the best approximation, smaller, and what evidence says of it."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from leanmark import counting
from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import Context, Split, TorchModel
from techniques.test_pruning import apply, evidence, lenet_5, mlp, stored

ROWS, COLUMNS = 28, 28


def with_filters_of_rank(rank: int) -> TorchModel:
    model = mlp((40, 20))
    torch.manual_seed(3)
    with torch.no_grad():
        filters = torch.randn(40, ROWS, rank) @ torch.randn(40, rank, COLUMNS)
        model.module.fc1.weight.copy_(filters.reshape(40, -1) / 100)
    return model


def answers(model: TorchModel) -> np.ndarray:
    torch.manual_seed(2)
    with torch.inference_mode():
        return model.module(torch.randn(4, 1, ROWS, COLUMNS)).numpy()


@pytest.mark.parametrize("rank", [1, 3])
def test_filters_of_that_rank_answer_the_same(rank: int, tmp_path: Path):
    before = answers(with_filters_of_rank(rank))
    model = apply("lowrank.input", with_filters_of_rank(rank), rank=rank)
    assert np.abs(answers(model) - before).max() < 1e-4 * np.abs(before).max()
    back = stored(model, tmp_path / "model").load()
    assert isinstance(back, TorchModel)
    assert np.array_equal(answers(back), answers(model))


def test_each_filter_is_its_best_approximation():
    whole = mlp((40, 20)).module.fc1.weight.detach().numpy().reshape(40, ROWS, COLUMNS)
    thin = apply("lowrank.input", mlp((40, 20)), rank=2).module.fc1
    product = thin.down.detach().numpy() @ thin.along.detach().numpy()
    values = np.linalg.svd(whole, compute_uv=False)
    errors = np.linalg.norm(whole - product, axis=(1, 2))
    assert np.allclose(errors, np.sqrt((values[:, 2:] ** 2).sum(axis=1)), rtol=1e-4)


def test_evidence_counts_what_is_left(tmp_path: Path):
    model = apply("lowrank.input", mlp((40, 20)), rank=1)
    shown = evidence("lowrank.input", model, tmp_path, before=mlp((40, 20)), rank=1)
    assert shown.effective
    assert shown.facts["weights"] == 40 * (ROWS + COLUMNS)
    assert shown.facts["weights_before"] == 40 * ROWS * COLUMNS
    (tmp_path / "more").mkdir()
    more = apply("lowrank.input", mlp((40, 20)), rank=5)
    assert "rank 5, not 1" in evidence("lowrank.input", more, tmp_path / "more", before=mlp((40, 20)), rank=1).reason
    (tmp_path / "plain").mkdir()
    assert not evidence("lowrank.input", mlp((40, 20)), tmp_path / "plain", before=mlp((40, 20)), rank=1).effective
    (tmp_path / "program").mkdir()
    programs = [apply("export.onnx", item) for item in (model, mlp((40, 20)))]
    assert evidence("lowrank.input", programs[0], tmp_path / "program", before=programs[1], rank=1).effective


def test_what_does_not_fit_is_told():
    with pytest.raises(NotApplicable, match="no linear layer"):
        apply("lowrank.input", lenet_5())
    with pytest.raises(PreparationError, match="which are no 20 x 30"):
        apply("lowrank.input", mlp(), shape=(20, 30))
    with pytest.raises(PreparationError, match="no fewer weights"):
        apply("lowrank.input", mlp(), rank=14)
    flat = Context(lambda _: Split({"x": np.zeros((4, 784), np.float32)}), 0)
    with pytest.raises(PreparationError, match="no single picture"):
        apply("lowrank.input", mlp(), flat)
    assert apply("lowrank.input", mlp(), flat, shape=(28, 28)).module.fc1.columns == 28


def test_a_layer_without_bias_stays_without_one():
    model = TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 5, bias=False)).eval(), "unused:unused")
    thin = apply("lowrank.input", model, shape=(8, 8))
    assert thin.module[1].bias is None


def test_filters_are_put_together_again_when_their_factors_change():
    layer = apply("lowrank.input", mlp((40, 20)), rank=2).module.fc1
    x = torch.rand(3, ROWS * COLUMNS)

    def expected() -> torch.Tensor:
        whole = (layer.down @ layer.along).reshape(40, -1)
        return nn.functional.linear(x, whole, layer.bias)

    with torch.inference_mode():
        assert torch.allclose(layer(x), expected())
    with torch.no_grad():
        layer.down.mul_(2)
        assert torch.allclose(layer(x), expected())
        assert torch.allclose(layer(x), expected())
    layer(x).sum().backward()  # asked for gradients, in eval mode
    assert layer.down.grad is not None
    assert layer.down.grad.abs().sum() > 0


def test_it_computes_as_a_linear_layer_does_once_it_is_loaded():
    plain, thin = mlp((40, 20)), apply("lowrank.input", mlp((40, 20)), rank=1)
    images = {"image": np.zeros((1, 1, ROWS, COLUMNS), dtype=np.float32)}
    assert counting.macs(thin, images) == counting.macs(plain, images)


def test_a_program_holds_the_factors_and_answers_the_same(tmp_path: Path):
    model = apply("lowrank.input", mlp((40, 20)), rank=1)
    program = apply("export.onnx", model)
    session = onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).random((4, 1, ROWS, COLUMNS), dtype=np.float32)
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(images)).numpy()
    assert np.abs(session.run(None, {"image": images})[0] - expected).max() < 1e-5
    size = sum(file.stat().st_size for file in stored(program, tmp_path / "thin").files())
    whole = sum(file.stat().st_size for file in stored(apply("export.onnx", mlp((40, 20))), tmp_path / "whole").files())
    assert size < whole / 5
