"""Coded files are smaller, decode to the same weights, and say how near their entropy they come."""

from pathlib import Path

import numpy as np
import pytest

from leanmark.stages import TorchModel
from techniques.test_pruning import apply, evidence, lenet_5, stored, weights

STEPS = ("encode.sparse", "encode.huffman", "encode.ans")


def pruned_and_shared() -> TorchModel:
    model = apply("prune.magnitude", lenet_5(), sparsity=0.95)
    return apply("cluster.kmeans", model, clusters=16, preserve=("sparsity",))


@pytest.mark.parametrize("name", STEPS)
def test_what_is_stored_decodes_to_the_same_weights(name: str, tmp_path: Path):
    model = apply(name, pruned_and_shared())
    artifact = stored(model, tmp_path / "model")
    back = artifact.load()
    assert isinstance(back, TorchModel)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), weights(back), strict=True))
    (tmp_path / "evidence").mkdir()
    found = evidence(name, model, tmp_path / "evidence")
    assert found.effective
    assert found.facts["file_bytes"] == (artifact.root / "weights.packed").stat().st_size


def test_the_more_a_code_knows_the_smaller_the_file(tmp_path: Path):
    plain = pruned_and_shared()
    sizes = {"palette": (stored(plain, tmp_path / "palette").root / "weights.packed").stat().st_size}
    for name in STEPS:
        path = stored(apply(name, pruned_and_shared()), tmp_path / name).root / "weights.packed"
        sizes[name] = path.stat().st_size
    assert sizes["encode.ans"] < sizes["encode.huffman"] < sizes["encode.sparse"] < sizes["palette"]


@pytest.mark.parametrize("name", STEPS)
def test_a_code_without_anything_to_gain_is_ineffective(name: str, tmp_path: Path):
    """Weights that are all different and none of them zero."""
    found = evidence(name, apply(name, lenet_5()), tmp_path)
    assert not found.effective
    assert "no tensor of the file is smaller" in found.reason


@pytest.mark.parametrize("name", STEPS)
def test_a_later_step_that_stores_otherwise_shows(name: str, tmp_path: Path):
    found = evidence(name, pruned_and_shared(), tmp_path)
    assert not found.effective
