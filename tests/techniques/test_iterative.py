"""Pruning in rounds reaches what was asked for, by any criterion, and keeps what is zero at zero."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leanmark import registry
from leanmark.stages import Context, Split
from leanmark.techniques.iterative import CRITERIA, sparsity_after
from techniques.test_pruning import IMAGES, apply, evidence, mlp, weights

CONTEXT = Context(lambda _: Split({"image": IMAGES}, np.arange(32) % 10), 0)
QUICK = {"rounds": 3, "epochs": 1.0}


@pytest.mark.parametrize("criterion", [*CRITERIA, {"prune.taylor": {"samples": 16, "saliency": "gradient"}}])
def test_every_criterion_reaches_the_sparsity(criterion: object, tmp_path: Path):
    before = weights(mlp())
    model = apply("prune.iterative", mlp(), CONTEXT, sparsity=0.9, criterion=criterion, **QUICK)
    after = weights(model)
    assert sum(int((array == 0).sum()) for array in after) == round(0.9 * sum(array.size for array in before))
    assert not all(np.array_equal(one[other != 0], other[other != 0]) for one, other in zip(before, after, strict=True))
    assert evidence("prune.iterative", model, tmp_path, sparsity=0.9).effective


@given(
    st.integers(1, 30),
    st.floats(0.01, 0.999),
    st.sampled_from(["cubic", "exponential", "linear"]),
)
def test_schedules_grow_to_the_sparsity(rounds: int, sparsity: float, schedule):
    found = [sparsity_after(number, rounds, sparsity, schedule) for number in range(1, rounds + 1)]
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] == sparsity
    taken = np.diff([0.0, *found])
    if schedule == "cubic" and rounds > 1:
        assert (np.diff(taken) < 1e-9).all()
    if schedule == "exponential" and rounds > 2:
        left = 1 - np.array([0.0, *found])
        assert np.ptp(left[1:] / left[:-1]) < 1e-6


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        ("prune.channels", "is no criterion"),
        ({"prune.obd": {}, "prune.taylor": {}}, "one criterion"),
        ({"prune.obd": {"sparsity": 0.5}}, "takes its sparsity from"),
        ({"prune.obd": {"sampels": 5}}, "sampels"),
        ({"prune.taylor": {"samples": 0}}, "samples"),
    ],
)
def test_what_is_no_criterion_is_told_before_anything_runs(criterion: object, says: str):
    with pytest.raises(ValidationError, match=says):
        registry.get_step("prune.iterative").validate({"sparsity": 0.5, "criterion": criterion})


def test_the_same_seed_gives_the_same_weights():
    one, other = (weights(apply("prune.iterative", mlp(), CONTEXT, sparsity=0.8, **QUICK)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
