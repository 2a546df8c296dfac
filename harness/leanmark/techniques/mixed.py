"""Mixed precision: each tensor gets as many bits as it needs, within what all may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le, MinLen

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.techniques.sensitivity import answers, distance
from leanmark.weights import count_elements, distinct_values, finite_values, weight_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

# The range that is rounded to is looked for among so many, up to the largest weight.
_RANGES = 40
Width = Annotated[int, Ge(2), Le(8)]


def widths_kept(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Bits by tensor, counted by the distinct values of the final artifact, and their mean over all weights."""
    name = "quantize.mixed"
    weights = weight_tensors(artifact)
    if not weights:
        return Evidence(name, False, {}, "the final artifact has no weight tensors")
    widths = {key: bits_of(distinct_values(array)) for key, array in weights.items()}
    mean = sum(widths[key] * array.size for key, array in weights.items()) / count_elements(weights)
    facts = {"bits_by_tensor": widths, "bits": round(mean, 4)}
    if mean > float(params["bits"]) + 1e-9:
        reason = f"a weight takes {mean:.2f} bits, not {params['bits']:g}: a later step moved the values"
        return Evidence(name, False, facts, reason)
    if not (artifact.root / "weights.packed").exists():
        return Evidence(name, False, facts, "the weights do not lie in the file with so few bits")
    return Evidence(name, True, facts)


def bits_of(values: int) -> int:
    """Bits that tell so many values apart; at least one."""
    return max(1, (values - 1).bit_length())


@step(
    "quantize.mixed",
    family="quantization",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=widths_kept,
    libraries=("torch", "numpy"),
    splits=("calibration",),
)
def mixed(
    model: TorchModel,
    ctx: Context,
    *,
    bits: Annotated[float, Ge(2), Le(8)] = 4.0,
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (2, 3, 4, 5, 6, 8),
    samples: Annotated[int, Ge(1)] = 256,
) -> TorchModel:
    """Round the weights of each tensor to integers of its own width: wide where the answers need it, narrow elsewhere.

    bits: that a weight may take in the mean, 2 to 8. widths: what a tensor may get; one alone makes all the same.
    samples: examples of the calibration split, taken from its beginning, on which it is seen what each tensor needs:
    how far the answers move when it alone is rounded (Kullback-Leibler divergence of class probabilities, squared
    difference of other answers). Bits are then taken away where that costs least for each bit saved.

    A tensor has one scale, and its range is the one that loses least. Biases stay. The file holds that many bits a
    weight; it is decoded when it is loaded and computed with in floating point: this is smaller, not faster.
    Evidence: bits by tensor, counted by its distinct values in the final artifact, and their mean; ineffective where
    that is more than asked for.
    Source: Dong et al. 2019, HAWQ (sensitivity by layer); Wang et al. 2019, HAQ (bits by layer).
    """
    weights = weight_parameters(model.module)
    if not weights:
        raise NotApplicable("this model has no weight tensor to quantize")
    widths = tuple(sorted(set(widths)))
    if widths[0] > bits:
        raise NotApplicable(f"no width of {list(widths)} fits into {bits:g} bits")
    rounded = {
        name: {width: _rounded(finite_values(name, weight), width) for width in widths}
        for name, weight in weights.items()
    }
    split = ctx.split("calibration").head(samples)
    damage = _damage(model.module, rounded, list(split.inputs.values()), ctx)
    chosen = allot({name: weight.numel() for name, weight in weights.items()}, damage, widths, bits)
    for name, weight in weights.items():
        _set(weight, rounded[name][chosen[name]])
    return replace(model.with_module(model.module), delivery=replace(model.delivery, packed=True))


def allot(
    sizes: Mapping[str, int], damage: Mapping[str, Mapping[int, float]], widths: Sequence[int], bits: float
) -> dict[str, int]:
    """The width of each tensor: the least damage in all that was found with `bits` in the mean.

    From every width that all tensors may have: the narrowing that costs least for each bit that it saves comes first,
    until they fit; what room is left then goes where it helps most.
    """
    found = [_allot(sizes, damage, widths, bits, start) for start in widths]
    return min(found, key=lambda chosen: sum(damage[name][width] for name, width in chosen.items()))


def _allot(
    sizes: Mapping[str, int], damage: Mapping[str, Mapping[int, float]], widths: Sequence[int], bits: float, start: int
) -> dict[str, int]:
    room = bits * sum(sizes.values())
    chosen = dict.fromkeys(sizes, start)

    def taken() -> float:
        return sum(sizes[name] * width for name, width in chosen.items())

    def steps(up: bool) -> list[tuple[float, str, int]]:
        return [
            ((damage[name][width] - damage[name][now]) / (sizes[name] * abs(now - width)), name, width)
            for name, now in chosen.items()
            for width in widths
            if (width > now if up else width < now)
        ]

    while taken() > room:
        _, name, width = min(steps(up=False))
        chosen[name] = width
    while True:
        left = room - taken()
        helping = [
            item for item in steps(up=True) if item[0] < 0 and sizes[item[1]] * (item[2] - chosen[item[1]]) <= left
        ]
        if not helping:
            return chosen
        _, name, width = min(helping)
        chosen[name] = width


def _rounded(values: Array, width: int) -> Array:
    """The values on the symmetric grid of so many bits whose range loses least, by squared error."""
    top = 2 ** (width - 1) - 1
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return values
    best, least = values, np.inf
    for part in range(1, _RANGES + 1):
        scale = np.float32(largest * part / _RANGES / top)
        found = np.clip(np.rint(values / scale), -top, top).astype(np.float32) * scale + np.float32(0)  # no -0
        error = float(np.square(found - values, dtype=np.float64).sum())
        if error < least:
            best, least = found, error
    return best


def _damage(
    module: nn.Module, rounded: Mapping[str, Mapping[int, Array]], inputs: list[Array], ctx: Context
) -> dict[str, dict[int, float]]:
    """How far the answers move when one tensor alone has one width."""
    weights = weight_parameters(module)
    before = answers(module, inputs)
    found: dict[str, dict[int, float]] = {}
    for number, (name, weight) in enumerate(weights.items()):
        kept = weight.detach().reshape(-1).numpy().copy()
        found[name] = {}
        for width, values in rounded[name].items():
            _set(weight, values)
            found[name][width] = distance(before, answers(module, inputs), ctx.metric)
        _set(weight, kept)
        ctx.progress((number + 1) / len(weights), f"{name}: what it needs")
    return found


def _set(weight: Tensor, values: Array) -> None:
    import torch

    with torch.no_grad():
        weight.copy_(torch.from_numpy(values).view_as(weight))
