"""Structured pruning of whole parts: the heads of attention, and layers that others can do without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.techniques.pruning import least_of_all
from leanmark.techniques.sensitivity import answers, distance
from leanmark.techniques.training import Loss, criterion_of, tensors_of
from leanmark.weights import (
    count_elements,
    finite_values,
    shared_parameters,
    weight_parameters,
    weight_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanmark.networks.layers import SelfAttention

_BATCH = 64


def _fewer(name: str, artifact: Artifact, what: str, tensors: int = 0) -> Evidence:
    """Fewer weights than the unmodified model has, and so many of its tensors gone."""
    weights = weight_tensors(artifact)
    facts: dict[str, Any] = {"weights": count_elements(weights), "tensors": len(weights)}
    if artifact.reference is None:
        return Evidence(name, False, facts, "there is no unmodified model to compare with")
    before = weight_tensors(artifact.reference)
    facts |= {"weights_before": count_elements(before), "tensors_before": len(before)}
    if facts["weights"] >= facts["weights_before"] or len(before.keys() - weights.keys()) < tensors:
        return Evidence(name, False, facts, f"the final artifact has no fewer {what} than the unmodified model")
    return Evidence(name, True, facts)


def heads_removed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Fewer weights than the unmodified model has, and fewer rows where its attention asks."""
    found = _fewer("prune.heads", artifact, "weights")
    if not found.effective or artifact.reference is None:
        return found
    asked, before = (
        sum(array.size for name, array in weight_tensors(item).items() if ".query." in name)
        for item in (artifact, artifact.reference)
    )
    facts = {**found.facts, "query_weights": asked, "query_weights_before": before}
    if asked and asked >= before:  # a program may have given them other names
        return Evidence("prune.heads", False, facts, "attention asks with as many weights as before")
    return Evidence("prune.heads", True, facts)


@step(
    "prune.heads",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=heads_removed,
    splits=("train",),
)
def heads(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Annotated[float, Gt(0), Lt(1)],
    samples: Annotated[int, Ge(1)] = 512,
    loss: Loss = "cross_entropy",
) -> TorchModel:
    """Remove the heads of attention that the loss would miss least.

    ratio: share of all heads removed, 0 < ratio < 1; every layer keeps one.
    samples: examples of the train split, taken from its beginning, on which it is seen how much a head matters: the
    mean magnitude of what the loss would change by, to the first order, without what the head gives. It is divided by
    the root of the sum of squares in its layer.
    loss: cross_entropy, binary_cross_entropy or mse, as the model was trained with.
    Works on leanmark's own SelfAttention: torch's hides its heads in one tensor.
    Evidence: the final artifact has fewer weights than the unmodified model, and fewer of attention's queries.
    Source: Michel, Levy, Neubig 2019, Are Sixteen Heads Really Better than One?
    """
    from leanmark.networks.layers import SelfAttention

    found = {name: part for name, part in model.module.named_modules() if isinstance(part, SelfAttention)}
    if sum(part.heads for part in found.values()) <= len(found):
        raise NotApplicable("this model has no attention with heads to spare", do="It looks for SelfAttention layers.")
    every = [part for _, part in model.module.named_modules(remove_duplicate=False) if isinstance(part, SelfAttention)]
    if "" in found or len(every) > len(found) or shared_parameters(model.module):
        raise NotApplicable("attention that is the whole model, or that stands in it twice, cannot lose heads")
    if ctx.split("train").targets is None:
        raise NotApplicable("the train split has no targets, so there is no loss to go by")
    for name, weight in weight_parameters(model.module).items():
        finite_values(name, weight)
    scores = _worth_of_heads(model.module, found, ctx, samples, loss)
    lost = least_of_all(scores, ratio)
    if not any(gone.any() for gone in lost):
        raise PreparationError(f"{ratio:.1%} of the heads is less than one", do="Raise ratio.")
    for (name, part), score, gone in zip(found.items(), scores, lost, strict=True):
        kept = ~gone
        kept[int(np.argmax(score))] = True
        parent, _, own = name.rpartition(".")
        setattr(model.module.get_submodule(parent), own, _with_heads(part, np.flatnonzero(kept)))
    return model.with_module(model.module)


def _worth_of_heads(
    module: nn.Module, found: Mapping[str, SelfAttention], ctx: Context, samples: int, loss: Loss
) -> list[Array]:
    """What each head of each layer is worth, over the root of the sum of squares of its layer."""
    import torch

    split = ctx.split("train").head(samples)
    inputs, targets = tensors_of(split, loss)
    criterion = criterion_of(loss, 0.0)
    worth = {name: torch.zeros(part.heads, dtype=torch.float64) for name, part in found.items()}
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
            arguments[0].retain_grad()
            if name in given:
                raise NotApplicable(f"the attention '{name}' is called more than once, so its heads have no one worth")
            given[name] = arguments[0]

        return hook

    hooks = [part.out.register_forward_pre_hook(keep(name)) for name, part in found.items()]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            for start in range(0, len(split), _BATCH):
                answer = module(*(tensor[start : start + _BATCH] for tensor in inputs))
                answer = answer[0] if isinstance(answer, tuple | list) else answer
                part_of_all = targets[start : start + _BATCH]
                if len(given) < len(found):
                    raise NotApplicable("some attention of this model is not called")
                module.zero_grad(set_to_none=True)
                (criterion(answer, part_of_all) * len(part_of_all)).backward()
                for name, part in found.items():
                    seen = given[name]
                    assert seen.grad is not None
                    product = (seen * seen.grad).detach().reshape(*seen.shape[:-1], part.heads, part.head_width)
                    axes = tuple(range(1, product.dim() - 2))
                    worth[name] += product.sum(dim=-1).sum(dim=axes).abs().sum(dim=0).double()
                given.clear()
    finally:
        for hook in hooks:
            hook.remove()
        module.zero_grad(set_to_none=True)
    return [(item / item.norm().clamp_min(1e-30)).numpy() for item in worth.values()]


