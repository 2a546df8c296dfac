"""Recipes are prepared in child processes: reproducibly, once, and never from stale code."""

from dataclasses import replace
from pathlib import Path

import pytest

from leanmark import registry
from leanmark.declare.plan import make_plan
from leanmark.declare.suite import load
from leanmark.errors import NotApplicable
from leanmark.jobs import Done, Job, Preloaded, run_jobs
from leanmark.jsonable import from_json
from leanmark.planned import builtin_suites
from leanmark.prepare.artifacts import Store, make_keys
from leanmark.prepare.recipe import Prepared, Trial, from_store, prepare, trial_message
from leanmark.results import Status, StepSpec
from leanmark.stages import Program

LOWERING = (StepSpec("export.onnx", {"opset": 20}),)


def quick_trials() -> dict[str, Trial]:
    """Every recipe of `quick`: on the smaller network, lowered for onnxruntime, and as services."""
    (suite,) = [load(path) for path in builtin_suites() if path.stem == "quick"]
    workload = registry.get_workload("lenet-300-100")
    workload = replace(workload, train={**(workload.train or {}), "epochs": 1})
    found = {"fp32": Trial(workload, LOWERING, 0, LOWERING)}
    cells = make_plan(suite).cells
    services = {cell.recipe: cell.steps for cell in cells if cell.target.traffic is not None}
    networks = {cell.recipe for cell in cells if cell.target.traffic is None}
    for recipe in suite.recipes:
        if recipe.name not in networks:
            continue
        exported = any(registry.get_step(spec.name).produces is Program for spec in recipe.steps)
        found[recipe.name] = Trial(workload, recipe.steps if exported else (*recipe.steps, *LOWERING), 0, LOWERING)
    ranking = registry.get_workload("catalogue-ranking")
    for name, steps in services.items():
        found[f"service {name}"] = Trial(ranking, steps, 0, services["fp32"])
    return found


def prepare_all(trials: dict[str, Trial], store: Store, preloaded: Preloaded | None = None) -> dict[str, Prepared]:
    jobs = [Job(name, "leanmark.prepare.child", trial_message(trial, store, ()), 300) for name, trial in trials.items()]
    found: dict[str, Prepared] = {}
    for event in run_jobs(jobs, 2, preloaded):
        if isinstance(event, Done):
            assert event.answer is not None, event.death
            found[event.job.name] = from_json(Prepared, event.answer["prepared"])
    return found


def contents(store: Store, prepared: dict[str, Prepared]) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    for name, item in prepared.items():
        assert item.content is not None, (name, item)
        found[name] = {path.name: path.read_bytes() for path in store.open(item.content).files()}
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Prepared]]:
    store = Store(tmp_path_factory.mktemp("first"))
    with Preloaded({"exports": True}) as preloaded:
        return store, prepare_all(quick_trials(), store, preloaded)


@pytest.mark.slow
def test_the_same_suite_and_seed_prepare_the_same_bytes(first: tuple[Store, dict[str, Prepared]], tmp_path: Path):
    store, prepared = first
    again = Store(tmp_path)
    backwards = dict(reversed(quick_trials().items()))  # neither another order nor fresh interpreters must matter
    assert contents(again, prepare_all(backwards, again)) == contents(store, prepared)


def test_every_recipe_of_quick_takes_effect(first: tuple[Store, dict[str, Prepared]]):
    _, prepared = first
    assert {name: (item.status, item.reason) for name, item in prepared.items()} == dict.fromkeys(
        quick_trials(), (Status.OK, "")
    )


def test_what_is_stored_is_not_made_again(first: tuple[Store, dict[str, Prepared]]):
    store, prepared = first
    for name, trial in quick_trials().items():
        stored = from_store(trial, store, checked=True)
        assert stored is not None
        assert stored.cost is not None
        assert stored.cost.cached
        assert stored.content == prepared[name].content
        assert stored.final == prepared[name].final


def test_sizes_are_of_the_files(first: tuple[Store, dict[str, Prepared]]):
    store, prepared = first
    for item in prepared.values():
        assert item.content is not None
        weight = item.final.footprint
        assert weight is not None
        assert weight.size_bytes == sum(path.stat().st_size for path in store.open(item.content).files())
        assert weight.parameters is not None
    sizes = {name: item.final.footprint.size_bytes for name, item in prepared.items() if item.final.footprint}
    assert sizes["clustered"] < sizes["fp32"] / 7  # 4 bits a weight, codebooks and program counted
    assert sizes["int8-dynamic"] < sizes["fp32"] / 3.5
    assert sizes["channels-int8"] < sizes["channels"] / 3
    counts = {name: item.final.footprint.nonzero_parameters for name, item in prepared.items() if item.final.footprint}
    assert counts["pruned"] == pytest.approx(266_610 * 0.1, rel=0.02)


def test_a_key_holds_all_that_decides(monkeypatch: pytest.MonkeyPatch):
    workload = registry.get_workload("lenet-5")
    steps = (StepSpec("prune.magnitude", {"sparsity": 0.5, "scope": "global"}), *LOWERING)
    keys = make_keys(workload, steps, 0)
    assert keys == make_keys(workload, steps, 0)
    assert make_keys(workload, steps, 1).base != keys.base
    other = (StepSpec("prune.magnitude", {"sparsity": 0.6, "scope": "global"}), *LOWERING)
    changed = make_keys(workload, other, 0)
    assert changed.base == keys.base  # a common beginning is shared
    assert changed.steps[0] != keys.steps[0]
    assert changed.steps[1] != keys.steps[1]  # and what follows a change is not
    monkeypatch.setattr("leanmark.prepare.artifacts._version", lambda library: f"another {library}")
    newer = make_keys(workload, steps, 0)
    assert (newer.base, newer.steps[0]) != (keys.base, keys.steps[0])


def test_weights_beside_an_onnx_file_count(tmp_path: Path):
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def key(value: float) -> str:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
            [numpy_helper.from_array(np.full((64, 64), value, np.float32), "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        (tmp_path / "model.onnx.data").unlink(missing_ok=True)
        onnx.save_model(
            model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
        )
        np.savez(tmp_path / "x.npz", x=np.zeros((8, 64), np.float32))
        workload = registry.Workload("own", onnx=str(tmp_path / "model.onnx"), inputs=str(tmp_path / "x.npz"))
        return make_keys(workload, (), 0).base

    assert key(1.0) == key(1.0)
    assert key(1.0) != key(2.0)


def test_what_trains_does_not_apply_where_there_is_nothing_to_train_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "published.py").write_text(
        "from leanmark.workloads import fashion_mnist\n"
        "def splits():\n"
        "    return {name: split for name, split in fashion_mnist.small_splits().items() if name != 'train'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    workload = replace(registry.get_workload("lenet-300-100"), train=None, data="published:splits")
    tuned = registry.get_step("train.finetune").validate({"epochs": 1})
    with pytest.raises(NotApplicable, match="'published:splits' gives no train split"):
        prepare(Trial(workload, (tuned,), 0), Store(tmp_path / "store"), lambda *_: None)
