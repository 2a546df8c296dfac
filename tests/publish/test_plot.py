"""The plot: its specification, its points, and the library that draws it."""

from pathlib import Path

import altair
import pytest
import runs

from leanmark.errors import InvalidInput
from leanmark.publish import leaderboard, plot
from leanmark.results import Status


def test_the_specification_is_valid_vega_lite():
    specification = plot.specification(["pruning", "quantization"])
    chart = altair.LayerChart.from_dict(specification, validate=True)
    assert chart.to_dict(validate=True)["data"] == {"name": "points"}


def test_every_scored_cell_is_a_point_with_its_bounds():
    table = leaderboard.rows(runs.realistic_run())
    points = plot.points(table)
    assert [point["cell"] for point in points] == [i for i, row in enumerate(table) if row.quality is not None]
    static = next(point for point in points if point["label"] == "int8-static")
    row = table[static["cell"]]
    assert row.latency is not None
    assert row.footprint is not None
    assert static["x"]["latency"] == [row.latency.value, row.latency.low, row.latency.high]
    assert static["x"]["size"] == [row.footprint.size_bytes] * 3
    assert static["y"]["score"][0] == pytest.approx(87.75)
    assert static["y"]["difference"][0] == pytest.approx(-0.4)
    assert static["front"] == ["latency", "size", "compressed"]


def test_cells_that_are_not_ok_are_greyed_and_on_no_front():
    table = leaderboard.rows(runs.realistic_run())
    for point in plot.points(table):
        if table[point["cell"]].status is not Status.OK:
            assert point["kind"] == "greyed"
            assert point["front"] == []


def test_many_families_share_the_last_colour():
    table = leaderboard.rows(runs.realistic_run())
    coloured = plot.families(table)
    assert len(coloured) <= plot.MAX_FAMILIES
    assert coloured[0] == "quantization"  # the most frequent
    assert {point["family"] for point in plot.points(table)} <= {*coloured, plot.OTHER}


def test_the_library_is_bundled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def bundle(version: str) -> str:
        made.append(version)
        return "the script\n"

    monkeypatch.setattr(plot, "_bundle", bundle)
    assert [plot.vega(tmp_path / "cache") for _ in range(3)] == ["the script\n"] * 3
    assert len(made) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text(kept.read_text().replace("script", "sCript"))
    assert plot.vega(tmp_path / "cache") == "the script\n"  # a damaged copy is not used
    assert len(made) == 2
    assert plot.vega(tmp_path / "cache") == "the script\n"
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plot, "_bundle", lambda version: "the script")
    (tmp_path / "file").write_text("")
    assert plot.vega(tmp_path / "file" / "cache") == "the script"


def test_a_bundle_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plot, "_BUNDLE_CODE", "raise SystemExit('no such version')")
    with pytest.raises(InvalidInput, match=r"no such version[\s\S]*vl-convert-python"):
        plot.vega(None)
