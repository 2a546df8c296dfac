"""Two towers in place of a cross network: what is known of items is computed before anybody asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, Split, TorchModel, build
from leanmark.workloads.interactions import ndcg, taken_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BUILDER = "leanmark.networks.rankers:build_towers"
_CHECKED = 8  # queries and items whose answers evidence computes again
_CLOSE = 1e-4  # relatively
_DRIFT = 0.1  # weight of the square of a query's log of the sum of all chances
_PAIRED = 1024  # queries and items, at most so many each, over whose pairs the bias is set


# --- evidence -----------------------------------------------------------------------


def towers_are_apart(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The query's tower and the item's are apart: the model's answers are the product of what the two give alone.

    Of a service, that it has a program, or embeddings, for each.
    """
    if artifact.stage is Program:
        return Evidence(
            "serve.two_tower", False, {}, "one program for both towers, which computes items for each query"
        )
    if artifact.stage is TorchModel:
        return _model_evidence(artifact)
    if artifact.manifest["service"].get("kind") != "towers":
        return Evidence("serve.two_tower", False, {}, "the service's model does not have two towers")
    tables = artifact.tables()
    counts = {name: _parameters_of(artifact.part(name)) for name in ("query", "item") if name in artifact.programs}
    facts: dict[str, Any] = {f"{name}_parameters": count for name, count in counts.items()}
    if "embedding" in tables:
        facts["width"] = int(tables["embedding"].shape[1])
    return Evidence("serve.two_tower", "query" in counts, facts, "" if "query" in counts else "no program for queries")


def _parameters_of(part: Artifact) -> int:
    return sum(math.prod(tensor.dims) for tensor in part.proto().graph.initializer)


def _model_evidence(artifact: Artifact) -> Evidence:
    import torch

    from leanmark.networks.rankers import Ranker, Towers

    model = artifact.load()
    module = model.module if isinstance(model, TorchModel) else None
    if not isinstance(module, Ranker) or not isinstance(module.network, Towers):
        return Evidence("serve.two_tower", False, {}, "a later step put something else in place of the towers")
    towers = module.network
    counts = {"query": module.query.learned.num_embeddings, "item": module.item.learned.num_embeddings}
    users, items = (torch.arange(min(_CHECKED, count)) for count in counts.values())
    with torch.inference_mode():
        queries, embeddings = towers.query(module.query(users)), towers.item(module.item(items))
        product = queries @ embeddings.T + towers.bias
        answer = module(users, items.expand(len(users), -1))
    facts = {
        "width": queries.shape[1],
        "query_parameters": sum(weight.numel() for weight in towers.query.parameters()),
        "item_parameters": sum(weight.numel() for weight in towers.item.parameters()),
    }
    same = torch.allclose(answer, product, rtol=_CLOSE, atol=_CLOSE)
    return Evidence("serve.two_tower", same, facts, "" if same else "answers are not the product of the two towers'")


# --- the step -----------------------------------------------------------------------


