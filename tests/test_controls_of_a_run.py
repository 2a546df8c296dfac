"""What a run's own controls say against it."""

from dataclasses import replace

import numpy as np
import pytest

from leanmark.assembly import Findings, control_warnings, device_warnings, machine_warnings
from leanmark.measure.launches import Launch, LaunchFacts
from leanmark.results import Cell, Device, OnDevice, Result, Role, Status, StepSpec, Target

TARGET = Target()
REFERENCE = f"net/fp32/{TARGET.id}"


def control(name: str, truth: float, status: Status = Status.OK, reason: str = "") -> Result:
    cell = Cell(f"net/{name}/{TARGET.id}", "net", name, (), TARGET, f"net/{TARGET.id}", Role.CONTROL)
    return Result(cell, status, reason, truth=truth)


def launches(**ratios: float) -> list[Launch]:
    """Four launches in which each control takes so many times what the reference takes."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(4):
        reference = 1e-3 * np.exp(random.normal(0, 0.002, 40))
        columns = {REFERENCE: reference} | {
            f"net/{name}/{TARGET.id}": 1e-3 * ratio * np.exp(random.normal(0, 0.002, 40))
            for name, ratio in ratios.items()
        }
        seconds = np.stack(list(columns.values()), axis=1)
        facts = LaunchFacts(tuple(columns), 1, 1, True, True, (0,), 0.1, 1.0, None, (1.0,) * len(columns), {})
        shares, solo = np.ones(seconds.shape), np.zeros((len(columns), 1, 1), dtype=np.int64)
        found.append(Launch(facts, seconds, shares, np.zeros(40, dtype=int), solo, np.ones((len(columns), 1))))
    return found


SAME, SLOWER = control("same", 1.0), control("slower-3", 1.03)


def said(results: list[Result], **ratios: float) -> tuple[str, ...]:
    return control_warnings(results, Findings(launches={f"net/{TARGET.id}": launches(**ratios)}), 0.02)


def test_controls_that_read_what_they_are_say_nothing():
    assert said([SAME, SLOWER], **{"same": 1.0, "slower-3": 1.03}) == ()


def test_the_same_model_that_reads_slower_is_told():
    (warning,) = said([SAME, SLOWER], **{"same": 1.1, "slower-3": 1.03})
    assert warning.startswith("control failed: net/same/")
    assert "1.100x" in warning


def test_a_slowdown_that_is_not_seen_is_told():
    (warning,) = said([SAME, SLOWER], **{"same": 1.0, "slower-3": 1.0})
    assert warning.startswith("control failed: net/slower-3/")
    assert "is 1.030x by construction" in warning


@pytest.mark.parametrize("reason", ["", "RuntimeError: not today"])
def test_a_control_that_was_not_measured_is_told(reason: str):
    failed = replace(SLOWER, status=Status.FAILED if reason else Status.OK, reason=reason)
    (warning,) = said([SAME, failed], same=1.0)
    assert warning.startswith("control missing: net/slower-3/")
    assert warning.endswith(reason or "too few launches have both")


def test_a_device_that_is_slowed_down_or_shared_is_told_once():
    device = Device("a GPU", strangers=(77,), clock_mhz=900, clock_limit_mhz=1900, throttled=("heat",))
    shared = [replace(item, on_device=OnDevice(device, None, None)) for item in (SAME, SLOWER)]
    first, second = device_warnings(shared)
    assert "a GPU is slowed down by heat" in first
    assert "other processes compute on a GPU: 77" in second
    assert device_warnings([SAME, replace(SAME, on_device=OnDevice(None, None, None))]) == ()


@pytest.mark.parametrize(
    ("step", "found", "is_told"),
    [
        ("control.wrong", Status.WRONG, False),
        ("control.wrong", Status.OK, True),
        ("control.masked", Status.INEFFECTIVE, False),
        ("control.masked", Status.NOISY, True),
    ],
)
def test_a_lie_that_is_not_found_is_told(step: str, found: Status, is_told: bool):
    lie = control("lie", 1.0, found)
    lie = replace(lie, cell=replace(lie.cell, steps=(StepSpec(step),)), truth=None)
    warnings = said([SAME, lie], same=1.0, lie=0.5)
    assert bool(warnings) is is_told
    if is_told:
        assert warnings[0].startswith("control failed: net/lie/")
        assert "is a lie that must be shown as" in warnings[0]


def test_a_machine_that_made_measuring_harder_is_told():
    calm = launches(same=1.0)[0].facts
    assert machine_warnings([calm, replace(calm, steal_share=0.02)]) == ()
    (loose,) = machine_warnings([calm, replace(calm, pinned=False)])
    assert "could not be pinned" in loose
    (stolen,) = machine_warnings([replace(calm, steal_share=share) for share in (0.1, 0.3)])
    assert "gave 20% of the processors' time" in stolen


def test_a_control_of_a_device_that_is_not_here_is_no_news():
    skipped = replace(SLOWER, status=Status.SKIPPED, reason="there is no CUDA device")
    assert said([SAME, skipped], same=1.0) == ()
