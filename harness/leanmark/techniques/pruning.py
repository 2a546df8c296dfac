"""Pruning of single weights: which are set to zero, by magnitude, by lot, in patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.weights import (
    count_elements,
    count_zeros,
    distinct_values,
    finite_values,
    is_quantized,
    weight_parameters,
    weight_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

Scope = Literal["global", "layer"]
Scores = Callable[[str, "nn.Parameter"], Array]
Fraction = Annotated[float, Ge(0), Lt(1)]
# How far the sparsity counted may be from the one asked for.
SPARSITY_TOLERANCE = 0.001
_FEW = 256


def sparsity_of(name: str, artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors, for the step `name`."""
    weights = weight_tensors(artifact)
    zeros, total, asked = count_zeros(weights), count_elements(weights), float(params["sparsity"])
    if not total:
        return Evidence(name, False, {}, "the final artifact has no weight tensors")
    found = zeros / total
    facts = {"sparsity": round(found, 6), "zeros": zeros, "weights": total}
    # Of a few hundred weights no whole number may lie within the tolerance.
    tolerance = max(SPARSITY_TOLERANCE * total, 0.5)
    if zeros < asked * total - tolerance:
        reason = f"{found:.2%} of the weights are zero, not {asked:.2%}: a later step did not keep them at zero"
        return Evidence(name, False, facts, reason)
    # Rounding makes more zeros, to integers or to few values, which takes nothing from what pruning did.
    rounded = is_quantized(weights) or all(distinct_values(array) <= _FEW for array in weights.values())
    if zeros > asked * total + tolerance and not rounded:
        return Evidence(name, False, facts, f"{found:.2%} of the weights are zero, more than {asked:.2%}")
    return Evidence(name, True, facts)


def zero_least(module: nn.Module, scores: Scores, sparsity: float, scope: Scope) -> None:
    """Set the weights of lowest score to zero, exactly so many that their share is `sparsity`.

    scores: of each weight tensor by name, shape (weights,). Raises NotApplicable without weight tensors,
    PreparationError where a weight is NaN or infinite.
    """
    weights = weight_parameters(module)
    if not weights:
        raise NotApplicable("this model has no weight tensor to prune")
    found = [scores(name, weight) for name, weight in weights.items()]
    masks = least_of_all(found, sparsity) if scope == "global" else list(least_of_each(found, sparsity))
    for weight, mask in zip(weights.values(), masks, strict=True):
        _set_to_zero(weight, mask)


