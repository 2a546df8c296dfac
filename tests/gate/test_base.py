"""A pull request beside its base, in a repository of a user's: what got worse fails, what did not passes."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gate.project import Project, without_git
from leanmark.judge.store import read_run

Change = Callable[[str, str, str], None]
CELL = "net/{}/cpu-torch-t1-b1"


def gated(project: Project, *arguments: str) -> dict[str, Any]:
    """What the gate says of the work tree beside the tag `one`."""
    before = project.state()
    done = project.leanmark("gate", "mine.yaml", "--base", "one", "--json", *arguments)
    assert done.returncode in (0, 1, 3, 4), done.stderr
    assert project.state() == before, "the work tree is as it was"
    found = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode
    return found


def verdicts(found: dict[str, Any], recipe: str) -> dict[str, str]:
    return {item["metric"]: item["verdict"] for item in found["changes"] if item["cell"] == CELL.format(recipe)}


def test_a_comment_changes_nothing_and_nothing_is_measured_unless_one_says_so(project: Project, second: Change):
    second("net.py", "DEPTH = 2", "DEPTH = 2  # as deep as it was")
    found = gated(project)
    assert found["exit_code"] == 0
    assert {item["basis"] for item in found["changes"]} == {"nothing to measure"}
    assert verdicts(found, "fp32") == {"cell": "unchanged"}
    (run,) = (project.folder / "leanmark-runs").iterdir()
    assert not list((run / "samples").iterdir())
    found = gated(project, "--measure-all", "--only", "zero")
    assert found["exit_code"] == 0
    assert verdicts(found, "zero") == dict.fromkeys(("size", "parameters", "macs", "quality"), "unchanged")


@pytest.mark.slow
def test_a_slower_model_is_named_with_size_and_interval(project: Project, second: Change):
    """Ten layers more than thirty-three, without a parameter more: some 30 % slower, far over the tolerance.

    It is told on a busy machine, too; how small a slowdown is seen on a quiet one is a benchmark's to say.
    """
    project.change("net.py", "DEPTH = 2", "DEPTH = 33")
    project.change("mine.yaml", "runtime: torch", "runtime: onnxruntime")
    project.change("mine.yaml", "budget: 400ms, launches: 4", "budget: 1600ms, launches: 8")
    project.change(
        "mine.yaml", "latency: off", "latency: {tolerance: 0.5%, must_see: 2%}\n  macs: off\n  size: {tolerance: 50%}"
    )
    project.commit("judge latency")
    project.git("tag", "--force", "one")
    second("net.py", "DEPTH = 33", "DEPTH = 43")
    before = project.state()
    files = ("--markdown", "comment.log", "--junit", "junit.log", "--only", "fp32")
    done = project.leanmark("gate", "mine.yaml", "--base", "one", *files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert project.state() == before
    cell = "net/fp32/cpu-onnxruntime-t1-b1"
    shown = re.search(rf"regressed +{cell} +latency\s+\+(\S+) % \[\+(\S+), \+(\S+)\]", done.stdout)
    assert shown, done.stdout
    size, low, high = map(float, shown.groups())
    assert 0.5 < low <= size <= high
    assert re.search(r"duel of \d+ launches in \S+ s of turns a side at 99", " ".join(done.stdout.split())), done.stdout
    comment = (project.folder / "comment.log").read_text()
    assert comment.startswith("<!-- leanmark gate mine -->\n### Failed: `mine`")
    assert f"| `{cell}` | latency | **regressed** | +{shown[1]} % [+{shown[2]}, +{shown[3]}]" in comment
    (suite,) = ElementTree.parse(project.folder / "junit.log").getroot()
    failures = [case for case in suite if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failures] == [(cell, "latency")]
    # The run is kept, and can be judged again without being measured: on GitHub, in the job that may comment.
    summary = project.folder / "summary.log"
    again = project.leanmark("gate", "latest", "--github", GITHUB_STEP_SUMMARY=str(summary))
    assert again.returncode == 1
    assert f"::error title=regressed%3A {cell}%2C latency::+" in again.stdout
    assert summary.read_text() == comment


@pytest.mark.slow
def test_every_kind_of_change_is_found_and_named(project: Project):
    """Wrong answers, a larger model, a technique without effect, and one that crashes."""
    wide = (project.folder / "net.py").read_text()
    (project.folder / "wide.py").write_text(wide)
    project.change("mine.yaml", "recipes:", '  - {name: wide, model: "wide:build", data: "net:splits"}\nrecipes:')
    project.commit("two models")
    project.git("tag", "--force", "one")
    project.change("net.py", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05")
    project.change("wide.py", "WIDTH = 20", "WIDTH = 23")
    project.change("steps.py", "CRASH = False", "CRASH = True")
    project.change("steps.py", "SHARE = 0.5", "SHARE = 0.1")
    project.commit("worse in every way")
    found = gated(project)
    assert found["exit_code"] == 1
    of = {(item["cell"], item["metric"]): item for item in found["changes"]}
    wrong = of[CELL.format("fp32"), "quality"]
    assert (wrong["verdict"], wrong["basis"]) == ("regressed", "the same examples")
    assert wrong["change"]["low"] <= wrong["change"]["value"] <= wrong["change"]["high"] < 0
    assert wrong["change"]["value"] == pytest.approx(-0.02, abs=0.01)
    larger = {metric: item["verdict"] for (cell, metric), item in of.items() if cell == "wide/fp32/cpu-torch-t1-b1"}
    assert larger == {"size": "regressed", "parameters": "regressed", "macs": "regressed", "quality": "unchanged"}
    parameters = of["wide/fp32/cpu-torch-t1-b1", "parameters"]["change"]
    assert parameters["value"] == pytest.approx(1.1, abs=0.01), "10 % larger"
    for recipe, reason in (
        ("zero", "ineffective: mine.zero: too few weights"),
        ("plain", "failed: RuntimeError: not today"),
    ):
        broken = of[CELL.format(recipe), "cell"]
        assert broken["verdict"] == "broken"
        assert broken["reason"].startswith(reason)
    # The job that judges neither needs nor loads the code of the pull request.
    for name in ("net.py", "wide.py", "steps.py", "mine.yaml"):
        (project.folder / name).unlink()
    shutil.rmtree(project.folder / ".git")
    again = project.leanmark("gate", "latest", "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["changes"] == found["changes"]


@pytest.mark.slow
def test_a_file_that_the_model_reads_is_part_of_it(project: Project):
    """The source is the same in both; each version reads the file of its own, by a path from where it runs."""
    (project.folder / "beyond.txt").write_text("99.0")
    project.change("net.py", "WRONG_BEYOND = 99.0", 'WRONG_BEYOND = float(open("beyond.txt").read())')
    project.commit("read from a file")
    project.git("tag", "--force", "one")
    assert gated(project)["exit_code"] == 0
    (project.folder / "beyond.txt").write_text("2.05")
    project.commit("another file")
    found = gated(project)
    assert found["exit_code"] == 1
    assert verdicts(found, "fp32")["quality"] == "regressed"
    (difference,) = (
        item["change"]["value"]
        for item in found["changes"]
        if (item["cell"], item["metric"]) == (CELL.format("fp32"), "quality")
    )
    assert difference == pytest.approx(-0.02, abs=0.01), "the base read its own file"


@pytest.mark.slow
def test_both_versions_are_scored_by_one_metric(project: Project):
    right = "\n\ndef right(outputs, targets):\n    return (outputs.argmax(axis=1) == targets) * 1.0\n"
    (project.folder / "net.py").write_text((project.folder / "net.py").read_text() + right)
    project.change("mine.yaml", 'data: "net:splits"}', 'data: "net:splits", metric: "net:right"}')
    project.commit("a metric of its own")
    project.git("tag", "--force", "one")
    project.change("net.py", "* 1.0\n", "* 0.5\n")
    project.commit("a stricter metric")
    found = gated(project)
    assert found["exit_code"] == 0
    (quality,) = (
        item for item in found["changes"] if (item["cell"], item["metric"]) == (CELL.format("zero"), "quality")
    )
    assert (quality["verdict"], quality["before"], quality["after"]) == ("unchanged", 0.5, 0.5)


@pytest.mark.slow
def test_cells_that_are_gone_and_new(project: Project, second: Change):
    second("mine.yaml", "plain: [mine.plain]", "other: [mine.plain]")
    found = gated(project)
    assert found["exit_code"] == 1
    assert verdicts(found, "plain") == {"cell": "missing"}
    assert verdicts(found, "other") == {"cell": "new"}


# --- bad input --------------------------------------------------------------------


def refused(project: Project, code: int, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
    done = project.leanmark("gate", "mine.yaml", *arguments, **environment)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.folder / "leanmark-runs").exists()
    return done.stderr


def test_a_revision_that_is_not_there(project: Project):
    before = project.state()
    assert "there is no revision 'mian'" in (said := refused(project, 2, "--base", "mian"))
    assert "Did you mean 'main'?" in said
    assert "there is no revision '--help'" in refused(project, 2, "--base=--help")
    assert project.state() == before


def test_what_a_killed_run_left_is_cleared_away(project: Project, tmp_path: Path):
    """Its worktree, and no other's."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f"leanmark-base-{ended.pid}-abc" / "repository"
    alive = tmp_path / f"leanmark-base-{os.getpid()}-abc" / "repository"
    for place in (left, alive):
        project.git("worktree", "add", "--quiet", "--detach", str(place), "one")
    done = project.leanmark("gate", "mine.yaml", "--base", "one", "--only", "fp32")
    assert done.returncode == 0, done.stderr
    assert not left.parent.exists()
    assert alive.exists()
    assert str(left) not in project.git("worktree", "list")


