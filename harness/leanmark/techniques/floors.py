"""Floors of a ranking: what anybody gets without a model. Not techniques, but what quality is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Service, TorchModel, build
from leanmark.workloads.interactions import taken_in

if TYPE_CHECKING:
    from leanmark.networks.rankers import Ranker

BUILDER = "leanmark.networks.rankers:build_product"
_RANDOM_WIDTH = 32


def _rows(artifact: Artifact) -> tuple[Array, Array] | None:
    """The rows of queries and items whose product is the score; None where the final artifact computes more."""
    tensors = artifact.tables() if artifact.stage is Service else artifact.tensors()
    names = ("query", "item") if artifact.stage is Service else ("query.learned.weight", "item.learned.weight")
    if any(name not in tensors for name in names):
        return None
    if artifact.stage is Service:
        if artifact.programs != ["rows"]:
            return None
        others = list(artifact.part("rows").tensors().values())
    else:
        others = [array for name, array in tensors.items() if name not in names]
    if any(array.size > 1 and array.dtype.kind == "f" for array in others):
        return None
    query, item = (tensors[name] for name in names)
    return (query, item) if query.ndim == 2 and query.shape[1] == item.shape[1] else None


def ranks_all_alike(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The final artifact has one row for all queries and a number an item: it ranks alike for everybody."""
    rows = _rows(artifact)
    if rows is None:
        return Evidence("floor.popularity", False, {}, "the final artifact computes more than one number an item")
    query, item = rows
    alike = query.shape[1] == 1 and bool((query == query[0]).all())
    facts = {"items": len(item), "most_taken": int(item[:, 0].argmax()), "distinct": len(np.unique(item))}
    return Evidence("floor.popularity", alike, facts, "" if alike else "queries differ")


@step(
    "floor.popularity",
    family="floor",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=ranks_all_alike,
    splits=("train",),
)
def popularity(model: TorchModel, ctx: Context) -> TorchModel:
    """Rank by how often each item was taken in training, alike for every query: a floor, not a technique.

    The score is the log of that count and one more. A model that ranks for somebody is worth what it adds to this.
    Evidence: the final artifact holds a number an item, and all its queries are alike.
    Source: Cremonesi, Koren, Turrin 2010, Performance of Recommender Algorithms on Top-N Recommendation Tasks.
    """
    before = _ranker(model)
    train = ctx.split("train")
    if train.targets is None or train.targets.ndim != 1 or len(train.inputs) != 2:
        raise PreparationError("the train split does not say which candidate each query took")
    items = before.item.learned.num_embeddings
    counts = np.bincount(taken_in(train)[1], minlength=items)
    users = before.query.learned.num_embeddings
    return _product(model, np.ones((users, 1), np.float32), np.log1p(counts)[:, None].astype(np.float32))


def ranks_by_chance(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The final artifact has rows of noise for queries and items: their mean and deviation are 0 and 1."""
    rows = _rows(artifact)
    if rows is None:
        return Evidence("floor.random", False, {}, "the final artifact is no product of rows")
    numbers = np.concatenate([array.reshape(-1) for array in rows])
    facts = {"items": len(rows[1]), "mean": float(numbers.mean()), "deviation": float(numbers.std())}
    noise = abs(facts["mean"]) < 0.1 and abs(facts["deviation"] - 1) < 0.1
    return Evidence("floor.random", noise, facts, "" if noise else "its rows are not noise")


@step("floor.random", family="floor", consumes=TorchModel, produces=TorchModel, evidence=ranks_by_chance, splits=())
def random(model: TorchModel, ctx: Context) -> TorchModel:
    """Rank by scores that are drawn from the run's seed: a floor, not a technique.

    The score of a query and an item is the product of two rows of noise, so each query has another order, always the
    same. What ranks no better has learned nothing.
    Evidence: the final artifact holds rows of noise, and nothing else.
    Source: Herlocker et al. 2004, Evaluating Collaborative Filtering Recommender Systems.
    """
    before = _ranker(model)
    draw = np.random.default_rng(ctx.seed)
    query, item = (
        draw.standard_normal((table.learned.num_embeddings, _RANDOM_WIDTH), np.float32)
        for table in (before.query, before.item)
    )
    return _product(model, query, item)


def _ranker(model: TorchModel) -> Ranker:
    from leanmark.networks.rankers import Ranker

    if not isinstance(model.module, Ranker):
        raise NotApplicable("only what ranks items for queries has such a floor")
    return model.module


def _product(model: TorchModel, query: Array, item: Array) -> TorchModel:
    import torch

    from leanmark.networks.rankers import Ranker

    config = {"users": len(query), "items": len(item), "width": query.shape[1]}
    module = build(BUILDER, config)
    assert isinstance(module, Ranker)
    with torch.no_grad():
        module.query.learned.weight.copy_(torch.from_numpy(query))
        module.item.learned.weight.copy_(torch.from_numpy(item))
    return TorchModel(module.eval(), BUILDER, config, model.delivery)
