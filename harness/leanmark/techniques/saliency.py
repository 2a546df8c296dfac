"""Pruning by what the loss says of a weight: gradients, Taylor expansions, second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Context, TorchModel
from leanmark.techniques.pruning import Fraction, Scope, sparsity_of, zero_least
from leanmark.techniques.training import Loss, criterion_of, tensors_of
from leanmark.weights import finite_values, weight_parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from leanmark.stages import Artifact

# Examples whose gradients are held at once, each its own.
_TOGETHER = 32
# With more classes than these one is drawn for each example.
_CLASSES = 32
# Batches of gradients whose products are summed one by one: single examples would be slow.
_BATCH = 64


def taylor_reached(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors."""
    return sparsity_of("prune.taylor", artifact, params)


@step(
    "prune.taylor",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=taylor_reached,
    splits=("train",),
)
def taylor(
    model: TorchModel,
    ctx: Context,
    *,
    sparsity: Fraction,
    saliency: Literal["taylor", "gradient"] = "taylor",
    scope: Scope = "global",
    samples: Annotated[int, Ge(1)] = 2048,
    loss: Loss = "cross_entropy",
) -> TorchModel:
    """Set to zero the weights whose loss would change the loss of the model least, by its gradient.

    sparsity: share of the weights set to zero, 0 <= sparsity < 1; weights that are zero go first.
    saliency: `taylor` is the square of weight times gradient, the first term of a Taylor expansion of the loss about
    the model as it is; `gradient` the square of the gradient alone. Both are summed over batches of 64.
    scope: `global` ranks the weights of all layers together; `layer` takes the same share of each.
    samples: examples of the train split to look at, drawn by the seed.
    loss: as the model was trained with.
    Evidence: zeros counted in the final artifact; ineffective when their share is more than 0.001 from the one asked
    for.
    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning; Mozer, Smolensky 1989,
    Skeletonization (gradients).
    """
    scores = {name: np.zeros(weight.numel()) for name, weight in weight_parameters(model.module).items()}
    for gradients in _gradients(model.module, ctx, "prune.taylor", samples, loss):
        for name, weight in weight_parameters(model.module).items():
            by = gradients[name] * finite_values(name, weight) if saliency == "taylor" else gradients[name]
            scores[name] += np.square(by, dtype=np.float64)
    return _prune(model, scores, sparsity, scope)


def obd_reached(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors."""
    return sparsity_of("prune.obd", artifact, params)


@step(
    "prune.obd",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=obd_reached,
    splits=("train",),
)
def optimal_brain_damage(
    model: TorchModel,
    ctx: Context,
    *,
    sparsity: Fraction,
    scope: Scope = "global",
    samples: Annotated[int, Ge(1)] = 512,
    loss: Literal["cross_entropy", "mse"] = "cross_entropy",
) -> TorchModel:
    """Set to zero the weights that a quadratic model of the loss can spare best: Optimal Brain Damage.

    A weight's saliency is half its square times the second derivative of the loss by it. Second derivatives are the
    diagonal of the generalized Gauss-Newton matrix (the Levenberg-Marquardt approximation of the paper): for cross
    entropy the Fisher information, over every class as far as the model believes in it, or, beyond 32 classes, over
    one drawn so for each example.
    sparsity: share of the weights set to zero, 0 <= sparsity < 1; weights that are zero go first.
    scope: `global` ranks the weights of all layers together; `layer` takes the same share of each.
    samples: examples of the train split to look at, drawn by the seed.
    loss: as the model was trained with.
    Evidence: zeros counted in the final artifact; ineffective when their share is more than 0.001 from the one asked
    for.
    Source: LeCun, Denker, Solla 1990, Optimal Brain Damage; Martens 2020, New Insights and Perspectives on the Natural
    Gradient Method (Gauss-Newton and Fisher).
    """
    squares = {
        name: np.square(finite_values(name, weight), dtype=np.float64)
        for name, weight in weight_parameters(model.module).items()
    }
    curvature = gauss_newton_diagonal(model.module, ctx, samples, loss)
    scores = {name: curvature[name] * square / 2 for name, square in squares.items()}
    return _prune(model, scores, sparsity, scope)


def gauss_newton_diagonal(module: nn.Module, ctx: Context, samples: int, loss: Loss) -> dict[str, Array]:
    """By weight tensor: the second derivatives of the mean loss by each weight, shape (weights,), never negative."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    generator = ctx.generator("prune.obd")
    inputs, _ = _examples(ctx, samples, loss, generator)
    weights = {name: weight.detach() for name, weight in weight_parameters(module).items()}
    found = {name: np.zeros(weight.numel()) for name, weight in weights.items()}

    def of_one(values: Mapping[str, Tensor], drawn: Tensor, *example: Tensor) -> Tensor:
        answer = functional_call(module, dict(values), tuple(part[None] for part in example))
        answer = (answer[0] if isinstance(answer, tuple | list) else answer).reshape(1, -1)
        if loss == "cross_entropy":
            return functional.cross_entropy(answer, drawn.reshape(1))
        # Half the curvature of the squared error is one along each answer: a random sign for each sums them up.
        return (answer * drawn).sum() * np.sqrt(2.0 / answer.numel())

    module.eval()
    per_example = vmap(grad(of_one), in_dims=(None, 0, *[0] * len(inputs)))
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(inputs[0]), _TOGETHER):
            batch = [part[start : start + _TOGETHER] for part in inputs]
            with torch.no_grad():
                answer = module(*batch)
                answer = (answer[0] if isinstance(answer, tuple | list) else answer).flatten(1)
            for drawn, share in _probes(answer, loss, generator):
                for name, gradient in per_example(weights, drawn, *batch).items():
                    squares = gradient.detach().double().square().flatten(1)
                    found[name] += (share.double() @ squares).numpy()
    return {name: values / len(inputs[0]) for name, values in found.items()}


