"""Every step on models that it was not made for: it works, or it says why not; it never ends in any other error."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from leanmark import registry
from leanmark.errors import LeanmarkError, NotApplicable, PreparationError
from leanmark.registry import Step
from leanmark.stages import Context, Program, Service, Split, TorchModel, save

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((64, 1, 8, 8), dtype=np.float32)
TARGETS = RANDOM.integers(0, 4, 64)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, TARGETS), 0)
EMPTY = Context(
    lambda name: Split({"image": IMAGES[:0]}, TARGETS[:0]) if name == "calibration" else CONTEXT.split(name), 0
)

# What a step cannot do without, and what would make it slow.
PARAMS = {
    "inputs.payload": {"format": "raw"},
    "serve.cache": {"entries": 10},
    "cluster.kmeans": {"clusters": 4},
    "control.slowdown": {"percent": 3},
    "encode.ans": {},
    "lowrank.cp": {"ratio": 0.5, "min_size": 1},
    "lowrank.sparse": {"ratio": 0.2, "columns": 0.2, "min_size": 1},
    "lowrank.svd": {"ratio": 0.5, "min_size": 1},
    "lowrank.tucker": {"ratio": 0.5, "min_size": 1},
    "prune.bias": {"amount": 0.5},
    "prune.channels": {"ratio": 0.5},
    "prune.heads": {"ratio": 0.5},
    "prune.iterative": {"sparsity": 0.5, "rounds": 1, "epochs": 1},
    "prune.magnitude": {"sparsity": 0.5},
    "prune.obd": {"sparsity": 0.5},
    "prune.random": {"sparsity": 0.5},
    "prune.taylor": {"sparsity": 0.5},
    "quantize.binary": {"epochs": 1},
    "quantize.mixed": {"bits": 4},
    "quantize.qat": {"epochs": 1},
    "train.finetune": {"epochs": 1},
}


class Tied(nn.Module):
    """One linear layer at two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first = nn.Linear(64, 64)
        self.second = self.first
        self.last = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(self.flatten(x))))))


class SharedWeight(Tied):
    """Two layers with one weight tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(64, 64)
        self.second.weight = self.first.weight


def without_bias() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(384, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False),
    )  # fmt: skip


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def with_nan() -> nn.Module:
    model = without_bias()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    return model


def all_zero() -> nn.Module:
    model = without_bias()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def without_layers() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "shared-weight": SharedWeight,
    "without-bias": without_bias,
    "one-layer": one_layer,
    "nan": with_nan,
    "zero": all_zero,
    "no-layers": without_layers,
}
STEPS = [item for item in registry.steps() if not item.name.startswith("control.") and item.name != "compile.inductor"]


def model(name: str) -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(MODELS[name]().eval(), f"{__name__}:{MODELS[name].__name__}")


def applied(item: Step, stage: TorchModel | Program, ctx: Context = CONTEXT) -> TorchModel | Program:
    return item.function(stage, ctx, **item.parameters(**PARAMS.get(item.name, {})).model_dump())


def stage_for(item: Step, name: str) -> TorchModel | Program:
    stage = model(name)
    if TorchModel in item.consumes:
        return stage
    if item.consumes == (Service,):
        return applied(registry.get_step("serve.plain"), stage)
    return applied(registry.get_step("export.onnx"), stage)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("item", STEPS, ids=lambda item: item.name)
def test_a_step_works_or_says_why_not(item: Step, name: str, tmp_path: Path):
    stage = stage_for(item, name)
    told = ""
    try:
        artifact = save(applied(item, stage), tmp_path)
    except LeanmarkError as error:
        told = error.sentence
    if told:
        assert "Traceback" not in told
        return
    evidence = item.evidence(artifact, item.validate(PARAMS.get(item.name, {})).params)
    assert evidence.effective or evidence.reason
    if name == "no-layers" and Service not in item.consumes:  # whatever answers can be served
        assert not evidence.effective or item.family in ("export", "clean-up", "fusion", "compiling")


@pytest.mark.parametrize("item", [item for item in STEPS if "calibration" in item.splits], ids=lambda item: item.name)
def test_an_empty_calibration_split_is_told(item: Step):
    stage = stage_for(item, "without-bias")
    with pytest.raises(LeanmarkError, match="calibration"):
        applied(item, stage, EMPTY)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("prune.magnitude", {"sparsity": 1}),
        ("prune.magnitude", {"sparsity": -0.1}),
        ("prune.random", {"sparsity": 1.0}),
        ("prune.channels", {"ratio": 1}),
        ("prune.nm", {"n": 0}),
        ("prune.bias", {"amount": -1}),
        ("cluster.kmeans", {"clusters": 1}),
        ("lowrank.svd", {"ratio": 0}),
        ("lowrank.input", {"rank": 0}),
        ("quantize.weights", {"bits": 5}),
        ("quantize.static", {"calibration": "mean"}),
        ("quantize.binary", {"keep": ["middle"]}),
        ("train.finetune", {"epochs": 0}),
        ("train.finetune", {"epochs": 1, "learning_rate": float("nan")}),
        ("prune.magnitude", {"sparsity": 0.5, "colour": "red"}),
    ],
)
def test_parameters_out_of_range_are_refused_when_a_suite_is_loaded(name: str, params: dict[str, object]):
    with pytest.raises(ValidationError):
        registry.get_step(name).validate(params)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("cluster.kmeans", {"clusters": 60_000}, "clusters"),
        ("lowrank.svd", {"ratio": 1.0, "min_size": 1}, "smaller"),
        ("lowrank.input", {"rank": 30}, "no fewer weights"),
        ("lowrank.input", {"rank": 1, "shape": (5, 5)}, "which are no 5 x 5"),
        ("prune.bias", {"amount": 3000}, "bias"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_told(name: str, params: dict[str, object], says: str):
    step = registry.get_step(name)
    with pytest.raises((PreparationError, NotApplicable), match=says):
        step.function(model("one-layer"), CONTEXT, **step.parameters(**params).model_dump())