def test_options_that_mean_nothing_here(project: Project):
    for arguments in (("--dirty",), ("--measure-all",), ("--base-python", "/bin/false")):
        done = project.leanmark("run", "mine.yaml", *arguments)
        assert done.returncode == 2, done.stdout
        assert arguments[0] in done.stderr


def test_a_dirty_work_tree(project: Project):
    project.change("net.py", "WIDTH = 20", "WIDTH = 24")
    before = project.state()
    assert "changes that are in no commit" in (said := refused(project, 2, "--base", "one"))
    assert "--dirty" in said
    assert project.state() == before


def test_standard_output_holds_one_document(project: Project):
    done = project.leanmark("gate", "mine.yaml", "--base", "one", "--only", "fp32", "--json", "--github")
    assert json.loads(done.stdout)["schema_version"] >= 2
    assert "::stop-commands::" in done.stderr
    both = project.leanmark("gate", "latest", "--json", "--markdown", "-")
    assert both.returncode == 2
    nothing = project.leanmark("gate", "20260101-000000-mine")
    assert nothing.returncode == 2
    assert "neither a suite '20260101-000000-mine' nor such a run" in nothing.stderr


@pytest.mark.slow
def test_starts_are_judged_where_the_suite_says_so_and_another_interpreter_is_another_version(project: Project):
    """An environment of its own for the base: this one's, by another path."""
    project.change(
        "mine.yaml", "latency: off", "latency: off\n  cold_start: {tolerance: 80%}\n  memory: {tolerance: 50%}"
    )
    project.commit("judge starts")
    python = ("--base-python", sys.executable)
    found = json.loads(
        project.leanmark(
            "gate", "mine.yaml", "--base", "HEAD", "--json", "--measure-all", "--only", "fp32", *python
        ).stdout
    )
    judged = {item["metric"]: item for item in found["changes"] if item["cell"] == CELL.format("fp32")}
    for metric in ("cold_start", "memory"):
        assert judged[metric]["basis"] == "paired starts"
        assert judged[metric]["verdict"] == "unchanged"
        assert judged[metric]["change"]["n"] >= 4