def _probes(answer: Tensor, loss: Loss, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """What to differentiate by for a batch of answers, and what each example's square counts."""
    import torch

    if loss == "mse":
        yield torch.randint(0, 2, answer.shape, generator=generator).float() * 2 - 1, torch.ones(len(answer))
    elif answer.shape[1] <= _CLASSES:
        for number, believed in enumerate(answer.softmax(1).T):
            yield torch.full((len(answer),), number), believed
    else:
        yield torch.multinomial(answer.softmax(1), 1, generator=generator)[:, 0], torch.ones(len(answer))


def _gradients(
    module: nn.Module, ctx: Context, purpose: str, samples: int, loss: Loss
) -> Iterator[Mapping[str, Array]]:
    """Of the mean loss of each batch, by weight tensor, shape (weights,)."""
    import torch

    inputs, targets = _examples(ctx, samples, loss, ctx.generator(purpose))
    criterion = criterion_of(loss, 0.0)
    weights = weight_parameters(module)
    if not weights:
        raise NotApplicable("this model has no weight tensor to prune")
    module.eval()
    with torch.inference_mode(False), torch.enable_grad():
        for start in range(0, len(targets), _BATCH):
            answer: Any = module(*(part[start : start + _BATCH] for part in inputs))
            answer = answer[0] if isinstance(answer, tuple | list) else answer
            value = criterion(answer, targets[start : start + _BATCH])
            parts: Any = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            found: Sequence[Tensor | None] = parts
            yield {
                name: np.zeros(weight.numel()) if gradient is None else gradient.reshape(-1).numpy()
                for (name, weight), gradient in zip(weights.items(), found, strict=True)
            }


def _examples(ctx: Context, samples: int, loss: Loss, generator: Any) -> tuple[list[Tensor], Tensor]:
    """So many examples of the train split, in random order."""
    import torch

    train = ctx.split("train")
    if train.targets is None or not len(train):
        raise PreparationError("the train split has no examples with targets to compute a loss on")
    inputs, targets = tensors_of(train, loss)
    chosen = torch.randperm(len(train), generator=generator)[:samples]
    return [part[chosen] for part in inputs], targets[chosen]


def _prune(model: TorchModel, scores: Mapping[str, Array], sparsity: float, scope: Scope) -> TorchModel:
    """Weights that are zero cost nothing, so they go before all others."""
    ranked: Callable[[str, Any], Array] = partial(_with_zeros_first, scores)
    zero_least(model.module, ranked, sparsity, scope)
    return model.with_module(model.module)


def _with_zeros_first(scores: Mapping[str, Array], name: str, weight: nn.Parameter) -> Array:
    return np.where(finite_values(name, weight) == 0, -1.0, scores[name])
