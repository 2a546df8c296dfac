"""Coded files are smaller, decode to the same weights, and say how near their entropy they come."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from leanmark.counting import macs
from leanmark.errors import NotApplicable
from leanmark.stages import TorchModel
from techniques.test_parts import encoder
from techniques.test_pruning import IMAGES, Tied, apply, evidence, lenet_5, mlp, stored, weights

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


# --- computing with what is compressed ------------------------------------------------------


def test_linear_layers_compute_without_zeros(tmp_path: Path):
    pruned = apply("prune.magnitude", mlp(), sparsity=0.9, scope="layer")
    x = torch.from_numpy(IMAGES)
    with torch.no_grad():
        before = pruned.module(x)
        model = apply("encode.sparse", pruned, execute="compressed")
        assert torch.allclose(model.module(x), before, atol=1e-5)
    artifact = stored(model, tmp_path / "stored")
    again = artifact.load()
    assert isinstance(again, TorchModel)
    with torch.no_grad():
        assert torch.equal(again.module(x), model.module(x))
    assert evidence("encode.sparse", model, tmp_path, execute="compressed").facts["layers"] == 3
    # What pruning did is still seen.
    (tmp_path / "pruned").mkdir()
    assert evidence("prune.magnitude", model, tmp_path / "pruned", sparsity=0.9).effective


def test_without_zeros_there_is_nothing_to_leave_out():
    with pytest.raises(NotApplicable, match="zeros enough"):
        apply("encode.sparse", mlp(), execute="compressed")


def test_dense_layers_are_no_evidence_of_sparse_ones(tmp_path: Path):
    pruned = apply("prune.magnitude", mlp(), sparsity=0.9)
    assert not evidence("encode.sparse", pruned, tmp_path, execute="compressed").effective


def test_sequences_are_multiplied_too_and_shared_weights_are_not_parted():
    pruned = apply("prune.magnitude", encoder(), sparsity=0.9)
    x = torch.from_numpy(IMAGES)
    with torch.no_grad():
        before = pruned.module(x)
        model = apply("encode.sparse", pruned, execute="compressed")
        assert torch.allclose(model.module(x), before, atol=1e-5)
        assert torch.allclose(copy.deepcopy(model.module)(x), before, atol=1e-5)
    tied = apply("prune.magnitude", TorchModel(Tied().eval(), "x:y"), sparsity=0.9, scope="layer")
    with pytest.raises(NotApplicable, match="share their weights"):
        apply("encode.sparse", tied, execute="compressed")
    with pytest.raises(NotApplicable, match="no products with sparse weights"):
        apply("export.onnx", model)


def test_multiplications_that_are_spared_do_not_count():
    pruned = apply("prune.magnitude", mlp((300, 100)), sparsity=0.9, scope="layer")
    images = {"image": IMAGES}
    dense = macs(pruned, images)
    assert macs(apply("encode.sparse", pruned, execute="compressed"), images) == pytest.approx(0.1 * dense, rel=0.01)
