"""Pruning in rounds: a little at a time, with training in between, by any criterion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from leanmark import registry
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel

# What criteria do decides what comes out, so their modules are part of what an artifact's key is made of.
from leanmark.techniques import pruning, saliency
from leanmark.techniques.finetuning import keeping
from leanmark.techniques.training import Loss, fit

CRITERIA = {
    "prune.magnitude": pruning.magnitude,
    "prune.random": pruning.at_random,
    "prune.taylor": saliency.taylor,
    "prune.obd": saliency.optimal_brain_damage,
}
Schedule = Literal["cubic", "exponential", "linear"]


class _OneOfThem:
    """Checked when a suite is loaded; pydantic is then imported, and not before."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        def check(criterion: Any) -> Any:
            chosen(criterion)
            return criterion

        return core_schema.no_info_after_validator_function(check, handler(source))


Criterion = Annotated[str | dict[str, dict[str, Any]], _OneOfThem]


def iterative_reached(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Zeros counted in the final artifact's weight tensors."""
    return pruning.sparsity_of("prune.iterative", artifact, params)


@step(
    "prune.iterative",
    family="pruning",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=iterative_reached,
    libraries=("torch", "numpy"),
    splits=("train",),
)
def iterative(
    model: TorchModel,
    ctx: Context,
    *,
    sparsity: Annotated[float, Gt(0), Lt(1)],
    criterion: Criterion = "prune.magnitude",
    rounds: Annotated[int, Ge(1), Le(100)] = 5,
    schedule: Schedule = "cubic",
    epochs: Annotated[float, Gt(0), Le(1000)] = 1.0,
    last_epochs: Annotated[float, Gt(0), Le(1000)] | None = None,
    learning_rate: Annotated[float, Gt(0), Le(10)] = 2e-3,
    loss: Loss = "cross_entropy",
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1,
    shift: Annotated[int, Ge(0), Le(16)] = 0,
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
) -> TorchModel:
    """Prune in rounds, and train what is left after each: more weights can go than at once.

    sparsity: share of the weights that are zero in the end, 0 < sparsity < 1.
    criterion: which weights go: prune.magnitude, prune.random, prune.taylor or prune.obd, or one of them with
    parameters, as `{prune.taylor: {samples: 4096}}`.
    rounds: how often weights are taken. What is zero stays zero.
    schedule: how sparsity grows from round to round: `cubic` takes many weights first and few at last; `exponential`
    leaves the same share of what is there each time; `linear` takes the same number each time.
    epochs: passes over the train split after each round; last_epochs: after the last one, by default as many.
    learning_rate: the highest of each training, which it climbs to and falls from. loss, label_smoothing,
    shift, dropout: as in train.finetune. Few weights overfit too, if less easily
    than many: they want less dropout (Han et al. 2015, section 3.2).
    Evidence: zeros counted in the final artifact; ineffective when their share is more than 0.001 from the one asked
    for.
    Source: Han et al. 2015, Learning both Weights and Connections; Zhu, Gupta 2017, To Prune, or Not to Prune (the
    cubic schedule); Menghani 2021, Efficient Deep Learning, arXiv 2106.08962 (Algorithm 1).
    """
    name, given = chosen(criterion)
    for number in range(1, rounds + 1):
        reached = sparsity_after(number, rounds, sparsity, schedule)
        params = registry.get_step(name).validate({**_with_loss(name, given, loss), "sparsity": reached}).params
        model = CRITERIA[name](model, ctx, **params)
        after_backward, after_step = keeping(model.module, ("sparsity",))
        fit(
            model.module,
            ctx.split("train"),
            epochs=epochs if number < rounds or last_epochs is None else last_epochs,
            learning_rate=learning_rate,
            generator=ctx.generator(f"prune.iterative/{number}"),
            loss=loss,
            label_smoothing=label_smoothing,
            shift=shift,
            dropout=dropout,
            after_backward=after_backward,
            after_step=after_step,
            progress=lambda done, text, n=number: ctx.progress(
                (n - 1 + done) / rounds, f"round {n} of {rounds}, {text}"
            ),
        )
    return model.with_module(model.module)


def _with_loss(name: str, given: Mapping[str, Any], loss: Loss) -> Mapping[str, Any]:
    """A criterion that goes by a loss goes by the one that is trained with, unless it names another."""
    fields = registry.get_step(name).parameters.model_fields
    return {"loss": loss, **given} if "loss" in fields else given


def chosen(criterion: str | Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The criterion's step and its parameters. Raises ValueError for what is none."""
    named = {criterion: {}} if isinstance(criterion, str) else dict(criterion)
    if len(named) != 1:
        raise ValueError(f"one criterion is wanted, of {', '.join(CRITERIA)}")
    ((name, params),) = named.items()
    if name not in CRITERIA:
        raise ValueError(f"'{name}' is no criterion; there are {', '.join(CRITERIA)}")
    if "sparsity" in params:
        raise ValueError(f"{name} takes its sparsity from prune.iterative")
    registry.get_step(name).validate({**params, "sparsity": 0.5})
    return name, params


def sparsity_after(number: int, rounds: int, sparsity: float, schedule: Schedule) -> float:
    """The sparsity that round `number` of `rounds` prunes to."""
    if number == rounds:
        return sparsity
    left = 1 - number / rounds
    if schedule == "cubic":
        return sparsity * (1 - left**3)
    if schedule == "exponential":
        return 1 - (1 - sparsity) ** (number / rounds)
    return sparsity * number / rounds
