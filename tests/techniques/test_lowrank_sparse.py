"""Low rank plus columns: found again where it is there, nearer than either alone, stored, exported and shown."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import TorchModel
from leanmark.techniques.lowrank_sparse import low_rank_and_columns
from techniques.test_pruning import apply, evidence, lenet_5, mlp, stored

PARAMS = {"ratio": 0.1, "columns": 0.05, "min_size": 2000}


def of_both(rank: int = 4, count: int = 6, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    whole = random.normal(size=(60, rank)) @ random.normal(size=(rank, 90)) + noise * random.normal(size=(60, 90))
    chosen = np.sort(random.choice(90, count, replace=False))
    whole[:, chosen] += 5 * random.normal(size=(60, count))
    return whole, chosen


def test_rank_and_columns_are_found_again():
    whole, chosen = of_both()
    left, right, found = low_rank_and_columns(whole, 4, 6)
    assert np.array_equal(found, chosen)
    others = np.setdiff1d(np.arange(90), chosen)
    assert np.abs((left @ right - whole)[:, others]).max() < 1e-6 * np.abs(whole).max()


def with_both() -> TorchModel:
    model = mlp((60, 20))
    random = np.random.default_rng(1)
    whole = random.normal(size=(60, 5)) @ random.normal(size=(5, 784)) + 0.3 * random.normal(size=(60, 784))
    whole[:, ::20] += 4 * random.normal(size=(60, 40))
    with torch.no_grad():
        model.module.fc1.weight.copy_(torch.from_numpy(whole / 100).float())
    return model


def test_together_they_are_nearer_than_either_alone(tmp_path: Path):
    model = apply("lowrank.sparse", with_both(), **PARAMS)
    shown = evidence("lowrank.sparse", model, tmp_path, before=with_both(), **PARAMS)
    assert shown.effective
    layer = shown.facts["layers"]["fc1"]
    assert (layer["rank"], layer["columns"]) == (6, 39)
    assert layer["error"] < min(layer["error_of_rank_alone"], layer["error_of_columns_alone"])


def test_it_is_stored_exported_and_answers_the_same(tmp_path: Path):
    model = apply("lowrank.sparse", with_both(), **PARAMS)
    back = stored(model, tmp_path / "model").load()
    assert isinstance(back, TorchModel)
    image = torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(back.module(image), model.module(image))
        dense = with_both().module
        layer = model.module.fc1
        product = layer.out.weight @ layer.into.weight
        product[:, layer.chosen] += layer.dense.weight
        dense.fc1.weight.copy_(product)
        assert torch.allclose(dense(image), model.module(image), atol=1e-4)
    programs = [apply("export.onnx", item) for item in (model, with_both())]
    assert evidence("lowrank.sparse", programs[0], tmp_path, before=programs[1], **PARAMS).effective


def test_what_cannot_become_smaller_is_told(tmp_path: Path):
    with pytest.raises(PreparationError, match="no linear layer smaller"):
        apply("lowrank.sparse", mlp((60, 20)), ratio=0.9, columns=0.5)
    with pytest.raises(NotApplicable, match="no linear layer has"):
        apply("lowrank.sparse", lenet_5(), ratio=0.1, min_size=10**9)
    assert not evidence("lowrank.sparse", mlp(), tmp_path, before=mlp(), ratio=0.1).effective
