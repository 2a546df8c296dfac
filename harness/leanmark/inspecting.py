"""What artifacts answer and what their start costs, each seen in a fresh process of its own; scored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed

from leanmark.assembly import Inspected
from leanmark.measure import quality
from leanmark.measure.sides import Side, SideError
from leanmark.processes import child_threads
from leanmark.results import Interval, Quality, Status

# What the processes of one artifact a seed showed, by the index of the seed.
Shown = dict[int, quality.Inspection | SideError]
Key = tuple[str, int]  # a name, and the index of a seed


def ask(sides: Mapping[Key, Side], jobs: int, tell: Callable[[str], None]) -> dict[str, Shown]:
    """What a fresh process of every side shows, by name; so many side by side."""
    shown: dict[str, Shown] = {name: {} for name, _ in sides}
    alone = any(map(quality.reads_the_whole_machine, sides.values()))
    with child_threads(1 if alone else jobs) as pool:
        futures = {
            pool.submit(quality.inspect, side, answers_only=seed > 0): (name, seed)
            for (name, seed), side in sides.items()
        }
        for future in as_completed(futures):
            name, seed = futures[future]
            try:
                shown[name][seed] = future.result()
            except SideError as error:
                shown[name][seed] = error
            tell(name)
    return shown


def answers(shown: Shown) -> list[quality.Answers] | None:
    """The answers of every seed in order, or None if a seed has none."""
    items = [shown[seed] for seed in sorted(shown)]
    found = [item.answers for item in items if isinstance(item, quality.Inspection)]
    return found if found and len(found) == len(items) else None


def _intervals(found: Quality) -> list[Interval | None]:
    return [part for item in (found, *found.also.values()) for part in (item.score, item.difference)]


def score(
    metric: str, shown: Shown, anchor: Sequence[quality.Answers] | None, examples: str, *, is_reference: bool
) -> Inspected:
    """Score what was answered; `anchor` is None for a reference, and where a reference has no answers itself."""
    for item in shown.values():
        if isinstance(item, SideError):
            return Inspected(death=(item.death.status, item.death.reason))
    own, start = answers(shown), shown[0]
    assert own is not None
    assert isinstance(start, quality.Inspection)
    if metric == "agreement" and anchor is None and not is_reference:
        return Inspected(
            cold_start=start.cold_start, death=(Status.FAILED, "its reference gave no answers to agree with")
        )
    try:
        found = quality.assess(metric, own, anchor, examples)
    except Exception as error:  # answers may have any shape
        return Inspected(cold_start=start.cold_start, death=(Status.FAILED, f"metric {metric}: {error}"))
    if not all(part is None or part.is_finite for part in _intervals(found)):
        reason = f"metric {metric}, or one beside it, is no number, or has no finite interval on these examples"
        return Inspected(cold_start=start.cold_start, death=(Status.FAILED, reason))
    moved = None
    if anchor is not None:
        moved = max(quality.largest_difference(a, b) for a, b in zip(own, anchor, strict=True))
        moved = min(moved, sys.float_info.max)  # JSON has no infinity
    return Inspected(found, start.cold_start, start.energy, start.on_device, moved)
