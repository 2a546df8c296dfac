"""Steps after one another: each keeps what came before where it is asked to."""

from pathlib import Path

import pytest

from leanmark.stages import Program
from techniques.test_binary import CONTEXT
from techniques.test_pruning import apply, evidence, mlp


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
