"""Code and files that nothing names: what a user's functions import and read is part of each version."""

import json
import os
from typing import Any

import pytest

from gate.project import NET, Project

pytestmark = pytest.mark.slow
CELL = "{}/{}/cpu-torch-t1-b1"


def verdicts(project: Project, *arguments: str, **environment: str) -> tuple[int, dict[tuple[str, str], Any]]:
    done = project.leanmark("gate", "mine.yaml", "--base", "one", "--json", *arguments, **environment)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    return done.returncode, {(item["cell"], item["metric"]): item for item in found["changes"]}


def test_what_is_imported_and_read_elsewhere_is_seen(project: Project):
    """A package in another folder, a file that a module reads when a plug-in imports it, and one that a step reads."""
    package = project.folder / "src" / "pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(NET)
    (project.folder / "net.py").write_text("from pkg.model import build, splits\n")
    (project.folder / "late.py").write_text(
        NET.replace("WRONG_BEYOND = 99.0", 'WRONG_BEYOND = float(open("late.pth").read())')
    )
    (project.folder / "late.pth").write_text("99.0")
    (project.folder / "share.txt").write_text("0.5")
    project.change("steps.py", "import Evidence\n", "import Evidence\nimport late\n")
    project.change("steps.py", "* SHARE)", '* float(open("share.txt").read()))')
    project.change("mine.yaml", "recipes:", '  - {name: late, model: "late:build", data: "late:splits"}\nrecipes:')
    project.change("mine.yaml", "plain: [mine.plain]", "chain: [mine.zero, mine.plain]")
    project.commit("spread over files")
    project.git("tag", "--force", "one")
    source = {"PYTHONPATH": "src"}
    code, found = verdicts(project, **source)
    assert (code, {item["basis"] for item in found.values()}) == (0, {"nothing to measure"})
    project.change("src/pkg/model.py", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05")
    (project.folder / "late.pth").write_text("2.05")
    (project.folder / "share.txt").write_text("0.1")
    project.commit("worse in every file")
    code, found = verdicts(project, **source)
    assert code == 1
    chain = found[CELL.format("net", "chain"), "cell"]
    assert chain["verdict"] == "broken", "nor is what later steps made of it served again"
    for workload in ("net", "late"):
        assert found[CELL.format(workload, "fp32"), "quality"]["verdict"] == "regressed"
    for workload in ("net", "late"):
        broken = found[CELL.format(workload, "zero"), "cell"]
        assert (broken["verdict"], broken["reason"].partition(":")[0]) == ("broken", "ineffective")


def test_a_base_without_its_data_decides_nothing(project: Project):
    """The worktree has what is under version control; data that are not there are no fault of the base's."""
    (project.folder / "count.log").write_text("600")
    project.change("net.py", '("test", 600)', '("test", int(open("count.log").read()))')
    project.commit("data beside the code")
    project.git("tag", "--force", "one")
    project.change("net.py", "WIDTH = 20", "WIDTH = 24")
    code, found = verdicts(project, "--dirty", "--only", "fp32")
    assert code == 3
    said = found[CELL.format("net", "fp32"), "cell"]
    assert said["verdict"] == "inconclusive"
    assert "count.log" in said["reason"]
    assert "under version control" in said["wanted"]


def test_a_base_that_reads_the_work_tree_is_no_base(project: Project):
    place = project.folder / "beyond.txt"
    place.write_text("99.0")
    project.change("net.py", "WRONG_BEYOND = 99.0", f"WRONG_BEYOND = float(open({str(place)!r}).read())")
    project.commit("an absolute path")
    done = project.leanmark("gate", "mine.yaml", "--base", "HEAD")
    assert done.returncode == 4
    assert "beyond.txt, which is the work tree's" in done.stderr
    # So does a module that is found by such a path.
    project.git("reset", "--quiet", "--hard", "one")
    (project.folder / "elsewhere").mkdir()
    os.rename(project.folder / "net.py", project.folder / "elsewhere" / "real.py")
    (project.folder / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(project.folder / 'elsewhere')!r})\nfrom real import build, splits\n"
    )
    project.commit("a path of its own")
    done = project.leanmark("gate", "mine.yaml", "--base", "HEAD")
    assert done.returncode == 4
    assert "real.py, which is the work tree's: both versions would run it" in done.stderr
