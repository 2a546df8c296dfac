"""A worker that dies, hangs, prints, forks, wants all memory or moves is reported as that; the other side goes on."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from leanmark import registry
from leanmark.host import available_cpus
from leanmark.measure import paired
from leanmark.measure.launches import Launch
from leanmark.measure.paired import measure
from leanmark.measure.sides import Side
from leanmark.results import Status, Target
from leanmark.stages import Split, TorchModel, save
from leanmark.workloads import split_store

MODELS = Path(__file__).parent / "models"


@pytest.fixture(scope="module", autouse=True)
def known():
    registry.load_builtins()


@pytest.fixture
def duel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(MODELS))
    inputs = np.random.default_rng(1).normal(size=(10, 256)).astype(np.float32)
    split_store.store({"test": Split({"x": inputs})}, tmp_path / "splits")

    def run(what: str, launches: int = 1) -> list[Launch]:
        import misbehaving

        sides: list[Side] = []
        for name in ("behaves", what):
            root = tmp_path / f"{name}-{len(sides)}"
            root.mkdir()
            save(TorchModel(misbehaving.build(name).eval(), "misbehaving:build", {"what": name}), root)
            sides.append(Side(root.name, root, Target(runtime="torch"), tmp_path / "splits", paths=(MODELS,)))
        return list(measure(sides, launches=launches, seconds=0.1, cpus=available_cpus(), seed=0))

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
    ],
)
def test_it_is_reported_as_that_and_the_other_side_goes_on(duel, monkeypatch, what: str, status: Status, reason: str):
    if what == "moves" and len(available_cpus()) == 1:
        pytest.skip("with one processor there is nowhere to move")
    monkeypatch.setattr(paired, "PATIENCE_SECONDS", 2.0)
    (launch,) = duel(what)
    death = launch.deaths[f"{what}-1"]
    assert death.status is status
    assert reason in death.reason
    assert launch.facts.sides == ("behaves-0",)
    assert len(launch.seconds) >= paired.MINIMUM_ROUNDS


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
