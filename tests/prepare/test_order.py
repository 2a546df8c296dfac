"""Trials are prepared in an order that makes nothing twice and leaves no core without work."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from leanmark import registry
from leanmark.prepare.recipe import Prepared, Trial
from leanmark.preparing import _Order
from leanmark.results import Status

NETWORKS = ("lenet-300-100", "lenet-5")
PRUNE, TUNE = (
    registry.get_step(name).validate(params)
    for name, params in (("prune.magnitude", {"sparsity": 0.5}), ("train.finetune", {"epochs": 1}))
)
OTHER = registry.get_step("prune.random").validate({"sparsity": 0.5})
RECIPES = {
    "base": (),
    "again": (),
    "pruned": (PRUNE,),
    "tuned": (PRUNE, TUNE),
    "same": (PRUNE, TUNE),
    "other": (OTHER,),
}


def trials(names: Iterable[str] = RECIPES, seeds: int = 1) -> dict[tuple[str, int], Trial]:
    return {
        (f"{network}/{name}", seed): Trial(registry.get_workload(network), RECIPES[name], seed)
        for network in NETWORKS
        for name in names
        for seed in range(seeds)
    }


@given(st.data(), st.sets(st.sampled_from(list(RECIPES)), min_size=1), st.integers(1, 3), st.integers(1, 4))
def test_everything_is_taken_once_and_after_its_base(data: st.DataObject, names: set[str], seeds: int, cores: int):
    waiting = trials(sorted(names), seeds)
    order = _Order(waiting)
    has_base = bool(names & {"base", "again"})
    running: list[tuple[str, int]] = []
    taken: list[tuple[str, int]] = []
    bases: set[str] = set()
    while len(order) or running:
        while len(running) < cores and (name := order.take()) is not None:
            trial = waiting[name]
            assert not (trial.steps and has_base) or trial.keys().base in bases
            running.append(name)
            taken.append(name)
        assert running
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        order.end(ended)
        if not waiting[ended].steps:
            bases.add(waiting[ended].keys().base)
    assert sorted(taken) == sorted(waiting)


def test_a_recipe_starts_as_soon_as_its_own_base_is_there():
    order = _Order(trials(["base", "pruned"]))
    assert [order.take(), order.take(), order.take()] == [("lenet-300-100/base", 0), ("lenet-5/base", 0), None]
    order.end(("lenet-300-100/base", 0))
    assert order.take() == ("lenet-300-100/pruned", 0)
    assert order.take() is None


def test_what_another_does_right_now_comes_after_work_of_ones_own():
    order = _Order({name: trial for name, trial in trials().items() if trial.steps})
    assert order.take() == ("lenet-300-100/pruned", 0)
    assert order.take() == ("lenet-300-100/other", 0)
    assert order.take() == ("lenet-5/pruned", 0)
    assert order.take() == ("lenet-5/other", 0)
    assert order.take() == ("lenet-300-100/tuned", 0)  # rather twice than not at all


def test_what_lost_its_base_is_not_tried():
    order = _Order(trials(["base", "pruned"]))
    name = order.take()
    assert name is not None
    order.end(name)
    why = Prepared(Status.FAILED, "it broke")
    lost = {("lenet-300-100/pruned", 0): why}
    assert order.drop(lost) == lost
    assert order.drop(lost) == {}
    assert order.take() == ("lenet-5/base", 0)
    assert order.take() is None
