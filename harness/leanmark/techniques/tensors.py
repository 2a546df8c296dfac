"""Low rank of convolutions: one large kernel becomes a chain of small ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.techniques.lowrank import Share, rank_of_energy
from leanmark.weights import count_elements, finite_values, shared_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import nn

_ROUNDS = 200  # of alternating least squares


def _chains(name: str, artifact: Artifact, links: int) -> Evidence:
    """Chains of small kernels where the unmodified model has one large one."""
    if artifact.reference is None:
        return Evidence(name, False, {}, "there is no unmodified model to compare with")
    weights, before = weight_tensors(artifact), weight_tensors(artifact.reference)
    stored = artifact.tensors()
    layers = [
        layer
        for key, array in before.items()
        if array.ndim == 4 and f"{(layer := key.removesuffix('.weight'))}.{links - 1}.weight" in stored
    ]
    total, total_before = count_elements(weights), count_elements(before)
    facts: dict[str, Any] = {
        "shapes": {layer: [list(stored[f"{layer}.{link}.weight"].shape) for link in range(links)] for layer in layers},
        "weights": total,
        "weights_before": total_before,
    }
    if not layers and total >= total_before:
        return Evidence(name, False, facts, f"no convolution of the unmodified model has become {links} smaller ones")
    if total >= total_before:
        return Evidence(name, False, facts, f"{total:,} weights are no fewer than the {total_before:,} before")
    return Evidence(name, True, facts)


def tucker_found(artifact: Artifact, _: Mapping[str, Any]) -> Evidence:
    """Three kernels in the place of one, and fewer weights."""
    return _chains("lowrank.tucker", artifact, 3)


@step(
    "lowrank.tucker",
    family="low rank",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=tucker_found,
    libraries=("torch", "tensorly"),
)
def tucker(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Share | None = None,
    energy: Share | None = None,
    min_size: Annotated[int, Ge(1)] = 1000,
) -> TorchModel:
    """Replace each convolution by three: fewer channels in, the kernel on these, and all channels out again (Tucker-2).

    ratio: channels that are left on either side, as a share, rounded down, at least 1.
    energy: share of the squared singular values of either side's unfolding kept; each side gets the smallest rank
    that keeps it. Give one of the two.
    min_size: convolutions with fewer weights stay as they are.

    A convolution of S input and T output channels and a kernel of K x K takes S r + K K r t + t T multiplications a
    pixel instead of K K S T. It stays as it is where that is no gain, where it works in groups, and where its weights
    are shared. The decomposition is improved by alternating least squares (HOOI).
    Evidence: three kernels in the place of one, and fewer weights altogether.
    Source: Kim et al. 2016, Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications; Tucker 1966; De Lathauwer et al. 2000 (HOOI).
    """
    if (ratio is None) == (energy is None):
        raise PreparationError("lowrank.tucker needs either ratio or energy", do="Give one of the two.")

    def ranks(kernel: Array) -> tuple[int, int]:
        if ratio is not None:
            return max(1, math.floor(ratio * kernel.shape[0])), max(1, math.floor(ratio * kernel.shape[1]))
        assert energy is not None
        return _rank_of_energy(kernel, 0, energy), _rank_of_energy(kernel, 1, energy)

    return _replaced(model, ctx, "lowrank.tucker", min_size, lambda layer: _tucker(layer, ranks))


def cp_found(artifact: Artifact, _: Mapping[str, Any]) -> Evidence:
    """Four kernels in the place of one, and fewer weights."""
    return _chains("lowrank.cp", artifact, 4)


@step(
    "lowrank.cp",
    family="low rank",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=cp_found,
    libraries=("torch", "tensorly"),
)
def canonical_polyadic(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Share = 0.5,
    min_size: Annotated[int, Ge(1)] = 1000,
) -> TorchModel:
    """Replace each convolution by four, of which each works along one axis: channels, rows, columns, channels (CP).

    ratio: rank as a share of the larger of the numbers of input and output channels, rounded down, at least 1.
    min_size: convolutions with fewer weights stay as they are.

    A convolution of S input and T output channels and a kernel of K x K takes R (S + K + K + T) multiplications a pixel
    instead of K K S T. It stays as it is where that is no gain, where it works in groups, and where its weights are
    shared. A decomposition of a given rank need not exist: it is what alternating least squares find from a start
    by singular vectors, and usually needs training afterwards.
    Evidence: four kernels in the place of one, and fewer weights altogether.
    Source: Lebedev et al. 2015, Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition; Carroll,
    Chang 1970; Harshman 1970.
    """
    seed = int(ctx.generator("lowrank.cp").initial_seed()) % 2**32
    return _replaced(model, ctx, "lowrank.cp", min_size, lambda layer: _cp(layer, ratio, seed))


def _replaced(
    model: TorchModel, ctx: Context, name: str, min_size: int, factorize: Callable[[nn.Conv2d], nn.Sequential | None]
) -> TorchModel:
    module = model.module
    found = [(path, layer) for path, layer in _layers(module) if layer.weight.numel() >= min_size]
    if not found:
        raise NotApplicable(
            f"this model has no convolution of {min_size} weights or more that works on all channels",
            do="Lower min_size.",
        )
    replaced = 0
    for number, (path, layer) in enumerate(found):
        ctx.progress(number / len(found), path)
        finite_values(f"{path}.weight", layer.weight)
        try:
            factors = factorize(layer)
        except np.linalg.LinAlgError as error:
            raise PreparationError(f"{name} finds no factors of '{path}': {error}") from error
        if factors is None:
            continue
        replaced += 1
        if path:
            module.set_submodule(path, factors)
        else:
            module = factors
    if not replaced:
        raise PreparationError(f"{name} makes no convolution smaller", do="Ask for a lower rank.")
    return model.with_module(module)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Convolutions over all channels that alone own their weights, and have more than a point to look at."""
    from torch import nn

    shared = shared_parameters(module)
    names = {*shared, *shared.values()}
    for path, child in module.named_modules():
        own = f"{path}.weight" if path else "weight"
        if type(child) is nn.Conv2d and child.groups == 1 and own not in names and math.prod(child.kernel_size) > 1:
            yield path, child


