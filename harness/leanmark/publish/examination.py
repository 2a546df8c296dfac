"""What the doctor found, on a terminal and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leanmark import stats
from leanmark.jsonable import to_json
from leanmark.results import Interval

if TYPE_CHECKING:
    from rich.console import Console

    from leanmark.doctor import Finding, Machine
    from leanmark.power import Power

_MARKS = {"good": "+", "bad": "!", "unknown": "?"}


def as_json(machine: Machine, findings: Sequence[Finding], power: Power | None) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "machine": to_json(machine),
        "findings": [to_json(finding) for finding in findings],
        "power": None if power is None else to_json(power),
    }


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """What disturbs first, each with what to do about it."""
    order = {"bad": 0, "unknown": 1, "good": 2}
    for finding in sorted(findings, key=lambda item: order[item.state]):
        lines = [f"{_MARKS[finding.state]} {finding.subject}: {finding.says}", finding.advice]
        for line, indent in zip(lines, ("", "    "), strict=True):
            text = textwrap.fill(line, console.width, initial_indent=indent, subsequent_indent="    ")
            if text:
                console.print(text, markup=False, highlight=False)
    bad = sum(finding.state == "bad" for finding in findings)
    console.print(f"{bad} of {len(findings)} disturb a measurement", highlight=False)


def print_power(power: Power, console: Console) -> None:
    """False alarms and detections, alone and beside a busy neighbour."""
    console.print(
        f"\nDuels of {power.seconds:g} s of a network of about 1 ms on onnxruntime, tolerance "
        f"{power.tolerance:.1%}, verdicts at {stats.VERDICT_LEVEL:.0%}, shares with 95 % intervals:",
        highlight=False,
    )
    for sight in power.sights:
        where = "beside a busy neighbour" if sight.setting.busy else "alone"
        lines = [
            f"{where}:",
            f"  false alarms {sight.same.false_alarms} of {sight.same.count} {_within(sight.false_alarms)}",
            f"  a slowdown of {power.slowdown:.0%} was seen in {sight.slower.detections} of {sight.slower.count} "
            f"{_within(sight.detections)}",
            f"  minimum detectable effect {sight.minimum_detectable_effect:.2%} (shown in 4 of 5 such duels)",
        ]
        console.print("\n".join(lines), markup=False, highlight=False)


def _within(interval: Interval) -> str:
    return f"[{interval.low:.1%}, {interval.high:.1%}]"
