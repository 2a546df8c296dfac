"""Low rank: the best approximation of the rank asked for, in fewer weights, seen on every artifact."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanmark import registry
from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.lenet import build_lenet_300_100
from leanmark.results import Evidence
from leanmark.stages import Context, Program, Split, TorchModel
from techniques import applying
from techniques.applying import stored

IMAGES = np.random.default_rng(0).normal(size=(32, 1, 28, 28)).astype(np.float32)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, np.arange(32) % 10), 0)
MLP = "leanmark.networks.lenet:build_lenet_300_100"


def model(widths: tuple[int, ...] = (60, 40)) -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(build_lenet_300_100(widths).eval(), MLP, {"widths": list(widths)})


def apply(name: str, stage: TorchModel | Program, ctx: Context = CONTEXT, **params):
    return applying.apply(name, stage, ctx, **params)


def evidence(stage: TorchModel | Program, before: TorchModel | Program, folder: Path, **params) -> Evidence:
    artifact = stored(stage, folder / "final", stored(before, folder / "reference"))
    return applying.evidence("lowrank.svd", artifact, **params)


def on_one_layer(rows: int, columns: int, seed: int = 0, *, bias: bool = True, **params) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(seed)
    layer = nn.Linear(columns, rows, bias=bias)
    ctx = Context(lambda name: Split({"x": np.zeros((2, columns), dtype=np.float32)}), 0)
    stage = apply("lowrank.svd", TorchModel(layer, "none:none"), ctx, min_size=1, **params)
    return layer, stage.module


@given(rows=st.integers(8, 40), columns=st.integers(8, 40), ratio=st.floats(0.01, 0.45), seed=st.integers(0, 5))
def test_the_factors_are_the_best_approximation_of_their_rank(rows, columns, ratio, seed):
    layer, factors = on_one_layer(rows, columns, seed, ratio=ratio)
    rank = max(1, math.floor(ratio * min(rows, columns)))
    first, second = factors[0].weight.detach().double(), factors[1].weight.detach().double()
    assert first.shape == (rank, columns)
    assert second.shape == (rows, rank)
    weight = layer.weight.detach().double()
    # Eckart and Young: no matrix of this rank is nearer than the singular values left out.
    left_out = torch.linalg.svdvals(weight)[rank:]
    assert torch.linalg.norm(second @ first - weight).item() == pytest.approx(left_out.norm().item(), rel=1e-4)


@given(energy=st.floats(0.05, 0.8), seed=st.integers(0, 5))
def test_the_smallest_rank_that_keeps_the_energy_is_taken(energy, seed):
    layer, factors = on_one_layer(40, 60, seed, energy=energy)
    squares = torch.linalg.svdvals(layer.weight.detach().double()) ** 2
    rank = factors[0].out_features
    assert squares[:rank].sum() / squares.sum() >= energy - 1e-6
    assert rank == 1 or squares[: rank - 1].sum() / squares.sum() < energy + 1e-6


def test_a_matrix_of_low_rank_loses_nothing():
    torch.manual_seed(0)
    stage = model()
    images = torch.from_numpy(IMAGES)
    with torch.no_grad():
        stage.module.fc1.weight.copy_(torch.randn(60, 7) @ torch.randn(7, 784) / 28)
        expected = stage.module(images)
        thin = apply("lowrank.svd", stage, energy=0.9999999)
        assert thin.module.fc1[0].out_features == 7
        assert torch.allclose(thin.module(images), expected, atol=1e-3)


def test_layers_without_bias_get_none_and_others_keep_theirs():
    _, without = on_one_layer(30, 20, bias=False, ratio=0.2)
    layer, with_bias = on_one_layer(30, 20, ratio=0.2)
    assert without[0].bias is None
    assert without[1].bias is None
    assert with_bias[0].bias is None
    assert torch.equal(with_bias[1].bias, layer.bias)


def test_a_layer_of_zeros_becomes_rank_one():
    torch.manual_seed(0)
    stage = model()
    nn.init.zeros_(stage.module.fc1.weight)
    assert apply("lowrank.svd", stage, energy=0.5).module.fc1[0].out_features == 1


def test_layers_that_would_not_gain_stay(tmp_path):
    stage = apply("lowrank.svd", model(), ratio=0.8, min_size=1)
    kinds = {name: type(layer).__name__ for name, layer in stage.module.named_children()}
    assert kinds["fc1"] == "Sequential"  # 48 * (784 + 60) < 784 * 60
    assert kinds["fc2"] == kinds["fc3"] == "Linear"
    small = apply("lowrank.svd", model(), ratio=0.2)
    assert type(small.module.fc2).__name__ == "Linear"  # 2,400 weights, fewer than min_size


def test_the_artifact_answers_as_the_model_does(tmp_path):
    stage = apply("lowrank.svd", model(), ratio=0.25)
    loaded = stored(stage, tmp_path / "a").load()
    assert isinstance(loaded, TorchModel)
    with torch.inference_mode():
        images = torch.from_numpy(IMAGES)
        assert torch.equal(loaded.module(images), stage.module(images))


def test_evidence_tells_ranks_weights_and_error(tmp_path):
    found = evidence(apply("lowrank.svd", model(), ratio=0.25), model(), tmp_path, ratio=0.25)
    assert found.effective
    assert found.facts["ranks"] == {"fc1": 15}
    assert found.facts["weights_before"] == 784 * 60 + 60 * 40 + 40 * 10
    assert found.facts["weights"] == 15 * (784 + 60) + 60 * 40 + 40 * 10
    squares = torch.linalg.svdvals(model().module.fc1.weight.detach().double()) ** 2
    left_out = (squares[15:].sum() / squares.sum()).sqrt().item()
    assert found.facts["reconstruction_error"] == {"fc1": pytest.approx(left_out, abs=1e-4)}


def test_evidence_reads_programs_whatever_their_names_and_axes(tmp_path):
    before = apply("export.onnx", model())
    after = apply("export.onnx", apply("lowrank.svd", model(), ratio=0.25))
    made = {
        "onnx": after,
        "dynamic": apply("quantize.dynamic", after),  # stores matrices transposed
        "static": apply("quantize.static", after),
        "nameless": without_names(after),
    }
    for name, stage in made.items():
        found = evidence(stage, without_names(before) if name == "nameless" else before, tmp_path / name, ratio=0.25)
        assert found.effective, f"{name}: {found.reason}"
        assert list(found.facts["ranks"].values()) == [15]
        assert found.facts["weights"] < 0.4 * found.facts["weights_before"]


def without_names(program: Program) -> Program:
    proto = program.proto()
    names = {tensor.name: f"constant_{index}" for index, tensor in enumerate(proto.graph.initializer)}
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    del proto.graph.value_info[:]
    return Program(proto.SerializeToString())


def test_evidence_refuses_what_is_not_there(tmp_path):
    untouched = evidence(model(), model(), tmp_path / "untouched", ratio=0.25)
    assert not untouched.effective
    assert "two thinner ones" in untouched.reason
    thicker = evidence(apply("lowrank.svd", model(), ratio=0.5), model(), tmp_path / "thicker", ratio=0.25)
    assert not thicker.effective
    assert "rank 30, not 15" in thicker.reason
    # Another model with fewer weights is not one of low rank.
    narrow = evidence(model((15, 40)), model(), tmp_path / "narrow", ratio=0.25)
    assert not narrow.effective


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(784, 64)
        self.one = nn.Linear(64, 64)
        self.other = nn.Linear(64, 64)
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(self.one(self.enter(x.flatten(1)).relu()).relu())


def test_layers_that_share_weights_stay_as_they_are():
    stage = apply("lowrank.svd", TorchModel(Tied(), "none:none"), ratio=0.1, min_size=1)
    assert isinstance(stage.module.enter, nn.Sequential)
    assert stage.module.one.weight is stage.module.other.weight
    tied = nn.Sequential(nn.Flatten(), nn.Linear(784, 784), nn.Linear(784, 784))
    tied[2].weight = tied[1].weight
    with pytest.raises(NotApplicable, match="weights of its own"):
        apply("lowrank.svd", TorchModel(tied, "none:none"), ratio=0.1)


def test_contradictions_are_refused_with_their_reason():
    for params in ({}, {"ratio": 0.5, "energy": 0.5}):
        with pytest.raises(PreparationError, match="either ratio or energy"):
            apply("lowrank.svd", model(), **params)
    with pytest.raises(PreparationError, match="ratio 1 makes no linear layer smaller"):
        apply("lowrank.svd", model(), ratio=1)
    with pytest.raises(NotApplicable, match="100000 weights or more"):
        apply("lowrank.svd", model(), ratio=0.5, min_size=100_000)
    with pytest.raises(NotApplicable, match="no linear layer"):
        apply("lowrank.svd", TorchModel(nn.Sequential(nn.Conv2d(1, 9, 3)), "none:none"), ratio=0.5)
    broken = model()
    with torch.no_grad():
        broken.module.fc1.weight[0, 0] = float("nan")
    with pytest.raises(PreparationError, match=r"fc1\.weight.*NaN"):
        apply("lowrank.svd", broken, ratio=0.5)

    class Reaches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(784, 64)

        def forward(self, x):
            return x.flatten(1) @ self.layer.weight.T

    with pytest.raises(PreparationError, match="does not run"):
        apply("lowrank.svd", TorchModel(Reaches(), "none:none"), ratio=0.1)


@pytest.mark.parametrize(
    "params", [{"ratio": 0}, {"ratio": 1.1}, {"energy": -1}, {"ratio": 0.5, "min_size": 0}, {"rank": 3}]
)
def test_parameters_out_of_range_are_refused(params):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        registry.get_step("lowrank.svd").validate(params)
