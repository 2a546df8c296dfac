"""Convolutions of low rank become chains that answer the same, with fewer weights and multiplications."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import TorchModel
from techniques.test_pruning import apply, evidence, lenet_5, stored

GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": (2, 1), "dilation": (1, 2)},
    {"stride": (1, 2), "bias": False},
]


def of_tucker_rank(out_rank: int, in_rank: int, **geometry) -> TorchModel:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 32, 3, **geometry)
    left, right = torch.linalg.qr(torch.randn(32, out_rank))[0], torch.linalg.qr(torch.randn(24, in_rank))[0]
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("tr,rsxy,cs->tcxy", left, torch.randn(out_rank, in_rank, 3, 3), right))
    return TorchModel(nn.Sequential(layer).eval(), "unused:unused")


def of_cp_rank(rank: int, **geometry) -> TorchModel:
    torch.manual_seed(1)
    layer = nn.Conv2d(24, 32, 3, **geometry)
    with torch.no_grad():
        parts = (torch.randn(side, rank) for side in layer.weight.shape)
        layer.weight.copy_(torch.einsum("tr,sr,xr,yr->tsxy", *parts) / rank)
    return TorchModel(nn.Sequential(layer).eval(), "unused:unused")


def answers(model: TorchModel) -> np.ndarray:
    torch.manual_seed(2)
    with torch.inference_mode():
        return model.module(torch.randn(2, 24, 11, 13)).numpy()


def multiplications(layer: nn.Module) -> int:
    return sum(
        child.weight[0].numel() * child.out_channels for child in layer.modules() if isinstance(child, nn.Conv2d)
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_kernel_of_that_rank_is_found_again(geometry: dict):
    before = answers(of_tucker_rank(6, 5, **geometry))
    for params in ({"energy": 1.0}, {"ratio": 0.25}):
        model = apply("lowrank.tucker", of_tucker_rank(6, 5, **geometry), **params)
        assert np.abs(answers(model) - before).max() < 1e-4 * np.abs(before).max()
    first, core, last = apply("lowrank.tucker", of_tucker_rank(6, 5, **geometry), energy=1.0).module[0]
    assert (first.out_channels, core.in_channels, core.out_channels, last.in_channels) == (5, 5, 6, 6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_sum_of_few_products_is_found_again(geometry: dict):
    before = answers(of_cp_rank(8, **geometry))
    model = apply("lowrank.cp", of_cp_rank(8, **geometry), ratio=0.25)
    assert np.abs(answers(model) - before).max() < 0.02 * np.abs(before).max()
    assert multiplications(model.module) < 0.1 * multiplications(of_cp_rank(8, **geometry).module)


@pytest.mark.parametrize(("name", "params"), [("lowrank.tucker", {"ratio": 0.4}), ("lowrank.cp", {"ratio": 0.4})])
def test_it_is_stored_exported_and_shown(name: str, params: dict, tmp_path: Path):
    model = apply(name, lenet_5(), min_size=500, **params)
    back = stored(model, tmp_path / "model").load()
    assert isinstance(back, TorchModel)
    image = torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(back.module(image), model.module(image))
    shown = evidence(name, model, tmp_path, before=lenet_5(), **params)
    assert shown.effective, shown.reason
    assert list(shown.facts["shapes"]) == ["conv2"]
    (tmp_path / "program").mkdir()
    program = apply("export.onnx", model)
    assert evidence(name, program, tmp_path / "program", before=apply("export.onnx", lenet_5()), **params).effective
    (tmp_path / "plain").mkdir()
    assert not evidence(name, lenet_5(), tmp_path / "plain", before=lenet_5(), **params).effective


def test_what_cannot_become_smaller_is_told():
    with pytest.raises(PreparationError, match="either ratio or energy"):
        apply("lowrank.tucker", lenet_5())
    with pytest.raises(PreparationError, match="no convolution smaller"):
        apply("lowrank.tucker", lenet_5(), ratio=1.0, min_size=500)
    for layer in (nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(64, 64, 1), nn.Linear(50, 50)):
        with pytest.raises(NotApplicable, match="no convolution of"):
            apply("lowrank.cp", TorchModel(nn.Sequential(layer), "unused:unused"), min_size=10)
    with pytest.raises(NotApplicable, match="pads by 'same'"):
        apply("lowrank.cp", TorchModel(nn.Sequential(nn.Conv2d(24, 24, 3, padding="same")), "unused:unused"), ratio=0.2)


def test_nan_kernels_are_told():
    model = lenet_5()
    with torch.no_grad():
        model.module.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(PreparationError, match="NaN or infinite"):
        apply("lowrank.tucker", model, ratio=0.4, min_size=500)
