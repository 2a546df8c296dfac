"""Fine-tuning: winning back what another step lost, without losing what it gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from leanmark.errors import PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.techniques.training import Hook, Loss, fit
from leanmark.weights import count_elements, count_zeros, distinct_values, weight_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Preserve = Literal["sparsity", "clusters"]


def kept_what_was_asked(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """What `preserve` asked for is still there, and the weights are not the unmodified model's."""
    weights = weight_tensors(artifact)
    preserve = list(params.get("preserve", ()))
    sparsity = count_zeros(weights) / max(1, count_elements(weights))
    distinct = {name: distinct_values(array) for name, array in weights.items()}
    facts: dict[str, Any] = {"epochs": params.get("epochs"), "learning_rate": params.get("learning_rate")}
    if "sparsity" in preserve:
        facts["sparsity"] = round(sparsity, 6)
        if not sparsity:
            return Evidence("train.finetune", False, facts, "no weight is zero: there is no sparsity left to preserve")
    if "clusters" in preserve:
        facts["distinct_values"] = max(distinct.values(), default=0)
        if not any(_is_shared(distinct[name], array.size) for name, array in weights.items()):
            return Evidence("train.finetune", False, facts, "no weights share a value: no clusters are left")
    if _equals_reference(artifact, weights):
        return Evidence("train.finetune", False, facts, "the weights are those of the unmodified model")
    return Evidence("train.finetune", True, facts, "that training happened cannot be read off the artifact alone")


def _is_shared(distinct: int, size: int) -> bool:
    """Whether weights plainly share values: chance alone makes few of them equal."""
    return 2 * distinct <= size


def _equals_reference(artifact: Artifact, weights: Mapping[str, Any]) -> bool:
    if artifact.reference is None:
        return False
    before = weight_tensors(artifact.reference)
    return before.keys() == weights.keys() and all(
        array.shape == before[name].shape and bool((array == before[name]).all()) for name, array in weights.items()
    )


@step(
    "train.finetune",
    family="training",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=kept_what_was_asked,
    splits=("train",),
)
def finetune(
    model: TorchModel,
    ctx: Context,
    *,
    epochs: Annotated[float, Gt(0), Le(10_000)] = 1.0,
    learning_rate: Annotated[float, Gt(0), Le(10)] = 2e-3,
    batch_size: Annotated[int, Ge(1)] = 64,
    preserve: tuple[Preserve, ...] = (),
    loss: Loss = "cross_entropy",
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1,
    shift: Annotated[int, Ge(0), Le(16)] = 0,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> TorchModel:
    """Train the model further on the train split, to win back what another step lost.

    epochs: passes over the train split; 0.5 is half of it.
    learning_rate: the highest of AdamW's; it climbs to it and falls to zero.
    batch_size: examples a step.
    preserve: `sparsity` keeps every weight that is zero at zero. `clusters` keeps the
    weights of a tensor that share a value sharing one: their gradients are summed and
    the shared value moves. Without them, training undoes pruning and clustering.
    loss: cross_entropy for classes, binary_cross_entropy for one logit, mse for values.
    label_smoothing: share of the target spread over all classes.
    shift: pixels that each picture, (N, channels, rows, columns), is moved by, at most, anew
    each time that it is seen; its edge is repeated.
    dropout: share of the inputs of linear layers, but not of the first of all layers, that
    is left out at random.
    Evidence: what `preserve` names, counted on the final artifact, and weights other
    than the unmodified model's. An artifact alone cannot show that training happened;
    the accuracy measured on it does.
    Source: Han et al. 2015, Learning both Weights and Connections; Han et al. 2016,
    Deep Compression, section 3 (gradients of shared weights).
    """
    after_backward, after_step = keeping(model.module, preserve)
    fit(
        model.module,
        ctx.split("train"),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=ctx.generator("train.finetune"),
        loss=loss,
        label_smoothing=label_smoothing,
        shift=shift,
        dropout=dropout,
        after_backward=after_backward,
        after_step=after_step,
        progress=ctx.progress,
    )
    return model.with_module(model.module)


def keeping(module: nn.Module, preserve: tuple[Preserve, ...]) -> tuple[Hook | None, Hook | None]:
    """What to do with gradients and with weights so that nothing asked for is lost."""
    weights = list(weight_parameters(module).values())
    masks = _masks(weights) if "sparsity" in preserve else []
    groups = _groups(weights) if "clusters" in preserve else []
    if not masks and not groups:
        return None, None

    def after_backward(_: nn.Module) -> None:
        for weight, mask in masks:
            if weight.grad is not None:
                weight.grad.mul_(mask)
        for weight, group, first in groups:
            if weight.grad is not None:
                sums = weight.new_zeros(len(first)).index_add_(0, group, weight.grad.reshape(-1))
                weight.grad.copy_(sums[group].view_as(weight))

    def after_step(_: nn.Module) -> None:
        import torch

        with torch.no_grad():
            # An optimizer moves weights by momentum and decay too, and promises no equal
            # rounding of equal weights: put back what must be equal.
            for weight, group, first in groups:
                weight.copy_(weight.reshape(-1)[first][group].view_as(weight))
            for weight, mask in masks:
                weight.mul_(mask)

    return after_backward, after_step


def _masks(weights: list[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each weight tensor with zeros where it is zero and ones elsewhere: multiplying is fast."""
    found = [(weight, (weight.detach() != 0).to(weight.dtype)) for weight in weights]
    if all(bool(mask.all()) for _, mask in found):
        raise PreparationError(
            "sparsity is to be preserved, but no weight is zero",
            do="Put a pruning step before it, or leave `preserve: [sparsity]` out.",
        )
    return found


def _groups(weights: list[nn.Parameter]) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
    """Each weight tensor with the group of every element and one element of every group."""
    import numpy as np
    import torch

    found: list[tuple[nn.Parameter, Tensor, Tensor]] = []
    for weight in weights:
        _, first, group = np.unique(weight.detach().float().reshape(-1).numpy(), return_index=True, return_inverse=True)
        found.append((weight, torch.from_numpy(group), torch.from_numpy(first)))
    shared = any(_is_shared(len(first), weight.numel()) for weight, _, first in found)
    if not shared:
        raise PreparationError(
            "clusters are to be preserved, but hardly any weights share a value",
            do="Put cluster.kmeans before it, or leave `preserve: [clusters]` out.",
        )
    return found
