"""Plain terminal tables of plans and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from leanmark.jsonable import to_json
from leanmark.publish.numbers import seconds, visible
from leanmark.results import Cell

if TYPE_CHECKING:
    from rich.console import Console

    from leanmark.duel import Duel

_COLUMNS = {
    "steps": ("name", "family", "summary"),
    "workloads": ("name", "metric", "title"),
    "data": ("name", "here", "megabytes", "licence"),
    "suites": ("name", "recipes", "title"),
    "runtimes": ("name", "executes", "devices"),
    "runs": ("id", "suite", "cells", "complete", "started"),
}
# What is told of an entry on lines of its own.
_BELOW = {"steps": ("evidence", "source")}


def print_entries(what: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """One line an entry, columns aligned; below it what else is told of each."""
    if not entries:
        print(f"no {what}")
        return
    columns = _COLUMNS[what]
    rows = [columns, *(tuple(_text(entry[column]) for column in columns) for entry in entries)]
    below = [[], *([f"{key}: {_text(entry[key])}" for key in _BELOW.get(what, ()) if entry[key]] for entry in entries)]
    _print_rows(rows, below)


def print_baselines(found: Sequence[Mapping[str, Any]]) -> None:
    """One line a baseline."""
    if not found:
        print("no baselines")
        return
    columns = ("name", "suite", "cells", "artifacts", "started", "cpu")
    rows = [
        tuple("damaged" if key == "suite" and "suite" not in item else _text(item.get(key, "")) for key in columns)
        for item in found
    ]
    _print_rows([columns, *rows])


def print_entry(entry: Mapping[str, Any]) -> None:
    """Everything that is known of one entry; its documentation last."""
    facts = [(key, _fact(value)) for key, value in entry.items() if key not in ("documentation", "summary")]
    _print_rows(facts)
    if entry.get("documentation"):
        print(f"\n{entry['documentation']}")


def _fact(value: Any) -> str:
    if isinstance(value, dict) and all(isinstance(item, dict) for item in value.values()):
        return ", ".join(
            f"{key} (default {item['default']})" if "default" in item else key for key, item in value.items()
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else _text(value)


def plan_json(suite: str, cells: Sequence[Cell], prepare_seconds: float, measure_seconds: float) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "suite": suite,
        "prepare_seconds": round(prepare_seconds, 1),
        "measure_seconds": round(measure_seconds, 1),
        "cells": [to_json(cell) for cell in cells],
    }


def print_plan(suite: str, cells: Sequence[Cell], prepare_seconds: float, measure_seconds: float) -> None:
    """Cells with their recipes; added lowering in brackets; the time that it should take."""
    rows = [("cell", "recipe")]
    for cell in cells:
        own = [_step(cell, index) for index in range(len(cell.steps))]
        text = " > ".join(own) or "as it is"
        rows.append((cell.id, f"{cell.skip[0]}: {cell.skip[1]}" if cell.skip else text))
    _print_rows(rows)
    if any(cell.lowering for cell in cells):
        print("\n[step]: added because the target needs it")
    print(f"{suite}: {len(cells)} cells; about {_minutes(prepare_seconds)} to prepare what is not in the store, "
          f"{_minutes(measure_seconds)} to measure")  # fmt: skip


def print_duel(duel: Duel, console: Console) -> None:
    """The verdict of a duel in a few lines: the ratio with its interval, and both sides."""
    ratio = duel.ratio
    if ratio.excludes(1.0):
        word = "faster" if ratio.value < 1 else "slower"
        times = max(ratio.value, 1 / ratio.value)
        amount = f"{times - 1:.1%}" if times < 2 else f"{times:.2f} times"
        sentence = f"{duel.first} is {amount} {word} than {duel.second}"
    else:
        sentence = f"no difference between {duel.first} and {duel.second} was seen"
    console.print(sentence, markup=False, soft_wrap=True)
    console.print(
        f"latency ratio {ratio.value:.4f}x [{ratio.low:.4f}, {ratio.high:.4f}] (95 %, {ratio.n} launches); "
        f"4 of 5 such duels would show a change of {duel.minimum_detectable_effect:.1%}",
        markup=False,
    )
    for name, timing in ((duel.first, duel.first_timing), (duel.second, duel.second_timing)):
        console.print(
            f"  {name}: median {seconds(timing.median)}, p90 {seconds(timing.p90)}, {timing.calls:,} calls, "
            f"{timing.disturbed_turns:.0%} of turns disturbed",
            markup=False,
            soft_wrap=True,
        )
    if duel.first_timing.noisy or duel.second_timing.noisy:
        console.print("noisy: other programs disturbed many turns; measure again when they are done", markup=False)
    if not duel.pinned:
        console.print("the workers could not be pinned to one core: expect wider intervals", markup=False)


def _step(cell: Cell, index: int) -> str:
    spec = cell.steps[index]
    return f"[{spec.name}]" if index >= len(cell.steps) - cell.lowering else spec.name


def _print_rows(rows: Sequence[Sequence[str]], below: Sequence[Sequence[str]] | None = None) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row, more in zip(rows, below or [()] * len(rows), strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for line in more:
            print(f"{'':{widths[0]}}  {line}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(str(value))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
