"""Fewer bits a weight: types and bytes of the final program, and answers that hardly move."""

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
def programs() -> dict[str, Program]:
    return {"mlp": apply("export.onnx", mlp((128, 64))), "lenet": apply("export.onnx", lenet_5())}


def test_half_precision_takes_half_the_bytes(programs: dict[str, Program], tmp_path: Path):
    before = programs["lenet"]
    program = apply("quantize.half", before)
    assert answers(program).dtype == np.float32
    assert np.abs(answers(program) - answers(before)).max() < 0.01 * np.abs(answers(before)).max()
    shown = evidence("quantize.half", program, tmp_path)
    assert shown.effective, shown.reason
    assert shown.facts["bytes_by_type"].get("float32", 0) < 100
    (tmp_path / "before").mkdir()
    assert not evidence("quantize.half", before, tmp_path / "before").effective


@pytest.mark.parametrize(("bits", "moved"), [(8, 0.02), (4, 0.25)])
def test_weights_alone_are_packed(bits: int, moved: float, programs: dict[str, Program], tmp_path: Path):
    before = programs["mlp"]
    program = apply("quantize.weights", before, bits=bits)
    assert np.abs(answers(program) - answers(before)).max() < moved * np.abs(answers(before)).max()
    shown = evidence("quantize.weights", program, tmp_path, bits=bits)
    assert shown.effective, shown.reason
    weights = 784 * 128 + 128 * 64 + 64 * 10
    assert weights * bits / 8 <= shown.facts["packed_bytes"] < 1.1 * weights * bits / 8
    (tmp_path / "other").mkdir()
    assert "bits, not" in evidence("quantize.weights", program, tmp_path / "other", bits=12 - bits).reason


def test_the_same_program_comes_out_each_time(programs: dict[str, Program]):
    for name in ("quantize.half", "quantize.weights"):
        assert apply(name, programs["mlp"]).onnx == apply(name, programs["mlp"]).onnx


def test_nothing_to_do_is_told(programs: dict[str, Program]):
    with pytest.raises(NotApplicable, match="32-bit floating point"):
        apply("quantize.half", apply("quantize.half", programs["mlp"]))
    with pytest.raises(NotApplicable, match="no product with a constant matrix"):
        apply("quantize.weights", apply("quantize.weights", programs["mlp"]))
