"""A user's own models, one of them a file for batches of two, from outside the checkout to what they take home."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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
  halves: [mine.halves]
plugins: [halves]
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
    readme = Path(__file__).parents[1] / "README.md"
    (block,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    (folder / "halves.py").write_text(block)
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
        "mine/fp32", "mine/fp32-eager", "mine/int8", "mine/fused", "mine/same", "mine/halves",
        "exported/fp32", "exported/fp32-eager", "exported/int8", "exported/fused", "exported/same", "exported/halves",
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
    assert "takes 2 examples a call, not 1" in alone.stderr
    assert "Use --batch 2." in alone.stderr
    with_more = np.zeros((64, 4), np.float32)
    np.savez(project / "more.npz", x=np.load(project / "inputs.npz")["x"], targets=np.zeros(64), more=with_more)
    sides = [*sides[:-1], "more.npz", "--batch", "2"]  # what no model takes is left out
    done = leanmark("duel", *sides, "--budget", "400ms", "--launches", "4", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    duel = json.loads(done.stdout)
    assert duel["ratio"]["low"] < 1.1
    assert duel["ratio"]["n"] == 4
    wrong = leanmark("duel", "exported.onnx", "own.yaml", "--data", "inputs.npz", cwd=project)
    assert wrong.returncode == 2
    assert "own.yaml: is no ONNX model" in wrong.stderr
    missing = leanmark("duel", "exported.onnx", "exported.onnx", "--data", "nothing.npz", cwd=project)
    assert missing.returncode == 2


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.zeros((4, 4), np.float32)}, "holds no array 'x', only y"),
        ({"x": np.zeros((4, 4))}, "'x' is float64, but exported.onnx takes float32"),
        ({"x": np.zeros((4, 5), np.float32)}, "'x' has shape [4, 5], but exported.onnx takes [2, 4]"),
        ({"x": np.zeros((0, 4), np.float32)}, "holds no examples"),
    ],
)
def test_a_duel_names_what_is_wrong_with_the_inputs(project: Path, tmp_path: Path, arrays: dict[str, Any], says: str):
    np.savez(tmp_path / "bad.npz", **arrays)
    done = leanmark(
        "duel", "exported.onnx", "exported.onnx", "--data", str(tmp_path / "bad.npz"), "--batch", "2", cwd=project
    )
    assert done.returncode == 2
    assert f"bad.npz: {says}" in done.stderr


def test_the_technique_of_the_readme_works(results: dict[str, Result]):
    evidence = results["mine/halves"].evidence[0]
    assert evidence.effective
    assert evidence.facts["halves"] == evidence.facts["weights"] > 0


@pytest.mark.slow
def test_only_one_split_beside_the_test_split_is_needed(project: Path):
    data = (project / "mypackage" / "data.py").read_text()
    (project / "mypackage" / "few.py").write_text(
        data + "\n\ndef few():\n    return {name: splits()[name] for name in ('calibration', 'test')}\n"
        "\n\ndef one():\n    return {'test': splits()['test']}\n"
    )
    for name, code in (("few", 0), ("one", 5)):
        suite = f"""\
suite: {name}
workloads: [{{name: {name}, model: "mypackage.net:build", data: "mypackage.few:{name}"}}]
recipes: {{int8: [export.onnx, quantize.static]}}
targets: [{{}}]
controls: off
measure: {{budget: 40ms, launches: 4}}
"""
        (project / f"{name}.yaml").write_text(suite)
        done = leanmark("run", f"{name}.yaml", "--out", f"{name}-runs", cwd=project)
        assert done.returncode == code, done.stderr + done.stdout
    (folder,) = (project / "one-runs").iterdir()
    advice = "Let it return validation or calibration or train; test data never reach a step."
    for result in read_run(folder).results:
        assert f"'mypackage.few:one' gives no validation split. {advice}" in result.reason


def test_a_suite_of_the_users_own_fits_the_schema(project: Path):
    import jsonschema
    from ruamel.yaml import YAML

    schema = json.loads(leanmark("schema", cwd=project).stdout)
    checker = jsonschema.Draft202012Validator(schema)
    read = YAML(typ="safe", pure=True)
    quick = Path(__file__).parents[1] / "suites" / "quick.yaml"
    for path in (project / "own.yaml", quick):
        assert not list(checker.iter_errors(read.load(path)))
    wrong = read.load(quick) | {"measure": {"budget": "nonsense"}}
    assert [list(error.path) for error in checker.iter_errors(wrong)] == [["measure", "budget"]]


def test_an_exported_script_runs_nothing_that_a_name_holds(project: Path):
    from onnx import TensorProto, helper, save

    name = 'x"}) \nopen("pwned", "w")\n#"""'
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", [name], ["y"])],
        "g",
        [value(name, TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), project / "odd.onnx")
    np.savez(project / "odd.npz", **{name: np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)})
    (project / "odd.yaml").write_text(
        "suite: odd\nworkloads: [{onnx: odd.onnx, inputs: odd.npz}]\ntargets: [{}]\n"
        "recipes: {clean: [graph.clean]}\ncontrols: off\nmeasure: {budget: 20ms, launches: 4}\n"
    )
    done = leanmark("run", "odd.yaml", "--out", "odd-runs", cwd=project)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (
        leanmark("export", "latest", "odd/fp32/", "--out", "odd-runs", "--to", "odd-export", cwd=project).returncode
        == 0
    )
    script = subprocess.run(
        [sys.executable, "odd-export/load.py"], cwd=project, capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr
    assert not (project / "pwned").exists()


def test_a_step_is_explained(project: Path):
    done = leanmark("list", "steps", "quantize.static", cwd=project)
    assert done.returncode == 0
    assert "per_channel" in done.stdout
    assert "Evidence:" in done.stdout
    unknown = leanmark("list", "steps", "quantize.statik", cwd=project)
    assert unknown.returncode == 2
    assert "Did you mean 'quantize.static'?" in unknown.stderr
