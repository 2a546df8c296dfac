"""How tests play the scripts of workflows: as a runner would, with a stand-in for GitHub's own side."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
STARTERS = ROOT / "harness" / "leanmark" / "starters"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def steps(path: Path) -> Iterator[dict[str, Any]]:
    document = read(path)
    for job in document["jobs"].values() if "jobs" in document else [document["runs"]]:
        yield from job["steps"]


PLAY = """
const calls = [];
const comments = JSON.parse(process.argv[2]);
const rest = {issues: {
  listComments: null,
  updateComment: async ({comment_id, body}) => calls.push([comment_id, body]),
  createComment: async ({issue_number, body}) => calls.push([null, body]),
}};
const github = {rest, paginate: async () => comments};
const context = {
  repo: {owner: "o", repo: "r"}, issue: {number: 7}, serverUrl: "https://example.org", runId: 5,
  workflow: "gate", job: "judge",
};
(async () => { SCRIPT })().then(() => console.log(JSON.stringify(calls)));
"""


def commented(path: Path, comments: list[dict[str, Any]], cwd: Path, temp: Path) -> list[tuple[int | None, str]]:
    """What the script of a workflow's comment does beside these comments: (the one it replaces, text) each."""
    (script,) = (step["with"]["script"] for step in steps(path) if "script" in step.get("with", {}))
    (cwd / "play.cjs").write_text(PLAY.replace("SCRIPT", script))
    command = ["node", "play.cjs", json.dumps(comments)]
    environment = {**os.environ, "RUNNER_TEMP": str(temp), "ARTIFACT": "leanmark-runs"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return [(number, body) for number, body in json.loads(done.stdout)]


def run_step(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A `run` step of a workflow, in the shell that GitHub's runners start."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
