"""Mixed precision keeps to the bits that it may take, and puts them where the answers need them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import Context, Split, TorchModel
from leanmark.techniques.mixed import allot
from techniques.test_binary import LABELS, PICTURES
from techniques.test_parts import encoder, resnet
from techniques.test_pruning import apply, evidence, lenet_5, mlp, stored, weights
from techniques.test_qat import trained

HALVES = {"calibration": slice(0, 320), "held out": slice(320, 640)}
CONTEXT = Context(lambda _: Split({"image": PICTURES[HALVES["calibration"]]}, LABELS[HALVES["calibration"]]), 0)


def divergence(model: TorchModel, before: TorchModel) -> float:
    """How far the answers to examples that were not looked at have moved."""
    x = torch.from_numpy(PICTURES[HALVES["held out"]])
    with torch.no_grad():
        told, known = (item.module(x).log_softmax(dim=1) for item in (model, before))
    return float(nn.functional.kl_div(told, known, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("make", [mlp, lenet_5])
@pytest.mark.parametrize("bits", [2.5, 4, 8])
def test_a_weight_takes_no_more_bits_than_it_may(make, bits: float, tmp_path: Path):
    found = evidence("quantize.mixed", apply("quantize.mixed", make(), CONTEXT, bits=bits), tmp_path, bits=bits)
    assert found.effective, found.reason
    assert found.facts["bits"] <= bits
    assert not evidence("quantize.mixed", make(), _new(tmp_path), bits=bits).effective


def _new(folder: Path) -> Path:
    (folder / "another").mkdir()
    return folder / "another"


def test_the_file_holds_as_few_bits(tmp_path: Path):
    sizes = {
        bits: len((stored(apply("quantize.mixed", mlp((300, 100)), CONTEXT, bits=bits), tmp_path / str(bits)).root
                   / "weights.packed").read_bytes())
        for bits in (3, 6)
    }  # fmt: skip
    assert 8 * sizes[3] / 266_200 < 3.1
    assert 5 < 8 * sizes[6] / 266_200 < 6.1


@pytest.mark.parametrize("make", [resnet, encoder])
def test_it_beats_one_width_for_all_at_equal_size(make):
    before = trained(make)
    moved = {
        name: divergence(apply("quantize.mixed", trained(make), CONTEXT, bits=3, **options), before)
        for name, options in {"uniform": {"widths": (3,)}, "mixed": {}}.items()
    }
    assert moved["mixed"] < 0.7 * moved["uniform"]


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0.01, 10)), min_size=1, max_size=5),
    st.floats(2, 8),
)
def test_what_is_alloted_fits_and_is_never_worse_than_one_width(tensors: list[tuple[int, float]], bits: float):
    widths = (2, 4, 8)
    sizes = {str(index): size for index, (size, _) in enumerate(tensors)}
    damage = {str(index): {width: worth * 4.0**-width for width in widths} for index, (_, worth) in enumerate(tensors)}
    chosen = allot(sizes, damage, widths, bits)
    assert sum(sizes[name] * width for name, width in chosen.items()) <= bits * sum(sizes.values()) + 1e-6
    uniform = max(width for width in widths if width <= bits)
    assert sum(damage[name][chosen[name]] for name in sizes) <= sum(item[uniform] for item in damage.values()) * 1.0001


def test_rounding_keeps_the_grid_and_zero():
    model = apply("quantize.mixed", mlp(), CONTEXT, bits=3, widths=(3,))
    for array in weights(model):
        values = np.unique(array)
        assert len(values) <= 7
        assert np.allclose(values, -values[::-1])


def test_what_cannot_be_rounded_so_is_told():
    with pytest.raises(NotApplicable, match="no width of"):
        apply("quantize.mixed", mlp(), CONTEXT, bits=2, widths=(3, 4))
    with pytest.raises(NotApplicable, match="no weight tensor"):
        apply("quantize.mixed", TorchModel(nn.Sequential(nn.Flatten()), "x:y"), CONTEXT)
    broken = mlp()
    with torch.no_grad():
        broken.module.get_parameter("fc1.weight")[0, 0] = float("inf")
    with pytest.raises(PreparationError, match="NaN or infinite"):
        apply("quantize.mixed", broken, CONTEXT)


def test_no_zero_is_a_negative_one():
    for array in weights(apply("quantize.mixed", mlp(), CONTEXT, bits=3)):
        assert not np.signbit(array[array == 0]).any()
