"""Ranking networks rank better than popularity does, which ranks better than chance."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leanmark import registry
from leanmark.arrays import Array
from leanmark.errors import InvalidInput
from leanmark.prepare.base import make_base
from leanmark.stages import Context, Split
from leanmark.workloads import movielens, synthetic_catalogue
from leanmark.workloads.data_sets import get_data_set
from leanmark.workloads.interactions import ndcg, recall, taken_in
from leanmark.workloads.split_store import check_disjoint
from leanmark.workloads.splits import load


def scored(name: str) -> tuple[dict[str, Split], Array]:
    """The splits of a workload, and what its base model answers on test."""
    workload = registry.get_workload(name)
    splits = load(workload)
    check_disjoint(splits)
    model = make_base(workload, Context(lambda split: splits[split], 0)).module
    user, item = (torch.from_numpy(array) for array in splits["test"].inputs.values())
    with torch.inference_mode():
        parts = zip(user.split(64), item.split(64), strict=True)
        return splits, np.concatenate([model(*part).numpy() for part in parts])


def of_popularity(splits: dict[str, Split]) -> Array:
    _, taken = taken_in(splits["train"])
    candidates = splits["test"].inputs["item"]
    return np.bincount(taken, minlength=candidates.shape[1])[candidates].astype(np.float32)


def test_the_made_up_catalogue_is_always_the_same_and_some_items_are_far_more_popular():
    assert check_disjoint(synthetic_catalogue.splits()) == check_disjoint(synthetic_catalogue.splits())
    counts = np.sort(np.bincount(synthetic_catalogue.made().item))[::-1]
    assert counts[:50].sum() > counts.sum() / 4


def test_the_catalogues_ranker_beats_popularity():
    splits, answers = scored("catalogue-ranking")
    popular, targets = of_popularity(splits), splits["test"].targets
    assert targets is not None
    for metric in (ndcg, recall):
        gain = metric(answers, targets) - metric(popular, targets)
        assert gain.mean() > 3 * gain.std() / np.sqrt(len(gain))


@pytest.mark.slow
def test_the_ranker_of_films_beats_popularity():
    if not get_data_set(movielens.DATA_SET).is_here():
        pytest.skip("`leanmark fetch movielens-100k` has not been run")
    pytest.importorskip("pyarrow")
    splits, answers = scored("movielens-ranking")
    targets = splits["test"].targets
    assert targets is not None
    assert recall(of_popularity(splits), targets).mean() == pytest.approx(0.119, abs=0.01)
    assert recall(answers, targets).mean() > 0.15


def test_films_that_were_not_fetched_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path))
    with pytest.raises(InvalidInput, match="not here") as told:
        movielens.ranking_splits()
    assert told.value.do == "Run `leanmark fetch movielens-100k`."
