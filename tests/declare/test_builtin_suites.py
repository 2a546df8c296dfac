"""The suites that leanmark ships plan, and every technique has a place in one."""

from pathlib import Path

import pytest

from leanmark import catalogue, registry
from leanmark.planned import Options, builtin_suites, plan_suite
from leanmark.publish import listing
from leanmark.registry import Step
from leanmark.results import Role, Status


@pytest.mark.parametrize("path", builtin_suites(), ids=lambda path: path.stem)
def test_every_suite_plans_and_says_what_it_is_about(path: Path):
    plan = plan_suite(path.stem, Options()).plan
    assert plan.suite.name == path.stem
    assert plan.suite.title
    assert len(plan.suite.analysis) > 100
    # A recipe that fits no target of its suite is a slip of the pen.
    for recipe in {cell.recipe for cell in plan.cells}:
        found = [cell for cell in plan.cells if cell.recipe == recipe]
        assert any(cell.skip is None or cell.skip[0] is not Status.NOT_APPLICABLE for cell in found), recipe
    for block in plan.blocks().values():
        roles = [cell.role for cell in block]
        assert roles[0] is Role.REFERENCE


def test_every_technique_has_a_place_in_a_suite():
    used = {
        step.name
        for path in builtin_suites()
        for cell in plan_suite(path.stem, Options()).plan.cells
        for step in cell.steps
    }
    assert {item.name for item in registry.steps() if item.function.__module__.startswith("leanmark.")} <= used


@pytest.mark.parametrize("item", registry.steps(), ids=lambda item: item.name)
def test_every_step_says_what_shows_that_it_worked_and_what_its_parameters_are(item: Step):
    assert item.evidence is not None
    assert "Evidence: " in item.doc
    for parameter in item.parameters.model_fields:
        assert f"{parameter}:" in item.doc or f"{parameter}," in item.doc, f"{parameter} is not documented"


def test_the_list_tells_evidence_and_source_of_every_step(capsys: pytest.CaptureFixture[str]):
    listing.print_entries("steps", catalogue.entries("steps"))
    lines = capsys.readouterr().out.splitlines()
    for entry in catalogue.entries("steps"):
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{entry['name']} "))
        evidence, source = lines[at + 1].strip(), lines[at + 2].strip()
        assert evidence.startswith("evidence: ")
        assert len(evidence) > 30
        assert source.startswith("source: ")