@step(
    "serve.two_tower",
    family="two-tower",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=towers_are_apart,
    splits=("train", "validation"),
)
def two_tower(
    model: TorchModel,
    ctx: Context,
    *,
    width: Annotated[int, Ge(1), Le(4096)] = 64,
    hidden: Annotated[int, Ge(1), Le(65536)] = 128,
    epochs: Annotated[int, Ge(1), Le(1000)] = 10,
    learning_rate: Annotated[float, Gt(0), Le(1)] = 2e-3,
    batch_size: Annotated[int, Ge(2), Le(65536)] = 512,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.3,
) -> TorchModel:
    """Put two towers in place of a cross network: a query's, an item's, and the product of what they give.

    width: numbers that a tower gives, and that are learned of each query and item. hidden: units of each tower's one
    hidden layer. epochs: passes over what was taken; of them the one with the best NDCG@10 on validation is kept.
    learning_rate: AdamW's. batch_size: interactions a step, and so the items among which each is to be found.
    dropout: share of a tower's inputs that is left out in training.

    The towers are trained anew, on the same features, to tell the item that a query took from the other items of the
    batch, each corrected by the log of how often it is there. Items that the query took, too, do not count as wrong.
    A softmax leaves open what is added to all products of a query, and sigmoids would saturate; so the sum of a query's
    chances is drawn towards 1. The score is sigmoid(product + bias); the bias is set so that scores are right on
    average. A network that is not a cross network on tables of queries and items is refused.
    Evidence: the answers of the final artifact are the product of its towers' answers; or its service has them apart.
    Source: Yi et al. 2019, Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations; Huang et al.
    2013, Learning Deep Structured Semantic Models; Chowdhery et al. 2022, PaLM (the sum that is drawn towards 1).
    """
    import torch

    from leanmark.networks.rankers import Cross, Ranker

    before = model.module
    if not isinstance(before, Ranker) or not isinstance(before.network, Cross):
        raise NotApplicable("only a cross network on tables of queries and items can give way to two towers")
    train = ctx.split("train")
    if train.targets is None or train.targets.ndim != 1 or len(train.inputs) != 2:
        raise PreparationError("the train split does not say which candidate each query took")
    generator = ctx.generator("serve.two_tower")
    config: dict[str, Any] = {
        "users": before.query.learned.num_embeddings,
        "items": before.item.learned.num_embeddings,
        "user_features": before.query.known.shape[1],
        "item_features": before.item.known.shape[1],
        "width": width,
        "hidden": hidden,
        "dropout": dropout,
    }
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        module = build(BUILDER, config)
        assert isinstance(module, Ranker)
        module.query.known.copy_(before.query.known)
        module.item.known.copy_(before.item.known)
        taken = _Taken(*taken_in(train), config["users"], config["items"])
        optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=1e-5, fused=True)
        best, kept = -math.inf, module.state_dict()
        validation = ctx.split("validation")
        for epoch in range(epochs):
            module.train()
            loss = _epoch(module, optimizer, taken, min(batch_size, len(taken.user)), generator)
            score = _score(module.eval(), validation)
            if score >= best:
                best, kept = score, {name: tensor.clone() for name, tensor in module.state_dict().items()}
            ctx.progress((epoch + 1) / epochs, f"epoch {epoch + 1} of {epochs}, loss {loss:.3f}")
        module.load_state_dict(kept)
        _set_bias(module, taken, generator)
    return TorchModel(module.eval(), BUILDER, config, model.delivery)


class _Taken:
    """Who took what in training, and how often each item was taken."""

    def __init__(self, user: Array, item: Array, users: int, items: int) -> None:
        import torch

        self.user, self.item = torch.from_numpy(user.copy()), torch.from_numpy(item.copy())
        self.pairs = torch.zeros(users, items, dtype=torch.bool)
        self.pairs[self.user, self.item] = True
        self.log_share = torch.log(torch.bincount(self.item, minlength=items).clamp(min=1) / len(self.item))


def _epoch(
    module: Any, optimizer: torch.optim.Optimizer, taken: _Taken, batch_size: int, generator: torch.Generator
) -> float:
    """One pass over what was taken; gives the last loss. Raises PreparationError if it is not finite."""
    import torch

    towers, value = module.network, math.nan
    order = torch.randperm(len(taken.user), generator=generator)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        user, item = taken.user[chosen], taken.item[chosen]
        products = towers.query(module.query(user)) @ towers.item(module.item(item)).T
        wrong = taken.pairs[user][:, item].fill_diagonal_(False)
        logits = (products - taken.log_share[item]).masked_fill(wrong, -math.inf)
        total = torch.logsumexp(logits, dim=1)
        drift = total - math.log(batch_size)  # a sum over all items, estimated from those of the batch
        loss = (total - logits.diagonal() + _DRIFT * drift.square()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
    if not math.isfinite(value):
        raise PreparationError(f"training diverged: the loss is {value}", do="Lower learning_rate.")
    return value


def _score(module: Any, validation: Split) -> float:
    """NDCG@10 of all candidates; 0 where no split says what was taken next, so that the last epoch is kept."""
    import torch

    if validation.targets is None or validation.targets.ndim != 2:
        return 0.0
    user, item = (torch.from_numpy(np.array(array)) for array in validation.inputs.values())
    towers = module.network
    with torch.inference_mode():
        embeddings = towers.item(module.item(torch.arange(module.item.learned.num_embeddings)))
        products = (towers.query(module.query(user)) @ embeddings.T).gather(1, item)
    return float(ndcg(products.numpy(), validation.targets).mean())


def _set_bias(module: Any, taken: _Taken, generator: torch.Generator) -> None:
    """So that the mean of sigmoid(product + bias) over pairs of queries and items is the share that was taken."""
    import torch

    def some(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)[:_PAIRED]

    users, items = (some(count) for count in taken.pairs.shape)
    towers = module.network
    with torch.no_grad():
        products = (towers.query(module.query(users)) @ towers.item(module.item(items)).T).double()
        share = float(taken.pairs[users][:, items].double().mean())
        towers.bias.fill_(_root(lambda bias: float(torch.sigmoid(products + bias).mean()) - share))


def _root(rising: Callable[[float], float], reach: float = 200.0) -> float:
    """Where a rising function is 0, by halves of from -reach to reach."""
    low, high = -reach, reach
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
