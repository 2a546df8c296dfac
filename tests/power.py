"""How many false alarms duels give and what they detect: thousands of comparisons whose truth is known.

    python tests/power.py record --minutes 60    add recordings to docs/power, where the last ones ended
    python tests/power.py report                 judge them all

Two networks on two runtimes, alone and beside a busy neighbour, against themselves and
against an exact slowdown. Everything that was recorded is kept in docs/power: a file a
part, with every turn of both sides (100 ns units; negative where it was disturbed).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from leanmark import power, registry, stats
from leanmark.measure.environment import read_commit, read_environment
from leanmark.measure.launches import Launch, LaunchFacts
from leanmark.power import MILLISECONDS, RUNTIMES, Setting, Shape
from leanmark.processes import kill_all
from leanmark.results import Verdict
from power_tables import print_report
from usual import methods
from usual.methods import Said

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "power"
UNIT = 1e-7  # seconds
RESAMPLED = 10_000
DRAWN_FROM = 200  # launches at least
FEWER = 4  # launches than wanted are still a comparison
SHORT_SECONDS, LONG_SECONDS = 5.0, 30.0
SHORT, LONG = power.shape_for(SHORT_SECONDS), power.shape_for(LONG_SECONDS)
SLOWDOWNS = (0.03, 0.1)
SETTINGS = [Setting(r, ms, busy) for ms, busy, r in itertools.product(MILLISECONDS, (False, True), RUNTIMES)]
# Where the methods that people use now are run as well, and how often a part. (On torch one
# comparison of pyperf's takes two minutes: it starts forty processes.)
USUAL = {Setting("onnxruntime", 1, False): 6, Setting("onnxruntime", 10, True): 6}
# What is recorded: the slowdown, the shape, the comparisons a part, the tolerance of its verdict.
KINDS = {
    "same": (0.0, SHORT, 14, 0.005),
    "slower-3": (0.03, SHORT, 14, 0.005),
    "twice": (1.0, SHORT, 14, 0.005),
    "slower-1": (0.01, LONG, 3, 0.0025),
    "apart": (0.0, SHORT, 6, 0.005),  # each side forked off an interpreter of its own
}


def schedule() -> Iterator[tuple[str, Setting]]:
    """Everything, over and over, the plain comparisons most often."""
    for cycle in itertools.count():
        for setting in SETTINGS:
            yield "same", setting
        if cycle == 0:  # sides of unlike length, where much is disturbed
            yield "twice", Setting("onnxruntime", 1, True)
            for setting in SETTINGS:
                if not setting.busy:
                    yield "apart", setting
        yield "slower-3", SETTINGS[cycle % len(SETTINGS)]
        for offset in range(4):
            yield "slower-1", SETTINGS[(4 * cycle + offset) % len(SETTINGS)]
        yield "usual", list(USUAL)[cycle % len(USUAL)]


def part_file(kind: str, setting: Setting, number: int) -> Path:
    return FOLDER / f"{kind}-{setting.name}-{number:03}.npz"


def save_part(path: Path, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)
    unfinished.rename(path)


def parts_of(kind: str, setting: Setting) -> list[Path]:
    """What was recorded of one kind in one setting, in order."""
    return sorted(FOLDER.glob(f"{kind}-{setting.name}-*.npz"))


def load_about(path: Path) -> dict[str, Any]:
    with np.load(path) as stored:
        return json.loads(stored["about"].tobytes())


def load_part(path: Path) -> tuple[list[Launch], dict[str, Any]]:
    with np.load(path) as stored:
        about = json.loads(stored["about"].tobytes())
        numbers = range(about["shape"]["launches"])
        return [launch_of(stored[f"turns_{n}"], stored[f"copies_{n}"].astype(np.int32), about) for n in numbers], about


def launch_of(turns: Any, copies: Any, about: dict[str, Any]) -> Launch:
    """A launch of two sides from its turns, as a file keeps them."""
    facts = LaunchFacts(
        ("reference", "other"),
        about.get("calls_a_turn", 1),
        about.get("untimed", 0),
        *(True, True, (), 0.0, 0.0, None, (1.0, 1.0), {}),
    )
    share = np.where(turns < 0, 0.0, 1.0)
    return Launch(facts, np.abs(turns) * UNIT, share, copies, np.zeros((2, 0, 0)), np.zeros((2, 0)))


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
            begun = time.monotonic()
            one_part = record_usual if kind == "usual" else record_duels
            about, arrays = one_part(kind, setting, number, Path(scratch))
            about |= {
                "kind": kind,
                "wall_seconds": time.monotonic() - begun,
                "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": read_commit(Path(__file__).parent)["id"],
                "machine": {key: machine[key] for key in ("cpu", "cores", "kernel", "python", "versions")},
            }
            save_part(path, about, arrays)
            print(f"{path.name}: {about['comparisons']} comparisons in {about['wall_seconds']:.0f} s", flush=True)


_Part = tuple[dict[str, Any], dict[str, Any]]


def record_duels(kind: str, setting: Setting, number: int, scratch: Path) -> _Part:
    """Duels of one setting: what they were, and every turn of them."""
    slowdown, shape, comparisons, _ = KINDS[kind]
    seconds = LONG_SECONDS if shape == LONG else SHORT_SECONDS
    slowed = replace(setting, slowdown=slowdown)
    launches = power.record(slowed, shape, comparisons, scratch, number, lambda _: None, apart=kind == "apart")
    facts = launches[0].facts
    about = {
        "setting": asdict(slowed),
        "shape": asdict(shape),
        "calls_a_turn": facts.calls_a_turn,
        "untimed": facts.untimed,
        "comparisons": len(list(power.comparisons(launches, shape.copies, seconds, setting.runtime))),
    }
    return about, turns_of(launches)


def record_usual(kind: str, setting: Setting, number: int, scratch: Path) -> _Part:
    """The methods that people use now, and a duel of its own beside each: what they said, and every sample."""
    sides = power.both_sides(setting, scratch)
    said: list[list[Said]] = []
    arrays: dict[str, Any] = {}
    for index in range(USUAL[setting]):
        own, turns = one_duel(setting, 100 * number + index, scratch)
        with power.neighbour() if setting.busy else contextlib.nullcontext():
            found = methods.compare(sides, SHORT.seconds, SLOWDOWNS, scratch / f"{kind}-{number}-{index}")
        said.append([own, *found.said])
        arrays |= {f"{name}_{index}": samples for name, samples in {**turns, **found.samples}.items()}
    about = {
        "setting": asdict(setting),
        "seconds": SHORT.seconds,
        "comparisons": len(said),
        "said": [[asdict(item) for item in items] for items in said],
    }
    return about, arrays


def one_duel(setting: Setting, seed: int, scratch: Path) -> tuple[Said, dict[str, Any]]:
    """A duel as it is run alone, every launch for itself."""
    begun = time.monotonic()
    launches = power.record(setting, SHORT, 1, scratch, seed, lambda _: None)
    wall = time.monotonic() - begun
    pairs = [launch.pairs("other", "reference") for launch in launches]
    ratio = stats.paired_log_ratio([item for item in pairs if item is not None])

    said = Said(
        "leanmark duel, 99 % beyond 0.5 %",
        is_regressed(ratio, 0.0),
        tuple(is_regressed(ratio, slowdown) for slowdown in SLOWDOWNS),
        math.exp(ratio.mean),
        wall,
    )
    return said, {f"duel_{name}": turns for name, turns in turns_of(launches).items()}


def turns_of(launches: Sequence[Launch]) -> dict[str, Any]:
    """Every turn, as a file keeps it."""
    arrays: dict[str, Any] = {}
    for index, launch in enumerate(launches):
        disturbed = np.stack([launch.disturbed(column) for column in (0, 1)], axis=1)
        units = np.rint(launch.seconds / UNIT).astype(np.int32)
        arrays[f"turns_{index}"] = np.where(disturbed, -units, units)
        arrays[f"copies_{index}"] = launch.copies.astype(np.uint8)
    return arrays


# --- the report ----------------------------------------------------------------------


Part = tuple[list[Launch], dict[str, Any]]


def report() -> dict[str, Any]:
    """Everything that the recordings say, as JSON values."""
    asked = [(kind, setting) for kind, setting in itertools.product(KINDS, SETTINGS) if parts_of(kind, setting)]
    with ProcessPoolExecutor() as pool:
        rows = pool.map(report_duels, *zip(*asked, strict=True)) if asked else ()
        found: dict[str, Any] = {
            f"{kind} {setting.name}": row for (kind, setting), row in zip(asked, rows, strict=True)
        }
    for setting in USUAL:
        comparisons = [said for path in parts_of("usual", setting) for said in said_by_all(setting, path)]
        by_method = zip(*comparisons, strict=True)
        rows = {said[0].method: report_usual(said) for said in by_method}
        if rows:
            found[f"usual {setting.name}"] = rows
    return found


def report_duels(kind: str, setting: Setting) -> dict[str, Any]:
    """Of one setting: real comparisons, and those drawn from its launches.

    A real comparison has the launches whose calls, untimed ones and turns that were disturbed included, fit into its
    time; a drawn one as many as fit on average.
    """
    parts = [load_part(path) for path in parts_of(kind, setting)]
    slowdown, shape, _, tolerance = KINDS[kind]
    seconds = LONG_SECONDS if shape == LONG else SHORT_SECONDS
    copies = sum(len(np.unique(launch.copies)) for launches, _ in parts for launch in launches)
    taken = sum(power.call_seconds(launch, setting.runtime) for launches, _ in parts for launch in launches)
    copy_seconds = taken / copies

    def within(to: Shape, seconds: float) -> Shape:
        """The most copies in all that fit, of about as many launches as wanted; or fewer launches of one copy."""
        shapes = [Shape(min(to.launches, int(seconds / (n * copy_seconds))), n) for n in range(1, to.copies + 1)]
        enough = [shape for shape in shapes if shape.launches >= to.launches - FEWER] or shapes[:1]
        return max(enough, key=lambda shape: (shape.launches * shape.copies, shape.launches))

    def drawn(to: Shape, seconds: float, count: int, slower: float, beyond: float) -> dict[str, Any]:
        fitting = within(to, seconds)
        found = (power.units(launch, fitting.copies) for launches, _ in parts for launch in launches)
        recorded = [units for units in found if units]
        if len(recorded) < DRAWN_FROM:
            return {}
        samples = power.resample(recorded, fitting.launches, count, seed=round(1000 * slower))
        return asdict(power.tally(samples, slower, beyond, math.log1p(slower)))

    fitting = within(shape, seconds)
    by_part = [list(power.comparisons(launches, fitting.copies, seconds, setting.runtime)) for launches, _ in parts]
    real = [comparison for comparisons in by_part for comparison in comparisons]
    tally = power.tally(iter(real), slowdown, tolerance)
    launches = float(np.median([len(comparison) for comparison in real]))
    error = stats.LogRatio(0.0, tally.mean_error, round(launches))
    row: dict[str, Any] = {
        "busy": setting.busy,
        "milliseconds": 1e3 * float(np.median(np.concatenate([x.seconds[:, 0] for ls, _ in parts for x in ls]))),
        "parts": len(parts),
        "launches": sum(len(launches) for launches, _ in parts),
        "launches_a_comparison": launches,
        "copies_a_launch": fitting.copies,
        "minimum_detectable_effect": error.minimum_detectable_effect(stats.VERDICT_LEVEL, tolerance),
        "spread": spread_of(parts),
        "real": asdict(tally),
        "estimates": [[stats.paired_log_ratio(item).mean for item in comparisons] for comparisons in by_part],
        "versions": sorted({json.dumps(about["machine"], sort_keys=True) for _, about in parts}),
    }
    if kind == "same":
        slower, long_tolerance = power.SLOWDOWN, KINDS["slower-1"][3]
        row["real, made 3 % slower"] = asdict(power.tally(iter(real), slower, tolerance, math.log1p(slower)))
        row["drawn"] = drawn(shape, seconds, RESAMPLED, 0.0, tolerance)
        row["drawn, of a finite population"] = covered_of_all(parts, fitting)
        row["drawn, 3 % slower"] = drawn(shape, seconds, RESAMPLED, slower, tolerance)
        row["drawn, 1 % slower, 30 s"] = drawn(LONG, LONG_SECONDS, RESAMPLED // 5, 0.01, long_tolerance)
        row["drawn, 8 launches"] = drawn(Shape(8, 2), seconds, RESAMPLED, 0.0, tolerance)
        row["drawn, 8 launches, 3 % slower"] = drawn(Shape(8, 2), seconds, RESAMPLED, slower, tolerance)
    return row


def covered_of_all(parts: Sequence[Part], shape: Shape) -> tuple[int, int]:
    """Of comparisons drawn from all launches: how many intervals hold the middle of all, and how many there are.

    Draws without replacement scatter less about the middle of all the N than new launches would about the truth: by
    the root of 1 - n/N (Cochran 1977, Sampling Techniques, section 2.6). Errors are taken so much smaller.
    """
    recorded = [units for ls, _ in parts for launch in ls if (units := power.units(launch, shape.copies))]
    if len(recorded) < DRAWN_FROM:
        return 0, 0
    middle = stats.paired_log_ratio([np.concatenate(units) for units in recorded]).mean
    smaller = math.sqrt(1 - shape.launches / len(recorded))
    found = map(stats.paired_log_ratio, power.resample(recorded, shape.launches, RESAMPLED, seed=1))
    held = sum(not replace(ratio, error=ratio.error * smaller).interval().excludes(math.exp(middle)) for ratio in found)
    return held, RESAMPLED


def spread_of(parts: Sequence[Part]) -> tuple[float, float]:
    """Standard deviations of log ratios: from copy to copy of one launch, and what its interpreters add.

    The second is the square root of a difference of variances, which can be negative by chance; so has it the sign.
    """
    within, between, sizes = [], [], []
    for launches, _ in parts:
        medians = [[float(np.median(pairs)) for pairs in power.units(launch, 1)] for launch in launches]
        whole = [values for values in medians if len(values) > 1]
        within += [float(np.var(values, ddof=1)) for values in whole]
        between.append(float(np.var([np.mean(values) for values in whole], ddof=1)))
        sizes += [len(values) for values in whole]
    copies = float(np.mean(within))
    added = float(np.mean(between)) - copies / float(np.mean(sizes))
    return math.sqrt(copies), math.copysign(math.sqrt(abs(added)), added)


def said_by_all(setting: Setting, path: Path) -> Iterator[list[Said]]:
    """What each method said of each comparison of a part; of the duel, what its launches say that fit into the time."""
    calls = next(map(load_about, parts_of("same", setting)))
    with np.load(path) as stored:
        about = json.loads(stored["about"].tobytes())
        for index, said in enumerate(about["said"]):
            names = [name for name in stored.files if re.fullmatch(rf"duel_turns_\d+_{index}", name)]
            left, pairs = SHORT_SECONDS, []
            for name in sorted(names, key=lambda name: int(name.split("_")[2])):
                turns, copies = stored[name], stored[name.replace("turns", "copies")].astype(np.int32)
                launch = launch_of(turns, copies, calls)
                left -= power.call_seconds(launch, setting.runtime)
                found = launch.pairs("other", "reference")
                if left >= 0 and found is not None:
                    pairs.append(found)
            own = Said(**said[0])
            ratio = stats.paired_log_ratio(pairs)
            regressed, *slower = (is_regressed(ratio, slowdown) for slowdown in (0.0, *SLOWDOWNS))
            cut = replace(own, regressed=regressed, slower_regressed=tuple(slower), ratio=math.exp(ratio.mean))
            yield [cut, *(Said(**item) for item in said[1:])]


def is_regressed(ratio: stats.LogRatio, slowdown: float) -> bool:
    """Whether a duel says so of the second side, made slower by an exact share."""
    return stats.judge(replace(ratio, mean=ratio.mean + math.log1p(slowdown)), KINDS["same"][3]) is Verdict.REGRESSED


def report_usual(said: Sequence[Said]) -> dict[str, Any]:
    """Of one method of others on one setting."""
    logs = [math.log(item.ratio) for item in said]
    return {
        "count": len(said),
        "false_alarms": sum(item.regressed for item in said),
        "detections": [sum(found) for found in zip(*(item.slower_regressed for item in said), strict=True)],
        "spread": math.sqrt(sum(value**2 for value in logs) / len(logs)),
        "wall_seconds": float(np.median([item.seconds for item in said])),
    }


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
        print_report(report(), SLOWDOWNS)


if __name__ == "__main__":
    main()
