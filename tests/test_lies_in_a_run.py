"""A suite of nothing but lies: each is shown as what it is, and the run is none the worse for it."""

from pathlib import Path

import pytest

from leanmark.judge import store
from running import leanmark

NET = """\
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))


def splits():
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 4, (count,), generator=generator))
        for name, count in (("train", 64), ("calibration", 32), ("validation", 32), ("test", 100))
    }
"""
SUITE = """\
suite: lies
workloads:
  - {name: net, model: "net:build", data: "net:splits"}
recipes:
  wrong:  [control.wrong]
  cached: [export.onnx, control.cached]
  masked: [export.onnx, control.masked]
  fake:   [export.onnx, control.fakequant]
  honest: [{prune.magnitude: {sparsity: 0.9}}, encode.ans]
targets:
  - {runtime: onnxruntime}
measure: {budget: 400ms, launches: 4}
"""
SHOWN_AS = {"wrong": "wrong", "cached": "ineffective", "masked": "ineffective", "fake": "ineffective", "honest": "ok"}


@pytest.mark.slow
def test_every_lie_is_shown_as_what_it_is(tmp_path: Path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "lies.yaml").write_text(SUITE)
    done = leanmark("run", "lies.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "leanmark-runs").iterdir()
    run = store.read_run(folder)
    found = {result.cell.recipe: (result.status.value, result.reason) for result in run.results}
    assert {recipe: found[recipe][0] for recipe in SHOWN_AS} == SHOWN_AS, found
    assert "says that it changes no answer" in found["wrong"][1]
    assert not [warning for warning in run.warnings if "is a lie" in warning]
