"""Latency-throughput curves of services as lines to draw. Pure.

Each curve is one variant's: p99 latency at the rate that was answered, at every rate that was tested. Latency is on a
logarithmic scale, since it grows without limit where a service is overloaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from leanmark.publish import numbers
from leanmark.publish.leaderboard import Row
from leanmark.results import Role

WIDTH: Final = 720
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 34
_COLOURS: Final = 7
_MOST: Final = 8
_LATENCIES: Final = tuple(base * 10.0**power for power in range(-4, 3) for base in (1, 2, 5))


@dataclass(frozen=True)
class Mark:
    """A tested rate: where it is drawn, whether the limit held, and its figures in words."""

    x: float
    y: float
    holds: bool
    words: str


@dataclass(frozen=True)
class Curve:
    """One variant's line."""

    name: str
    colour: int  # 1 to 7
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Tick:
    """A line of the grid and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """All curves of one workload under one traffic, with their axes. limit: where the limit of the p99 is drawn."""

    curves: tuple[Curve, ...]
    rates: tuple[Tick, ...]
    latencies: tuple[Tick, ...]
    limit: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart(members: Sequence[Row]) -> Chart | None:
    """The curves of a group of services; None where no rate was looked for."""
    shown = [row for row in members if row.served is not None and row.served.highest is not None]
    shown = [row for row in shown if row.role in (Role.REFERENCE, Role.VARIANT)][:_MOST]
    points = [point for row in shown if row.served is not None for point in row.served.curve if point.p99]
    if not points:
        return None
    traffic = members[0].group.target.traffic
    assert traffic is not None
    most = max(point.completed for point in points) * 1.03
    low = min(min(point.p99 or math.inf for point in points), traffic.limit_seconds) / 1.2
    high = min(max(max(point.p99 or 0.0 for point in points), traffic.limit_seconds) * 1.2, 100 * traffic.limit_seconds)

    def x(rate: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * rate / most, 1)

    def y(seconds: float) -> float:
        part = math.log(min(max(seconds, low), high) / low) / math.log(high / low)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * part, 1)

    curves: list[Curve] = []
    for number, row in enumerate(shown):
        assert row.served is not None
        own = sorted((point for point in row.served.curve if point.p99), key=lambda point: point.rate)
        marks = tuple(
            Mark(
                x(item.completed), y(item.p99 or 0.0), item.holds, _words(row.variant, item.completed, item.p99 or 0.0)
            )
            for item in own
        )
        path = "M" + "L".join(f"{mark.x} {mark.y}" for mark in marks)
        curves.append(Curve(row.variant, number % _COLOURS + 1, path, marks))
    return Chart(
        tuple(curves),
        tuple(Tick(x(rate), f"{rate:,.0f}") for rate in _nice(most)),
        tuple(Tick(y(seconds), numbers.seconds(seconds)) for seconds in _LATENCIES if low <= seconds <= high),
        y(traffic.limit_seconds),
    )


def _words(variant: str, rate: float, p99: float) -> str:
    return f"{numbers.visible(variant, 60)}: {rate:,.0f} requests/s, p99 {numbers.seconds(p99)}"


def _nice(most: float) -> Iterable[float]:
    """About five round numbers from 0 up."""
    step = 10 ** math.floor(math.log10(most / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= most / 6)
    return [step * number for number in range(int(most / step) + 1)]
