"""Steps after one another: each keeps what came before where it is asked to."""

from pathlib import Path

import pytest
import torch

from leanmark.errors import NotApplicable
from leanmark.stages import Program, TorchModel
from techniques.test_binary import CONTEXT, PICTURES
from techniques.test_parts import encoder, resnet
from techniques.test_pruning import apply, evidence, mlp, stored


def quantized(step: str, keep: tuple[str, ...]) -> Program:
    model = apply("prune.magnitude", mlp(), CONTEXT, sparsity=0.8)
    model = apply("cluster.kmeans", model, CONTEXT, clusters=8, preserve=("sparsity",))
    if step == "quantize.qat":
        return apply(step, model, CONTEXT, preserve=keep, epochs=0.5)
    return apply(step, apply("export.onnx", model, CONTEXT), CONTEXT, preserve=keep)


@pytest.mark.parametrize("step", ["quantize.static", "quantize.qat"])
def test_what_was_pruned_and_shared_still_is(step: str, tmp_path: Path):
    kept = quantized(step, ("sparsity", "clusters"))
    for name, params in (("prune.magnitude", {"sparsity": 0.8}), ("cluster.kmeans", {"clusters": 8}), (step, {})):
        (tmp_path / name).mkdir()
        found = evidence(name, kept, tmp_path / name, **params)
        assert found.effective, found.reason


@pytest.mark.parametrize("step", ["quantize.static", "quantize.qat"])
def test_what_is_not_to_be_kept_is_seen_to_be_lost(step: str, tmp_path: Path):
    assert not evidence("cluster.kmeans", quantized(step, ()), tmp_path, clusters=8).effective


@pytest.mark.parametrize("step", ["quantize.static", "quantize.qat"])
def test_clusters_cannot_be_kept_while_a_batch_norm_is_folded(step: str):
    model = apply("cluster.kmeans", resnet(), CONTEXT, clusters=8)
    stage = model if step == "quantize.qat" else apply("export.onnx", model, CONTEXT)
    with pytest.raises(NotApplicable, match="batch norm"):
        apply(step, stage, CONTEXT, preserve=("clusters",))


def test_clusters_are_kept_where_it_was_folded_before(tmp_path: Path):
    model = apply("cluster.kmeans", apply("fuse.batchnorm", resnet(), CONTEXT), CONTEXT, clusters=8)
    program = apply("quantize.static", apply("export.onnx", model, CONTEXT), CONTEXT, preserve=("clusters",))
    found = evidence("cluster.kmeans", program, tmp_path, clusters=8)
    assert found.effective, found.reason


def test_rounding_to_few_values_takes_nothing_from_pruning(tmp_path: Path):
    model = apply("prune.magnitude", mlp(), CONTEXT, sparsity=0.5)
    rounded = apply("quantize.mixed", model, CONTEXT, bits=3, widths=(3,))
    found = evidence("prune.magnitude", rounded, tmp_path, sparsity=0.5)
    assert found.facts["sparsity"] > 0.5
    assert found.effective, found.reason


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (lambda: mlp((300, 100)), [("lowrank.sparse", {"ratio": 0.25}), ("lowrank.svd", {"ratio": 0.25})]),
        (encoder, [("lowrank.svd", {"ratio": 0.25, "min_size": 100})]),
        (encoder, [("prune.magnitude", {"sparsity": 0.9}), ("encode.sparse", {"execute": "compressed"})]),
        (encoder, [("prune.heads", {"ratio": 0.5}), ("lowrank.svd", {"ratio": 0.25, "min_size": 100})]),
    ],
)
def test_layers_of_leanmarks_own_are_built_again_as_steps_left_them(make, recipe, tmp_path: Path):
    model = make()
    for name, params in recipe:
        model = apply(name, model, CONTEXT, **params)
    again = stored(model, tmp_path / "model").load()
    assert isinstance(again, TorchModel)
    x = torch.from_numpy(PICTURES[:4])
    with torch.no_grad():
        assert torch.equal(again.module(x), model.module(x))
