"""Runs on disk: the document, the journal that a killed run resumes from, the raw samples.

A run is a folder: ``journal.jsonl`` while it goes on, ``run.json`` when it is done,
``samples/`` with what every launch measured, ``index.html``. The document is a valid
pytest-benchmark document.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmark import __version__
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, LeanmarkError, Position, did_you_mean, telling
from leanmark.jsonable import from_json, read_json, to_json
from leanmark.results import SCHEMA_VERSION, Result, Run

DOCUMENT = "run.json"
JOURNAL = "journal.jsonl"
SAMPLES = "samples"
PAGE = "index.html"
MAX_DOCUMENT_BYTES = 1_000_000_000


def default_runs() -> Path:
    """Where runs lie: $LEANMARK_RUNS, or ``leanmark-runs`` in the current folder."""
    return Path(os.environ.get("LEANMARK_RUNS", "leanmark-runs"))


def create_folder(root: Path, stem: str) -> Path:
    """Make a folder for a run, which no other run has: `stem`, or with a number after it.

    Raises InvalidInput if it cannot be written, and leaves nothing then.
    """
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    try:
        with telling(root):
            root.mkdir(parents=True, exist_ok=True)
            path = next(path for name in names if _made(path := root / name))
        try:
            with telling(path):
                (path / SAMPLES).mkdir()
                with tempfile.TemporaryFile(dir=path) as probe:
                    probe.write(b"x" * 65536)
                    probe.flush()
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    except LeanmarkError as error:
        raise InvalidInput(
            error.what, where=error.where, do="Free some space, or choose another folder with --out."
        ) from error
    return path


def _made(path: Path) -> bool:
    """Whether this call made the folder; False where it was there before."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


class Journal:
    """One JSON value a line, synced; a line that was cut short is dropped when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL

    def append(self, kind: str, **values: Any) -> None:
        """Add an entry and sync it. Where the disk is full the journal stays as it was."""
        line = json.dumps({"kind": kind, **values}, allow_nan=False).encode() + b"\n"
        with telling(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    _write_all(descriptor, line)
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)

    def entries(self) -> list[dict[str, Any]]:
        """Every whole entry. Cuts a half-written last line off the file."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InvalidInput(
                "there is no journal to resume from", where=self.path, do="`leanmark list runs` shows what there is."
            ) from error
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            with telling(self.path), self.path.open("r+b") as file:
                file.truncate(len(whole))
        found: list[dict[str, Any]] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found.append(_checked(json.loads(line)))
            except (ValueError, RecursionError) as error:
                where = Position(self.path, number, 1)
                raise InvalidInput(f"the journal is damaged: {error}", where=where, do="Start a new run.") from error
        if not found or found[0]["kind"] != "begin":
            raise InvalidInput("the journal holds nothing to resume from", where=self.path, do="Start a new run.")
        return found


# What every entry of a kind holds, and as what.
_KINDS: dict[str, dict[str, type]] = {
    "begin": {
        **dict.fromkeys(("suite", "digest", "started", "command"), str),
        "cells": int,
        **dict.fromkeys(("environment", "commit"), dict),
    },
    "prepared": {"cell": str, "seed": int, "prepared": dict},
    "inspected": {"cell": str, "inspected": dict},
    "compared": {"cell": str, "beside": str, "compared": dict},
    "launch": {"block": str, "samples": str, "facts": dict},
    "served": {"block": str, "what": str, "found": dict},
}


