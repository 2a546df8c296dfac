"""How often the gate cries wolf, and how fast it decides.

    python tests/bench_gate.py record --minutes 60   gates of ten cells whose head differs from the base by a comment
    python tests/bench_gate.py slower --count 10     gates of two cells whose head is 3 % slower than the base
    python tests/bench_gate.py baselines --count 5   gates beside baselines that were taken under other conditions
    python tests/bench_gate.py report                what they said, and how long deciding about a thousand cells takes

Every cell is measured (--measure-all), in a repository made for it, by `leanmark gate` as a user calls it. What each
gate said is appended to docs/gates.jsonl, where the next recording goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from random import Random
from typing import Any

from leanmark import power, scoring
from leanmark.jsonable import from_json, to_json
from leanmark.judge.gate import judge
from leanmark.judge.opponents import Stored
from leanmark.measure.environment import read_environment
from leanmark.results import Base, Comparison, Interval, Run

FILE = Path(__file__).resolve().parent.parent / "docs" / "gates.jsonl"
CELLS = 1000
INTERVAL = ("value", "low", "high", "level", "n")
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
# Two cells, and a network of 33 heavy layers or of 34: latency alone can find what is slower.
FEW = SUITE.split("recipes:")[0] + "recipes:\n  fused: [export.onnx, graph.clean, fuse.graph]\n"
FEW += "targets:" + SUITE.split("targets:")[1] + "gate: {macs: off, quality: off, size: {tolerance: 5%}}\n"
SAME = NET.replace("for layer in self.middle", "for layer in (*(5 * (*self.middle,)), *self.middle[:3])")
SLOWER = NET.replace("for layer in self.middle", "for layer in (*(5 * (*self.middle,)), *self.middle[:4])")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def make_repository(folder: Path, suite: str, base: str, head: str) -> None:
    """Two commits, of one network each."""
    folder.mkdir()
    (folder / "net.py").write_text(base)
    (folder / "ten.yaml").write_text(suite)
    (folder / ".gitignore").write_text("leanmark-runs/\n__pycache__/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "one")
    (folder / "net.py").write_text(head)
    git(folder, "commit", "--quiet", "--all", "--message", "two")


def gated(folder: Path, about: dict[str, Any], *options: str) -> None:
    """One gate, with what it said, appended to the file."""
    begun = time.monotonic()
    done = leanmark(folder, "gate", "ten.yaml", *options, "--measure-all", "--json")
    if done.returncode not in (0, 1, 3):
        raise SystemExit(done.stderr)
    found, machine = json.loads(done.stdout), read_environment()
    newest = max((folder / "leanmark-runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    compared = json.loads(newest.read_text())["leanmark"]["bases"][0]["comparisons"]
    entry = {
        **about,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 1),
        "exit_code": done.returncode,
        "latency": [
            {
                "cell": item["cell"],
                "verdict": item["verdict"],
                "decided": compared[item["cell"]]["decided"] is not None,
                **{key: item["change"][key] for key in INTERVAL},
            }
            for item in found["changes"]
            if item["metric"] == "latency" and item["change"] is not None
        ],
        "findings": [item for item in found["changes"] if item["verdict"] in ("regressed", "missing", "broken")],
        "notes": found["notes"],
        "machine": {key: machine[key] for key in ("cpu", "cores", "kernel", "python", "versions")},
    }
    with FILE.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    print(f"{about}: exit code {done.returncode}, {entry['seconds']} s", flush=True)


def leanmark(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "leanmark.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def record(minutes: float) -> None:
    """Gate after gate, each appended when it is done."""
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="leanmark-gates-") as scratch:
        folder = Path(scratch) / "repository"
        make_repository(folder, SUITE, NET, "# the same with a comment\n" + NET)
        while time.monotonic() < until:
            gated(folder, {"beside": "base", "head": "the same"}, "--base", "HEAD~1")


def record_slower(count: int) -> None:
    """Gates whose head has 34 heavy layers where the base has 33."""
    with tempfile.TemporaryDirectory(prefix="leanmark-gates-") as scratch:
        folder = Path(scratch) / "repository"
        make_repository(folder, FEW, SAME, SLOWER)
        for _ in range(count):
            gated(folder, {"beside": "base", "head": "3 % slower"}, "--base", "HEAD~1")


def record_baselines(count: int) -> None:
    """Baselines with artifacts, taken alone, beside a busy neighbour and with two threads: `count` gates beside each
    with a head that is the same, and as many with one that has 34 heavy layers where the baseline has 33."""
    with tempfile.TemporaryDirectory(prefix="leanmark-gates-") as scratch:
        folder = Path(scratch) / "repository"
        make_repository(folder, FEW, SAME, SAME + "# with a comment\n")
        taken: dict[str, str] = {}
        for name in ("alone", "beside a busy neighbour", "with two threads"):
            threads = ", threads: 2" if "threads" in name else ""
            (folder / "ten.yaml").write_text(FEW.replace("onnxruntime}", f"onnxruntime{threads}}}"))
            store = {"LEANMARK_CACHE": str(Path(scratch) / f"store {name}")}  # so that each is prepared anew
            with power.neighbour() if "busy" in name else contextlib.nullcontext():
                ran = leanmark(folder, "run", "ten.yaml", **store)
            saved = leanmark(folder, "baseline", "save", "latest", "--with-artifacts", "--baselines", name, **store)
            if ran.returncode or saved.returncode:
                raise SystemExit(ran.stderr + saved.stderr)
            taken[name] = str(next((folder / name).glob("*.json")).relative_to(folder))
        contents = [json.loads((folder / file).read_text())["artifacts"]["contents"] for file in taken.values()]
        hashes = [sorted(map(tuple, found.values())) for found in contents]
        alike = hashes.count(hashes[0]) == len(hashes)
        print(f"the artifacts are the same: {alike}", flush=True)
        (folder / "ten.yaml").write_text(FEW)
        random = Random(0)
        for _ in range(count):
            for head, source in (("the same", SAME), ("3 % slower", SLOWER)):
                (folder / "net.py").write_text(source)
                for name, file in random.sample(sorted(taken.items()), len(taken)):
                    about = {"beside": f"baseline taken {name}", "head": head, "same_artifacts": alike}
                    gated(folder, about, "--baseline", file)


def report() -> None:
    """What all gates said together, and the time of deciding."""
    entries: list[dict[str, Any]] = (
        [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    )
    kinds = sorted({(entry["beside"], entry["head"]) for entry in entries})
    for beside, head in kinds:
        found = [entry for entry in entries if (entry["beside"], entry["head"]) == (beside, head)]
        cells = [item for entry in found for item in entry["latency"]]
        codes = [entry["exit_code"] for entry in found]
        share = scoring.wilson(codes.count(1), len(found))
        regressed, improved = (sum(item["verdict"] == what for item in cells) for what in ("regressed", "improved"))
        decided = sum(item["decided"] for item in cells)
        middle = math.exp(statistics.median(math.log(item["value"]) for item in cells))
        print(
            f"beside {beside}, head {head}: of {len(found)} gates of {len(cells) / len(found):.0f} cells "
            f"{codes.count(1)} failed [{share.low:.1%}, {share.high:.1%}], {codes.count(3)} undecided; of "
            f"{len(cells)} cells {regressed} regressed, {improved} improved, {decided} went to a second stage; "
            f"their median {middle:.4f}x; "
            f"{statistics.median(entry['seconds'] for entry in found):.0f} s a gate"
        )
    run = thousand_cells()
    for how, measured in (("beside a stored run", run), ("measured beside a base", beside_itself(run))):
        stored = json.dumps(to_json(measured))
        reading: list[float] = []
        deciding: list[float] = []
        for _ in range(5):
            begun = time.perf_counter()
            read = from_json(Run, json.loads(stored))
            reading.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            judged = judge(read, [] if read.bases else [Stored("before", read)], date.today())
            deciding.append(time.perf_counter() - begun)
        print(
            f"{CELLS} cells {how}, {len(judged.changes)} verdicts: {statistics.median(reading):.2f} s to read, "
            f"{statistics.median(deciding):.2f} s to decide (medians of 5); torch imported: {'torch' in sys.modules}"
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


def beside_itself(run: Run) -> Run:
    """The same, measured beside a base: every cell screened, every third decided about, every ninth undecided."""

    def interval(value: float, half: float, n: int, level: float = 0.99) -> Interval:
        return Interval(value, value * math.exp(-half), value * math.exp(half), level, n, "launches")

    comparisons = {
        result.cell.id: Comparison(
            screened=interval(1.0 + 0.02 * (number % 3 == 0), 0.015, 8),
            decided=interval(1.01, 0.02 if number % 9 == 0 else 0.002, 24) if number % 3 == 0 else None,
            seconds=0.25,
            quality=Interval(0.0, -0.002, 0.002, 0.95, 2000, "paired"),
            answers_changed=0.01,
        )
        for number, result in enumerate(run.results)
    }
    return replace(run, bases=(Base("revision", "main", "0" * 40, run.results, comparisons, run.rules),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("--minutes", type=float, default=60)
    commands.add_parser("slower").add_argument("--count", type=int, default=10)
    commands.add_parser("baselines").add_argument("--count", type=int, default=5)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "record":
        record(options.minutes)
    elif options.command == "slower":
        record_slower(options.count)
    elif options.command == "baselines":
        record_baselines(options.count)
    else:
        report()


if __name__ == "__main__":
    main()
