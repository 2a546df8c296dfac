"""Structured pruning: channels, neurons and other parts that are really removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import quiet
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.techniques.pruning import least, least_of_all
from leanmark.weights import count_elements, finite_values, shared_parameters, weight_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

# Two examples: a batch of one hides which axis is the batch.
_EXAMPLES = 2


def channels_removed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Fewer weights than the unmodified model has, counted by the shapes of both."""
    weights, ratio = weight_tensors(artifact), float(params["ratio"])
    total = count_elements(weights)
    facts: dict[str, Any] = {"weights": total}
    if artifact.reference is None:
        return Evidence("prune.channels", False, facts, "there is no unmodified model to compare shapes with")
    before = count_elements(weight_tensors(artifact.reference))
    facts |= {"weights_before": before, "shapes": {name: list(array.shape) for name, array in weights.items()}}
    # A layer loses outputs, the next one inputs: more than `ratio` of most layers' weights
    # goes, but less of the first's and the last's.
    if total >= (1 - 0.5 * ratio) * before:
        reason = f"{total:,} of {before:,} weights are left, which is too many for {ratio:.0%} of the channels removed"
        return Evidence("prune.channels", False, facts, reason)
    return Evidence("prune.channels", True, facts)


@step(
    "prune.channels",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=channels_removed,
    libraries=("torch", "torch-pruning"),
    splits=("validation",),
)
def channels(
    model: TorchModel,
    ctx: Context,
    *,
    ratio: Annotated[float, Gt(0), Lt(1)],
    norm: Literal["l1", "l2"] = "l2",
    scope: Literal["global", "layer"] = "layer",
) -> TorchModel:
    """Remove whole channels of convolutions and neurons of linear layers.

    ratio: share of the channels removed, 0 < ratio < 1; every layer keeps one. What the next layers did with
    them goes too, so tensors get smaller and no zeros are left behind. The model's
    outputs stay as many as they are.
    norm: what a channel is worth: the sum of the magnitudes, or of the squares, of all
    weights that would go with it, over their mean in the layer.
    scope: `layer` removes the same share from every layer; `global` ranks all channels
    together.

    What attention divides among heads stays as it is (`prune.heads` is for that), and so do
    channels that a parameter outside of layers has, such as learned places.
    Layers whose channels depend on one another (around an addition, through a flatten,
    in groups) lose the same ones. One batch of two validation examples is run to see
    which do; no value of it matters.
    Evidence: the final artifact has fewer weights than the unmodified model; ineffective
    unless less than 1 - ratio / 2 of them are left.
    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets; Fang et al. 2023,
    DepGraph: Towards Any Structural Pruning.
    """
    import torch

    module = model.module.eval()
    for name, weight in weight_parameters(module).items():
        finite_values(name, weight)
    for name, first in shared_parameters(module).items():
        raise NotApplicable(
            f"'{first}' and '{name}' are one tensor, and removing channels would part them",
            do="Use prune.magnitude, which keeps shapes.",
        )
    examples = ctx.split("validation").head(_EXAMPLES)
    inputs = tuple(torch.from_numpy(array.copy()) for array in examples.inputs.values())
    before, shape = _sizes(module), _answer_shape(module, inputs)
    with quiet(), torch.inference_mode(False), torch.enable_grad():
        _remove(module, inputs, ratio, norm, scope)
    if _sizes(module) == before:
        raise PreparationError(f"{ratio:.1%} of the channels is less than one in every layer", do="Raise ratio.")
    if _answer_shape(module, inputs) != shape:
        raise PreparationError("removing channels changed the shape of the model's answers")
    return model.with_module(module)


def _remove(module: nn.Module, inputs: tuple[Tensor, ...], ratio: float, norm: str, scope: str) -> None:
    import torch_pruning

    try:
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=inputs)
        fixed = _of_attention(module)
        groups = [
            group
            for group in graph.get_all_groups()
            if not _reaches_output(graph, group) and not any(_must_stay(graph, item, fixed) for item in group)
        ]
    except Exception as error:
        raise PreparationError(
            f"torch-pruning cannot follow this model: {type(error).__name__}: {error}",
            do="Write attention and custom operations with plain layers and torch functions.",
        ) from error
    if not groups:
        raise NotApplicable("this model has no convolution or linear layer but those that give its answers")
    worth = torch_pruning.importance.MagnitudeImportance(p={"l1": 1, "l2": 2}[norm])
    # Channels at one place of the blocks of a grouped convolution go together.
    blocks = [_blocks(group) for group in groups]
    scores = [_scores(worth(group), count) for group, count in zip(groups, blocks, strict=True)]
    chosen = [least(score, ratio) for score in scores] if scope == "layer" else least_of_all(scores, ratio)
    for group, count, score, gone in zip(groups, blocks, scores, chosen, strict=True):
        places = np.flatnonzero(_but_the_best(score, gone))
        indices = (np.arange(count)[:, None] * score.size + places).ravel().tolist()
        if indices:
            root = group[0].dep
            graph.get_pruning_group(root.target.module, root.handler, indices).prune()


def _scores(worth: Tensor | None, blocks: int) -> Array:
    assert worth is not None  # it is for a group without layers, and each has its root
    return worth.view(blocks, -1).mean(0).numpy()


def _but_the_best(score: Array, gone: Array) -> Array:
    """A layer without channels would cut the model in two: one stays."""
    kept = gone.copy()
    if gone.all():
        kept[np.argmax(score)] = False
    return kept


def _blocks(group: Any) -> int:
    from torch import nn

    layers = [item.dep.target.module for item in group]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    return max((layer.groups for layer in convolutions if layer.groups != layer.out_channels), default=1)


def _reaches_output(graph: Any, group: Any) -> bool:
    """Whether the channels of a group are channels of the model's answers: no node reads them."""
    return any(graph.is_out_channel_pruning_fn(item.dep.handler) and not item.dep.target.outputs for item in group)


def _of_attention(module: nn.Module) -> set[nn.Module]:
    """Layers whose outputs are divided among heads: `prune.heads` is for them."""
    from leanmark.networks.layers import SelfAttention

    found = [part for part in module.modules() if isinstance(part, SelfAttention)]
    return {layer for part in found for layer in (part.query, part.key, part.value)}


def _must_stay(graph: Any, item: Any, fixed: set[nn.Module]) -> bool:
    """Whether it is a parameter of no layer, whose shape no structure tells, or what one of these layers gives."""
    from torch import nn

    part = item.dep.target.module
    return isinstance(part, nn.Parameter) or (part in fixed and graph.is_out_channel_pruning_fn(item.dep.handler))


def _sizes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def _answer_shape(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    import torch

    try:
        with torch.inference_mode():
            answer = module(*inputs)
    except RuntimeError as error:
        raise PreparationError(
            f"the model does not run with fewer channels: {error}",
            do="Take sizes in forward from tensors, not from numbers: flatten(1) instead of view(-1, 800).",
        ) from error
    return tuple((answer[0] if isinstance(answer, tuple | list) else answer).shape)