def test_a_shallow_clone(project: Project, second: Change, tmp_path: Path):
    second("net.py", "WIDTH = 20", "WIDTH = 24")
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", "--no-tags", project.folder.as_uri(), str(tmp_path / "shallow")],
        check=True,
    )
    project.folder = tmp_path / "shallow"
    assert "shallow" in (said := refused(project, 2, "--base", "HEAD~1"))
    assert "git fetch --unshallow" in said


def test_no_repository_and_no_git(project: Project, tmp_path: Path):
    assert "there is no git on this machine" in refused(project, 2, "--base", "one", PATH=without_git(tmp_path / "bin"))
    shutil.rmtree(project.folder / ".git")
    assert "is in no git repository" in refused(project, 2, "--base", "one")


def test_a_base_without_the_suite_or_that_cannot_be_prepared(project: Project):
    project.git("checkout", "--quiet", "--orphan", "empty")
    project.git("rm", "--quiet", "-r", "--cached", ".")
    project.git("commit", "--quiet", "--allow-empty", "--message", "nothing")
    project.git("tag", "nothing")
    project.git("checkout", "--quiet", "--force", "main")
    assert "nothing has no mine.yaml yet" in refused(project, 4, "--base", "nothing")
    project.change("net.py", "import torch", "import torch torch")
    project.commit("no Python")
    project.git("tag", "broken")
    project.git("reset", "--quiet", "--hard", "one")
    said = refused(project, 4, "--base", "broken")
    assert "broken cannot be prepared: is no Python that can be read" in said


