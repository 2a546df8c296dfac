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
def test_everything_is_taken_once_and_nothing_is_made_twice_at_once(
    data: st.DataObject, names: set[str], seeds: int, cores: int
):
    waiting = trials(sorted(names), seeds)
    stored: set[str] = set()
    order = _Order(waiting, stored.__contains__)
    running: dict[tuple[str, int], list[str]] = {}  # with what each has left to make, in order
    taken: list[tuple[str, int]] = []
    while len(order) or running:
        while len(running) < cores and (name := order.take()) is not None:
            keys = waiting[name].keys()
            left = [key for key in (keys.base, *keys.steps) if key not in stored]
            assert not {key for others in running.values() for key in others} & set(left)
            running[name] = left
            taken.append(name)
        assert running
        name = data.draw(st.sampled_from(sorted(running)))
        if running[name]:
            stored.add(running[name].pop(0))
        else:
            del running[name]
            order.end(name)
    assert sorted(taken) == sorted(waiting)


def test_a_recipe_starts_as_soon_as_its_own_base_is_there():
    stored: set[str] = set()
    waiting = trials(["base", "pruned"])
    order = _Order(waiting, stored.__contains__)
    assert [order.take(), order.take(), order.take()] == [("lenet-300-100/base", 0), ("lenet-5/base", 0), None]
    stored.add(waiting["lenet-300-100/base", 0].keys().base)
    order.end(("lenet-300-100/base", 0))
    assert order.take() == ("lenet-300-100/pruned", 0)
    assert order.take() is None


def test_without_a_trial_of_its_own_a_base_is_made_by_one_alone():
    order = _Order(trials(["pruned", "other"]), lambda _: False)
    assert [order.take(), order.take(), order.take()] == [("lenet-300-100/pruned", 0), ("lenet-5/pruned", 0), None]


def test_what_begins_alike_waits_until_the_beginning_is_stored():
    waiting = trials(["pruned", "tuned", "other"])
    stored = {trial.keys().base for trial in waiting.values()}
    order = _Order(waiting, stored.__contains__)
    first = [("lenet-300-100/pruned", 0), ("lenet-300-100/other", 0), ("lenet-5/pruned", 0), ("lenet-5/other", 0)]
    assert [order.take() for _ in range(4)] == first
    assert order.take() is None
    stored.add(waiting["lenet-5/pruned", 0].keys().final)  # as soon as it is there, and not only at the end
    assert order.take() == ("lenet-5/tuned", 0)


def test_what_lost_its_base_is_not_tried():
    order = _Order(trials(["base", "pruned"]), lambda _: False)
    name = order.take()
    assert name is not None
    order.end(name)
    why = Prepared(Status.FAILED, "it broke")
    lost = {("lenet-300-100/pruned", 0): why}
    assert order.drop(lost) == lost
    assert order.drop(lost) == {}
    assert order.take() == ("lenet-5/base", 0)
    assert order.take() is None


def test_seconds_are_told_for_what_each_trial_makes_when_its_turn_comes():
    order = _Order(trials(["pruned", "tuned", "base"]), lambda _: False)
    seconds = order.seconds()
    base, pruned, tuned = (seconds[f"lenet-5/{name}", 0] for name in ("base", "pruned", "tuned"))
    epochs = 8 * registry.get_workload("lenet-5").epoch_seconds
    assert base > epochs > pruned  # the model is made first, by the trial that is nothing else
    assert tuned > pruned
    found = trials(["pruned"])
    stored = {trial.keys().base for trial in found.values()}
    assert _Order(found, stored.__contains__).seconds()["lenet-5/pruned", 0] == pruned
