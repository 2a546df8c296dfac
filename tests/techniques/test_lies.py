"""Each lie is found by what every recipe is checked with."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from leanmark.errors import NotApplicable
from leanmark.stages import Program
from techniques.test_pruning import IMAGES, apply, evidence, lenet_5, mlp


def answers(program: Program) -> np.ndarray:
    session = onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: IMAGES})[0]


@pytest.fixture(scope="module")
def program() -> Program:
    return apply("export.onnx", lenet_5())


def test_one_weight_with_the_other_sign_moves_answers():
    """So that the check of exact steps, which compares answers, calls it wrong."""
    before, after = answers(apply("export.onnx", mlp())), answers(apply("export.onnx", apply("control.wrong", mlp())))
    assert np.abs(before - after).max() > 1e-3 * np.abs(before).max()


def test_a_cached_answer_is_ineffective(program: Program, tmp_path: Path):
    lie = apply("control.cached", program)
    found = answers(lie)
    assert found.shape == answers(program).shape
    assert np.array_equal(found, np.repeat(answers(program)[:1], len(found), axis=0))
    shown = evidence("control.cached", lie, tmp_path)
    assert not shown.effective
    assert "the same whatever the input" in shown.reason
    (tmp_path / "honest").mkdir()
    assert evidence("control.cached", program, tmp_path / "honest").effective


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_mask_that_is_left_in_place_is_ineffective(sparsity: float, program: Program, tmp_path: Path):
    lie = apply("control.masked", program, sparsity=sparsity)
    pruned = apply("export.onnx", apply("prune.magnitude", lenet_5(), sparsity=sparsity, scope="layer"))
    assert np.abs(answers(lie) - answers(pruned)).max() < 0.05 * np.abs(answers(program)).max()
    for name in ("control.masked", "prune.magnitude"):
        (tmp_path / name).mkdir()
        assert not evidence(name, lie, tmp_path / name, sparsity=sparsity).effective


def test_fake_quantization_is_ineffective(program: Program, tmp_path: Path):
    lie = apply("control.fakequant", program)
    assert 0 < np.abs(answers(lie) - answers(program)).max() < 0.05 * np.abs(answers(program)).max()
    for name in ("control.fakequant", "quantize.static", "quantize.dynamic"):
        (tmp_path / name).mkdir()
        assert not evidence(name, lie, tmp_path / name).effective


def test_without_weights_there_is_nothing_to_lie_about(program: Program):
    answerer = apply("control.cached", program)
    for name in ("control.masked", "control.fakequant"):
        with pytest.raises(NotApplicable):
            apply(name, answerer)
