"""Seeds that ran apart, joined by the command, say what one run of all of them says."""

import json
import shutil
from pathlib import Path

import pytest

from running import leanmark

SUITE = """\
suite: apart
seeds: [0, 1]
workloads:
  - {name: tiny, model: "tiny:build", data: "tiny:splits", train: {epochs: 3}}
recipes:
  pruned: [{prune.magnitude: {sparsity: 0.5}}]
targets: [{runtime: torch}]
measure: {budget: 100ms, launches: 4}
controls: off
"""


@pytest.mark.slow
def test_seeds_may_run_apart(tmp_path: Path):
    shutil.copy(Path(__file__).parent / "faults" / "project" / "tiny.py", tmp_path)
    (tmp_path / "apart.yaml").write_text(SUITE)
    ids: list[str] = []
    for seeds in (["0"], ["1"], ["0", "1"]):
        options = [word for seed in seeds for word in ("--seed", seed)]
        done = leanmark("run", "apart.yaml", *options, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        ids.append(json.loads(done.stdout)["leanmark"]["id"])
    done = leanmark("merge", *ids[:2], "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    merged = json.loads(done.stdout)
    both = json.loads((tmp_path / "leanmark-runs" / ids[2] / "run.json").read_text())
    assert merged["leanmark"]["seeds"] == both["leanmark"]["seeds"] == [0, 1]
    for ours, theirs in zip(merged["benchmarks"], both["benchmarks"], strict=True):
        ours, theirs = ours["extra_info"]["leanmark"], theirs["extra_info"]["leanmark"]
        assert ours["quality"] == theirs["quality"]
        assert ours["more_artifacts"] == theirs["more_artifacts"]
        assert ours["quality"]["score"]["method"] == "Student over seeds and examples"
    first = json.loads((tmp_path / "leanmark-runs" / ids[0] / "run.json").read_text())
    for ours, theirs in zip(merged["benchmarks"], first["benchmarks"], strict=True):
        assert ours["stats"] == theirs["stats"]
        ours, theirs = ours["extra_info"]["leanmark"], theirs["extra_info"]["leanmark"]
        assert ours["against_reference"] == theirs["against_reference"]
    assert merged["leanmark"]["command"] == first["leanmark"]["command"]
    folder = tmp_path / "leanmark-runs" / merged["leanmark"]["id"]
    assert "merged from" in (folder / "index.html").read_text()
    document = json.loads((folder / "run.json").read_text())
    document["leanmark"]["suite"] = "../../outside"
    (tmp_path / "hostile.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text(json.dumps(document | {"leanmark": {**document["leanmark"], "seeds": [2, 3]}}))
    hostile = leanmark("merge", "hostile.json", "other.json", cwd=tmp_path)
    assert hostile.returncode == 2, hostile.stderr
    assert "is no name of a suite" in hostile.stderr
    assert not (tmp_path / "outside").exists()
    again = leanmark("merge", ids[0], ids[2], cwd=tmp_path)
    assert again.returncode == 2
    assert "both have seed 0" in again.stderr