def test_a_lock_file_that_differs_needs_an_environment_of_its_own(project: Project, second: Change):
    (project.folder / "poetry.lock").write_text("old\n")
    project.commit("lock")
    project.git("tag", "--force", "one")
    second("poetry.lock", "old", "new")
    said = refused(project, 4, "--base", "one")
    assert "poetry.lock of one differs" in said
    assert "--base-python" in said
    assert "cannot run leanmark" in refused(project, 2, "--base", "one", "--base-python", "/bin/false")


@pytest.mark.slow
def test_a_package_that_was_installed_by_copying_cannot_be_both(project: Project, second: Change, tmp_path: Path):
    """What would run for the base is the head's copy, so there is nothing to compare."""
    installed = tmp_path / "site-packages"
    for folder in (installed / "pkg", project.folder / "src" / "pkg"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        shutil.copy(project.folder / "net.py", folder / "net.py")
    second("mine.yaml", '"net:build"', '"pkg.net:build"')
    said = refused(project, 4, "--base", "HEAD", PYTHONPATH=str(installed))
    assert "pkg.net is imported from" in said
    assert "not from src/pkg/net.py by copying" in said
    assert "pip install -e" in said
    # So does whatever pip notes to have copied from here, though the suite does not name it.
    project.git("reset", "--quiet", "--hard", "one")
    noted = installed / "other-1.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (noted / "direct_url.json").write_text(json.dumps({"url": project.folder.as_uri(), "dir_info": {}}))
    assert "other was installed from" in refused(project, 4, "--base", "HEAD", PYTHONPATH=str(installed))
    (noted / "direct_url.json").write_text(json.dumps({"url": project.folder.as_uri(), "dir_info": {"editable": True}}))
    done = project.leanmark("gate", "mine.yaml", "--base", "HEAD", PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_gate_that_lost_its_document_is_resumed_beside_the_same_base_only(project: Project):
    """Everything that was found before is found again from the journal; another base is refused."""
    project.change("net.py", "WIDTH = 20", "WIDTH = 24")
    first = gated(project, "--dirty", "--only", "fp32")
    assert first["exit_code"] == 1
    (folder,) = (project.folder / "leanmark-runs").iterdir()
    (folder / "run.json").unlink()
    asked = ("gate", "mine.yaml", "--dirty", "--only", "fp32", "--resume", folder.name)
    done = project.leanmark(*asked, "--base", "one", "--json")
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["changes"] == first["changes"]
    assert read_run(folder).bases[0].name == "one"
    (folder / "run.json").unlink()
    project.git("commit", "--quiet", "--allow-empty", "--message", "another base")
    other = project.leanmark(*asked, "--base", "HEAD")
    assert other.returncode == 2
    assert "begun with another plan" in other.stderr
