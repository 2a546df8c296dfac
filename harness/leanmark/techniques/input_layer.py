"""A first layer that looks at a picture: each of its filters becomes a sum of few products of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.weights import finite_values, shared_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn


def filters_are_thin(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Factors along rows and along columns where the unmodified model's first layer was, and their rank."""
    name = "lowrank.input"
    if artifact.reference is None:
        return Evidence(name, False, {}, "there is no unmodified model to compare with")
    tensors, before = artifact.tensors(), artifact.reference.tensors()
    for key, down in tensors.items():
        layer, mark, _ = key.rpartition(".down")
        along, whole = tensors.get(f"{layer}.along"), before.get(f"{layer}.weight")
        if not mark or along is None or along.ndim != 3 or down.ndim != 3 or whole is None:
            continue
        filters, rows, rank = down.shape
        facts = {
            "rank": rank,
            "filters": filters,
            "rows": rows,
            "columns": along.shape[2],
            "weights": along.size + down.size,
            "weights_before": whole.size,
        }
        if rank > int(params["rank"]):
            return Evidence(name, False, facts, f"filters have rank {rank}, not {params['rank']}")
        if along.size + down.size >= whole.size:
            return Evidence(name, False, facts, "the first layer has no fewer weights than before")
        return Evidence(name, True, facts)
    return Evidence(name, False, {}, "the first layer is one matrix, as in the unmodified model")


@step(
    "lowrank.input",
    family="low rank",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=filters_are_thin,
    libraries=("torch",),
    splits=("validation",),
)
def rank_constrained_input(
    model: TorchModel,
    ctx: Context,
    *,
    rank: Annotated[int, Ge(1)] = 1,
    shape: tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None,
) -> TorchModel:
    """Give each filter of the first linear layer a low rank over the picture that it looks at.

    rank: of each filter, a picture of rows and columns: as many products of a column of weights and a row of
    weights, the best approximation of the filter (SVD). Training afterwards keeps it: the factors are what is
    trained.
    shape: rows and columns of the input; by default the last two axes of the workload's.

    A filter takes rank * (rows + columns) weights instead of rows * columns: 56 instead of 784 at rank 1 for 28 x 28
    pixels. Where the whole picture arrives at once that saves no multiplications (it does where columns arrive one by
    one, as the frames of a sound do), so filters are put together again when the model is loaded: smaller, not faster.
    Evidence: factors along rows and along columns in the place of the first layer, and their rank. Optimizing the
    program before it is stored, or quantizing it, puts the filters together for good.
    Source: Nakkiran et al. 2015, Compressing Deep Neural Networks Using a Rank-Constrained Topology.
    """
    module = model.module
    path, layer = _first(module)
    rows, columns = shape or _picture(ctx)
    if rows * columns != layer.in_features:
        raise PreparationError(
            f"the first layer takes {layer.in_features} inputs, which are no {rows} x {columns}",
            do="Give shape: [rows, columns].",
        )
    if rank * (rows + columns) >= rows * columns:
        raise PreparationError(f"rank {rank} of {rows} x {columns} has no fewer weights", do="Lower rank.")
    finite_values(f"{path}.weight", layer.weight)
    module.set_submodule(path, _thin(layer, rows, columns, rank))
    return model.with_module(module)


def _first(module: nn.Module) -> tuple[str, nn.Linear]:
    """The first layer with weights, where it is a linear one with weights of its own."""
    from torch import nn

    shared = shared_parameters(module)
    for path, child in module.named_modules():
        if not list(child.parameters(recurse=False)):
            continue
        if type(child) is not nn.Linear or not path or f"{path}.weight" in {*shared, *shared.values()}:
            break
        return path, child
    raise NotApplicable("the first layer of this model is no linear layer with weights of its own")


def _picture(ctx: Context) -> tuple[int, int]:
    """Rows and columns of the workload's input."""
    (first, *others) = ctx.split("validation").inputs.values()
    if others or first.ndim < 3 or math.prod(first.shape[1:-2]) != 1:
        raise PreparationError("the workload's input is no single picture", do="Give shape: [rows, columns].")
    return first.shape[-2], first.shape[-1]


def _thin(layer: nn.Linear, rows: int, columns: int, rank: int) -> nn.Module:
    """The layer with the best approximation of every filter (Eckart, Young 1936)."""
    import torch

    from leanmark.networks.layers import RankConstrainedLinear

    bias: Tensor | None = dict(layer.named_parameters()).get("bias")
    thin = RankConstrainedLinear(rows, columns, layer.out_features, rank, bias is not None).to(layer.weight.dtype)
    with torch.no_grad():
        left, values, right = torch.linalg.svd(layer.weight.detach().float().view(-1, rows, columns))
        root = values[:, :rank].sqrt()  # both factors have weights of one size
        thin.down.copy_(left[:, :, :rank] * root[:, None])
        thin.along.copy_(root[:, :, None] * right[:, :rank])
        if thin.bias is not None and bias is not None:
            thin.bias.copy_(bias)
    return thin.train(layer.training)
