"""What preparing should take goes by epochs, and counts what trials share once."""

from dataclasses import replace

import pytest

from leanmark import effort, registry
from leanmark.declare.plan import estimate, make_plan
from leanmark.declare.suite import load
from leanmark.registry import Workload, get_step, get_workload

registry.load_builtins()
NET = Workload("net", train={"epochs": 10}, epoch_seconds=60.0)


def step(name: str, **params):
    return get_step(name).validate(params)


PRUNE = step("prune.iterative", sparsity=0.9, rounds=4, epochs=2, last_epochs=12)
FINE = step("train.finetune", epochs=1)
PLAIN = step("prune.magnitude", sparsity=0.5)


def test_training_counts_by_its_epochs():
    base, pruned, fine, plain = effort.seconds_of(NET, [PRUNE, FINE, PLAIN])
    assert base / 600 == pytest.approx(1, abs=0.1)
    assert pruned / ((3 * 2 + 12) * 60) == pytest.approx(1, abs=0.1)
    assert fine / 60 == pytest.approx(1, abs=0.1)
    assert 0 < plain < 10


def test_what_trials_begin_with_counts_once():
    parts = {
        "both first": effort.beginnings(NET, (PRUNE, FINE)),
        "base": effort.beginnings(NET, ()),
        "pruned": effort.beginnings(NET, (PRUNE,)),
        "other": effort.beginnings(NET, (FINE,)),
    }
    base, pruned, fine = effort.seconds_of(NET, [PRUNE, FINE])
    found = effort.unshared(parts)
    assert found == pytest.approx({"both first": base + pruned + fine, "base": 0, "pruned": 0, "other": fine})
    there = [key for key, _ in parts["pruned"]]
    assert effort.unshared({"both": parts["both first"]}, there) == pytest.approx({"both": fine})


def test_a_plan_tells_long_training_from_short(tmp_path):
    def minutes(epochs: int) -> float:
        file = tmp_path / f"{epochs}.yaml"
        file.write_text(
            "suite: long\nworkloads: [lenet-5]\ntargets: [{runtime: onnxruntime}]\n"
            f"recipes:\n  tuned: [{{train.finetune: {{epochs: {epochs}}}}}]\n"
        )
        plan = make_plan(load(file), lambda runtime, device: None)
        return estimate(plan, lambda cell: False, 1).prepare_seconds / 60

    a_hundred_more = get_workload("lenet-5").epoch_seconds * 100 / 60
    assert minutes(101) - minutes(1) == pytest.approx(a_hundred_more)
    assert effort.seconds_of(replace(NET, train=None), []) < [10]
