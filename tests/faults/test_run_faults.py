"""Whatever a step does, its row says so and the rest of the suite goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from leanmark.judge.store import Journal, read_run
from leanmark.results import Result, Status
from running import PROGRAM, leanmark

PROJECT = Path(__file__).parent / "project"

SUITE = """\
suite: faults
workloads:
  - {name: tiny, model: "tiny:build", data: "tiny:splits", metric: "tiny:share_right"}
plugins: [faulty]
recipes:
  raises: [faulty.raise]
  hangs: [faulty.hang]
  kills: [faulty.kill]
  memory: [faulty.memory]
  leaves: [faulty.leave]
  peeks: [faulty.peek]
  lazy: [faulty.lazy]
  inexact: [faulty.exact]
  shape: [faulty.shape]
  noisy: [faulty.noise]
  absent: [faulty.absent]
  detaches: [{faulty.detach: {marker: "MARKER"}}]
targets: [{runtime: onnxruntime}]
prepare: {timeout: 12s}
measure: {budget: 100ms, launches: 4}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("tiny.py", "faulty.py"):
        (folder / name).write_text((PROJECT / name).read_text())
    (folder / "faults.yaml").write_text(SUITE.replace("MARKER", str(folder / "detached")))
    return folder


@pytest.fixture(scope="module")
def results(project: Path) -> dict[str, Result]:
    done = leanmark("run", "faults.yaml", "--out", "runs", cwd=project)
    assert done.returncode == 5, done.stderr
    (folder,) = (project / "runs").iterdir()
    assert (folder / "index.html").stat().st_size > 1000
    return {result.cell.recipe: result for result in read_run(folder).results}


@pytest.mark.parametrize(
    ("recipe", "status", "reason"),
    [
        ("raises", Status.FAILED, "RuntimeError: the moon is in the wrong house"),
        ("hangs", Status.TIMEOUT, "it ran past its limit of 12 s"),
        ("kills", Status.FAILED, "it was killed by SIGKILL; last output: about to go"),
        ("memory", Status.OUT_OF_MEMORY, "preparing needs more memory than there is"),
        ("leaves", Status.FAILED, "it ended with exit code 0"),
        ("peeks", Status.FAILED, "a step asked for the test split"),
        ("lazy", Status.INEFFECTIVE, "faulty.lazy: not one weight changed"),
        ("inexact", Status.WRONG, "faulty.exact says that it changes no answer"),
        ("shape", Status.FAILED, "the step left a Odd at '1'"),
        ("absent", Status.NOT_APPLICABLE, "the model has no convolution"),
        ("noisy", Status.OK, ""),
        ("fp32", Status.OK, ""),
        ("fp32-eager", Status.OK, ""),
        ("same", Status.OK, ""),
    ],
)
def test_each_fault_is_a_row(results: dict[str, Result], recipe: str, status: Status, reason: str):
    result = results[recipe]
    if status is Status.OK:
        assert result.status in (Status.OK, Status.NOISY)  # the machine may be busy
    else:
        assert result.status is status
        assert result.reason.startswith(reason)


def test_what_a_step_detached_is_ended(project: Path, results: dict[str, Result]):
    assert results["detaches"].status in (Status.OK, Status.NOISY)
    assert not psutil.pid_exists(int((project / "detached").read_text()))


def test_what_can_be_measured_is_measured(results: dict[str, Result]):
    for recipe in ("same", "noisy", "lazy", "inexact"):
        ratio = results[recipe].against_reference
        assert ratio is not None
        assert ratio.n >= 4
        quality = results[recipe].quality
        assert quality is not None
        assert quality.score.n == 60
    assert results["raises"].against_reference is None


def descendants(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(project: Path, tmp_path: Path, number: signal.Signals):
    marker = tmp_path / "marker"
    suite = project / f"hang-{number}.yaml"
    suite.write_text(
        SUITE.replace("recipes:\n", f'recipes:\n  waits: [{{faulty.hang: {{marker: "{marker}"}}}}]\n').replace(
            "12s", "10min"
        )
    )
    # Where these tests run in the background, interrupts are ignored, and a child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [
            sys.executable,
            *PROGRAM,
            "run",
            suite.name,
            "--out",
            str(tmp_path / "runs"),
            "--only",
            "waits",
        ],
        cwd=project,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text().count(" ")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = descendants(process.pid) | {int(pid) for pid in marker.read_text().split()}
    begun = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume=" in errors
    assert not [
        pid for pid in family if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
    assert time.monotonic() - begun < 30  # the figure itself, 2 s, is a benchmark's


def test_a_killed_run_leaves_no_children_and_resumes(project: Path, tmp_path: Path):
    suite = project / "killed.yaml"
    suite.write_text(SUITE.replace("budget: 100ms", "budget: 400ms").split("recipes:")[0] + "targets: [{}]\n")
    out = tmp_path / "runs"
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, "run", suite.name, "--out", str(out)],
        cwd=project,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        '"launch"' in path.read_text() for path in out.glob("*/journal.jsonl")
    ):
        assert process.poll() is None
        time.sleep(0.05)
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = out.iterdir()
    journal = folder / "journal.jsonl"
    before = [line for line in journal.read_text().splitlines() if '"launch"' in line]
    with journal.open("a") as file:
        file.write('{"kind": "launch", "blo')  # the line that was being written
    psutil.wait_procs([psutil.Process(pid) for pid in family if psutil.pid_exists(pid)], timeout=20)
    assert not [pid for pid in family if psutil.pid_exists(pid)]

    done = leanmark("run", suite.name, "--out", str(out), "--resume", folder.name, cwd=project)
    assert done.returncode == 0, done.stderr
    after = journal.read_text().splitlines()
    assert [line for line in after if '"launch"' in line][: len(before)] == before
    run = read_run(folder)
    assert {result.status for result in run.results} <= {Status.OK, Status.NOISY}
    assert leanmark("run", suite.name, "--out", str(out), "--resume", folder.name, cwd=project).returncode == 2


def test_a_changed_suite_is_not_resumed(project: Path, tmp_path: Path):
    out = tmp_path / "runs"
    folder = out / "20260101-000000-faults"
    folder.mkdir(parents=True)
    begin = {"suite": "faults", "digest": "another", "started": "", "command": "", "cells": 1}
    Journal(folder).append("begin", **begin, environment={}, commit={})
    done = leanmark("run", "faults.yaml", "--out", str(out), "--resume", folder.name, cwd=project)
    assert done.returncode == 2
    assert "begun with another plan" in done.stderr


def test_a_folder_that_cannot_be_written(project: Path, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = leanmark("run", "faults.yaml", "--out", str(blocked / "runs"), cwd=project)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/bin/mount").exists(), reason="mounting a small disk needs root")
def test_a_full_disk_keeps_the_journal_valid(project: Path, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        suite = project / "full.yaml"
        suite.write_text(SUITE.split("recipes:")[0] + "targets: [{}]\nmeasure: {budget: 2s, launches: 4}\n")
        done = leanmark("run", suite.name, "--out", str(disk / "runs"), cwd=project)
        assert done.returncode == 2, done.stderr
        assert "the disk is full" in done.stderr
        assert "--resume=" in done.stderr
        (folder,) = (disk / "runs").iterdir()
        import json

        lines = (folder / "journal.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["kind"] == "begin"
        assert all(json.loads(line) for line in lines)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
