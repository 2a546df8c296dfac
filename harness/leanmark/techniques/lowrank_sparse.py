"""Low rank plus structured sparse: what few directions cannot hold, some whole columns do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.weights import count_elements, finite_values, shared_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import nn

Share = Annotated[float, Gt(0), Lt(1)]
_ROUNDS = 50


def both_parts(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Two thin matrices and some columns where one matrix was, and how near they come to it together and alone."""
    name = "lowrank.sparse"
    if artifact.reference is None:
        return Evidence(name, False, {}, "there is no unmodified model to compare with")
    tensors, before = artifact.tensors(), weight_tensors(artifact.reference)
    total, total_before = count_elements(weight_tensors(artifact)), count_elements(before)
    layers: dict[str, dict[str, Any]] = {}
    for key, into in tensors.items():
        layer, mark, _ = key.partition(".into.weight")
        out, dense = tensors.get(f"{layer}.out.weight"), tensors.get(f"{layer}.dense.weight")
        if mark and out is not None and dense is not None:
            layers[layer] = {"rank": min(into.shape), "columns": min(dense.shape[-1], dense.shape[0])}
            chosen, whole = tensors.get(f"{layer}.chosen"), before.get(f"{layer}.weight")
            if chosen is not None and whole is not None and whole.shape == (len(out), into.shape[1]):
                layers[layer] |= _errors(whole, into, out, dense, chosen)
    facts: dict[str, Any] = {"layers": layers, "weights": total, "weights_before": total_before}
    if total >= total_before:
        return Evidence(name, False, facts, f"{total:,} weights are no fewer than the {total_before:,} before")
    return Evidence(name, True, facts)


def _errors(whole: Array, into: Array, out: Array, dense: Array, chosen: Array) -> dict[str, float]:
    """Relative Frobenius distances from the unmodified matrix: of both, and of either alone with as many weights."""
    built = out.astype(np.float64) @ into
    built[:, chosen] += dense
    budget, (rows, columns) = into.size + out.size + dense.size, whole.shape
    values = np.linalg.svd(whole.astype(np.float64), compute_uv=False)
    norms = np.sort((whole.astype(np.float64) ** 2).sum(axis=0))[::-1]
    size = float(np.linalg.norm(whole)) or 1.0
    return {
        "error": round(float(np.linalg.norm(whole - built)) / size, 6),
        "error_of_rank_alone": round(math.sqrt((values[budget // (rows + columns) :] ** 2).sum()) / size, 6),
        "error_of_columns_alone": round(math.sqrt(norms[budget // rows :].sum()) / size, 6),
    }


@step(
    "lowrank.sparse",
    family="low rank",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=both_parts,
    libraries=("torch", "numpy"),
)
def low_rank_plus_sparse(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Share,
    columns: Share = 0.1,
    min_size: Annotated[int, Ge(1)] = 10_000,
) -> TorchModel:
    """Replace each linear layer by two thin ones plus whole columns of weights for some of its inputs.

    ratio: rank as a share of the smaller side of the matrix, rounded down, at least 1.
    columns: share of the inputs that have columns of their own, rounded down, at least 1.
    min_size: layers with fewer weights stay as they are.

    Rank and columns are found in turns, each for what the other leaves over, until nothing moves. Whole columns are
    what a processor can multiply without looking for single weights. A layer stays as it is where that is no gain, and
    where its weights are shared.
    Evidence: fewer weights, and the distance from the unmodified matrix beside that of either part alone with as many
    weights (as long as nothing trained it further).
    Source: Ma et al. 2018, A Unified Approximation Framework for Compressing and Accelerating Deep Neural Networks;
    Zhou, Tao 2011, GoDec.
    """
    from torch import nn

    module = model.module
    shared = shared_parameters(module)
    names = {*shared, *shared.values()}
    layers = [
        (path, child)
        for path, child in module.named_modules()
        if type(child) is nn.Linear and path and f"{path}.weight" not in names and child.weight.numel() >= min_size
    ]
    if not layers:
        raise NotApplicable(f"no linear layer has {min_size} weights or more of its own", do="Lower min_size.")
    replaced = 0
    for number, (path, layer) in enumerate(layers):
        ctx.progress(number / len(layers), path)
        finite_values(f"{path}.weight", layer.weight)
        found = _split(layer, ratio, columns)
        if found is not None:
            module.set_submodule(path, found)
            replaced += 1
    if not replaced:
        raise PreparationError(
            f"ratio {ratio:g} and columns {columns:g} make no linear layer smaller", do="Lower them."
        )
    return model.with_module(module)


def _split(layer: nn.Linear, ratio: float, share: float) -> nn.Module | None:
    import torch

    from leanmark.networks.layers import LowRankPlusColumns

    whole = layer.weight.detach().double().numpy()
    rows, inputs = whole.shape
    rank, count = max(1, math.floor(ratio * min(rows, inputs))), max(1, math.floor(share * inputs))
    if rank * (rows + inputs) + count * rows >= whole.size:
        return None
    left, right, chosen = low_rank_and_columns(whole, rank, count)
    rest = (whole - left @ right)[:, chosen]
    bias = dict(layer.named_parameters()).get("bias")
    found = LowRankPlusColumns(inputs, rows, rank, count, bias is not None).to(layer.weight.dtype)
    with torch.no_grad():
        for parameter, values in ((found.out.weight, left), (found.into.weight, right), (found.dense.weight, rest)):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        found.chosen.copy_(torch.from_numpy(chosen))
        if bias is not None:
            found.out.bias.copy_(bias)
    return found


def low_rank_and_columns(whole: Array, rank: int, count: int) -> tuple[Array, Array, Array]:
    """Factors (rows, rank), (rank, inputs), and the inputs (count,) in order whose columns are to hold the rest.

    The factors are the best for all other columns; chosen are those that lie furthest off the directions of these.
    """
    others, chosen = np.arange(whole.shape[1]), np.zeros(0, dtype=np.int64)
    for _ in range(_ROUNDS):
        kept = np.linalg.svd(whole[:, others], full_matrices=False)[0][:, :rank]
        off = ((whole - kept @ (kept.T @ whole)) ** 2).sum(axis=0)
        chosen = np.sort(np.argsort(off, kind="stable")[-count:])
        before, others = others, np.setdiff1d(np.arange(whole.shape[1]), chosen)
        if np.array_equal(before, others):
            break
    directions, values, inputs = np.linalg.svd(whole[:, others], full_matrices=False)
    root = np.sqrt(values[:rank])  # both factors have weights of one size
    right = np.zeros((rank, whole.shape[1]))
    right[:, others] = root[:, None] * inputs[:rank]
    return directions[:, :rank] * root, right, chosen
