"""A pull request from its branch to the comment: the steps of the workflow that `leanmark init` writes, played."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from gate.project import SUITE, Project
from playing import STARTERS, commented, run_step, steps

GATE = STARTERS / "gate.yml"
pytestmark = pytest.mark.slow


class Request:
    """A pull request: a clone of the repository, and a folder that a job which only judges would have."""

    def __init__(self, origin: Project, branch: str, folder: Path) -> None:
        self.folder, self.branch = folder, branch
        self.work, self.judging, self.temp = folder / "work", folder / "judging", folder / "temp"
        for path in (self.judging, self.temp, folder / "bin"):
            path.mkdir(parents=True)
        program = folder / "bin" / "leanmark"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m leanmark.cli "$@"\n')
        program.chmod(0o755)
        origin.git("clone", "--quiet", str(origin.folder), str(self.work))
        for arguments in (("checkout", "--quiet", branch), ("merge", "--quiet", "--no-edit", "origin/main")):
            origin.git("-C", str(self.work), *arguments)  # as GitHub checks a pull request out
        self.environment = {
            "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
            "LEANMARK_CACHE": str(origin.cache),
            "BASE": "main",
            "GITHUB_OUTPUT": str(folder / "output"),
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
            "RUNNER_TEMP": str(self.temp),
        }

    def measure(self) -> str:
        """What the first job hands on to the second."""
        (script,) = (step["run"] for step in steps(GATE) if step.get("id") == "measure")
        done = run_step(script, self.work, **self.environment)
        assert done.returncode == 0, done.stderr
        return (self.folder / "output").read_text()

    def judge(self) -> tuple[int, str]:
        """Exit code and output of the second job, which has the run and nothing of the repository's."""
        (script,) = (step["run"] for step in steps(GATE) if step.get("name") == "Judge")
        shutil.copytree(self.work / "runs", self.judging / "runs")
        done = run_step(script, self.judging, **self.environment)
        return done.returncode, done.stdout

    @property
    def comment(self) -> str:
        return (self.temp / "comment.md").read_text()


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Project:
    """A repository with two branches that parted from main before it moved on."""
    found = Project(tmp_path_factory.mktemp("request") / "origin", cache)
    (found.folder / "leanmark.yaml").write_text(SUITE.replace("latency: off", "latency: {tolerance: 50%}"))
    found.commit("a suite")
    for branch, before, after in (
        ("worse", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05"),
        ("as-good", "torch.manual_seed(0)", "torch.manual_seed(1)"),
    ):
        found.git("checkout", "--quiet", "-b", branch, "main")
        found.change("net.py", before, after)
        found.commit(branch)
    found.git("checkout", "--quiet", "main")
    (found.folder / "notes.txt").write_text("main moved on\n")
    found.commit("moved on")
    return found


def test_a_change_that_answers_worse_fails_and_one_as_good_passes(origin: Project, tmp_path: Path):
    worse = Request(origin, "worse", tmp_path / "worse")
    assert worse.measure() == "measured=true\n"
    code, printed = worse.judge()
    assert code == 1, printed
    assert "::error" in printed
    assert worse.comment.startswith("<!-- leanmark gate mine -->\n### Failed: `mine`")
    assert "`net/fp32/cpu-torch-t1-b1` | quality | **regressed** | -" in worse.comment
    assert "### Failed: `mine`" in (worse.folder / "summary").read_text()

    good = Request(origin, "as-good", tmp_path / "good")
    assert good.measure() == "measured=true\n"
    code, printed = good.judge()
    assert code == 0, printed + good.comment
    assert "### Passed: `mine`" in good.comment
    assert "duel of" in good.comment, "it was measured, not taken for the same"

    if shutil.which("node"):
        ((number, first),) = commented(GATE, [], worse.judging, worse.temp)
        assert number is None
        assert "### Failed: `mine`" in first
        before = [{"id": 5, "user": {"type": "Bot"}, "body": first}]
        ((number, second),) = commented(GATE, before, good.judging, good.temp)
        assert number == 5, "the comment of the commit before is replaced"
        assert "### Passed: `mine`" in second
        assert "Failed" not in second
