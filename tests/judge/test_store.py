"""Runs on disk are read whole or refused with a reason; the journal survives what kills a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import realistic_run

from leanmark.errors import InvalidInput
from leanmark.judge.store import DOCUMENT, Journal, document, find_run, list_runs, read_run, write_run
from leanmark.results import SCHEMA_VERSION


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = realistic_run()
    path = tmp_path / run.id
    path.mkdir()
    turns = {result.cell.id: [1e-3, 1.1e-3, 0.9e-3] for result in run.results if result.timing is not None}
    write_run(path, run, turns)
    return path


def test_a_run_comes_back_as_it_was(folder: Path):
    assert read_run(folder) == realistic_run()
    assert [item.id for item in list_runs(folder.parent)] == [folder.name]
    assert find_run("latest", folder.parent, finished=True) == folder


def test_the_document_holds_what_pytest_benchmark_needs(folder: Path):
    stored = json.loads((folder / DOCUMENT).read_text())
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= stored.keys()
    for benchmark in stored["benchmarks"]:
        assert benchmark["stats"]["rounds"] == 3
        assert benchmark["stats"]["median"] == 1e-3
        assert benchmark["extra_info"]["leanmark"]["schema_version"] == SCHEMA_VERSION
    assert len(stored["benchmarks"]) + len(stored["leanmark"]["unmeasured"]) == len(stored["leanmark"]["cells"])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not a run document"),
        (lambda text: "[]", "is not a leanmark run"),
        (lambda text: "{}", "is not a leanmark run"),
        (lambda text: text.replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99'), "schema version 99"),
        (lambda text: text.replace('"status": "ok"', '"status": "great"', 1), "not a valid run"),
        (lambda text: text.replace('"benchmarks"', '"benchmarkz"'), "not a whole run document"),
        (lambda text: "[" * 100_000, "is not a run document"),
    ],
)
def test_a_damaged_document_is_refused(folder: Path, damage: Callable[[str], str], says: str):
    path = folder / DOCUMENT
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(InvalidInput, match=says):
        read_run(folder)


def test_an_unknown_run_is_named_with_the_nearest(folder: Path):
    with pytest.raises(InvalidInput) as raised:
        find_run(folder.name[:-1] + "x", folder.parent, finished=True)
    assert raised.value.do is not None
    assert folder.name in raised.value.do


BEGIN: dict[str, Any] = {
    "suite": "s",
    "digest": "d",
    "started": "2026-11-22",
    "command": "leanmark run s",
    "cells": 3,
    "environment": {},
    "commit": {},
}
LAUNCH: dict[str, Any] = {"block": "b", "samples": "b-0", "facts": {}}


def test_a_half_written_line_is_dropped(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.append("begin", **BEGIN)
    journal.append("launch", **LAUNCH)
    whole = journal.path.read_bytes()
    for cut in range(1, 12):
        journal.path.write_bytes(whole + b'{"kind": "launch", "number": 2}'[:cut])
        assert [entry["kind"] for entry in journal.entries()] == ["begin", "launch"]
        assert journal.path.read_bytes() == whole
    journal.append("launch", **LAUNCH | {"samples": "b-1"})
    assert journal.entries()[-1]["samples"] == "b-1"


def test_a_damaged_journal_is_refused(tmp_path: Path):
    journal = Journal(tmp_path)
    with pytest.raises(InvalidInput, match="no journal"):
        journal.entries()
    journal.path.write_text("[1]\n")
    with pytest.raises(InvalidInput, match="damaged"):
        journal.entries()


@pytest.mark.parametrize(
    "line",
    ['{"kind": "launch"}', '{"kind": "inspected", "cell": 5}', '{"kind": "what"}', "5", "[" * 100_000, "{"],
    ids=["launch", "inspected", "unknown", "number", "deep", "cut"],
)
def test_a_damaged_entry_is_told_with_its_line(tmp_path: Path, line: str):
    journal = Journal(tmp_path)
    journal.append("begin", **BEGIN)
    journal.path.write_text(journal.path.read_text() + line + "\n")
    with pytest.raises(InvalidInput, match="the journal is damaged") as raised:
        journal.entries()
    assert str(raised.value.where) == f"{journal.path}:2:1"


def test_damaged_runs_are_listed_as_such_and_hide_no_others(folder: Path):
    for number, started in enumerate(("5", "null", '"2026-01-01"')):
        other = folder.parent / f"other-{number}"
        other.mkdir()
        begin = json.dumps({"kind": "begin", **BEGIN}).replace('"2026-11-22"', started)
        (other / "journal.jsonl").write_text(begin + "\n")
    listed = {run.id: run.suite for run in list_runs(folder.parent)}
    assert listed["other-0"] == listed["other-1"] == "(damaged)"
    assert listed["other-2"] == "s"
    assert find_run("latest", folder.parent, finished=True) == folder
    assert find_run("latest", folder.parent, finished=False).name == "other-2"


def test_no_number_that_is_none_reaches_the_document():
    text = json.dumps(document(realistic_run(), {}), allow_nan=False)
    assert "NaN" not in text
