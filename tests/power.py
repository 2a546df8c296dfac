"""How many false alarms duels give and what they detect: thousands of comparisons whose truth is known.

    python tests/power.py record --minutes 60    add recordings to docs/power, where the last ones ended
    python tests/power.py report                 judge them all

Two networks on two runtimes, alone and beside a busy neighbour, against themselves and
against an exact slowdown. Everything that was recorded is kept in docs/power: a file a
part, with every turn of both sides (100 ns units; negative where it was disturbed).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leanmark import power, registry, stats
from leanmark.measure.environment import read_environment
from leanmark.measure.paired import Launch, LaunchFacts
from leanmark.power import MILLISECONDS, RUNTIMES, Setting, Shape, Tally
from leanmark.processes import kill_all

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "power"
UNIT = 1e-7  # seconds
RESAMPLED = 10_000
SHORT, LONG = power.shape_for(5), power.shape_for(30)
SETTINGS = [Setting(r, ms, busy) for ms, busy, r in itertools.product(MILLISECONDS, (False, True), RUNTIMES)]
# What is recorded: the slowdown, the shape, the comparisons a part, the tolerance of its verdict.
KINDS = {
    "same": (0.0, SHORT, 14, 0.005),
    "slower-3": (0.03, SHORT, 14, 0.005),
    "slower-1": (0.01, LONG, 3, 0.0025),
}


def schedule() -> Iterator[tuple[str, Setting]]:
    """Everything, over and over, the plain comparisons most often."""
    for cycle in itertools.count():
        for setting in SETTINGS:
            yield "same", setting
        yield "slower-3", SETTINGS[cycle % len(SETTINGS)]
        for offset in range(4):
            yield "slower-1", SETTINGS[(4 * cycle + offset) % len(SETTINGS)]


def part_file(kind: str, setting: Setting, number: int) -> Path:
    return FOLDER / f"{kind}-{setting.name}-{number:03}.npz"


def save_part(path: Path, launches: list[Launch], about: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    for number, launch in enumerate(launches):
        disturbed = np.stack([launch.disturbed(column) for column in (0, 1)], axis=1)
        units = np.rint(launch.seconds / UNIT).astype(np.int32)
        arrays[f"turns_{number}"] = np.where(disturbed, -units, units)
        arrays[f"copies_{number}"] = launch.copies.astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.rename(path)


def load_part(path: Path) -> tuple[list[Launch], dict[str, Any]]:
    with np.load(path) as stored:
        about = json.loads(stored["about"].tobytes())
        launches: list[Launch] = []
        for number in range(about["shape"]["launches"]):
            turns, copies = stored[f"turns_{number}"], stored[f"copies_{number}"].astype(np.int32)
            facts = LaunchFacts(("reference", "other"), about["calls_a_turn"], True, True, (), 0.0, 0.0, {})
            share = np.where(turns < 0, 0.0, 1.0)
            calls = np.zeros((2, len(turns), 0))
            launches.append(Launch(facts, np.abs(turns) * UNIT, share, copies, calls))
    return launches, about


def record(minutes: float) -> None:
    """Parts after parts, for so long; whatever lies in the folder is not recorded again."""
    registry.load_builtins()
    until = time.monotonic() + 60 * minutes
    taken: dict[tuple[str, str], int] = {}
    machine = read_environment()
    with tempfile.TemporaryDirectory(prefix="leanmark-power-") as scratch:
        for kind, setting in schedule():
            number = taken[kind, setting.name] = taken.get((kind, setting.name), -1) + 1
            path = part_file(kind, setting, number)
            if path.exists():
                continue
            if time.monotonic() > until:
                return
            slowdown, shape, comparisons, _ = KINDS[kind]
            begun = time.monotonic()
            slowed = replace(setting, slowdown=slowdown)
            launches = power.record(slowed, shape, comparisons, Path(scratch), number, lambda _: None)
            wall = time.monotonic() - begun
            calls = launches[0].facts.calls_a_turn
            about = {
                "kind": kind,
                "setting": asdict(slowed),
                "shape": asdict(shape),
                "calls_a_turn": calls,
                "wall_seconds": wall,
                "call_seconds": float(sum(launch.seconds.sum() for launch in launches)) * (calls + 1),
                "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": {key: machine[key] for key in ("cpu", "cores", "kernel", "python", "versions")},
            }
            save_part(path, launches, about)
            found = len(list(power.comparisons(launches, shape.copies)))
            print(f"{path.name}: {found} comparisons in {wall:.0f} s", flush=True)


# --- the report ----------------------------------------------------------------------


def report() -> dict[str, Any]:
    """Everything that the recordings say, as JSON values."""
    found: dict[str, Any] = {}
    for kind, setting in itertools.product(KINDS, SETTINGS):
        slowdown, shape, _, tolerance = KINDS[kind]
        parts = [load_part(path) for path in sorted(FOLDER.glob(f"{kind}-{setting.name}-*.npz"))]
        if not parts:
            continue
        real = [item for launches, _ in parts for item in power.comparisons(launches, shape.copies)]
        row: dict[str, Any] = {"real": asdict(power.tally(iter(real), slowdown, tolerance))}
        row["call_share"] = sum(a["call_seconds"] for _, a in parts) / sum(a["wall_seconds"] for _, a in parts)
        row["milliseconds"] = 1e3 * float(np.median(np.concatenate([x.seconds[:, 0] for ls, _ in parts for x in ls])))
        if kind == "same":
            units = [pairs for item in real for pairs in item]
            row["units"] = len(units)
            if len(units) >= 2 * SHORT.launches:
                drawn = partial(power.resample, units, SHORT.launches, RESAMPLED)
                row["resampled"] = asdict(power.tally(drawn(1), 0.0, 0.005))
                shift = math.log1p(0.03)
                row["resampled, 3 % slower"] = asdict(power.tally(drawn(2), 0.03, 0.005, shift))
                longer = _lengthened(units, LONG, SHORT)
                row["resampled, 1 % slower"] = asdict(
                    power.tally(
                        power.resample(longer, LONG.launches, RESAMPLED // 5, 2), 0.01, 0.0025, math.log1p(0.01)
                    )
                )
        found[f"{kind} {setting.name}"] = row
    return found


def _lengthened(units: list[Any], wanted: Shape, had: Shape) -> list[Any]:
    """Launches with more copies, put together from those of neighbouring comparisons."""
    several = wanted.copies // had.copies
    return [np.concatenate(units[start :: len(units) // several][:several]) for start in range(len(units) // several)]


def print_report(found: dict[str, Any]) -> None:
    for name, row in found.items():
        print(f"{name}: {row['milliseconds']:.2f} ms a call, {row['call_share']:.0%} of the wall time in turns")
        for what, values in row.items():
            if isinstance(values, dict):
                tally = Tally(**values)
                alarms, hits, cover = (tally.share(n) for n in (tally.false_alarms, tally.detections, tally.covered))
                print(
                    f"  {what}: n {tally.count}; false alarms {tally.false_alarms} (at most {alarms.high:.2%}); "
                    f"detected {hits.value:.1%} [{hits.low:.1%}, {hits.high:.1%}]; covered {cover.value:.1%} "
                    f"[{cover.low:.1%}, {cover.high:.1%}]; standard error {tally.mean_error:.3%}"
                )
    for kind in KINDS:
        rows = [Tally(**row["real"]) for name, row in found.items() if name.startswith(f"{kind} ")]
        if rows:
            count = sum(row.count for row in rows)
            for what in ("false_alarms", "detections", "covered"):
                total = sum(getattr(row, what) for row in rows)
                share = stats.wilson(total, count)
                print(f"{kind}, all settings: {what} {total} of {count} [{share.low:.2%}, {share.high:.2%}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("--minutes", type=float, default=60)
    reporting = commands.add_parser("report")
    reporting.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.command == "record":
        try:
            record(options.minutes)
        finally:
            kill_all()
    elif options.json:
        json.dump(report(), sys.stdout, indent=1)
    else:
        print_report(report())


if __name__ == "__main__":
    main()