def _with_heads(part: SelfAttention, kept: Array) -> SelfAttention:
    """The same attention with these heads only."""
    import torch

    from leanmark.networks.layers import SelfAttention

    fewer = SelfAttention(part.width, len(kept), part.head_width)
    places = (kept[:, None] * part.head_width + np.arange(part.head_width)).reshape(-1)
    chosen = torch.from_numpy(places)
    with torch.no_grad():
        for own, other in zip((fewer.query, fewer.key, fewer.value), (part.query, part.key, part.value), strict=True):
            own.weight.copy_(other.weight[chosen])
            own.bias.copy_(other.bias[chosen])
        fewer.out.weight.copy_(part.out.weight[:, chosen])
        fewer.out.bias.copy_(part.out.bias)
    return fewer.eval()


def layers_removed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Weight tensors of the unmodified model are gone."""
    return _fewer("prune.layers", artifact, "weight tensors", int(params["count"]))


@step(
    "prune.layers",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=layers_removed,
    splits=("validation",),
)
def layers(
    model: TorchModel, ctx: Context, *, count: Annotated[int, Ge(1)] = 1, samples: Annotated[int, Ge(1)] = 512
) -> TorchModel:
    """Remove whole blocks that give back what has the shape of what they got: residual blocks, encoder layers.

    count: how many. One at a time goes, always the one without which the answers move least (Kullback-Leibler
    divergence of class probabilities, squared difference of other answers).
    samples: examples of the validation split, taken from its beginning, on which that is seen.
    Blocks are modules with layers inside; one within another is not looked at.
    Evidence: at least so many of the unmodified model's weight tensors are gone, and there are fewer weights.
    Source: Veit, Wilber, Belongie 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks; Fan,
    Grave, Joulin 2020, Reducing Transformer Depth on Demand with Structured Dropout.
    """
    from torch import nn

    for name, weight in weight_parameters(model.module).items():
        finite_values(name, weight)
    inputs = list(ctx.split("validation").head(samples).inputs.values())
    before = answers(model.module, inputs)
    for removed in range(count):
        blocks = _blocks(model.module, [array[:2] for array in inputs])
        if not blocks:
            spare = f"only {removed} of {count}" if removed else "no"
            raise NotApplicable(f"this model has {spare} blocks whose answer has the shape of what they get")
        moved: dict[str, float] = {}
        for name in blocks:
            parent, _, own = name.rpartition(".")
            block = model.module.get_submodule(name)
            setattr(model.module.get_submodule(parent), own, nn.Identity())
            moved[name] = distance(before, answers(model.module, inputs), ctx.metric)
            setattr(model.module.get_submodule(parent), own, block)
        parent, _, own = min(moved, key=lambda name: moved[name]).rpartition(".")
        setattr(model.module.get_submodule(parent), own, nn.Identity())
        ctx.progress((removed + 1) / count, f"{removed + 1} of {count} blocks removed")
    return model.with_module(model.module)


def _blocks(module: nn.Module, inputs: list[Array]) -> list[str]:
    """Names of the outermost modules with weights inside that are called once and keep the shape of one tensor."""
    import torch

    calls: dict[str, list[bool]] = {}

    def watch(name: str) -> Any:
        def hook(_: Any, arguments: tuple[Any, ...], answer: Any) -> None:
            tensors = len(arguments) == 1 and all(isinstance(item, torch.Tensor) for item in (*arguments, answer))
            alike = tensors and arguments[0].shape == answer.shape
            calls.setdefault(name, []).append(alike)

        return hook

    candidates = {
        name: part
        for name, part in module.named_modules()
        if name and next(part.children(), None) is not None and weight_parameters(part)
    }
    hooks = [part.register_forward_hook(watch(name)) for name, part in candidates.items()]
    try:
        answers(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [name for name, alike in calls.items() if alike == [True]]
    # A container of all blocks keeps the shape too; what is meant are its blocks.
    inner = [name for name in fitting if not _holds_others(candidates[name], name, fitting)]
    return [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]


def _holds_others(part: nn.Module, name: str, fitting: list[str]) -> bool:
    from torch import nn

    return isinstance(part, nn.Sequential | nn.ModuleList) and any(other.startswith(f"{name}.") for other in fitting)
