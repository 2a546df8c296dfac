"""Pruning removes exactly what was asked for, and evidence sees it on whatever was made of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanmark import registry
from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.lenet import build_lenet_5, build_lenet_300_100
from leanmark.results import Evidence
from leanmark.stages import Context, Program, Split, TorchModel
from leanmark.techniques.pruning import layer_adaptive
from leanmark.weights import MINIMUM_ELEMENTS
from techniques import applying
from techniques.applying import stored

IMAGES = np.random.default_rng(0).normal(size=(32, 1, 28, 28)).astype(np.float32)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, np.arange(32) % 10), 0)


def mlp(widths: tuple[int, ...] = (40, 20), seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(
        build_lenet_300_100(widths).eval(), "leanmark.networks.lenet:build_lenet_300_100", {"widths": list(widths)}
    )


def lenet_5(seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    config = {"filters": [6, 10], "units": 30}
    return TorchModel(build_lenet_5((6, 10), 30).eval(), "leanmark.networks.lenet:build_lenet_5", config)


def apply(name: str, stage: TorchModel | Program, ctx: Context = CONTEXT, **params):
    return applying.apply(name, stage, ctx, **params)


def evidence(name: str, stage: TorchModel | Program, folder: Path, before=None, **params) -> Evidence:
    reference = None if before is None else stored(before, folder / "reference")
    return applying.evidence(name, stored(stage, folder / "final", reference), **params)


def weights(model: TorchModel) -> list[np.ndarray]:
    found = [p.detach().numpy().copy() for p in model.module.parameters() if p.dim() > 1]
    return [array for array in found if array.size >= MINIMUM_ELEMENTS]


# --- single weights ----------------------------------------------------------------------


@given(sparsity=st.floats(0, 0.999), scope=st.sampled_from(["global", "layer", "lamp"]), seed=st.integers(0, 3))
def test_exactly_the_smallest_weights_become_zero(sparsity, scope, seed):
    before = weights(mlp((12, 9), seed))
    model = apply("prune.magnitude", mlp((12, 9), seed), sparsity=sparsity, scope=scope)
    after = weights(model)
    total = sum(array.size for array in before)
    zeros = [array == 0 for array in after]
    assert sum(int(zero.sum()) for zero in zeros) == round(sparsity * total)
    for one, other, zero in zip(before, after, zeros, strict=True):
        assert np.array_equal(one[~zero], other[~zero])
        if scope == "layer":
            assert abs(int(zero.sum()) - sparsity * one.size) <= 1
        if scope != "global" and 0 < zero.sum() < one.size:
            assert abs(one[zero]).max() <= abs(one[~zero]).min()
    if scope == "global" and 0 < round(sparsity * total) < total:
        gone = np.concatenate([abs(one[zero]) for one, zero in zip(before, zeros, strict=True)])
        kept = np.concatenate([abs(one[~zero]) for one, zero in zip(before, zeros, strict=True)])
        assert gone.max() <= kept.min()


def test_lamp_leaves_small_layers_more_and_none_empty():
    kept = {}
    for scope in ("global", "layer", "lamp"):
        model = lenet_5()
        with torch.no_grad():
            model.module.get_parameter("conv1.weight").mul_(0.01)  # all its weights are small ones
        after = weights(apply("prune.magnitude", model, sparsity=0.95, scope=scope))
        kept[scope] = [np.count_nonzero(array) / array.size for array in after]
    assert kept["global"][0] == 0
    assert kept["lamp"][0] > kept["layer"][0] > 0
    assert min(kept["lamp"]) > 0


def test_what_is_kept_of_each_tensor_is_told_and_none_may_be_empty_after_lamp(tmp_path):
    model = apply("prune.magnitude", lenet_5(), sparsity=0.95, scope="lamp")
    found = evidence("prune.magnitude", model, tmp_path, sparsity=0.95, scope="lamp")
    assert found.effective
    assert found.facts["kept"]["conv1.weight"] > found.facts["kept"]["fc1.weight"] > 0
    with torch.no_grad():
        model.module.get_parameter("conv1.weight").zero_()
    (tmp_path / "emptied").mkdir()
    sparsity = 1 - sum(np.count_nonzero(array) for array in weights(model)) / sum(
        array.size for array in weights(model)
    )
    emptied = evidence("prune.magnitude", model, tmp_path / "emptied", sparsity=sparsity, scope="lamp")
    assert "no weight of 'conv1.weight' is left" in emptied.reason


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=50))
def test_lamp_scores_as_its_definition_says(magnitudes):
    scores = layer_adaptive(np.array(magnitudes, dtype=np.float32))
    squares = np.array(magnitudes, dtype=np.float64) ** 2
    for index, score in enumerate(scores):
        no_smaller = squares[squares >= squares[index]].sum()
        if squares[index] > 1e-30 and np.count_nonzero(squares == squares[index]) == 1:
            assert score == pytest.approx(squares[index] / no_smaller)
        assert score > 0 or squares[index] < 1e-30


def test_among_equal_weights_still_exactly_as_many_go():
    model = mlp((12,))
    for parameter in model.module.parameters():
        nn.init.constant_(parameter, 0.25)
    after = np.concatenate([array.ravel() for array in weights(apply("prune.magnitude", model, sparsity=0.37))])
    assert (after == 0).sum() == round(0.37 * after.size)


def test_biases_and_small_tensors_stay():
    model = mlp((40, 6))  # the last layer has 60 weights
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    apply("prune.magnitude", model, sparsity=0.9)
    for name in ("fc1.bias", "fc2.bias", "fc3.weight", "fc3.bias"):
        assert torch.equal(model.module.get_parameter(name), before[name])


def test_a_tensor_that_two_layers_share_is_counted_once_and_stays_shared(tmp_path):
    model = TorchModel(Tied().eval(), f"{__name__}:Tied")
    apply("prune.magnitude", model, sparsity=0.5)
    assert model.module.first.weight is model.module.second.weight
    found = evidence("prune.magnitude", model, tmp_path, sparsity=0.5)
    assert found.effective
    assert found.facts["zeros"] == round(0.5 * (784 * 16 + 256 + 160))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(784, 16, bias=False)
        self.first = nn.Linear(16, 16, bias=False)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.leave = nn.Linear(16, 10)

    def forward(self, x):
        return self.leave(self.second(self.first(self.enter(x.flatten(1)).relu()).relu()).relu())


def test_weights_that_are_no_numbers_are_refused():
    for name, params in (("prune.magnitude", {"sparsity": 0.5}), ("prune.channels", {"ratio": 0.5})):
        model = mlp()
        with torch.no_grad():
            model.module.fc2.weight[1, 1] = float("nan")
        with pytest.raises(PreparationError, match=r"fc2\.weight.*NaN"):
            apply(name, model, **params)


def test_a_model_without_weights_is_not_applicable():
    for name, params in (("prune.magnitude", {"sparsity": 0.5}), ("prune.channels", {"ratio": 0.5})):
        with pytest.raises(NotApplicable):
            apply(name, TorchModel(nn.Sequential(nn.Flatten(), nn.ReLU()), "none:none"), **params)


def test_evidence_counts_the_same_zeros_on_every_kind_of_artifact(tmp_path):
    pruned = apply("prune.magnitude", lenet_5(), sparsity=0.8)
    program = apply("export.onnx", pruned)
    static = apply("quantize.static", program)
    made = {
        "torch": pruned,
        "packed": replace(pruned, delivery=replace(pruned.delivery, packed=True)),
        "onnx": program,
        "packed onnx": replace(program, delivery=replace(program.delivery, packed=True)),
        "dynamic int8": apply("quantize.dynamic", program),
        "static int8": static,
        "fused int8": apply("fuse.graph", static),
    }
    for name, stage in made.items():
        (tmp_path / name).mkdir()
        found = evidence("prune.magnitude", stage, tmp_path / name, sparsity=0.8)
        assert found.effective, f"{name}: {found.reason}"
        # Rounding to integers adds a few zeros.
        assert 0.7995 < found.facts["sparsity"] < (0.82 if "int8" in name else 0.8005), name


def test_evidence_refuses_too_few_and_too_many_zeros(tmp_path):
    stage = apply("prune.magnitude", mlp(), sparsity=0.5)
    (tmp_path / "few").mkdir()
    few = evidence("prune.magnitude", stage, tmp_path / "few", sparsity=0.6)
    assert not few.effective
    assert "50.00%" in few.reason
    assert "60.00%" in few.reason
    (tmp_path / "many").mkdir()
    many = evidence("prune.magnitude", stage, tmp_path / "many", sparsity=0.4)
    assert not many.effective
    assert "more than 40.00%" in many.reason


# --- channels ----------------------------------------------------------------------------


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters() if p.dim() > 1]


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_are_really_removed_and_the_answers_keep_their_shape(tmp_path, norm, scope):
    for number, build in enumerate((mlp, lenet_5)):
        model = apply("prune.channels", build(), ratio=0.5, norm=norm, scope=scope)
        assert model.module(torch.from_numpy(IMAGES)).shape == (32, 10)
        for pruned, whole in zip(shapes(model.module), shapes(build().module), strict=True):
            assert all(one <= other for one, other in zip(pruned, whole, strict=True))
        (tmp_path / str(number)).mkdir()
        found = evidence("prune.channels", model, tmp_path / str(number), build(), ratio=0.5)
        assert found.effective, found.reason
        assert found.facts["weights"] < 0.6 * found.facts["weights_before"]


def test_half_the_channels_of_each_layer_go():
    assert shapes(apply("prune.channels", mlp(), ratio=0.5).module) == [(20, 784), (10, 20), (10, 10)]
    five = shapes(apply("prune.channels", lenet_5(), ratio=0.5).module)
    assert five == [(3, 1, 5, 5), (5, 3, 5, 5), (15, 5 * 16), (10, 15)]


def test_channels_that_do_nothing_go_first_and_change_no_answer():
    model = lenet_5()
    images = torch.from_numpy(IMAGES)
    with torch.no_grad():
        model.module.conv1.weight[[1, 4, 5]] = 0
        model.module.conv1.bias[[1, 4, 5]] = 0
        model.module.conv2.weight[:, [1, 4, 5]] = 0
        for unit in range(15):
            model.module.fc1.weight[unit] = 0
            model.module.fc1.bias[unit] = 0
            model.module.fc2.weight[:, unit] = 0
        model.module.conv2.weight[::2] = 0
        model.module.conv2.bias[::2] = 0
        model.module.fc1.weight.view(30, 10, 16)[:, ::2] = 0
        expected = model.module(images)
        answers = apply("prune.channels", model, ratio=0.5).module(images)
    assert torch.allclose(answers, expected, atol=1e-5)


class Residual(nn.Module):
    """Channels that depend on one another: an addition, a batch norm, a depthwise and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.leave = nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm(self.enter(x)).relu()
        x = x + self.pointwise(self.depthwise(x)).relu()
        x = x + self.grouped(x)
        return self.leave(x.mean((2, 3)))


