"""A user's own models, one of them a file for batches of two, from outside the checkout to what they take home."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leanmark.judge.store import read_run
from leanmark.results import Result, Status
from running import leanmark

SUITE = """\
suite: own
workloads:
  - {name: mine, model: "mypackage.net:build", data: "mypackage.data:splits", metric: "mypackage.score:macro_recall",
     train: {epochs: 20, batch_size: 16, learning_rate: 0.01}, config: {width: 16}}
  - {onnx: exported.onnx, inputs: inputs.npz, name: exported}
recipes:
  int8: [export.onnx, quantize.dynamic]
  fused: [fuse.graph]
  same: [control.identity]
targets: [{runtime: onnxruntime, batch: 2}]
controls: off
measure: {budget: 200ms, launches: 4}
"""

NET = """\
import torch
from torch import nn
from .parts import hidden


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = hidden(width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def build(width=8):
    return Net(width)
"""

DATA = """\
import numpy as np
import torch


def splits():
    random = np.random.default_rng(0)
    found = {}
    for name, count in {"train": 240, "calibration": 40, "validation": 40, "test": 80}.items():
        inputs = random.normal(size=(count, 4)).astype(np.float32)
        found[name] = (torch.from_numpy(inputs), torch.from_numpy(inputs[:, :3].argmax(axis=1)))
    return found
"""

SCORE = """\
import numpy as np


def macro_recall(outputs, targets):
    right = outputs.argmax(axis=1) == targets
    return float(np.mean([right[targets == label].mean() for label in range(3) if (targets == label).any()]))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("elsewhere")
    package = folder / "mypackage"
    package.mkdir()
    # Nobody imports it; it must not take the place of Python's module of that name.
    (folder / "queue.py").write_text("raise RuntimeError('this is not the queue you are looking for')\n")
    parts = "from torch import nn\n\n\ndef hidden(width):\n    return nn.Linear(4, width)\n"
    files = {"__init__.py": "", "net.py": NET, "parts.py": parts, "data.py": DATA, "score.py": SCORE}
    for name, text in files.items():
        (package / name).write_text(text)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    torch.onnx.export(
        model, (torch.zeros(2, 4),), folder / "exported.onnx", dynamo=True, input_names=["x"],
        external_data=False, verbose=False,
    )  # fmt: skip
    np.savez(folder / "inputs.npz", x=np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32))
    (folder / "own.yaml").write_text(SUITE)
    return folder


@pytest.fixture(scope="module")
def run(project: Path) -> Path:
    done = leanmark("run", "own.yaml", "--out", "runs", cwd=project)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Leaderboard: " in done.stdout
    (folder,) = (project / "runs").iterdir()
    return folder


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Result]:
    return {f"{result.cell.workload}/{result.cell.recipe}": result for result in read_run(run).results}


def test_every_cell_has_a_row(results: dict[str, Result]):
    assert set(results) == {
        "mine/fp32", "mine/fp32-eager", "mine/int8", "mine/fused", "mine/same",
        "exported/fp32", "exported/fp32-eager", "exported/int8", "exported/fused", "exported/same",
    }  # fmt: skip
    for name in ("mine/fp32", "mine/fp32-eager", "mine/int8", "exported/fp32", "exported/fused", "exported/same"):
        assert results[name].timing is not None, results[name]
        assert results[name].footprint is not None
    # Where a recipe or a reference does not fit a workload, the row says so.
    assert results["mine/fused"].status is Status.NOT_APPLICABLE
    assert "fuse.graph consumes a Program" in results["mine/fused"].reason
    assert results["exported/fp32-eager"].status is Status.NOT_APPLICABLE


def test_the_model_was_trained_and_scored_by_their_own_metric(results: dict[str, Result]):
    quality = results["mine/int8"].quality
    assert quality is not None
    assert quality.metric == "macro_recall"
    assert quality.score.method == "bootstrap over examples"
    assert 0.7 < quality.score.low <= quality.score.value <= quality.score.high <= 1
    assert quality.difference is not None
    assert quality.difference.method == "paired bootstrap"
    assert quality.difference.low <= 0 <= quality.difference.high


def test_without_targets_quality_is_agreement_with_the_reference(results: dict[str, Result]):
    quality = results["exported/fused"].quality
    assert quality is not None
    assert (quality.metric, quality.score.value, quality.score.n) == ("agreement", 1.0, 32)


def test_pytest_benchmark_takes_the_run_as_it_is(run: Path):
    compare = [
        Path(sys.executable).with_name("pytest-benchmark"),
        "compare",
        str(run / "run.json"),
        "--columns=median,rounds",
    ]
    done = subprocess.run(compare, capture_output=True, text=True, cwd=run, check=False)
    assert done.returncode == 0, done.stderr
    assert "int8" in done.stdout
    assert "fp32-eager" in done.stdout


def test_report_prints_the_same_table_again(project: Path, run: Path):
    page = run / "index.html"
    page.unlink()
    done = leanmark("report", "latest", "--out", "runs", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "int8" in done.stdout
    assert page.stat().st_size > 10_000
    printed = leanmark("report", run.name, "--out", "runs", "--json", cwd=project)
    assert json.loads(printed.stdout)["leanmark"]["suite"] == "own"


def test_the_winner_is_exported_and_loads_without_leanmark(project: Path, run: Path):
    done = leanmark("export", "latest", "mine/int8", "--to", "won", "--out", "runs", cwd=project)
    assert done.returncode == 0, done.stderr
    script = subprocess.run(
        [sys.executable, "-I", "load.py"], cwd=project / "won", capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr
    assert "input" in script.stdout
    again = leanmark("export", "latest", "mine/int8", "--to", "won", "--out", "runs", cwd=project)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    unsure = leanmark("export", "latest", "int8", "--out", "runs", cwd=project)
    assert unsure.returncode == 2
    assert "fits 2 cells" in unsure.stderr


def test_a_changed_module_is_never_served_stale(project: Path):
    def cached() -> float:
        plan = leanmark("plan", "own.yaml", "--only", "mine/fp32", "--json", cwd=project)
        assert plan.returncode == 0, plan.stderr
        return json.loads(plan.stdout)["prepare_seconds"]

    assert cached() == 0
    parts = project / "mypackage" / "parts.py"
    text = parts.read_text()
    parts.write_text("# a comment\n" + text)
    assert cached() == 0
    parts.write_text(text.replace("nn.Linear(4, width)", "nn.Linear(4, width, bias=True)"))
    assert cached() > 0


def test_a_duel_needs_no_suite(project: Path):
    sides = ["exported.onnx", "exported.onnx", "--data", "inputs.npz"]
    alone = leanmark("duel", *sides, "--launches", "4", cwd=project)  # one example a call does not fit it
    assert alone.returncode == 2
    assert "cannot be run" in alone.stderr
    sides += ["--batch", "2"]
    done = leanmark("duel", *sides, "--budget", "0.4", "--launches", "4", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    duel = json.loads(done.stdout)
    assert duel["ratio"]["low"] < 1.1
    assert duel["ratio"]["n"] == 4
    wrong = leanmark("duel", "exported.onnx", "own.yaml", "--data", "inputs.npz", cwd=project)
    assert wrong.returncode == 2
    assert "own.yaml: is no ONNX model" in wrong.stderr
    missing = leanmark("duel", "exported.onnx", "exported.onnx", "--data", "nothing.npz", cwd=project)
    assert missing.returncode == 2
