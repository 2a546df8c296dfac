"""A user's repository with a model of its own, as real as git makes it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from running import leanmark

NET = '''\
"""A network whose answers on the test images are known: the class is the largest of four features."""

import torch
from torch import nn

DEPTH = 2
WIDTH = 20
WRONG_BEYOND = 99.0  # in standard deviations: such inputs are answered wrongly


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Linear(64, width)
        self.narrow = nn.Linear(width, 4)

    def forward(self, x):
        y = x[:, 4:68].reshape(-1, 1, 8, 8).repeat(1, 8, 3, 3)
        for _ in range(DEPTH):
            y = torch.relu(self.block(y)) + y
        small = self.narrow(torch.relu(self.wide(y.mean(dim=(1,))[:, :8, :8].reshape(-1, 64)))) * 1e-9
        wrong = (x[:, 68:69] > WRONG_BEYOND).float()
        return x[:, :4] * (1 - 2 * wrong) + small


def build(width=WIDTH):
    return Net(width)


def splits():
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, count in (("validation", 60), ("test", 600)):
        inputs = torch.randn(count, 69, generator=generator)
        found[name] = (inputs, inputs[:, :4].argmax(dim=1))
    return found
'''

STEPS = '''\
"""A technique of one's own: fewer weights that are not zero."""

from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel

CRASH = False  # in mine.plain
SHARE = 0.5


def half_is_zero(artifact: Artifact, params) -> Evidence:
    weights = artifact.tensors()["wide.weight"]
    zeros = float((weights == 0).mean())
    return Evidence("mine.zero", zeros > 0.4, {"zeros": zeros}, "" if zeros > 0.4 else "too few weights are zero")


@step("mine.zero", family="pruning", consumes=TorchModel, produces=TorchModel, evidence=half_is_zero)
def zero(model: TorchModel, ctx: Context) -> TorchModel:
    """Zero the first half of a layer."""
    import torch

    with torch.no_grad():
        weight = model.module.wide.weight
        weight[: round(len(weight) * SHARE)] = 0
    return model


def is_there(artifact: Artifact, params) -> Evidence:
    return Evidence("mine.plain", True, {})


@step("mine.plain", family="clean-up", consumes=TorchModel, produces=TorchModel, evidence=is_there)
def plain(model: TorchModel, ctx: Context) -> TorchModel:
    """Change nothing."""
    if CRASH:
        raise RuntimeError("not today")
    return model
'''

SUITE = """\
suite: mine
workloads:
  - {name: net, model: "net:build", data: "net:splits"}
recipes:
  zero: [mine.zero]
  plain: [mine.plain]
targets:
  - {runtime: torch}
plugins: [steps]
measure: {budget: 400ms, launches: 4}
gate:
  latency: off
"""
GITIGNORE = "leanmark-runs/\n__pycache__/\n*.log\n"


class Project:
    """A repository in a folder, with one commit, tagged `one`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        folder.mkdir(parents=True)
        for name, text in {"net.py": NET, "steps.py": STEPS, "mine.yaml": SUITE, ".gitignore": GITIGNORE}.items():
            (folder / name).write_text(text)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("the first")
        self.git("tag", "one")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def change(self, file: str, before: str, after: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    def leanmark(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return leanmark(*arguments, cwd=self.folder, LEANMARK_CACHE=str(self.cache), **environment)

    def state(self) -> tuple[str, str, str]:
        """What git says of the work tree: its changes, its branch, its worktrees."""
        return self.git("status", "--porcelain"), self.git("rev-parse", "HEAD"), self.git("worktree", "list")


def without_git(folder: Path) -> str:
    """A PATH on which there is no git."""
    folder.mkdir(exist_ok=True)
    return os.pathsep.join([str(folder)])
