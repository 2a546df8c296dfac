"""Traffic as suites declare it: services are planned, and slips are told with their place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leanmark.declare import suite
from leanmark.declare.plan import make_plan
from leanmark.errors import InvalidInput
from leanmark.results import Role
from leanmark.traffic import Scenario, Traffic, draw_trace, zipf

SUITE = """\
suite: mine
workloads: [lenet-5, lenet-300-100]
recipes:
  int8: [export.onnx, quantize.dynamic]
  cached: [{serve.cache: {entries: 10}}]
  both: [{prune.channels: {ratio: 0.5}}, {serve.batch: {rows: 8}}]
traffic:
  browse: {rate: 300/s, candidates: [1, 32], zipf: 1.0, limit: 20ms, network: {bandwidth: 100Mbit/s, rtt: 2ms}}
targets:
  - {runtime: onnxruntime}
  - {traffic: browse, workloads: [lenet-5]}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], suite.Suite]:
    def loaded(text: str) -> suite.Suite:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return suite.load(path)

    return loaded


def test_services_are_planned_beside_their_plain_form(load: Callable[[str], suite.Suite]):
    plan = make_plan(load(SUITE))
    traffic = plan.suite.targets[1].traffic
    assert traffic == Traffic(
        "browse",
        Scenario.SERVER,
        300.0,
        (1, 32),
        zipf=1.0,
        limit_seconds=0.02,
        bytes_a_second=12.5e6,
        rtt_seconds=0.002,
    )
    block = plan.blocks()["lenet-5/cpu-onnxruntime-t1-browse"]
    assert [cell.recipe for cell in block] == ["fp32", "int8", "cached", "both", "same", "slower-50"]
    assert block[0].role is Role.REFERENCE
    steps = {cell.recipe: [spec.name for spec in cell.steps] for cell in block}
    assert steps["fp32"] == ["serve.plain"]
    assert steps["int8"] == ["export.onnx", "quantize.dynamic", "serve.plain"]
    assert steps["both"] == ["prune.channels", "serve.plain", "serve.batch"]
    loops = [cell.recipe for cell in plan.cells if cell.target.traffic is None and cell.workload == "lenet-5"]
    assert loops == ["fp32", "fp32-eager", "int8", "same", "slower-3"]
    assert not any(cell.workload == "lenet-300-100" and cell.target.traffic for cell in plan.cells)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{traffic: browse, ", "{traffic: brows, ", r":11:15.*there is no traffic 'brows'.*browse"),
        ("traffic: browse, workloads: [lenet-5]", "batch: 8", r"no target has the traffic 'browse'"),
        ("300/s", "300", r"mine.yaml:8:.*a rate needs a number and a unit"),
        ("100Mbit/s", "100MB", r"a bandwidth needs a number and a unit"),
        ("[1, 32]", "[32, 1]", r"two numbers are the fewest and the most"),
        ("[1, 32]", "[1, 2, 3]", r"two numbers are the fewest and the most"),
        ("zipf: 1.0", "zipff: 1.0", r"unknown key 'zipff'.*zipf"),
        ("zipf: 1.0", "store: {rtt: 2ms}", r"mine.yaml:8:.*says how far the store is.*features: store"),
        ("rate: 300/s", "scenario: offline, search: true", r"the highest rate is looked for under server traffic"),
        ("workloads: [lenet-5]}", "workloads: [lenet-6]}", r"a target is for 'lenet-6'.*lenet-5"),
        ("workloads: [lenet-5]}", "recipes: [cache]}", r"a target is for 'cache'.*cached"),
        ("{traffic: browse, ", "{traffic: browse, batch: 4, ", r"neither batch nor sweeps"),
        ("{traffic: browse, ", "{traffic: browse, runtime: torch, ", r"a service runs its programs on onnxruntime"),
    ],
)
def test_slips_are_told_with_their_place(load: Callable[[str], suite.Suite], old: str, new: str, said: str):
    assert old in SUITE
    with pytest.raises(InvalidInput) as caught:
        load(SUITE.replace(old, new))
    import re

    assert re.search(said, str(caught.value), re.DOTALL), str(caught.value)


def test_a_service_without_traffic_is_told(load: Callable[[str], suite.Suite]):
    text = SUITE[: SUITE.index("traffic:")] + "targets: [{runtime: onnxruntime}]\n"
    with pytest.raises(InvalidInput, match="recipe 'cached' makes a service, and no target has traffic"):
        load(text)


def test_a_trace_is_as_skewed_as_declared():
    traffic = Traffic("t", candidates=(1, 9), zipf=1.0, users=7, requests=4000, seed=3)
    trace = draw_trace(traffic, 100, 500)
    sizes = [len(trace.candidates(number)) for number in range(len(trace))]
    assert (min(sizes), max(sizes)) == (1, 9)
    assert set(trace.query.tolist()) == set(range(7))
    often = np.sort(np.bincount(trace.items, minlength=500))[::-1]
    expected = zipf(500, 1.0) * len(trace.items)
    assert np.allclose(often[:20], expected[:20], rtol=0.15)
    again = draw_trace(traffic, 100, 500)
    assert (again.items == trace.items).all()
    assert draw_trace(Traffic("t", candidates=None), 5, 10).ends is None
