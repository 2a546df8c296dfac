"""Two towers rank about as well as the cross network that they replace, and can be asked apart; floors are floors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leanmark import registry
from leanmark.errors import NotApplicable, PreparationError
from leanmark.modules import resolve
from leanmark.networks.rankers import Ranker, Towers
from leanmark.stages import Context, Split, TorchModel, build
from leanmark.workloads.interactions import recall
from leanmark.workloads.splits import load
from techniques.applying import apply, evidence, stored

STEPS = ["serve.two_tower", "floor.popularity", "floor.random"]
QUICK = {"serve.two_tower": {"epochs": 4, "width": 32, "hidden": 64}}


@pytest.fixture(scope="module")
def splits() -> Mapping[str, Split]:
    return load(registry.get_workload("catalogue-ranking"))


@pytest.fixture(scope="module")
def context(splits: Mapping[str, Split]) -> Context:
    return Context(lambda name: splits[name], 0)


@pytest.fixture
def cross() -> TorchModel:
    """The catalogue's network with the features that are known, not trained."""
    workload = registry.get_workload("catalogue-ranking")
    assert workload.model is not None
    assert workload.initial is not None
    config = dict(workload.config or {})
    model = TorchModel(build(workload.model, config), workload.model, config)
    known = {name: torch.from_numpy(array) for name, array in resolve(workload.initial)().items()}
    model.module.load_state_dict(known, strict=False)
    return model


def answers(model: TorchModel, split: Split) -> np.ndarray:
    with torch.inference_mode():
        return model.module(*(torch.from_numpy(array) for array in split.inputs.values())).numpy()


@pytest.fixture(scope="module")
def made() -> dict[str, TorchModel]:
    return {}


@pytest.fixture
def model(name: str, made: dict[str, TorchModel], cross: TorchModel, context: Context) -> TorchModel:
    """What a step makes of the cross network; made once."""
    if name not in made:
        made[name] = apply(name, cross, context, **QUICK.get(name, {}))
    return made[name]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("serve.two_tower", 0.2, 0.5), ("floor.popularity", 0.15, 0.19), ("floor.random", 0.03, 0.05)],
)
def test_how_well_each_ranks(name: str, least: float, most: float, model: TorchModel, splits: Mapping[str, Split]):
    targets = splits["test"].targets
    assert targets is not None
    assert least < recall(answers(model, splits["test"]), targets).mean() < most


@pytest.mark.parametrize("name", STEPS)
def test_evidence_is_read_off_a_model_and_off_a_service(name: str, model: TorchModel, context: Context, tmp_path: Path):
    assert evidence(name, stored(model, tmp_path / "model")).effective
    service = apply("serve.plain", model, context)
    assert evidence(name, stored(service, tmp_path / "service")).effective


@pytest.mark.parametrize("name", STEPS)
def test_the_cross_network_is_none_of_them(name: str, cross: TorchModel, context: Context, tmp_path: Path):
    for number, stage in enumerate((cross, apply("serve.plain", cross, context))):
        found = evidence(name, stored(stage, tmp_path / str(number)))
        assert not found.effective
        assert found.reason


@pytest.mark.parametrize("name", ["serve.two_tower"])
def test_scores_are_chances(name: str, model: TorchModel, splits: Mapping[str, Split]):
    logits = answers(model, splits["validation"])
    chances = 1 / (1 + np.exp(-logits))
    taken = len(splits["train"]) / logits.size
    assert chances.mean() == pytest.approx(taken, rel=0.1)
    assert len(np.unique(chances[0])) > 0.99 * len(chances[0])  # the highest do not run together at 1


@pytest.mark.parametrize("name", ["serve.two_tower"])
def test_what_is_known_stays(name: str, model: TorchModel, cross: TorchModel):
    before, after = cross.module, model.module
    assert isinstance(before, Ranker)
    assert isinstance(after, Ranker)
    assert isinstance(after.network, Towers)
    assert torch.equal(before.item.known, after.item.known)
    assert torch.equal(before.query.known, after.query.known)
    assert after.item.known.any()


@pytest.mark.parametrize("name", ["serve.two_tower"])
def test_the_same_seed_makes_the_same_towers(
    name: str, cross: TorchModel, context: Context, splits: Mapping[str, Split]
):
    few = splits["test"].head(4)
    params = {**QUICK[name], "epochs": 1}
    first, again = (answers(apply(name, cross, context, **params), few) for _ in range(2))
    other = answers(apply(name, cross, replace(context, seed=1), **params), few)
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("name", STEPS)
def test_a_program_shows_a_floor_but_no_towers(name: str, model: TorchModel, context: Context, tmp_path: Path):
    found = evidence(name, stored(apply("export.onnx", model, context), tmp_path / "program"))
    assert found.effective == (name != "serve.two_tower")
    assert found.effective or "one program" in found.reason


@pytest.mark.parametrize("name", STEPS)
def test_other_models_are_refused(name: str, context: Context):
    with pytest.raises(NotApplicable, match="only "):
        apply(name, TorchModel(torch.nn.Linear(2, 2), "torch.nn:Linear"), context)


def test_towers_do_not_replace_towers(cross: TorchModel, context: Context):
    floor = apply("floor.random", cross, context)
    with pytest.raises(NotApplicable, match="cross network"):
        apply("serve.two_tower", floor, context)


@pytest.mark.parametrize("name", ["serve.two_tower", "floor.popularity"])
def test_a_train_split_without_choices_is_told(name: str, cross: TorchModel, splits: Mapping[str, Split]):
    without = Context(lambda split: Split(splits[split].inputs), 0)
    with pytest.raises(PreparationError, match="which candidate"):
        apply(name, cross, without)
