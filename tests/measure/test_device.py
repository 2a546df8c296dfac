"""What is said of a CUDA device, with a fake of its driver: there is none on most machines that run the tests."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from leanmark.jsonable import from_json, to_json
from leanmark.measure import device, energy, quality
from leanmark.measure.sides import Side, Worker
from leanmark.results import Device, Target


class Fault(Exception):
    """As pynvml's own."""


def fake_nvml(**changes: object) -> SimpleNamespace:
    """A driver with one device; a stand-in for pynvml."""
    processes = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=4242)]
    return SimpleNamespace(
        **{
            "NVMLError": Fault,
            "NVML_CLOCK_SM": 1,
            "nvmlClocksThrottleReasonSwPowerCap": 4,
            "nvmlClocksThrottleReasonHwSlowdown": 8,
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: f"device {index}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"device {uuid}",
            "nvmlDeviceGetName": lambda handle: b"Test 9000",
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 4,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: processes,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1200,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 5000,
            **changes,
        }
    )


def test_a_device_tells_its_clock_its_brakes_and_its_strangers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    (found,) = device.read_devices(frozenset({os.getpid()}))
    assert found == Device("Test 9000", (4242,), 1200, 1980, ("its power limit",))
    assert from_json(Device, to_json(found)) == found


def test_a_driver_that_fails_leaves_nothing_known(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object):
        raise Fault

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=fails))
    assert device.read_devices() == ()
    assert energy.counter("cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetName=fails))
    assert device.read_devices() == ()
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetTotalEnergyConsumption=fails))
    assert energy.counter("cuda") is None


@pytest.mark.parametrize(
    ("visible", "name"), [(None, "device 0"), ("1,0", "device 1"), ("GPU-a1b2", "device GPU-a1b2")]
)
def test_it_is_the_device_that_a_process_may_see(monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetName=lambda handle: handle))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = device.read_own_device(frozenset())
    assert found is not None
    assert found.name == name


def test_energy_of_a_device_is_read_in_joules(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    counted = energy.counter("cuda")
    assert counted is not None
    assert (counted[0], counted[1]()) == ("NVML", 5.0)
    assert "NVML" in energy.sources()


class FakeWorker(Worker):
    """A worker that answers what a CUDA machine would, without a process."""

    def __init__(self, answers: dict[str, dict[str, object]], device_name: str = "cuda") -> None:
        self.side = Side("a", SimpleNamespace(), Target(device=device_name), SimpleNamespace())  # pyright: ignore
        self.answers = answers

    def ask(self, timeout: float, **message: object):
        return self.answers[str(message["op"])]


def test_events_get_an_interval_and_stand_apart_from_wall_time():
    told = {"device": {"name": "T", "strangers": [7]}, "peak_bytes": 10, "event_seconds": np.array([1e-3, 1.2e-3])}
    found = quality.on_device(FakeWorker({"on_device": told}))
    assert found is not None
    assert found.event_seconds is not None
    assert found.event_seconds.value == pytest.approx(1.1e-3)
    assert found.device == Device("T", (7,))
    silent = {"device": None, "peak_bytes": None, "event_seconds": np.empty(0)}
    nothing = quality.on_device(FakeWorker({"on_device": silent}))
    assert nothing is not None
    assert (nothing.device, nothing.event_seconds, nothing.peak_bytes) == (None, None, None)
    assert quality.on_device(FakeWorker({}, "cpu")) is None


def test_energy_needs_two_stretches_to_be_told():
    one = {"energy": {"counter": "RAPL", "joules": np.array([1.0])}}
    assert quality.energy_a_call(FakeWorker(one)) is None
    assert quality.energy_a_call(FakeWorker({"energy": {"counter": None}})) is None
    two = quality.energy_a_call(FakeWorker({"energy": {"counter": "RAPL", "joules": np.array([1.0, 3.0])}}))
    assert two is not None
    assert (two.counter, two.joules.value, two.joules.n) == ("RAPL", 2.0, 2)
