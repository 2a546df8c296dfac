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


def test_what_trials_begin_with_counts_once_for_each_seed():
    alone = effort.unshared([("a", NET, 0, (PRUNE, FINE))])["a"]
    found = effort.unshared([
        ("base", NET, 0, ()),
        ("pruned", NET, 0, (PRUNE,)),
        ("both", NET, 0, (PRUNE, FINE)),
        ("other seed", NET, 1, (PRUNE, FINE)),
    ])  # fmt: skip
    assert sum(found.values()) == pytest.approx(2 * alone)
    assert found["both"] == pytest.approx(effort.seconds_of(NET, [PRUNE, FINE])[-1])
    assert effort.unshared([("both", NET, 0, (PRUNE, FINE))], there=[(NET, 0, (PRUNE,))])["both"] == found["both"]


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
