"""Low rank: one large matrix becomes the product of two thin ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.weights import count_elements, finite_values, shared_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Share = Annotated[float, Gt(0), Le(1)]


def thin_factors(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Pairs of thin tensors where the unmodified model has one large one."""
    name = "lowrank.svd"
    if artifact.reference is None:
        return Evidence(name, False, {}, "there is no unmodified model to compare with")
    weights, before = weight_tensors(artifact), weight_tensors(artifact.reference)
    pairs = _pairs(weights, before)
    total, total_before = count_elements(weights), count_elements(before)
    facts: dict[str, Any] = {
        "ranks": {layer: _rank(one, other) for layer, (one, other) in pairs.items()},
        "weights": total,
        "weights_before": total_before,
        "reconstruction_error": _errors(pairs, before),
    }
    if not pairs:
        return Evidence(name, False, facts, "no matrix of the unmodified model has become two thinner ones")
    if total >= total_before:
        return Evidence(name, False, facts, f"{total:,} weights are no fewer than the {total_before:,} before")
    if params.get("ratio") is not None:
        for layer, (one, other) in pairs.items():
            rank = _rank(one, other)
            asked = _rank_of_ratio(float(params["ratio"]), *_outer(one, other))
            if rank > asked:
                return Evidence(name, False, facts, f"'{layer}' has rank {rank}, not {asked}")
    return Evidence(name, True, facts)


