"""Training: the loop that every reference model and every fine-tuning runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Split, TorchModel
from leanmark.weights import count_elements, count_zeros, distinct_values, weight_parameters, weight_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Loss = Literal["cross_entropy", "binary_cross_entropy", "mse"]
Preserve = Literal["sparsity", "clusters"]
Hook = Callable[["nn.Module"], None]

# The learning rate climbs over this share of the steps, then falls to zero: few epochs
# bear a high rate that way (Smith, Topin 2018, Super-Convergence).
WARM_UP = 0.2
_REPORTS = 50
# What the `train` of a workload may set.
SETTINGS = ("epochs", "batch_size", "learning_rate", "loss", "label_smoothing", "weight_decay", "shift")


def fit(
    module: nn.Module,
    train: Split,
    *,
    epochs: float,
    generator: torch.Generator,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    loss: Loss = "cross_entropy",
    label_smoothing: float = 0.0,
    weight_decay: float = 0.05,
    shift: int = 0,
    after_backward: Hook | None = None,
    after_step: Hook | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> None:
    """Train a module in place, and leave it in eval mode.

    epochs: passes over the split, fractions allowed. learning_rate: the highest, which
    AdamW starts and ends below. label_smoothing: share of the target spread over all
    classes; for cross entropy only. shift: each time a picture is seen, it lies up to so
    many pixels higher or lower and further left or right. after_backward and after_step are called with the
    module when its gradients, or its parameters, have just been computed.

    The module is called with the split's inputs by position, in their order. What comes
    out depends on the module, the split and the generator's state, and on nothing else:
    torch's global generator, which dropout draws from, is seeded for the while. The last
    examples of an epoch that fill no batch are left out; each epoch has another order.

    Raises PreparationError where there are no targets, no examples or no parameters to
    train, where targets do not fit the answers, or where the loss does not stay finite.

    Source: Loshchilov, Hutter 2019, Decoupled Weight Decay Regularization; Szegedy et
    al. 2016, Rethinking the Inception Architecture (label smoothing); Simard, Steinkraus,
    Platt 2003, Best Practices for Convolutional Neural Networks (moved pictures).
    """
    import torch

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    _check(train, parameters)
    count = len(train)
    batch_size = min(batch_size, count)
    total = max(1, round(epochs * count / batch_size))
    report_every = max(1, total // _REPORTS)
    criterion = criterion_of(loss, label_smoothing)

    with _training(module, generator) as channels_last:
        inputs, targets = tensors_of(train, loss)
        if shift and not any(tensor.dim() >= 3 for tensor in inputs):
            raise NotApplicable("shift moves pictures, and no input of this model has rows and columns")
        optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        for number, chosen in enumerate(_batches(count, batch_size, total, generator)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _rate(number, total)
            batch = [tensor[chosen] for tensor in inputs]
            if shift:
                batch = [_moved(tensor, shift, generator) if tensor.dim() >= 3 else tensor for tensor in batch]
            if channels_last:
                batch = [_to_channels_last(tensor) for tensor in batch]
            answer = _answer(module(*batch))
            if number == 0:
                _check_targets(answer, targets, loss)
            value = criterion(answer, targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            if after_backward is not None:
                after_backward(module)
            optimizer.step()
            if after_step is not None:
                after_step(module)
            if (number + 1) % report_every == 0 or number + 1 == total:
                _report(progress, number + 1, total, epochs, float(value.detach()))
        optimizer.zero_grad(set_to_none=True)


def _check(train: Split, parameters: list[nn.Parameter]) -> None:
    if train.targets is None:
        raise PreparationError("the train split has no targets", do="Training needs one target an example.")
    if len(train) == 0 or len(train.targets) != len(train):
        raise PreparationError(f"the train split has {len(train)} examples and {len(train.targets)} targets")
    if not parameters:
        raise NotApplicable("this model has no parameters to train")


def _check_targets(answer: Tensor, targets: Tensor, loss: Loss) -> None:
    if loss != "cross_entropy":
        if answer[0].numel() != targets[0].numel():
            raise PreparationError(f"the model gives {answer[0].numel()} values, but a target is {targets[0].numel()}")
    elif not targets.is_floating_point() and not 0 <= int(targets.min()) <= int(targets.max()) < answer.shape[1]:
        raise PreparationError(
            f"the model knows classes 0 to {answer.shape[1] - 1}, but the targets go from {int(targets.min())} "
            f"to {int(targets.max())}",
            do="Give the model as many outputs as there are classes, and count these from 0.",
        )


@contextmanager
def _training(module: nn.Module, generator: torch.Generator) -> Generator[bool]:
    """Train mode, gradients on, a seeded global generator; gives whether to use channels last.

    On one core of a Zen 4 an epoch of LeNet-5 on 8,000 images takes 2.6 s with the channels
    last, 4.2 s with them first.
    """
    import torch
    from torch import nn

    channels_last = any(isinstance(child, nn.Conv2d) for child in module.modules())
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.train()
        if channels_last:
            _lay_out(module, torch.channels_last)
        try:
            yield channels_last
        finally:
            if channels_last:
                _lay_out(module, torch.contiguous_format)
            module.eval()


def _lay_out(module: nn.Module, memory_format: Any) -> None:
    import torch

    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = torch.empty_like(parameter.data, memory_format=memory_format).copy_(parameter.data)


def tensors_of(train: Split, loss: Loss) -> tuple[list[Tensor], Tensor]:
    import torch

    inputs = [torch.from_numpy(array.copy()) for array in train.inputs.values()]
    inputs = [tensor.float() if tensor.dtype == torch.float64 else tensor for tensor in inputs]
    assert train.targets is not None
    targets = torch.from_numpy(train.targets.copy())
    if loss != "cross_entropy":
        return inputs, targets.float()
    if targets.is_floating_point() and targets.dim() == 1 and bool((targets != targets.round()).any()):
        raise PreparationError("cross entropy needs classes, but targets are not whole numbers", do="Use loss: mse.")
    # Two axes of floats are a probability for each class.
    return inputs, targets.float() if targets.is_floating_point() and targets.dim() > 1 else targets.long()


def _batches(count: int, batch_size: int, total: int, generator: torch.Generator) -> Iterator[Tensor]:
    import torch

    given = 0
    while given < total:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            if given == total:
                return
            yield order[start : start + batch_size]
            given += 1


def _rate(number: int, total: int) -> float:
    """Share of the highest learning rate at step `number` of `total`; neither end is zero."""
    position = (number + 0.5) / total
    return position / WARM_UP if position < WARM_UP else (1 - position) / (1 - WARM_UP)


def criterion_of(loss: Loss, label_smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    from torch.nn import functional

    if loss == "cross_entropy":
        return lambda answer, target: functional.cross_entropy(answer, target, label_smoothing=label_smoothing)
    if loss == "binary_cross_entropy":
        return lambda answer, target: functional.binary_cross_entropy_with_logits(answer.reshape(target.shape), target)
    if loss == "mse":
        return lambda answer, target: functional.mse_loss(answer.reshape(target.shape), target)
    raise PreparationError(f"unknown loss '{loss}'", do="Use cross_entropy, binary_cross_entropy or mse.")


def _moved(batch: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each picture of a batch, (N, …, rows, columns), moved by -most to most pixels; zeros come in."""
    import torch
    from torch.nn import functional

    rows, columns = batch.shape[-2:]
    padded = functional.pad(batch.reshape(len(batch), -1, rows, columns), (most, most, most, most))
    # Every place that a picture may have, as a view: (N, channels, up or down, left or right, rows, columns).
    places = padded.unfold(2, rows, 1).unfold(3, columns, 1)
    down, right = torch.randint(2 * most + 1, (2, len(batch)), generator=generator)
    return places[torch.arange(len(batch)), :, down, right].view(batch.shape)


def _to_channels_last(tensor: Tensor) -> Tensor:
    import torch

    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _answer(output: Any) -> Tensor:
    """The answer proper of a module that gives several outputs: the first."""
    return output[0] if isinstance(output, tuple | list) else output


def _report(progress: Callable[[float, str], None], done: int, total: int, epochs: float, loss: float) -> None:
    if not math.isfinite(loss):
        raise PreparationError(
            f"training diverged: the loss is {loss} after {done} of {total} batches",
            do="Lower learning_rate, and check the train split for NaN and infinity.",
        )
    progress(done / total, f"epoch {epochs * done / total:.1f} of {epochs:g}, loss {loss:.3f}")


# --- fine-tuning ------------------------------------------------------------------------


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
    shift: pixels that each picture is moved by, at most, anew each time that it is seen.
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
