"""The methods that leanmark is compared with run on its networks, and see what is plain to see."""

from pathlib import Path

import pytest

from leanmark import power, registry
from usual import methods


@pytest.mark.slow
def test_every_method_says_something_and_sees_a_network_three_times_as_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(methods, "_PYPERF_PROCESSES", 2)  # of twenty, to save time
    registry.load_builtins()
    sides = power.both_sides(power.Setting("onnxruntime", 1, busy=False), tmp_path)
    found = methods.compare(sides, 1.0, (2.0,), tmp_path / "scratch")
    assert [said.method for said in found.said] == [
        "sequential medians, more than 5 %",
        "Mann-Whitney, p < 0.05",
        "pytest-benchmark, median:5%",
        "pyperf compare_to",
    ]
    assert all(said.slower_regressed == (True,) and 0.3 < said.ratio < 3 for said in found.said)
    assert found.samples["calls_before"].size > 50
    assert found.samples["pyperf_after"].size == 6
