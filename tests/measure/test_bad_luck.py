"""A worker that dies, hangs, prints, forks, wants all memory or moves is reported as that; the other side goes on."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from leanmark import registry
from leanmark.host import available_cpus
from leanmark.measure import paired, sides, table
from leanmark.measure.launches import Launch
from leanmark.measure.paired import measure
from leanmark.measure.sides import Side
from leanmark.processes import Code
from leanmark.results import Status, Target
from leanmark.stages import Split, TorchModel, save
from leanmark.workloads import split_store

MODELS = Path(__file__).parent / "models"
IN_OPENING, IN_TURNS = 3, 100  # calls; see models/misbehaving.py


@pytest.fixture(scope="module", autouse=True)
def known():
    registry.load_builtins()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(MODELS))
    inputs = np.random.default_rng(1).normal(size=(10, 256)).astype(np.float32)
    split_store.store({"test": Split({"x": inputs})}, tmp_path / "splits")

    def sides_of(*names: str, after: int = IN_TURNS) -> list[Side]:
        import misbehaving

        found: list[Side] = []
        for name in names:
            root = tmp_path / f"{name}-{len(found)}"
            root.mkdir()
            config = {"what": name, "after": after}
            save(TorchModel(misbehaving.build(**config).eval(), "misbehaving:build", config), root)
            found.append(
                Side(root.name, root, Target(runtime="torch"), tmp_path / "splits", code=Code(paths=(MODELS,)))
            )
        return found

    return sides_of


@pytest.fixture
def duel(make):
    def run(what: str, launches: int = 1, after: int = IN_TURNS, reference: str = "behaves") -> list[Launch]:
        found = make(reference, what, after=after)
        return list(measure(found, launches=launches, seconds=0.1, cpus=available_cpus(), seed=0))

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "reason"),
    [
        ("dies", Status.FAILED, "it ended with exit code 3"),
        ("crashes", Status.FAILED, "it was killed by SIGSEGV"),
        ("raises", Status.FAILED, "ZeroDivisionError"),
        ("allocates", Status.OUT_OF_MEMORY, "MemoryError"),
        ("moves", Status.FAILED, "moved to other processors"),
        ("hangs", Status.TIMEOUT, "did not answer within"),
        ("spins", Status.TIMEOUT, "did not answer within"),
    ],
)
def test_it_is_reported_as_that_and_the_other_side_goes_on(duel, monkeypatch, what: str, status: Status, reason: str):
    if what == "moves" and len(available_cpus()) == 1:
        pytest.skip("with one processor there is nowhere to move")
    for module in (paired, table):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 2.0)
    (launch,) = duel(what)
    death = launch.deaths[f"{what}-1"]
    assert death.status is status
    assert reason in death.reason
    assert launch.facts.sides == ("behaves-0",)
    assert len(launch.seconds) >= paired.MINIMUM_ROUNDS
    # It took turns before, and is not in the way afterwards.
    assert np.median(launch.cpu_share[-5:]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"), [("dies", "it ended with exit code 3"), ("hangs", "did not answer within")]
)
def test_a_copy_that_cannot_be_opened_is_reported_and_tried_once(duel, monkeypatch, what: str, reason: str):
    monkeypatch.setattr(sides, "OPEN_TIMEOUT_SECONDS", 5.0)
    begun = time.monotonic()
    first, second = duel(what, launches=2, after=IN_OPENING)
    assert reason in first.deaths[f"{what}-1"].reason
    assert len(set(first.copies.tolist())) == 1 + int(first.copies.max())
    assert second.deaths == {}
    assert second.facts.sides == ("behaves-0",)
    assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_a_launch_whose_reference_dies_in_its_turns_is_the_last(duel):
    (only,) = duel("behaves", launches=3, reference="dies")
    assert only.facts.sides == ()
    assert set(only.deaths) == {"dies-0"}


@pytest.mark.slow
def test_a_pair_ends_with_one_of_it_and_the_others_go_on(make):
    """Two versions of each of three programs; the old version of one and the new one of another die."""
    found = make("behaves", "behaves", "dies", "behaves", "behaves", "dies")
    first, second = measure(found, launches=2, seconds=0.1, cpus=available_cpus(), seed=0, pairs=True)
    assert set(first.deaths) == {"dies-2", "dies-5"}
    for launch in (first, second):
        assert launch.facts.sides == ("behaves-0", "behaves-1")
        assert len(launch.seconds) >= paired.MINIMUM_ROUNDS
    assert second.deaths == {}


@pytest.mark.slow
def test_a_side_that_died_gets_no_turns_in_later_launches_though_it_was_opened_ahead(duel):
    first, second = duel("dies", launches=2)
    assert set(first.deaths) == {"dies-1"}
    assert second.deaths == {}
    assert second.facts.sides == ("behaves-0",)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["prints", "forks", "starts"])
def test_what_does_no_harm_is_measured_and_what_it_started_is_ended(duel, what: str):
    (launch,) = duel(what)
    assert launch.deaths == {}
    assert launch.facts.sides == ("behaves-0", f"{what}-1")
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if "time.sleep(1000)" in line]
    assert not [line for line in lines if "leanmark.measure.worker" in line]


@pytest.mark.slow
def test_a_runtime_that_starts_a_thread_is_measured_without_copying_it(make, monkeypatch: pytest.MonkeyPatch):
    """A fork has no other thread than the one that forks; what another held, it would wait for."""
    own = replace(registry.get_runtime("torch"), name="threaded", loader="threaded:load", libraries=("threaded",))
    monkeypatch.setitem(registry._runtimes, "threaded", own)
    found = [replace(side, target=Target(runtime="threaded")) for side in make("behaves", "behaves")]
    (launch,) = measure(found, launches=1, seconds=0.1, cpus=available_cpus(), seed=0)
    assert launch.deaths == {}
    assert launch.facts.sides == ("behaves-0", "behaves-1")
    assert len(launch.seconds) >= paired.MINIMUM_ROUNDS


@pytest.mark.slow
def test_without_pinning_it_is_measured_all_the_same_and_said(duel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A stand-in for a system that forbids it, in the workers: the tests may run as root, to whom nothing is forbidden.
    forbids = "import os\ndef no(*_): raise PermissionError('not here')\nos.sched_setaffinity = no\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(forbids)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    (launch,) = duel("behaves")
    assert launch.deaths == {}
    assert not launch.facts.pinned
    assert len(launch.seconds) >= paired.MINIMUM_ROUNDS
