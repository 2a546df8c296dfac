"""What the doctor says of machines, real and made up."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from leanmark import doctor, power
from leanmark.cli import app
from leanmark.doctor import Machine, State
from leanmark.errors import InvalidInput
from leanmark.measure import energy
from leanmark.measure.launches import Launch, LaunchFacts
from leanmark.results import Device

QUIET = Machine(
    {"hypervisor": False}, 8, 8, True, True, governors=("performance",) * 8, turbo=False, smt=False, pressure=0.0,
    steal=0.0, swap_bytes=0, frequency=True, energy=("RAPL package-0",), jumps=(1.01, 1.02),
)  # fmt: skip


def bad(machine: Machine) -> dict[str, doctor.Finding]:
    return {finding.subject: finding for finding in doctor.diagnose(machine) if finding.state is State.BAD}


def test_a_quiet_machine_has_nothing_bad():
    assert bad(QUIET) == {}


@pytest.mark.parametrize(
    ("change", "subject", "says"),
    [
        ({"processors": 1}, "processors", "1 of 8"),
        ({"pinning": False}, "pinning", "cannot be pinned"),
        ({"governors": ("powersave",) * 8}, "governor", "powersave"),
        ({"turbo": True}, "turbo", "on"),
        ({"smt": True}, "hyper-threading", "share cores"),
        ({"quota": 1.5}, "quota", "1.5 processors"),
        ({"quota": 8.0, "throttled": 3}, "quota", "held back 3 times"),
        ({"pressure": 40.0}, "pressure", "40 %"),
        ({"steal": 0.2}, "steal", "20.0%"),
        ({"swap_bytes": 5_000_000}, "swap", "5 MB"),
        ({"jumps": (1.01, 1.4)}, "steadiness", "1.40x"),
        ({"others": (("spinner", 77, 0.98),)}, "other programs", "spinner (77): 98%"),
        ({"devices": (Device("H100", (12,)),)}, "H100", "used by 12"),
        ({"devices": (Device("H100", (), throttled=("heat",)),)}, "H100", "slowed down by heat"),
    ],
)
def test_what_disturbs_is_named_with_advice(change: dict[str, object], subject: str, says: str):
    found = bad(replace(QUIET, **change))
    assert list(found) == [subject]
    assert says in found[subject].says
    assert found[subject].advice


def test_what_cannot_be_read_is_neither_good_nor_bad():
    blind = replace(QUIET, governors=(), turbo=None, smt=None, pressure=None, steal=None, energy=(), frequency=False)
    assert bad(blind) == {}
    unknown = {finding.subject for finding in doctor.diagnose(blind) if finding.state is State.UNKNOWN}
    assert unknown == {"governor", "energy", "frequency", "devices"}


def fake_tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_what_the_system_says_is_read(tmp_path: Path):
    root = fake_tree(
        tmp_path,
        {
            "proc/stat": "cpu 1 2 3 4 5 6 7 8 0 0\ncpu0 1 2\n",
            "proc/pressure/cpu": "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
            "sys/devices/system/cpu/intel_pstate/no_turbo": "0\n",
            "sys/devices/system/cpu/smt/active": "1\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 1\nnr_throttled 4\n",
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000000\n",
        },
    )
    machine = doctor.read_machine(root)
    assert (machine.governors, machine.turbo, machine.smt) == (("powersave",), True, True)
    assert (machine.quota, machine.throttled, machine.pressure) == (1.5, 0, 12.5)
    assert (machine.frequency, machine.energy, machine.steal) == (True, ("RAPL package-0",), 0.0)
    counted = energy.counter("cpu", root)
    assert counted is not None
    assert (counted[0], counted[1]()) == ("RAPL", 5.0)


def test_a_machine_that_tells_nothing_has_no_energy(tmp_path: Path):
    assert energy.counter("cpu", tmp_path) is None
    machine = doctor.read_machine(tmp_path)
    assert (machine.governors, machine.quota, machine.steal, machine.pressure) == ((), None, None, None)


def test_a_busy_program_is_seen():
    with power.neighbour():
        machine = doctor.read_machine()
    assert any(used > 0.5 for _, _, used in machine.others)


def test_the_command_prints_findings_and_json():
    told = CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == 0
    assert "disturb a measurement" in told.stdout
    document = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert document["machine"]["processors"] >= 1
    assert {finding["state"] for finding in document["findings"]} <= {"good", "bad", "unknown"}
    assert document["power"] is None


# --- power ------------------------------------------------------------------------------


def units(random: np.random.Generator, count: int, truth: float = 0.0) -> list[np.ndarray]:
    return [truth + random.normal(random.normal(0, 0.006), 0.05, 100) for _ in range(count)]


def test_a_tally_knows_alarms_detections_and_coverage():
    random = np.random.default_rng(0)
    same = power.tally((units(random, 12) for _ in range(200)), 0.0, 0.005)
    assert (same.count, same.false_alarms, same.detections) == (200, 0, 0)
    assert 180 <= same.covered <= 200
    slower = power.tally((units(random, 12, np.log(1.03)) for _ in range(200)), 0.03, 0.005)
    assert slower.detections >= 195
    assert slower.false_alarms == 0
    shifted = power.tally((units(random, 12) for _ in range(200)), 0.03, 0.005, shift=np.log(1.03))
    assert shifted.detections >= 195


def test_comparisons_share_no_turn():
    facts = LaunchFacts(("reference", "other"), 1, 1, True, True, (0,), 0.0, 1.0, None, (1.0, 1.0), {})
    seconds = np.stack([np.ones(24), np.exp(np.arange(24) / 1000)], axis=1)
    one = Launch(facts, seconds, np.ones((24, 2)), np.arange(24) // 6, np.zeros((2, 0, 0)), np.zeros((2, 0)))
    found = list(power.comparisons([one] * 5, 2, 1000, "torch"))  # four copies make two comparisons of two
    assert [len(item) for item in found] == [5, 5]
    first, second = (set(np.round(1000 * item[0]).astype(int)) for item in found)
    assert (first, second) == (set(range(12)), set(range(12, 24)))
    short = replace(one, seconds=seconds[:12], cpu_share=np.ones((12, 2)), copies=one.copies[:12])
    assert [len(item) for item in power.comparisons([*[one] * 4, short], 2, 1000, "torch")] == [5, 4]
    # Two copies of a launch have 24 turns of about 1 s, and as many untimed calls of 1.28 s: some 55 s.
    assert [len(item) for item in power.comparisons([one] * 6, 2, 250, "torch")] == [4, 4]
    assert not list(power.comparisons([one] * 6, 2, 200, "torch")), "three launches give no verdict"


def test_launches_are_drawn_without_repetition():
    drawn = list(power.resample([[np.full(3, number / 1000)] * 2 for number in range(20)], 12, 50, 0))
    assert all(len({abs(float(item[0])) for item in one}) == 12 for one in drawn)
    assert power.shape_for(5).seconds <= 5
    assert power.shape_for(30).seconds <= 30
    with pytest.raises(InvalidInput, match="at least"):
        power.shape_for(0.1)


def test_too_little_time_is_refused_before_anything_is_measured():
    told = CliRunner().invoke(app, ["doctor", "--power", "1s"])
    assert isinstance(told.exception, InvalidInput)
    assert "too short" in told.exception.message


@pytest.mark.slow
def test_the_doctor_measures_what_duels_see():
    found = power.measure_power(16.0, 1.6, lambda *_: None)
    assert [sight.setting.busy for sight in found.sights] == [False, True]
    for sight in found.sights:
        assert sight.same.count == sight.slower.count == 1
        assert sight.minimum_detectable_effect > 0