def sparsity_reached(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors, and with `lamp` that none of these is empty."""
    found = sparsity_of("prune.magnitude", artifact, params)
    kept = {name: float(np.count_nonzero(array)) / array.size for name, array in weight_tensors(artifact).items()}
    found = replace(found, facts={**found.facts, "kept": {name: round(share, 4) for name, share in kept.items()}})
    empty = next((name for name, share in kept.items() if not share), None)
    if found.effective and params.get("scope") == "lamp" and empty is not None:
        return replace(found, effective=False, reason=f"no weight of '{empty}' is left, which LAMP never leaves so")
    return found


@step("prune.magnitude", family="pruning", consumes=TorchModel, produces=TorchModel, evidence=sparsity_reached)
def magnitude(
    model: TorchModel, ctx: Context, *, sparsity: Fraction, scope: Scope | Literal["lamp"] = "global"
) -> TorchModel:
    """Set the weights of smallest magnitude to zero.

    sparsity: share of the weights set to zero, 0 <= sparsity < 1. Exactly that many are,
    to the nearest one; those that were zero before count. Biases and batch norms stay.
    scope: `global` ranks the weights of all layers together, so that layers with small
    weights lose more; `layer` takes the same share of each; `lamp` ranks each weight's
    square over those of its layer that are no smaller, summed, so that small layers keep
    more and none runs empty.

    Zeros alone make nothing smaller or faster: pack, encode or quantize what is left.
    Training afterwards needs `preserve: [sparsity]`.
    Evidence: zeros counted in the final artifact's tensors with at least two axes and 64
    elements; ineffective when their share is more than 0.001 from the one asked for
    (more zeros are fine once weights are quantized, which rounds small ones to zero), or
    when a tensor is empty that `lamp` was to leave some.
    Source: Han et al. 2015, Learning both Weights and Connections for Efficient Neural
    Networks; Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning.
    """

    def scores(name: str, weight: nn.Parameter) -> Array:
        magnitudes = np.abs(finite_values(name, weight))
        return layer_adaptive(magnitudes) if scope == "lamp" else magnitudes

    zero_least(model.module, scores, sparsity, "global" if scope == "lamp" else scope)
    return model.with_module(model.module)


def layer_adaptive(magnitudes: Array) -> Array:
    """Each weight's square over the sum of those that are no smaller, itself among them: at most 1; of zero, 0."""
    largest_first = np.argsort(-magnitudes, kind="stable")
    squares = np.square(magnitudes[largest_first].astype(np.float64))
    scores = np.zeros(magnitudes.size)
    scores[largest_first] = squares / np.maximum(np.cumsum(squares), np.finfo(np.float64).tiny)
    return scores


def random_reached(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors."""
    return sparsity_of("prune.random", artifact, params)


@step("prune.random", family="pruning", consumes=TorchModel, produces=TorchModel, evidence=random_reached)
def at_random(model: TorchModel, ctx: Context, *, sparsity: Fraction, scope: Scope = "global") -> TorchModel:
    """Set weights drawn by lot to zero: what a criterion has to beat.

    sparsity: share of the weights set to zero, 0 <= sparsity < 1; weights that are zero go first.
    scope: `global` draws from the weights of all layers together; `layer` takes the same share of each.
    Evidence: zeros counted in the final artifact; ineffective when their share is more than 0.001 from the one
    asked for.
    Source: Blalock et al. 2020, What is the State of Neural Network Pruning? (random pruning as baseline).
    """
    random = np.random.default_rng(int(ctx.generator("prune.random").initial_seed()))

    def lots(name: str, weight: nn.Parameter) -> Array:
        values = finite_values(name, weight)
        return np.where(values == 0, -1.0, random.random(values.size))

    zero_least(model.module, lots, sparsity, scope)
    return model.with_module(model.module)


def least(magnitudes: Array, share: float) -> Array:
    """A mask of the round(share * n) smallest; among equals, the first."""
    return _least_count(magnitudes, round(share * magnitudes.size))


def least_of_all(magnitudes: list[Array], share: float) -> list[Array]:
    """Masks of the smallest of all arrays together."""
    ends = np.cumsum([array.size for array in magnitudes])
    return np.split(least(np.concatenate(magnitudes), share), ends[:-1])


def least_of_each(magnitudes: list[Array], share: float) -> Iterator[Array]:
    """Masks of the same share of each, so that the counts add up to that of them all."""
    done = before = 0
    for array in magnitudes:
        before += array.size
        count = min(array.size, round(share * before) - done)
        done += count
        yield _least_count(array, count)


def _least_count(magnitudes: Array, count: int) -> Array:
    if count == 0:
        return np.zeros(magnitudes.size, dtype=bool)
    threshold = np.partition(magnitudes, count - 1)[count - 1]
    mask = magnitudes < threshold
    equal = np.flatnonzero(magnitudes == threshold)
    mask[equal[: count - int(mask.sum())]] = True
    return mask


def _set_to_zero(weight: Tensor, mask: Array) -> None:
    import torch

    with torch.no_grad():
        weight.masked_fill_(torch.from_numpy(mask).view(weight.shape), 0.0)


# --- patterns ------------------------------------------------------------------------


def pattern_holds(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Of how many groups of the final artifact's weights no more than `n` are other than zero."""
    n, m = int(params["n"]), int(params["m"])
    groups = held = 0
    for array in weight_tensors(artifact).values():
        rows = array.reshape(len(array), -1)
        # A program may hold the weights of a linear layer the other way round.
        found = [_nonzero_in_groups(rows, m), *([_nonzero_in_groups(rows.T, m)] if array.ndim == 2 else [])]
        best = max(found, key=lambda counts: float((counts <= n).mean()) if counts.size else -1.0)
        groups, held = groups + best.size, held + int((best <= n).sum())
    facts = {"groups": groups, "groups_that_hold": held}
    if not groups:
        return Evidence("prune.nm", False, facts, f"no weight tensor has rows of {m} and more")
    if held < groups:
        reason = f"{groups - held:,} of {groups:,} groups of {m} have more than {n} weights: a later step filled them"
        return Evidence("prune.nm", False, facts, reason)
    return Evidence("prune.nm", True, facts)


def _nonzero_in_groups(rows: Array, m: int) -> Array:
    whole = rows.shape[1] // m * m
    return np.count_nonzero(rows[:, :whole].reshape(-1, m), axis=1) if whole else np.zeros(0, dtype=np.int64)


@step("prune.nm", family="pruning", consumes=TorchModel, produces=TorchModel, evidence=pattern_holds)
def n_of_m(
    model: TorchModel, ctx: Context, *, n: Annotated[int, Ge(1)] = 2, m: Annotated[int, Ge(2), Le(64)] = 4
) -> TorchModel:
    """Keep the `n` largest of every `m` weights in a row, and set the others to zero.

    n, m: 2 of 4 is the pattern that Ampere and later GPUs compute with at twice the rate. A row is what one output
    takes; for convolutions its kernel, flattened. What a row has beyond a multiple of m stays.

    On a CPU, and in runtimes that do not look for the pattern, this is neither smaller nor faster.
    Training afterwards needs `preserve: [sparsity]`.
    Evidence: no group of the final artifact's weights has more than n that are not zero.
    Source: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks.
    """
    if n >= m:
        raise PreparationError(f"{n} of {m} leaves every weight where it is", do="Give an n that is smaller than m.")
    done = False
    for name, weight in weight_parameters(model.module).items():
        rows = np.abs(finite_values(name, weight)).reshape(len(weight), -1)
        whole = rows.shape[1] // m * m
        if whole:
            groups = rows[:, :whole].reshape(-1, m)
            mask = np.zeros(rows.shape, dtype=bool)
            least_first = np.argsort(groups, axis=1, kind="stable")[:, : m - n]
            chosen = np.zeros(groups.shape, dtype=bool)
            np.put_along_axis(chosen, least_first, values=True, axis=1)
            mask[:, :whole] = chosen.reshape(len(weight), whole)
            _set_to_zero(weight, mask)
            done = True
    if not done:
        raise NotApplicable(f"no weight tensor of this model has rows of {m} and more")
    return model.with_module(model.module)


# --- biases --------------------------------------------------------------------------


def biases_are_zero(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros among the numbers that are added in the final artifact's layers."""
    tensors = artifact.tensors()
    biases = {name: array for name, array in tensors.items() if name.endswith("bias") and array.ndim == 1}
    # What a normalization adds is no bias of a layer: its weights have one axis too.
    norms = {name for name in biases if tensors.get(f"{name.removesuffix('bias')}weight", np.zeros((1, 1))).ndim == 1}
    biases = {name: array for name, array in biases.items() if name not in norms}
    total, zeros = count_elements(biases), count_zeros(biases)
    facts = {"biases": total, "zeros": zeros}
    if not total:
        return Evidence("prune.bias", False, facts, "the final artifact has no tensor that is called a bias")
    wanted = _count_of(params["amount"], total)
    if zeros < wanted:
        return Evidence("prune.bias", False, facts, f"{zeros} of {total} biases are zero, not {wanted}")
    return Evidence("prune.bias", True, facts)


def _count_of(amount: float, total: int) -> int:
    return amount if isinstance(amount, int) else round(amount * total)


@step("prune.bias", family="pruning", consumes=TorchModel, produces=TorchModel, evidence=biases_are_zero)
def bias(
    model: TorchModel, ctx: Context, *, amount: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)]
) -> TorchModel:
    """Set the biases of smallest magnitude to zero, of all layers together.

    amount: how many: a number of them (`3`), or a share (`0.3`).

    Biases are few: this is for completeness, and for layers whose bias only moves what a later one takes back.
    Evidence: zeros among the final artifact's tensors that are called a bias, those of normalizations apart.
    Source: torch.nn.utils.prune, which takes amounts so.
    """
    from torch import nn

    layers = [
        item for item in model.module.modules() if isinstance(item, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    biases = list({id(item.bias): item.bias for item in layers if item.bias is not None}.values())
    if not biases:
        raise NotApplicable("this model has no layer with a bias")
    magnitudes = [np.abs(finite_values("bias", item)) for item in biases]
    total = sum(array.size for array in magnitudes)
    count = _count_of(amount, total)
    if not 0 < count <= total:
        raise PreparationError(f"{count} of {total} biases cannot be set to zero", do="Give another amount.")
    mask = _least_count(np.concatenate(magnitudes), count)
    for item, part in zip(biases, np.split(mask, np.cumsum([array.size for array in magnitudes])[:-1]), strict=True):
        _set_to_zero(item, part)
    return model.with_module(model.module)
