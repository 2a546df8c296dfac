"""Counts are those of a pencil, and memory that is shared counts once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from leanmark.counting import macs, parameter_counts
from leanmark.networks.lenet import build_lenet_5, build_lenet_300_100
from leanmark.stages import TorchModel


def model(module: nn.Module) -> TorchModel:
    return TorchModel(module.eval(), "unused:unused")


def test_macs_of_the_lenets_are_those_of_a_pencil() -> None:
    images = {"image": np.zeros((1, 1, 28, 28), np.float32)}
    assert macs(model(build_lenet_300_100()), images) == 784 * 300 + 300 * 100 + 100 * 10
    convolutions = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25
    assert macs(model(build_lenet_5()), images) == convolutions + 800 * 500 + 500 * 10


def test_macs_are_of_one_example_however_many_are_given() -> None:
    many = {"image": np.zeros((7, 1, 28, 28), np.float32)}
    assert macs(model(build_lenet_300_100()), many) == 266_200


def test_macs_of_groups_and_of_attention() -> None:
    grouped = model(nn.Conv2d(8, 16, 3, groups=4))
    assert macs(grouped, {"image": np.zeros((1, 8, 5, 5), np.float32)}) == 9 * 16 * 2 * 9

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert macs(model(Attention()), {"x": np.zeros((1, 2, 6, 4), np.float32)}) == 2 * (6 * 4 * 6 + 6 * 6 * 4)


class Tied(nn.Module):
    """A decoder that uses its encoder's weights: the same, transposed, or a part of them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4, bias=False)
        self.decoder = nn.Linear(4, 6, bias=False)
        weights = self.encoder.weight
        if how == "same":
            self.decoder.weight = weights
        elif how == "transposed":
            self.decoder.weight = nn.Parameter(weights.detach().T)
        else:
            self.decoder.weight = nn.Parameter(weights.detach()[:2])


@pytest.mark.parametrize("how", ["same", "transposed", "part"])
def test_tied_weights_count_once(how: str) -> None:
    module = Tied(how)
    module.encoder.weight.data.fill_(1)
    module.encoder.weight.data[0, :5] = 0
    assert parameter_counts(model(module)) == (24, 19)


def test_parameters_cut_from_one_block_count_each() -> None:
    block = torch.arange(10.0)
    module = nn.ParameterList([nn.Parameter(block[:4]), nn.Parameter(block[6:])])
    assert parameter_counts(model(module)) == (8, 7)  # elements 4 and 5 belong to nobody, and element 0 is zero


def test_buffers_are_no_parameters() -> None:
    assert parameter_counts(model(nn.BatchNorm1d(5))) == (10, 5)  # scale and shift, of which the shift is zero


def test_no_parameters_at_all() -> None:
    assert parameter_counts(model(nn.ParameterList([nn.Parameter(torch.zeros(0, 3))]))) == (0, 0)


@given(st.lists(st.sampled_from([0.0, 1.0, -0.0, 1e-30]), min_size=1, max_size=30))
def test_counts_are_those_of_numpy(values: list[float]) -> None:
    module = nn.ParameterList([nn.Parameter(torch.tensor(values))])
    expected = np.array(values, np.float32)
    assert parameter_counts(model(module)) == (expected.size, int(np.count_nonzero(expected)))