def _tucker(layer: nn.Conv2d, ranks: Callable[[Array], tuple[int, int]]) -> nn.Sequential | None:
    from tensorly.decomposition import partial_tucker

    kernel = layer.weight.detach().double().numpy()
    outputs, inputs, *side = kernel.shape
    out_rank, in_rank = ranks(kernel)
    if inputs * in_rank + math.prod(side) * in_rank * out_rank + out_rank * outputs >= kernel.size:
        return None
    found: Any = partial_tucker(kernel, [out_rank, in_rank], modes=[0, 1], n_iter_max=_ROUNDS)
    (core, (last, first)), _ = found
    return _chain(
        layer,
        [
            (first.T[:, :, None, None], {}),
            (core, _geometry(layer)),
            (last[:, :, None, None], {}),
        ],
    )


def _cp(layer: nn.Conv2d, ratio: float, seed: int) -> nn.Sequential | None:
    from tensorly.decomposition import parafac

    kernel = layer.weight.detach().double().numpy()
    rank = max(1, math.floor(ratio * max(kernel.shape[:2])))
    if rank * sum(kernel.shape) >= kernel.size:
        return None
    cp: Any = parafac(kernel, rank, init="svd", n_iter_max=_ROUNDS, random_state=seed, normalize_factors=True)
    weights, factors = cp
    # Each factor takes the same share of what a component weighs, so that all have weights of one size.
    last, first, rows, columns = (factor * weights**0.25 for factor in factors)
    plain = _geometry(layer)
    along = [{key: (value[0], 0 if key == "padding" else 1) for key, value in plain.items()}]
    along += [{key: (0 if key == "padding" else 1, value[1]) for key, value in plain.items()}]
    return _chain(
        layer,
        [
            (first.T[:, :, None, None], {}),
            (rows.T[:, None, :, None], {**along[0], "groups": rank}),
            (columns.T[:, None, None, :], {**along[1], "groups": rank}),
            (last[:, :, None, None], {}),
        ],
    )


def _geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """Where the kernel looks."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        how = layer.padding if isinstance(layer.padding, str) else layer.padding_mode
        raise NotApplicable(f"a convolution pads by '{how}'; only numbers of zeros can be split")
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}


def _chain(layer: nn.Conv2d, links: list[tuple[Array, dict[str, Any]]]) -> nn.Sequential:
    """Convolutions with these kernels, one after the other; the last one takes the bias."""
    import torch
    from torch import nn

    kind, found = layer.weight.dtype, nn.Sequential()
    for number, (kernel, options) in enumerate(links):
        outputs, inputs, *side = kernel.shape
        has_bias = number == len(links) - 1 and layer.bias is not None
        groups = int(options.get("groups", 1))
        link = nn.Conv2d(inputs * groups, outputs, tuple(side), bias=has_bias, dtype=kind, **options)
        with torch.no_grad():
            link.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)).to(kind))
            if has_bias and link.bias is not None and layer.bias is not None:
                link.bias.copy_(layer.bias)
        found.append(link)
    return found


def _rank_of_energy(kernel: Array, axis: int, energy: float) -> int:
    """The smallest rank along an axis that keeps this share of the squares of its unfolding."""
    unfolded = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
    return rank_of_energy(energy, np.linalg.svd(unfolded, compute_uv=False))
