"""The terminal table, Markdown and CSV."""

import csv
import io
from dataclasses import replace

import pytest
import runs
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from leanmark import claims
from leanmark.publish import leaderboard, summary
from leanmark.results import Claim, Run


def printed(run: Run, width: int, **options: object) -> str:
    out = io.StringIO()
    summary.print_run(run, Console(file=out, width=width, highlight=False, **options))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("make", [runs.realistic_run, runs.hostile_run, runs.empty_run])
def test_no_line_is_wider_than_the_terminal(make, width: int):
    assert max(cell_len(line) for line in printed(make(), width).splitlines()) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_every_cell_has_a_line_with_its_numbers(width: int):
    run = runs.only(runs.realistic_run(), "fp32", "fp32-eager", "int8-static")
    text = printed(run, width)
    for figure in ("int8-static *", "87.8 %", "[86.4, 89.1]", "277.6 kB", "0.470x", "[0.466, 0.474]", "0.138x"):
        assert figure in text
    assert ("0.470x [0.466, 0.474]" in text) == (width == 120)  # on one line where there is room


def test_a_cell_that_is_not_ok_shows_its_reason_below_it():
    for recipe, (status, reason, _) in runs.BROKEN.items():
        lines = printed(runs.only(runs.realistic_run(), "fp32", recipe), 120).splitlines()
        index = next(i for i, line in enumerate(lines) if line.startswith(recipe))
        assert lines[index].rstrip().endswith(status.value)
        assert lines[index + 1].strip() == reason


def test_warnings_stand_before_the_tables_and_the_conditions_after():
    text = printed(runs.realistic_run(), 120)
    warning, table, machine = text.index("control failed"), text.index("variant"), text.index("AMD EPYC")
    assert warning < table < machine
    tail = text[machine:]
    assert "onnxruntime 1.31.1" in tail
    assert "At least 5 launches an interval" in tail
    assert "minimum detectable effect 1.3 %" in tail
    assert "leanmark run quick" in tail


def test_an_incomplete_run_says_so():
    assert "not complete" in printed(runs.empty_run(), 80)
    assert "not complete" in summary.markdown(runs.empty_run())
    assert "not complete" not in printed(runs.realistic_run(), 80)


def test_colour_only_on_a_terminal():
    assert "\x1b" not in printed(runs.realistic_run(), 80)
    assert "\x1b[" in printed(runs.realistic_run(), 80, force_terminal=True, color_system="truecolor")


def test_hostile_text_cannot_drive_the_terminal():
    text = printed(runs.hostile_run(), 100)
    assert not any(character in text for character in "\x1b\u202e\u2028")
    assert "{{ 7*7 }}" in text


def test_square_brackets_in_names_are_not_markup():
    run = runs.realistic_run()
    named = replace(run, title="[bold red]pruned[/]")
    assert "[bold red]pruned[/]" in printed(named, 80)


def rendered(text: str) -> list:
    return MarkdownIt("commonmark").enable("table").parse(text)


@pytest.mark.parametrize("make", [runs.realistic_run, runs.hostile_run])
def test_markdown_is_tables_and_nothing_that_a_stranger_put_in(make):
    run = make()
    tokens = rendered(summary.markdown(run))
    assert sum(token.type == "table_open" for token in tokens) == 2
    rows = sum(token.type == "tr_open" for token in tokens)
    assert rows == len(run.results) + 2
    assert sum(token.type == "td_open" for token in tokens) == 7 * len(run.results)
    inline = [child for token in tokens for child in token.children or ()]
    own = {"<sub>", "</sub>", "<br>"}
    assert {child.content for child in inline if child.type == "html_inline"} <= own
    assert not any(child.type in ("link_open", "image") for child in inline)
    assert not any(token.type == "html_block" and "script" in token.content for token in tokens)


@pytest.mark.parametrize("make", [runs.realistic_run, runs.hostile_run])
def test_markdown_holds_published_figures_beside_the_runs_own(make):
    run = make()
    claimed = replace(run, claims=(Claim("*/*", runs.HOSTILE, {"smaller": 2.0, "faster": 1.5}),))
    tokens = rendered(summary.markdown(claimed))
    assert sum(token.type == "table_open" for token in tokens) == 3
    text = summary.markdown(claimed)
    lines = text[text.index("**Published, and here**") :].splitlines()
    shown = [line for line in lines if line.startswith("| `")]
    assert len(shown) == len(claims.beside(claimed)) > 0
    assert any(line.endswith(("| reached |", "| missed |", "| undecided |")) for line in shown)
    assert not any(child.type == "link_open" for token in tokens for child in token.children or ())


def test_markdown_shows_a_bar_in_a_name_as_a_bar():
    run = runs.only(runs.realistic_run(), "fp32", "svd")
    odd = replace(run.results[1], cell=replace(run.results[1].cell, recipe="a|b`c\\|d @team"))
    text = summary.markdown(replace(run, results=(run.results[0], odd)))
    codes = [child.content for token in rendered(text) for child in token.children or () if child.type == "code_inline"]
    assert "a|b'c/|d @team" in codes


def test_csv_holds_the_numbers_as_they_are():
    run = runs.realistic_run()
    lines = list(csv.DictReader(io.StringIO(summary.csv(run))))
    rows = leaderboard.rows(run)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line["variant"] == row.variant
        assert line["status"] == row.status.value
        if row.latency is not None and row.footprint is not None:
            assert float(line["latency_ratio"]) == row.latency.value
            assert int(line["size_bytes"]) == row.footprint.size_bytes
        else:
            assert line["latency_ratio"] == ""


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1", "@x", "\t=1", "a,b", 'say "so"'])
def test_csv_gives_a_spreadsheet_no_formula(name: str):
    run = runs.only(runs.realistic_run(), "svd")
    odd = replace(run.results[0], cell=replace(run.results[0].cell, recipe=name))
    (line,) = csv.DictReader(io.StringIO(summary.csv(replace(run, results=(odd,)))))
    assert not line["variant"].lstrip().startswith(("=", "+", "-", "@"))
    assert line["variant"].lstrip("' ").strip() == name.strip()
