"""Paired turns: what is compared, what is kept, and what happens when a side dies."""

from pathlib import Path

import numpy as np
import pytest

from leanmark.host import available_cpus
from leanmark.measure.paired import Group, Launch, LaunchFacts, Turns, compare, make_groups, run_launch, timing
from leanmark.measure.sides import Side, SideError, Worker
from leanmark.results import Status, Target
from leanmark.stages import Delivery, Program, Split, save
from leanmark.workloads import split_store


def side(name: str, every: int | None = None, folder: Path = Path()) -> Side:
    return Side(name, folder, Target(), folder / "splits", extra_call_every=every)


def names(groups: tuple[Group, ...]) -> list[tuple[tuple[str, ...], int]]:
    return [(group.sides, group.calls_a_turn) for group in groups]


def test_turns_last_about_a_millisecond_of_the_reference():
    sides = [side("reference"), side("other")]
    assert names(make_groups(sides, 50e-6)) == [(("reference", "other"), 20)]
    assert names(make_groups(sides, 1.0)) == [(("reference", "other"), 1)]


def test_a_slowdown_meets_the_reference_over_whole_periods():
    sides = [side("reference"), side("slower", 33), side("other")]
    assert names(make_groups(sides, 500e-6)) == [(("reference", "other"), 2), (("reference", "slower"), 33)]
    # Where a period fits into a turn, it sits with the others.
    assert names(make_groups(sides, 10e-6)) == [(("reference", "slower", "other"), 132)]


def launch(columns: dict[str, np.ndarray], share: float = 1.0) -> Launch:
    seconds = np.stack(list(columns.values()), axis=1)
    group = Group(tuple(columns), 2)
    calls = np.repeat(seconds.T[:, :, None] * 1e9, 2, axis=2).astype(np.int64)
    turns = Turns(group, seconds, np.full(seconds.shape, share), calls)
    return Launch(LaunchFacts((group,), True, (0,), 0.1, {}), (turns,))


def test_what_slows_both_sides_of_a_round_down_does_not_show():
    random = np.random.default_rng(0)
    launches = []
    for _ in range(5):
        state = np.exp(random.normal(0, 0.5, 60))  # a neighbour comes and goes
        launches.append(launch({"a": 1e-4 * state * 1.02, "b": 1e-4 * state}))
    interval = compare(launches, "a", "b").interval()
    assert interval.value == pytest.approx(1.02, abs=1e-6)
    assert compare(launches, "b", "a").interval().value == pytest.approx(1 / 1.02, abs=1e-6)


def test_fewer_than_four_launches_make_no_interval():
    launches = [launch({"a": np.ones(9), "b": np.ones(9)}) for _ in range(3)]
    with pytest.raises(ValueError, match="at least 4"):
        compare(launches, "a", "b")
    with pytest.raises(ValueError, match="at least 4"):
        compare([*launches, launch({"a": np.ones(9), "c": np.ones(9)})], "a", "b")


def test_a_side_alone():
    figures = timing([launch({"a": np.linspace(1e-3, 2e-3, 300), "b": np.ones(300)}, share=0.5)], "a")
    assert figures is not None
    assert figures.median == pytest.approx(1.5e-3, rel=1e-2)
    assert (figures.calls, figures.launches, figures.disturbed_turns) == (600, 1, 1.0)
    assert figures.p99 == pytest.approx(1.99e-3, rel=1e-2)
    assert timing([launch({"b": np.ones(3)})], "a") is None


def test_a_launch_is_stored_whole(tmp_path: Path):
    from leanmark.judge.store import read_samples, write_samples

    before = launch({"a": np.arange(1.0, 5.0), "b": np.arange(2.0, 6.0)})
    (tmp_path / "samples").mkdir()
    write_samples(tmp_path, "one", before.arrays())
    after = Launch.restore(before.facts, read_samples(tmp_path, "one"))
    np.testing.assert_array_equal(after.log_ratios("a", "b"), before.log_ratios("a", "b"))
    np.testing.assert_array_equal(after.turns[0].calls, before.turns[0].calls)


# --- real processes ---------------------------------------------------------------


def program(extra: int | None = None) -> Program:
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return Program(model.SerializeToString(), Delivery(extra_call_every=extra))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sides")
    inputs = np.random.default_rng(1).normal(size=(10, 256)).astype(np.float32)
    split_store.store({"test": Split({"x": inputs})}, root / "splits")
    for name, extra in {"plain": None, "half": 2}.items():
        (root / name).mkdir()
        save(program(extra), root / name)
    return root


def real(folder: Path, name: str, artifact: str) -> Side:
    every = 2 if artifact == "half" else None
    return Side(name, folder / artifact, Target(), folder / "splits", extra_call_every=every)


def test_a_slowdown_of_half_is_seen_and_a_dead_side_is_not_in_the_way(folder: Path):
    sides = [real(folder, "reference", "plain"), real(folder, "half", "half"), real(folder, "missing", "nothing")]
    done = [run_launch(sides, number=number, seconds=0.05, cpus=available_cpus(), seed=1) for number in range(4)]
    for item in done:
        assert set(item.deaths) == {"missing"}
        assert item.deaths["missing"].status is Status.FAILED
        assert "no readable artifact" in item.deaths["missing"].reason
    interval = compare(done, "half", "reference").interval(0.99)
    assert interval.excludes(1.0)
    assert 1.2 < interval.value < 1.8


def test_both_sides_get_the_same_inputs_in_order(folder: Path):
    worker = Worker(real(folder, "reference", "plain"))
    try:
        worker.open()
        first = worker.ask(30, op="answers")
        assert first["output_0"].shape == (10, 256)
        turn = worker.ask(30, op="turn", calls=25, start=7)
        assert turn["calls_ns"].shape == (25,)
        assert turn["wall_ns"] == pytest.approx(int(turn["calls_ns"].sum()), rel=1e-6)
    finally:
        worker.close()


def test_a_worker_that_is_killed_says_so(folder: Path):
    import os
    import signal

    worker = Worker(real(folder, "reference", "plain"))
    try:
        worker.open()
        os.kill(worker.child.pid, signal.SIGKILL)
        with pytest.raises(SideError, match="it was killed by SIGKILL"):
            worker.ask(30, op="turn", calls=1, start=0)
    finally:
        worker.close()


def test_a_cold_start_is_told_apart(folder: Path):
    worker = Worker(real(folder, "reference", "plain"))
    try:
        start = worker.open()
    finally:
        worker.close()
    assert start.import_seconds > 0
    assert start.load_seconds > 0
    assert start.rss_import_bytes > 1_000_000
    assert start.rss_peak_bytes > start.rss_import_bytes


def test_a_peak_is_the_own_one_not_that_of_the_process_that_started_it(folder: Path):
    ballast = np.ones(40_000_000)  # 320 MB in this process
    worker = Worker(real(folder, "reference", "plain"))
    try:
        start = worker.open()
    finally:
        worker.close()
    assert start.rss_peak_bytes < ballast.nbytes


def test_a_launch_without_its_reference_ends_at_once(folder: Path):
    sides = [real(folder, "reference", "nothing"), real(folder, "other", "plain")]
    done = run_launch(sides, number=0, seconds=0.1, cpus=available_cpus(), seed=1)
    assert done.turns == ()
    assert set(done.deaths) == {"reference"}
