"""Suites under pytest: selected, measured once, reported in its own words and in pytest-benchmark's."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import psutil
import pytest

from gate.project import Project

CELL = "net/{}/cpu-torch-t1-b1"
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:randomly")
pytestmark = pytest.mark.slow


def run_pytest(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTEST, *arguments],
        cwd=project.folder,
        env={**os.environ, "LEANMARK_CACHE": str(project.cache)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_cells_are_items_and_results_are_benchmarks(project: Project):
    done = run_pytest(project, "mine.yaml", "-k", "plain", "--junitxml=junit.log", "--benchmark-json=bench.log", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"mine.yaml::{CELL.format('plain')}" in done.stdout
    assert "1 passed" in done.stdout
    assert "Name (time in" in done.stdout, "pytest-benchmark prints its table"
    (benchmark,) = json.loads((project.folder / "bench.log").read_text())["benchmarks"]
    assert benchmark["fullname"] == CELL.format("plain")
    assert benchmark["stats"]["rounds"] >= 2
    assert benchmark["extra_info"]["leanmark"]["status"] == "ok"
    (suite,) = ElementTree.parse(project.folder / "junit.log").getroot()
    assert suite.get("tests") == "1"


def test_cells_are_benchmarks_to_the_options_of_pytest_benchmark(project: Project):
    (project.folder / "test_other.py").write_text("def test_other():\n    pass\n")
    asked = ("mine.yaml", "test_other.py", "-k", "plain or other", "-rs")
    done = run_pytest(project, *asked, "--benchmark-only")
    assert "1 passed, 1 skipped" in done.stdout, done.stdout
    assert "test_other.py: Skipping non-benchmark" in done.stdout
    done = run_pytest(project, *asked, "--benchmark-skip")
    assert "1 passed, 1 skipped" in done.stdout, done.stdout
    assert "Skipping benchmark" in done.stdout


def test_an_interrupt_ends_the_session_and_what_it_started(project: Project):
    project.change("mine.yaml", "budget: 400ms, launches: 4", "budget: 10min, launches: 4")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of a background job would ignore it
    process = subprocess.Popen(
        [*PYTEST, "mine.yaml", "-k", "plain"],
        cwd=project.folder,
        env={**os.environ, "LEANMARK_CACHE": str(project.cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if " launch 1 of 4" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, said
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said + rest
    assert "KeyboardInterrupt" in rest
    assert not psutil.wait_procs(family, timeout=30)[1]


def test_a_cell_that_fails_fails_without_a_traceback_and_alone_when_asked_again(project: Project):
    project.change("steps.py", "CRASH = False", "CRASH = True")
    first = run_pytest(project, "mine.yaml", "-p", "cacheprovider", "-k", "zero or plain")
    assert first.returncode == 1, first.stdout
    assert "failed: RuntimeError: not today" in first.stdout
    assert "Traceback" not in first.stdout
    assert "pytest_plugin.py" not in first.stdout
    assert "1 failed, 1 passed" in first.stdout
    again = run_pytest(project, "mine.yaml", "-p", "cacheprovider", "--lf")
    assert "1 failed" in again.stdout
    assert "passed" not in again.stdout


def test_a_folder_of_suites_stops_at_the_first_failure_and_saves_what_pytest_benchmark_compares(project: Project):
    (project.folder / "suites").mkdir()
    suite = (project.folder / "mine.yaml").read_text()
    for name in ("first", "second"):
        (project.folder / "suites" / f"{name}.yaml").write_text(suite.replace("suite: mine", f"suite: {name}"))
    for module in ("net.py", "steps.py"):
        (project.folder / module).rename(project.folder / "suites" / module)
    asked = ("suites", "-k", "plain or fp32", "--benchmark-storage=file://./kept")
    done = run_pytest(project, *asked, "--benchmark-save=before")
    assert "4 passed" in done.stdout or "6 passed" in done.stdout, done.stdout + done.stderr
    again = run_pytest(project, *asked, "--benchmark-compare")
    assert "(0001_before)" in again.stdout, again.stdout
    steps = project.folder / "suites" / "steps.py"
    steps.write_text(steps.read_text().replace("CRASH = False", "CRASH = True"))
    stopped = run_pytest(project, "suites", "-k", "plain", "-x")
    assert stopped.returncode == 1
    assert "1 failed" in stopped.stdout
    assert "passed" not in stopped.stdout.splitlines()[-1]


def test_verdicts_become_failures(project: Project):
    assert project.leanmark("run", "mine.yaml").returncode == 0
    assert project.leanmark("baseline", "save", "latest").returncode == 0
    (path,) = (project.folder / "baselines").glob("*.json")
    project.change("net.py", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05")
    project.change("mine.yaml", "  plain: [mine.plain]\n", "")
    done = run_pytest(project, "mine.yaml", "--leanmark-baseline", str(path))
    assert done.returncode == 1
    assert "regressed quality: -2." in done.stdout
    assert "missing cell: it was ok and is no longer in the suite" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_suite_is_collected_only_when_it_is_named(project: Project, tmp_path: Path):
    (project.folder / "test_other.py").write_text("def test_other():\n    pass\n")
    assert "1 passed" in run_pytest(project).stdout
    (project.folder / "mine.yaml").write_text("suite: mine\nworkloads: [lenet-6]\ntargets: [{}]\n")
    done = run_pytest(project, "mine.yaml")
    assert done.returncode == 2
    assert "Did you mean 'lenet-5'?" in done.stdout
    (project.folder / "other.yaml").write_text("name: not a suite\n")
    assert run_pytest(project, "other.yaml").returncode in (4, 5)