def _checked(entry: Any) -> dict[str, Any]:
    known = _KINDS.get(entry["kind"]) if isinstance(entry, dict) and "kind" in entry else None
    if known is None:
        raise ValueError("an entry of no known kind")
    for key, kind in known.items():
        if not isinstance(entry.get(key), kind):
            raise ValueError(f"'{key}' of an entry '{entry['kind']}' is missing or no {kind.__name__}")
    return entry


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_atomically(path: Path, content: str) -> None:
    """Replace a file in one step, synced."""
    with telling(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def write_samples(folder: Path, name: str, arrays: Mapping[str, Array]) -> None:
    """Store the raw samples of one launch, compressed."""
    path = folder / SAMPLES / f"{name}.npz"
    with telling(path):
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def read_samples(folder: Path, name: str) -> dict[str, Array]:
    """The raw samples of one launch."""
    path = folder / SAMPLES / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except Exception as error:  # a damaged archive raises whatever its parts do
        raise InvalidInput(f"the samples cannot be read: {error}", where=path, do="Start a new run.") from error


# --- the document ----------------------------------------------------------------


def document(run: Run, stretches: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The run as a pytest-benchmark document.

    `stretches` holds seconds a call of every stretch of calls in a row, by cell id; cells
    without any stand under the top-level key ``leanmark`` only.
    """
    header = to_json(run)
    del header["results"]
    measured = [result for result in run.results if stretches.get(result.cell.id)]
    unmeasured = [result for result in run.results if not stretches.get(result.cell.id)]
    return {
        "machine_info": _machine_info(run),
        "commit_info": dict(run.commit),
        "benchmarks": [_benchmark(result, stretches[result.cell.id]) for result in measured],
        "datetime": run.started,
        "version": _pytest_benchmark_version(),
        "leanmark": {
            **header,
            "producer": f"leanmark {__version__}",
            "cells": [result.cell.id for result in run.results],
            "unmeasured": [to_json(result) for result in unmeasured],
        },
    }


def _benchmark(result: Result, stretches: Sequence[float]) -> dict[str, Any]:
    from pytest_benchmark.stats import Stats

    stats = Stats()
    for seconds in stretches:
        stats.update(seconds)
    cell = result.cell
    return {
        "group": cell.block,
        "name": cell.recipe,
        "fullname": cell.id,
        "params": {"workload": cell.workload, "recipe": cell.recipe, "target": cell.target.id},
        "param": cell.id,
        "extra_info": {"leanmark": {"schema_version": SCHEMA_VERSION, **to_json(result)}},
        "options": {"disable_gc": True, "timer": "perf_counter_ns", "min_rounds": 1, "max_time": 0.0,
                    "min_time": 0.0, "warmup": True},
        "stats": {**stats.as_dict(), "iterations": 1},
    }  # fmt: skip


def _machine_info(run: Run) -> dict[str, Any]:
    environment = dict(run.environment)
    return {
        "node": environment.get("machine_class", "unknown"),
        "processor": environment.get("architecture", ""),
        "machine": environment.get("architecture", ""),
        "python_implementation": "CPython",
        "python_version": environment.get("python", ""),
        "system": environment.get("system", ""),
        "release": environment.get("kernel", ""),
        "cpu": {"brand_raw": environment.get("cpu", ""), "count": environment.get("cores")},
    }


def _pytest_benchmark_version() -> str:
    import importlib.metadata

    return importlib.metadata.version("pytest-benchmark")


def write_run(folder: Path, run: Run, stretches: Mapping[str, Sequence[float]]) -> Path:
    """Put the document of a run in place by an atomic rename."""
    path = folder / DOCUMENT
    write_atomically(path, json.dumps(document(run, stretches), indent=1, allow_nan=False) + "\n")
    return path


def resuming(folder: Path) -> str:
    """The command that goes on with an unfinished run."""
    command = Journal(folder).entries()[0]["command"]
    return f"{command} --resume={folder.name}"


def read_run(path: Path) -> Run:
    """Read a run document. Raises InvalidInput for a file that is none, or a newer one."""
    path = path / DOCUMENT if path.is_dir() else path
    if not path.exists() and (path.parent / JOURNAL).exists():
        raise InvalidInput(
            "the run is not finished",
            where=path.parent,
            do=f"Go on with: {resuming(path.parent)}",
        )
    try:
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise InvalidInput("the document is too large", where=path)
        stored = read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"is not a run document: {error}", where=path) from error
    own = stored.get("leanmark") if isinstance(stored, dict) else None
    if not isinstance(own, dict):
        raise InvalidInput("is not a leanmark run", where=path, do="It may be a plain pytest-benchmark document.")
    version = own.get("schema_version")
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidInput(
            f"has schema version {version!r}; this leanmark reads up to {SCHEMA_VERSION}",
            where=path,
            do="Use a newer leanmark.",
        )
    try:
        results = list(own["unmeasured"])
        for benchmark in stored["benchmarks"]:
            result = dict(benchmark["extra_info"]["leanmark"])
            result.pop("schema_version")
            results.append(result)
        by_id = {result["cell"]["id"]: result for result in results}
        ordered = [by_id[cell] for cell in own["cells"]]
        header = {key: value for key, value in own.items() if key not in ("producer", "cells", "unmeasured")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"is not a whole run document ({type(error).__name__}: {error})", where=path) from error
    return from_json(Run, {**header, "results": ordered}, path)


@dataclass(frozen=True)
class RunSummary:
    """One line of `leanmark list runs`."""

    id: str
    suite: str
    started: str
    cells: int
    complete: bool
    path: Path


def list_runs(root: Path) -> list[RunSummary]:
    """All runs in a folder, newest first; unfinished ones are marked."""
    found: list[RunSummary] = []
    for folder in root.iterdir() if root.is_dir() else ():
        if not (folder / DOCUMENT).exists() and not (folder / JOURNAL).exists():
            continue
        try:
            found.append(_summary(folder))
        except LeanmarkError:
            found.append(RunSummary(folder.name, "(damaged)", "", 0, False, folder))
    return sorted(found, key=lambda summary: summary.started, reverse=True)


def _summary(folder: Path) -> RunSummary:
    if (folder / DOCUMENT).exists():
        run = read_run(folder)
        return RunSummary(run.id, run.suite, run.started, len(run.results), run.complete, folder)
    begin = Journal(folder).entries()[0]
    return RunSummary(folder.name, begin["suite"], begin["started"], begin["cells"], False, folder)


def is_run(name: str, root: Path) -> bool:
    """Whether a name is that of a run rather than of a suite."""
    places = (Path(name), root / name)
    documents = any((place / file).exists() for place in places for file in (DOCUMENT, JOURNAL))
    return name == "latest" or documents or (name.endswith(".json") and Path(name).is_file())


def find_run(name: str, root: Path, *, finished: bool) -> Path:
    """The folder of a run by path, by id, or ``latest``. Raises InvalidInput with the nearest name.

    `finished` says which runs ``latest`` is looked for among.
    """
    direct = Path(name)
    if (direct / DOCUMENT).exists() or (direct / JOURNAL).exists():
        return direct
    if direct.is_file():
        return direct
    if (root / name / DOCUMENT).exists() or (root / name / JOURNAL).exists():
        return root / name
    runs = list_runs(root)
    latest = next((run for run in runs if run.complete is finished), None)
    if name == "latest" and latest is not None:
        return latest.path
    kind = "finished" if finished else "unfinished"
    what = f"no {kind} run" if name == "latest" else f"no run '{name}'"
    advice = did_you_mean(name, [run.id for run in runs]) if runs else "Name another folder of runs with --out."
    raise InvalidInput(f"there is {what} in {root.absolute()}", do=advice)
