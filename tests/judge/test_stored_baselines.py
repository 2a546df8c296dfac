"""The baselines that this repository keeps of its own suites."""

from pathlib import Path

import pytest

from leanmark.judge import baselines
from leanmark.planned import Options, plan_suite
from leanmark.results import Status

STORED = sorted((Path(__file__).resolve().parents[2] / "baselines").glob("*.json"))


def test_there_is_one():
    assert STORED


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_baseline_holds_every_cell_of_a_built_in_suite(path: Path):
    baseline = baselines.read(path)
    cells = {cell.id for cell in plan_suite(baseline.run.suite, Options()).plan.cells}
    assert {result.cell.id for result in baseline.run.results} == cells
    assert {result.status for result in baseline.run.results} <= {Status.OK, Status.NOISY}
    assert baseline.run.commit["dirty"] is False
    assert not baseline.run.warnings
