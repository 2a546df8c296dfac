"""How far a model's answers move: what steps go by that try out which part can do without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leanmark.arrays import Array

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCH = 256
_OF_CLASSES = ("accuracy", "agreement")


def answers(module: nn.Module, inputs: Sequence[Array]) -> Tensor:
    """The module's answers to all examples, the first where it gives several; float64."""
    import torch

    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(inputs[0]), _BATCH):
            answer = module(*(torch.from_numpy(array[start : start + _BATCH].copy()) for array in inputs))
            parts.append(answer[0] if isinstance(answer, tuple | list) else answer)
    return torch.cat(parts).double()


def distance(before: Tensor, after: Tensor, metric: str) -> float:
    """How far answers have moved: the mean Kullback-Leibler divergence of class probabilities, in nats, for metrics of
    classes; else the mean squared difference."""
    from torch.nn import functional

    if metric in _OF_CLASSES and before.dim() == 2 and before.shape[1] > 1:
        told, known = functional.log_softmax(after, dim=1), functional.log_softmax(before, dim=1)
        return float(functional.kl_div(told, known, log_target=True, reduction="batchmean"))
    return float((after - before).square().mean())