class EndsInAnAddition(nn.Module):
    """The answer's channels are those of two layers, neither of which may lose any."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(784, 32)
        self.one = nn.Linear(32, 10)
        self.other = nn.Linear(32, 10)

    def forward(self, x):
        x = self.enter(x.flatten(1)).relu()
        return self.one(x) + self.other(x)


@pytest.mark.parametrize("kind", [Residual, EndsInAnAddition])
def test_channels_that_depend_on_one_another_go_together_and_the_result_is_saved(tmp_path, kind):
    model = apply("prune.channels", TorchModel(kind().eval(), f"{__name__}:{kind.__name__}"), ratio=0.5)
    images = torch.from_numpy(IMAGES)
    with torch.inference_mode():
        expected = model.module(images)
        assert expected.shape == (32, 10)
        loaded = stored(model, tmp_path / "a").load()
        assert torch.equal(loaded.module(images), expected)
    assert sum(p.numel() for p in model.module.parameters()) < 0.6 * sum(p.numel() for p in kind().parameters())


def test_pruned_channels_show_on_programs_too(tmp_path):
    before, after = apply("export.onnx", lenet_5()), apply("export.onnx", apply("prune.channels", lenet_5(), ratio=0.5))
    assert evidence("prune.channels", apply("quantize.static", after), tmp_path, before, ratio=0.5).effective


def test_channels_that_are_still_there_are_no_evidence(tmp_path):
    found = evidence("prune.channels", lenet_5(), tmp_path, lenet_5(), ratio=0.5)
    assert not found.effective
    assert "weights are left" in found.reason


def test_what_cannot_lose_channels_is_refused_with_its_reason():
    with pytest.raises(NotApplicable, match="one tensor"):
        apply("prune.channels", TorchModel(Tied(), "none:none"), ratio=0.5)
    only = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(NotApplicable, match="give its answers"):
        apply("prune.channels", TorchModel(only, "none:none"), ratio=0.5)
    with pytest.raises(PreparationError, match="less than one"):
        apply("prune.channels", mlp((10, 10)), ratio=0.01)

    class FixedSize(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv2d(1, 4, 28)
            self.leave = nn.Linear(4, 10)

        def forward(self, x):
            return self.leave(self.enter(x).reshape(-1, 4))

    with pytest.raises(PreparationError, match=r"flatten\(1\)|does not run|changed the shape"):
        apply("prune.channels", TorchModel(FixedSize(), "none:none"), ratio=0.5)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_even_the_highest_ratio_leaves_every_layer_its_best_channel(scope):
    model = mlp((10, 10))
    with torch.no_grad():
        model.module.fc1.weight[3] *= 5
        model.module.fc2.weight[7] *= 5
    rows, corner = model.module.fc1.weight[[3]].clone(), model.module.fc2.weight[7, 3].clone()
    apply("prune.channels", model, ratio=0.99, scope=scope)
    assert torch.equal(model.module.fc1.weight, rows)
    assert torch.equal(model.module.fc2.weight, corner.view(1, 1))
    assert model.module(torch.from_numpy(IMAGES)).shape == (32, 10)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("prune.magnitude", {}),
        ("prune.magnitude", {"sparsity": 1}),
        ("prune.magnitude", {"sparsity": -0.1}),
        ("prune.magnitude", {"sparsity": 0.5, "scope": "model"}),
        ("prune.channels", {"ratio": 0}),
        ("prune.channels", {"ratio": 1}),
        ("prune.channels", {"ratio": 0.5, "norm": "l3"}),
    ],
)
def test_parameters_out_of_range_are_refused(name, params):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        registry.get_step(name).validate(params)
