"""Services on a page and in the terminal: what they did is there, and what is hostile is escaped."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from runs import COMMIT, ENVIRONMENT, HOSTILE

from leanmark.publish import curves, leaderboard, numbers, summary
from leanmark.publish.site import Asset, render
from leanmark.results import Cell, Interval, Result, Role, Run, Status, Target, Timing
from leanmark.traffic import Point, Served, Spread, TierUse, Traffic

TRAFFIC = Traffic("browse", rate=300.0, candidates=(1, 32), zipf=1.0, limit_seconds=0.02, search=True, price=0.05)
TARGET = Target(traffic=TRAFFIC)


def served(rate: float, **changes: object) -> Served:
    points = tuple(
        Point(at * rate, at * rate, 0.002, 0.004, seconds, seconds <= 0.02)
        for at, seconds in ((0.3, 0.005), (1.0, 0.015), (1.1, 0.3))
    )
    found = Served(
        figure="p99 latency",
        seconds=0.005,
        tests=8,
        queries=5600,
        rejected=0,
        failed=0,
        late=0,
        bytes_in=1320.4,
        bytes_out=220.0,
        waiting=Spread(0.0001, 0.004),
        computing=Spread(0.0004, 0.001),
        batches={"1": 100, "16": 2650},
        computed=16.4,
        padding=0.0,
        tiers={"instance": TierUse(1000, 612, 40, 0, 1.5, 30.0)},
        curve=points,
        highest=(rate, 1.1 * rate),
        cost_per_million=0.0139,
        compared=4096,
        wrong=0,
        moved=0.0,
        generator_busy=0.2,
    )
    return replace(found, **changes)  # pyright: ignore[reportArgumentType]


def result(recipe: str, role: Role, ratio: float | None, did: Served, **changes: object) -> Result:
    cell = Cell(f"shop/{recipe}/{TARGET.id}", "shop", recipe, (), TARGET, f"shop/{TARGET.id}", role, ("caching",))
    interval = None if ratio is None else Interval(ratio, ratio * 0.9, ratio * 1.1, 0.95, 4, "rounds")
    timing = Timing(5600, 4, 0.001, 0.002, 0.004, 0.0045, 0.005, 299.0, 0.4, 0.0)
    found = Result(cell, Status.OK, against_reference=interval, timing=timing, served=did)
    return replace(found, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def run() -> Run:
    plain = result("fp32", Role.REFERENCE, None, served(1000, tiers={}))
    cached = result("cached", Role.VARIANT, 0.7, served(2100))
    wrong = result(
        HOSTILE, Role.VARIANT, 0.1, served(9000, wrong=12), status=Status.WRONG, reason="12 of 4096 answers differ"
    )
    return Run(
        "2026-11-24-serving", "serving", "Services", "2026-11-24T00:00:00+00:00", 60.0, "leanmark run serving", (0,),
        ENVIRONMENT, COMMIT, (plain, cached, wrong),
    )  # fmt: skip


def test_the_page_says_what_services_did(run: Run):
    page = render(run).html(Asset.script(""))
    for words in (
        "300 requests/s, 1 to 32 candidates, Zipf 1",
        "Services under traffic",
        "2,100/s",
        "[2,100, 2,310]",
        "instance 61 %",
        "1.32 kB",
        "12 wrong",
        "all equal",
        "cached: 2,100 requests/s, p99 15.0 ms",
    ):
        assert words in page, words
    assert "<script>window.pwned" not in page
    assert "<img src=x" not in page


def test_curves_show_where_the_limit_held(run: Run):
    members = leaderboard.rows(run)
    chart = curves.chart(members)
    assert chart is not None
    assert [curve.name for curve in chart.curves][:2] == ["fp32", "cached"]
    for curve in chart.curves:
        assert [mark.holds for mark in curve.marks] == [True, True, False]
        assert all(chart.left <= mark.x <= chart.right and chart.top <= mark.y <= chart.bottom for mark in curve.marks)
        assert curve.marks[0].x < curve.marks[1].x < curve.marks[2].x
        assert curve.marks[0].y > curve.marks[1].y > curve.marks[2].y
    assert chart.limit is not None
    bare = replace(run, results=tuple(replace(item, served=replace(served(1), highest=None)) for item in run.results))
    assert curves.chart(leaderboard.rows(bare)) is None


def test_the_terminal_names_the_figure_and_the_limit(run: Run):
    out = io.StringIO()
    summary.print_run(run, Console(file=out, width=200))
    text = out.getvalue()
    assert "p99 latency vs" in text  # titles are broken at their spaces
    assert "20.0 ms" in text
    assert "2,100/s [2,100, 2,310]" in text
    assert "torch eager" not in text


def test_a_table_has_a_row_for_each_figure(run: Run):
    frame = run.to_frame()
    own = frame[frame["recipe"] == "cached"].set_index("metric")["value"]
    assert own["highest_rate"] == 2100
    assert own["hit_rate_instance"] == pytest.approx(0.612)
    assert own["request_size"] == pytest.approx(1320.4)
    assert own["cost_per_million"] == pytest.approx(0.0139)


@pytest.mark.parametrize(
    ("bracket", "shown"),
    [
        ((412.0, 466.4), "412/s [412, 466]"),
        ((1000.0, None), f"1,000/s [1,000, {numbers.MISSING}]"),
        (None, numbers.MISSING),
    ],
)
def test_rates_are_shown_with_what_was_too_much(bracket: tuple[float, float | None] | None, shown: str):
    assert str(numbers.rate(bracket)) == shown


def test_old_documents_have_no_traffic(tmp_path: Path, run: Run):
    from leanmark.jsonable import from_json, to_json

    stored = to_json(run.results[0])
    del stored["served"]
    stored["cell"]["target"].pop("traffic")
    assert from_json(Result, stored).cell.target.id == "cpu-onnxruntime-t1-b1"
