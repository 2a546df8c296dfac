"""How often the gate cries wolf, and how fast it decides.

    python tests/bench_gate.py record --minutes 60   gates of ten cells whose head differs from the base by a comment
    python tests/bench_gate.py report                what they said, and how long deciding about a thousand cells takes

Every cell is measured (--measure-all), in a repository made for it, by `leanmark gate` as a user calls it. What each
gate said is appended to docs/gates.jsonl, where the next recording goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from leanmark import stats
from leanmark.jsonable import from_json, to_json
from leanmark.judge.gate import judge
from leanmark.judge.opponents import Stored
from leanmark.measure.environment import read_environment
from leanmark.results import Run

FILE = Path(__file__).resolve().parent.parent / "docs" / "gates.jsonl"
CELLS = 1000
NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.middle = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)))
        self.last = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        for layer in self.middle:
            x = torch.relu(layer(x)) + x
        return self.last(x.mean(dim=(2, 3)))


def build():
    return Net()


def splits():
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(count, 1, 24, 24, generator=generator), torch.randint(0, 10, (count,), generator=generator))
        for name, count in (("train", 64), ("calibration", 64), ("validation", 64), ("test", 256))
    }
"""
SUITE = """\
suite: ten
workloads:
  - {name: net, model: "net:build", data: "net:splits", metric: agreement}
recipes:
  fused:    [export.onnx, graph.clean, fuse.graph]
  static:   [export.onnx, quantize.static]
  half:     [{prune.channels: {ratio: 0.5}}]
  quarter:  [{prune.channels: {ratio: 0.25}}]
  most:     [{prune.channels: {ratio: 0.75}}]
  sparse:   [{prune.magnitude: {sparsity: {sweep: [0.5, 0.8, 0.9]}}}]
  grouped:  [{cluster.kmeans: {clusters: 16}}]
targets:
  - {runtime: onnxruntime}
measure: {budget: 2s, launches: 8}
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def make_repository(folder: Path) -> None:
    """Two commits that differ by a comment."""
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "ten.yaml").write_text(SUITE)
    (folder / ".gitignore").write_text("leanmark-runs/\n__pycache__/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "one")
    (folder / "net.py").write_text("# the same with a comment\n" + NET)
    git(folder, "commit", "--quiet", "--all", "--message", "two")


def record(minutes: float) -> None:
    """Gate after gate, each appended when it is done."""
    until = time.monotonic() + 60 * minutes
    machine = read_environment()
    with tempfile.TemporaryDirectory(prefix="leanmark-gates-") as scratch:
        folder = Path(scratch) / "repository"
        make_repository(folder)
        while time.monotonic() < until:
            begun = time.monotonic()
            command = [
                sys.executable,
                "-P",
                "-m",
                "leanmark.cli",
                "gate",
                "ten.yaml",
                "--base",
                "HEAD~1",
                "--measure-all",
            ]
            done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1, 3):
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout)
            entry = {
                "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - begun, 1),
                "exit_code": done.returncode,
                "latency": [
                    {"verdict": item["verdict"], "value": item["change"]["value"], "level": item["change"]["level"]}
                    for item in found["changes"]
                    if item["metric"] == "latency" and item["change"] is not None
                ],
                "findings": [
                    item for item in found["changes"] if item["verdict"] in ("regressed", "missing", "broken")
                ],
                "notes": found["notes"],
                "machine": {key: machine[key] for key in ("cpu", "cores", "kernel", "python", "versions")},
            }
            with FILE.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(
                f"gate {len(FILE.read_text().splitlines())}: exit code {done.returncode}, {entry['seconds']} s",
                flush=True,
            )


def report() -> None:
    """What all gates said together, and the time of deciding."""
    entries: list[dict[str, Any]] = (
        [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    )
    if entries:
        cells = [item for entry in entries for item in entry["latency"]]
        failed = sum(entry["exit_code"] == 1 for entry in entries)
        bound = stats.wilson(failed, len(entries))
        off = math.sqrt(sum(math.log(item["value"]) ** 2 for item in cells) / len(cells))
        decided = sum(item["level"] > stats.VERDICT_LEVEL for item in cells)
        print(
            f"{len(entries)} gates of {len(cells) / len(entries):.0f} cells: {failed} failed (at most "
            f"{bound.high:.1%}), "
            f"{sum(entry['exit_code'] == 3 for entry in entries)} undecided; {decided} of {len(cells)} cells went to a "
            f"second stage; ratios off by {off:.2%}; {sum(e['seconds'] for e in entries) / len(entries):.0f} s a gate"
        )
    run = thousand_cells()
    stored = json.dumps(to_json(run))
    begun = time.perf_counter()
    read = from_json(Run, json.loads(stored))
    reading = time.perf_counter() - begun
    judged = judge(read, [Stored("before", read)], date.today())
    print(
        f"{len(judged.changes)} verdicts on {CELLS} cells: {reading:.2f} s to read, "
        f"{time.perf_counter() - begun - reading:.2f} s to decide; torch imported: {'torch' in sys.modules}"
    )


def thousand_cells() -> Run:
    """A run of so many cells, each with ratio, quality with its answers, and sizes."""
    sys.path.insert(0, str(Path(__file__).parent / "publish"))
    from runs import realistic_run

    from leanmark import hits
    from leanmark.arrays import numpy as np

    run = realistic_run()
    base = next(item for item in run.results if item.cell.recipe == "int8-static" and item.quality is not None)
    assert base.quality is not None
    random = np.random.default_rng(0)
    results = [
        replace(
            base,
            cell=replace(base.cell, id=f"net/cell-{number}/cpu"),
            quality=replace(base.quality, examples="e", hits=(hits.pack(random.random(2000) < 0.9),)),
        )
        for number in range(CELLS)
    ]
    return replace(run, results=tuple(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("--minutes", type=float, default=60)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "record":
        record(options.minutes)
    else:
        report()


if __name__ == "__main__":
    main()
