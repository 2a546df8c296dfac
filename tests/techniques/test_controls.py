"""Controls do what they say, on every stage, and evidence tells a control that something else touched."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanmark import registry
from leanmark.networks.lenet import build_lenet_300_100
from leanmark.stages import Artifact, Context, Delivery, Program, Split, TorchModel
from leanmark.techniques.controls import true_ratio
from techniques import applying
from techniques.applying import evidence, stored

IMAGES = np.zeros((2, 1, 28, 28), dtype=np.float32)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, np.arange(2)), 0)


def model(seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    config = {"widths": [12, 8]}
    return TorchModel(build_lenet_300_100((12, 8)).eval(), "leanmark.networks.lenet:build_lenet_300_100", config)


@pytest.fixture(scope="module")
def program() -> Program:
    return registry.get_step("export.onnx").function(model(), CONTEXT)


def apply(name: str, stage: TorchModel | Program, **params):
    return applying.apply(name, stage, CONTEXT, **params)


def test_both_take_every_stage_and_hand_on_what_came_in():
    for name in ("control.identity", "control.slowdown"):
        step = registry.get_step(name)
        assert step.consumes == registry.ANY_STAGE
        assert step.produces is None
        assert step.exact == 0.0


def test_identity_gives_the_same_artifact_byte_for_byte(tmp_path, program):
    for name, stage in (("torch", model()), ("onnx", program)):
        before = stored(stage, tmp_path / f"{name}-before")
        after = stored(apply("control.identity", stage), tmp_path / f"{name}-after")
        assert before.content_hash == after.content_hash
        found = evidence("control.identity", replace(after, reference=before))
        assert found.effective
        assert found.facts["different"] == 0


def test_one_changed_weight_or_another_delivery_is_no_identity(tmp_path):
    before = stored(model(), tmp_path / "before")
    changed = model()
    with torch.no_grad():
        changed.module.fc2.weight[3, 1] += 1e-7
    found = evidence("control.identity", replace(stored(changed, tmp_path / "changed"), reference=before))
    assert not found.effective
    assert "fc2.weight" in found.reason
    packed = stored(replace(model(), delivery=Delivery(packed=True)), tmp_path / "packed")
    assert not evidence("control.identity", replace(packed, reference=before)).effective
    assert not evidence("control.identity", before).effective  # nothing to compare with


def test_slowdown_changes_how_a_model_is_driven_and_nothing_else(tmp_path, program):
    for name, stage in (("torch", model()), ("onnx", program)):
        before = stored(stage, tmp_path / f"{name}-before")
        after = stored(apply("control.slowdown", stage, percent=3), tmp_path / f"{name}-after")
        assert after.delivery.slowdown == 0.03
        assert after.manifest["files"] == before.manifest["files"]
        found = evidence("control.slowdown", after, percent=3)
        assert found.effective
        assert found.facts["ratio"] == pytest.approx(1.03, abs=1e-12)
        assert not evidence("control.slowdown", after, percent=5).effective
        assert not evidence("control.slowdown", before, percent=3).effective
        assert true_ratio(before) is None


@given(percent=st.floats(0.5, 50))
def test_the_true_ratio_is_the_percentage_asked_for(percent):
    stage = apply("control.slowdown", model(), percent=percent)
    artifact = Artifact(Path(), {"delivery": {"packed": False, "slowdown": stage.delivery.slowdown}})
    assert true_ratio(artifact) == pytest.approx(1 + percent / 100, abs=1e-9)


def test_a_packed_model_stays_packed_when_it_is_slowed_down():
    stage = apply("control.slowdown", replace(model(), delivery=Delivery(packed=True)), percent=10)
    assert stage.delivery == Delivery(packed=True, slowdown=0.1)


@pytest.mark.parametrize("percent", [0, 0.4, 51, -3])
def test_percentages_out_of_range_are_refused(percent):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        registry.get_step("control.slowdown").validate({"percent": percent})
