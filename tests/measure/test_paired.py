"""Paired turns: what is compared, what is kept, and what happens when a side dies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leanmark.host import available_cpus
from leanmark.measure import paired
from leanmark.measure.launches import Launch, LaunchFacts, compare, timing
from leanmark.measure.paired import calls_a_turn, measure
from leanmark.measure.sides import Bases, Side, SideError, Worker
from leanmark.measure.starts import paired_starts
from leanmark.processes import Copy
from leanmark.results import Status, Target
from leanmark.stages import Delivery, Program, Split, save
from leanmark.workloads import split_store


def test_turns_last_about_a_millisecond():
    assert [calls_a_turn(seconds) for seconds in (50e-6, 0.3e-3, 1.0)] == [20, 4, 1]


def launch(columns: dict[str, np.ndarray], share: float = 1.0, copies: int = 1) -> Launch:
    """Turns as given; each side's stretch alone, in the one copy of the launch, has the same times."""
    seconds = np.stack(list(columns.values()), axis=1)
    rounds, sides = seconds.shape
    solo = (seconds.T[:, None, :] * 1e9).astype(np.int64)
    facts = LaunchFacts(tuple(columns), 2, 1, True, True, (0,), 0.1, 1.0, None, (1.0,) * sides, {})
    shares = np.full((rounds, sides), share)
    return Launch(facts, seconds, shares, np.arange(rounds) * copies // rounds, solo, shares[:1].T)


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
    figures = timing([launch({"a": np.linspace(1e-3, 2e-3, 600), "b": np.ones(600)}, share=0.5)], "a")
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
    np.testing.assert_array_equal(after.pairs("a", "b"), before.pairs("a", "b"))
    np.testing.assert_array_equal(after.solo, before.solo)
    assert timing([after], "a") == timing([before], "a")


def test_disturbed_turns_do_not_count_where_enough_others_are():
    quiet = launch({"a": np.full(20, 1.1e-3), "b": np.full(20, 1e-3)})
    share = np.ones((20, 2))
    share[:5, 0] = 0.2
    seconds = quiet.seconds.copy()
    seconds[:5, 0] *= 5
    preempted = replace(quiet, seconds=seconds, cpu_share=share)
    assert preempted.pairs("a", "b") == pytest.approx(np.log(1.1))
    figures = timing([preempted], "a")
    assert figures is not None
    assert figures.disturbed_turns == 0.25
    # Where most were disturbed, nothing is left but to count all.
    assert len(replace(quiet, cpu_share=np.full((20, 2), 0.2)).pairs("a", "b")) == len(quiet.pairs("a", "b"))


def test_where_one_side_is_mostly_disturbed_both_count_all_their_turns():
    seconds = np.where(np.arange(20) < 12, 2e-3, 1e-3)  # twelve of twenty were held up, for as long as they take
    both = launch({"a": seconds, "b": seconds})
    share = np.ones((20, 2))
    share[:12, 0] = 0.5
    share[:9, 1] = 0.5
    pairs = replace(both, cpu_share=share).pairs("a", "b")
    assert len(pairs) == len(both.pairs("a", "b"))
    assert np.median(pairs) == 0


def test_a_stretch_that_was_disturbed_does_not_count_where_enough_others_were_not():
    calm = launch({"a": np.full(20, 1e-3), "b": np.full(20, 1e-3)})
    disturbed = replace(calm, solo=calm.solo * 5, solo_share=np.full((2, 1), 0.3))
    figures = timing([calm, calm, disturbed], "a")
    assert figures is not None
    assert (figures.median, figures.calls) == (1e-3, 40)
    figures = timing([calm, disturbed, disturbed], "a")
    assert figures is not None
    assert (figures.median, figures.calls) == (5e-3, 60)


def test_with_several_threads_a_turn_is_disturbed_when_it_had_less_than_such_turns_have():
    two = launch({"a": np.ones(10), "b": np.ones(10)}, share=1.8)
    two = replace(two, facts=replace(two.facts, busy=(1.8, 1.8)))
    assert not two.disturbed(0).any()
    share = np.full((10, 2), 1.8)
    share[3] = 1.0  # one of two processors was taken away
    assert replace(two, cpu_share=share).disturbed(0).tolist() == [number == 3 for number in range(10)]


def test_turns_of_different_copies_are_never_paired():
    apart = launch({"a": np.repeat([1.0, 2.0], 6), "b": np.repeat([1.0, 2.0], 6)}, copies=2)
    assert apart.pairs("a", "b") == pytest.approx(0.0)
    together = launch({"a": np.repeat([1.0, 2.0], 6), "b": np.repeat([1.0, 2.0], 6)}, copies=1)
    assert len(together.pairs("a", "b")) == len(apart.pairs("a", "b")) + 2


# --- real processes ---------------------------------------------------------------


def program(slowdown: float = 0.0) -> Program:
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
    return Program(model.SerializeToString(), Delivery(slowdown=slowdown))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sides")
    inputs = np.random.default_rng(1).normal(size=(10, 256)).astype(np.float32)
    split_store.store({"test": Split({"x": inputs})}, root / "splits")
    for name, slowdown in {"plain": 0.0, "half": 0.5}.items():
        (root / name).mkdir()
        save(program(slowdown), root / name)
    return root


def real(folder: Path, name: str, artifact: str) -> Side:
    return Side(name, folder / artifact, Target(), folder / "splits")


def test_a_slowdown_of_half_is_seen_and_a_dead_side_is_not_in_the_way(folder: Path):
    sides = [real(folder, "reference", "plain"), real(folder, "half", "half"), real(folder, "missing", "nothing")]
    done = list(measure(sides, launches=4, seconds=0.05, cpus=available_cpus(), seed=1))
    assert len(done) == 4
    assert set(done[0].deaths) == {"missing"}
    assert done[0].deaths["missing"].status is Status.FAILED
    assert "no readable artifact" in done[0].deaths["missing"].reason
    assert all(item.facts.sides == ("reference", "half") for item in done)
    interval = compare(done, "half", "reference").interval(0.99)
    assert interval.excludes(1.0)
    assert 1.3 < interval.value < 1.7


def test_a_launch_has_several_copies_where_there_is_time(folder: Path):
    sides = [real(folder, name, "plain") for name in ("reference", "other")]
    (done,) = measure(sides, launches=1, seconds=0.3, cpus=available_cpus(), seed=1)
    assert sorted(set(done.copies)) == [0, 1, 2]
    assert done.facts.overlapped == (len(available_cpus()) > 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_are_copies_of_one_interpreter_whatever_their_threads(folder: Path, threads: int):
    """A pool of numpy's own is no reason to start each of them anew."""
    side = replace(real(folder, "one", "plain"), target=Target(threads=threads))
    bases = Bases([side], available_cpus())
    try:
        worker = bases.worker(side, available_cpus())
        worker.open()
        assert isinstance(worker.child, Copy)
        worker.close()
    finally:
        bases.close()


def test_versions_of_one_program_need_no_call_before_a_long_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paired, "_LONG_CALL_SECONDS", 1e-9)
    sides = [real(folder, name, "plain") for name in ("reference", "other")]
    for alike, untimed in ((True, 0), (False, 1)):
        (done,) = measure(sides, launches=1, seconds=0.05, cpus=available_cpus(), seed=1, alike=alike)
        assert done.facts.untimed == untimed
        assert len(done.seconds) >= paired.MINIMUM_ROUNDS


def test_launches_go_on_where_others_ended(folder: Path):
    sides = [real(folder, name, "plain") for name in ("reference", "other")]
    first = list(measure(sides, launches=1, seconds=0.05, cpus=available_cpus(), seed=1))
    rest = list(measure(sides, launches=3, seconds=0.05, cpus=available_cpus(), seed=1, before=first))
    assert len(rest) == 2
    assert {item.facts.calls_a_turn for item in rest} == {first[0].facts.calls_a_turn}


def test_no_worker_outlives_a_measurement_that_is_given_up(folder: Path):
    import psutil

    sides = [real(folder, name, "plain") for name in ("reference", "other")]
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    measured = measure(sides, launches=50, seconds=0.05, cpus=available_cpus(), seed=1)
    next(measured)
    measured.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_interpreters_that_are_killed_are_reported_and_nothing_waits_for_them(folder: Path):
    import psutil

    sides = [real(folder, name, "plain") for name in ("reference", "other")]

    def kill_the_second(_: float, launch: int) -> None:
        """Those that are measured, and those that are being opened beside them."""
        for child in psutil.Process().children(recursive=True) if launch == 1 else ():
            child.kill()

    first, last = measure(sides, launches=4, seconds=0.05, cpus=available_cpus(), seed=1, progress=kill_the_second)
    assert first.deaths == {}
    assert last.facts.sides == ()
    assert "SIGKILL" in last.deaths["reference"].reason


def test_both_sides_get_the_same_inputs_in_order(folder: Path):
    worker = Worker(real(folder, "reference", "plain"))
    try:
        worker.open()
        first = worker.ask(30, op="answers")
        assert first["output_0"].shape == (10, 256)
        turn = worker.ask(30, op="turn", calls=25, start=7, untimed=2, each=True)
        assert turn["calls_ns"].shape == (25,)
        assert turn["wall_ns"] == pytest.approx(int(turn["calls_ns"].sum()), rel=1e-6)
        assert "calls_ns" not in worker.ask(30, op="turn", calls=25, start=7, untimed=1, each=False)
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
            worker.ask(30, op="turn", calls=1, start=0, untimed=1, each=False)
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
    (done,) = measure(sides, launches=4, seconds=0.1, cpus=available_cpus(), seed=1)
    assert done.facts.sides == ()
    assert set(done.deaths) == {"reference"}


def test_pairs_share_launches_and_are_compared_with_their_own_base(folder: Path):
    """Three cells, each beside its other version; one of them was made half as slow again."""
    artifacts = {"same": ("plain", "plain"), "slower": ("plain", "half"), "faster": ("half", "plain")}
    sides = [
        side
        for name, (before, after) in artifacts.items()
        for side in (real(folder, f"{name}@base", before), real(folder, name, after))
    ]
    done = list(measure(sides, launches=4, seconds=0.05, cpus=available_cpus(), seed=1, pairs=True, alike=True))
    assert all(item.facts.sides == tuple(side.name for side in sides) for item in done)
    found = {name: compare(done, name, f"{name}@base").interval() for name in artifacts}
    assert found["slower"].low > 1.2
    assert found["faster"].high < 1 / 1.2
    assert 0.8 < found["same"].low <= found["same"].high < 1.25


def test_starts_are_paired_with_an_interval(folder: Path):
    cold, memory = paired_starts(real(folder, "head", "plain"), real(folder, "base", "plain"), seed=0, pairs=4)
    assert cold.n == memory.n == 4
    assert 0 < cold.low < cold.value < cold.high
    assert memory.value == pytest.approx(1.0, abs=0.2)
    with pytest.raises(SideError, match="no readable artifact"):
        paired_starts(real(folder, "head", "nothing"), real(folder, "base", "plain"), seed=0, pairs=4)