def _pairs(weights: Mapping[str, Array], before: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Layer -> its two factors: by the names that the step gives, and where these are lost, by shape."""
    pairs: dict[str, tuple[Array, Array]] = {}
    for name in weights:
        layer, mark, rest = name.partition(".0.weight")
        second = f"{layer}.1.weight{rest}"
        if mark and second in weights and _layer(layer) in before and weights[name].ndim == weights[second].ndim == 2:
            pairs[layer] = (weights[name], weights[second])
    if pairs:
        return pairs
    left = _without(weights, before)
    for layer, array in _without(before, weights).items():
        found = _factors_of(array.shape, left) if array.ndim == 2 else None
        if found is not None:
            pairs[layer] = (left.pop(found[0]), left.pop(found[1]))
    return pairs


def _layer(path: str) -> str:
    """The name of a layer's weight; of a model that is one layer, the path is empty."""
    return f"{path}.weight" if path else "weight"


def _without(weights: Mapping[str, Array], others: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of `weights` that no tensor of `others` has the shape of, whatever the order of the axes."""
    shapes = [sorted(array.shape) for array in others.values()]
    left: dict[str, Array] = {}
    for name, array in weights.items():
        if sorted(array.shape) in shapes:
            shapes.remove(sorted(array.shape))
        else:
            left[name] = array
    return left


def _factors_of(shape: tuple[int, ...], left: Mapping[str, Array]) -> tuple[str, str] | None:
    flat = {name: array for name, array in left.items() if array.ndim == 2}
    for one, first in flat.items():
        for other, second in flat.items():
            common = set(first.shape) & set(second.shape)
            if one != other and common and sorted(_outer(first, second)) == sorted(shape):
                return one, other
    return None


def _rank(one: Array, other: Array) -> int:
    common = set(one.shape) & set(other.shape)
    return min(common) if common else 0


def _outer(one: Array, other: Array) -> tuple[int, int]:
    """What is left of both shapes without the rank: the sides of the product."""
    rank = _rank(one, other)
    return (one.size // max(1, rank), other.size // max(1, rank))


def _errors(pairs: Mapping[str, tuple[Array, Array]], before: Mapping[str, Array]) -> dict[str, float]:
    """Relative Frobenius distance between product and unmodified matrix, for float factors that names identify."""
    errors: dict[str, float] = {}
    for layer, (first, second) in pairs.items():
        matrix = before.get(_layer(layer))
        if matrix is None or first.dtype.kind != "f" or second.dtype.kind != "f" or first.shape[0] != second.shape[1]:
            continue
        product = second.astype(np.float64) @ first.astype(np.float64)
        if product.shape == matrix.shape:
            errors[layer] = round(float(np.linalg.norm(product - matrix) / (np.linalg.norm(matrix) or 1.0)), 6)
    return errors


@step(
    "lowrank.svd",
    family="low rank",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=thin_factors,
    libraries=("torch",),
    splits=("validation",),
)
def svd(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Share | None = None,
    energy: Share | None = None,
    min_size: Annotated[int, Ge(1)] = 10_000,
) -> TorchModel:
    """Replace each linear layer by two thinner ones, of the best approximation of that rank.

    ratio: rank as a share of the smaller side of the matrix, rounded down, at least 1.
    energy: share of the squared singular values kept; each layer gets the smallest rank
    that keeps it. Give one of the two.
    min_size: layers with fewer weights stay as they are; a last layer of ten classes, of
    which a tenth is rank 1, is usually below it.

    A layer (out, in) of rank r takes r * (in + out) weights and multiplications instead
    of in * out. It stays as it is where that is no gain, and where its weights are shared
    with another layer.
    Evidence: in place of matrices of the unmodified model, pairs of thinner ones, and
    fewer weights altogether; with `ratio`, no rank above the one asked for.
    Source: Denton et al. 2014, Exploiting Linear Structure Within Convolutional Networks
    for Efficient Evaluation; Eckart, Young 1936.
    """
    if (ratio is None) == (energy is None):
        raise PreparationError("lowrank.svd needs either ratio or energy", do="Give one of the two, not both or none.")
    module = model.module
    layers = list(_layers(module))
    if not layers:
        raise NotApplicable("this model has no linear layer with weights of its own")
    large = [(path, layer) for path, layer in layers if layer.weight.numel() >= min_size]
    if not large:
        raise NotApplicable(f"no linear layer has {min_size} weights or more", do="Lower min_size.")
    replaced = 0
    for number, (path, layer) in enumerate(large):
        ctx.progress(number / len(large), path)
        factors = _factorized(path, layer, ratio, energy)
        if factors is None:
            continue
        replaced += 1
        if path:
            module.set_submodule(path, factors)
        else:
            module = factors
    if not replaced:
        asked = f"ratio {ratio:g}" if ratio is not None else f"energy {energy:g}"
        raise PreparationError(f"{asked} makes no linear layer smaller", do="Lower it.")
    _check_runs(module, ctx)
    return model.with_module(module)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers that alone own their weights; subclasses have their reasons, and stay."""
    from torch import nn

    shared = shared_parameters(module)
    names = {*shared, *shared.values()}
    for path, child in module.named_modules():
        if type(child) is nn.Linear and _layer(path) not in names:
            yield path, child


def _factorized(path: str, layer: nn.Linear, ratio: float | None, energy: float | None) -> nn.Sequential | None:
    """Two layers for one, or None where that would be no gain."""
    import torch
    from torch import nn

    finite_values(_layer(path), layer.weight)
    bias: Tensor | None = dict(layer.named_parameters()).get("bias")
    rows, columns = layer.weight.shape
    kind = layer.weight.dtype
    with torch.no_grad():
        left, values, right = torch.linalg.svd(layer.weight.detach().float(), full_matrices=False)
        if ratio is not None:
            rank = _rank_of_ratio(ratio, rows, columns)
        else:
            assert energy is not None
            rank = rank_of_energy(energy, values.double().numpy())
        if rank * (rows + columns) >= rows * columns:
            return None
        first = nn.Linear(columns, rank, bias=False, dtype=kind)
        second = nn.Linear(rank, rows, bias=bias is not None, dtype=kind)
        # Each factor takes the root of the singular values, so that both have weights of
        # one size, which quantization and further training need.
        root = values[:rank].sqrt()
        first.weight.copy_(root[:, None] * right[:rank])
        second.weight.copy_(left[:, :rank] * root)
        if bias is not None:
            second.bias.copy_(bias)
    return nn.Sequential(first, second)


def _rank_of_ratio(ratio: float, rows: int, columns: int) -> int:
    return max(1, math.floor(ratio * min(rows, columns)))


def rank_of_energy(energy: float, singular_values: Array) -> int:
    """The smallest rank that keeps this share of the squares; rounding is forgiven."""
    kept = np.cumsum(singular_values**2)
    if kept[-1] == 0:
        return 1
    return int(np.searchsorted(kept / kept[-1], energy - 1e-12)) + 1


def _check_runs(module: nn.Module, ctx: Context) -> None:
    import torch

    examples = ctx.split("validation").head(2)
    try:
        with torch.inference_mode():
            module.eval()(*(torch.from_numpy(array.copy()) for array in examples.inputs.values()))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise PreparationError(
            f"the model does not run with two layers in place of one: {error}",
            do="Call linear layers in forward; do not reach for their weight.",
        ) from error
