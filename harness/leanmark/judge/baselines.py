"""Stored baselines: a run cut down to what the gate needs, one a suite and machine class, and its artifacts if wanted.

A baseline is a JSON file that people read as a diff: a line a fact, cells in order, numbers
rounded to what their intervals let one tell. Its artifacts lie beside it in one zip file.
It is untrusted wherever it is read: it comes with a pull request.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanmark.errors import InvalidInput, LeanmarkError, NothingToCompare, did_you_mean, telling
from leanmark.jsonable import Json, from_json, read_json, to_json
from leanmark.judge import store
from leanmark.results import SCHEMA_VERSION, Run

MAX_BYTES = 50_000_000
MAX_ARTIFACT_BYTES = 4 * 2**30
PINNED = ".pinned"
_PIECE_BYTES = 2**20
_DIGITS = 6  # significant ones: no interval here is narrower than the seventh
_KEY = "leanmark_baseline"
# Of the environment: what two machines of one class have in common.
_FIXED = (
    *("cpu", "features", "cores", "system", "release", "architecture", "python", "versions", "devices"),
    "machine_class",
)


@dataclass(frozen=True)
class Packed:
    """Artifacts beside a baseline: the zip file, its sha256, and by cell what it holds of each seed."""

    file: str
    sha256: str
    contents: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Baseline:
    """A stored run to compare with."""

    run: Run
    saved: str  # ISO 8601, UTC
    artifacts: Packed | None = None
    path: Path = field(default=Path(), compare=False)

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".json")

    @property
    def contents(self) -> Mapping[str, tuple[str, ...]]:
        """Content hashes of its artifacts by cell, one a seed, wherever they are."""
        return _contents(self.run) if self.artifacts is None else self.artifacts.contents

    @property
    def is_beside_its_artifacts(self) -> bool:
        """Whether the file that packs them is there."""
        return self.artifacts is not None and os.path.lexists(self.path.parent / self.artifacts.file)

    @property
    def is_pinned(self) -> bool:
        """Whether it is the anchor that does not move."""
        return self.name.endswith(PINNED)


def default_folder() -> Path:
    """Where baselines lie: $LEANMARK_BASELINES, or ``baselines`` in the current folder."""
    return Path(os.environ.get("LEANMARK_BASELINES", "baselines"))


# --- write ------------------------------------------------------------------------


def save(run: Run, folder: Path, files: Callable[[str], Mapping[str, Path]] | None = None) -> Baseline:
    """Store a run as the baseline of its suite and machine class, in place of the one before.

    files: gives the files of an artifact by its content hash, where they are to be stored too.
    Raises InvalidInput for a run that is not complete or was measured beside another.
    """
    if not run.complete:
        raise InvalidInput(f"the run {run.id} is not complete", do="Finish it first; a baseline holds every cell.")
    if run.only:
        raise InvalidInput(
            f"the run {run.id} holds only the cells that --only selected",
            do="Run the whole suite, and save that; a baseline holds every cell.",
        )
    if run.bases:
        raise InvalidInput(
            f"the run {run.id} was measured beside {run.bases[0].name}, so it has no ratios of its own",
            do="Run the suite without --base, and save that.",
        )
    machine = str(run.environment.get("machine_class") or "unknown")
    path = folder / f"{_safe(run.suite)}-{_safe(machine)}.json"
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
    saved = datetime.now(UTC).isoformat(timespec="seconds")
    baseline = Baseline(_cut_down(run), saved, None, path)
    if files is not None:
        baseline = replace(baseline, artifacts=_pack(run, path.with_suffix(".zip"), files))
    else:
        path.with_suffix(".zip").unlink(missing_ok=True)
    _write(baseline)
    return baseline


def pin(baseline: Baseline) -> Baseline:
    """Keep a copy of a baseline that later ones do not replace: the anchor against slow drift."""
    path = baseline.path.with_name(f"{baseline.name}{PINNED}.json")
    if baseline.is_pinned or os.path.lexists(path):
        where = baseline.path if baseline.is_pinned else path
        raise InvalidInput("is pinned already", where=where, do="An anchor does not move; delete it to set another.")
    artifacts = baseline.artifacts
    if artifacts is not None:
        _check_packed(baseline)
        own = path.with_suffix(".zip")
        with telling(own):
            own.unlink(missing_ok=True)  # never through a link
            shutil.copyfile(baseline.path.parent / artifacts.file, own)
        artifacts = replace(artifacts, file=own.name)
    else:
        path.with_suffix(".zip").unlink(missing_ok=True)
    pinned = replace(baseline, path=path, artifacts=artifacts)
    _write(pinned)
    return pinned


def _write(baseline: Baseline) -> None:
    run = to_json(baseline.run)
    run["results"] = [_without_defaults(result) for result in run["results"]]
    stored = {
        _KEY: SCHEMA_VERSION,
        "saved": baseline.saved,
        "artifacts": None if baseline.artifacts is None else to_json(baseline.artifacts),
        "run": run,
    }
    store.write_atomically(baseline.path, json.dumps(_rounded(stored), indent=1, allow_nan=False) + "\n")


def _cut_down(run: Run) -> Run:
    """The run without what the gate does not look at."""
    kept = [
        replace(
            result,
            cell=replace(result.cell, steps=(), lowering=0),
            cold_start=None,
            cost=None,
            break_even_calls=None,
            energy=None,
            on_device=None,
            evidence=(),
            against_eager=None,
            warnings=(),
        )
        for result in run.results
    ]
    environment = {key: run.environment[key] for key in _FIXED if key in run.environment}
    return replace(
        run,
        results=tuple(sorted(kept, key=lambda result: result.cell.id)),
        environment=environment,
        warnings=(),
        claims=(),
    )


def _without_defaults(result: dict[str, Json]) -> dict[str, Json]:
    """A result's JSON without what says nothing, so that a diff shows what does."""
    return {key: value for key, value in result.items() if value not in (None, "", [], ())}


def _rounded(value: Json) -> Json:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _contents(run: Run) -> dict[str, tuple[str, ...]]:
    return {
        result.cell.id: (result.artifact, *result.more_artifacts)
        for result in sorted(run.results, key=lambda result: result.cell.id)
        if result.artifact is not None
    }


def _pack(run: Run, path: Path, files: Callable[[str], Mapping[str, Path]]) -> Packed:
    """All artifacts of a run in one zip file, each once; the same artifacts make the same file."""
    contents = _contents(run)
    with telling(path), tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
        try:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
                for content in dict.fromkeys(content for hashes in contents.values() for content in hashes):
                    for name, file in sorted(files(content).items()):
                        entry = zipfile.ZipInfo(f"{content}/{name}")
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        packed.writestr(entry, file.read_bytes())
            out.flush()
            os.chmod(out.name, 0o644)
            os.replace(out.name, path)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise
    return Packed(path.name, _sha256(path), contents)


# --- read -------------------------------------------------------------------------


def read(path: Path) -> Baseline:
    """A baseline, checked. Raises InvalidInput for a file that is none, or a newer or damaged one."""
    try:
        _check_plain(path)
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput("the baseline is too large", where=path, do="A baseline has some kilobytes a cell.")
        stored = read_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"is no whole baseline: {error}", where=path, do="It was cut short or edited; save it again."
        ) from error
    if not isinstance(stored, dict) or _KEY not in stored:
        raise InvalidInput("is no baseline", where=path, do="A run becomes one with: leanmark baseline save RUN")
    version = stored[_KEY]
    if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise InvalidInput(
            f"has schema version {version!r}; this leanmark reads up to {SCHEMA_VERSION}",
            where=path,
            do="Use a newer leanmark.",
        )
    run = from_json(Run, stored.get("run"), path)
    artifacts = None if stored.get("artifacts") is None else from_json(Packed, stored["artifacts"], path)
    if artifacts is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.zip", artifacts.file):
        raise InvalidInput(f"names {artifacts.file[:100]!r}, which is no file beside it", where=path)
    return Baseline(run, str(stored.get("saved", "")), artifacts, path)


def is_baseline(path: Path) -> bool:
    """Whether a file says that it is a baseline, whole or not."""
    try:
        with path.open("rb") as file:
            return f'"{_KEY}"'.encode() in file.read(_PIECE_BYTES)
    except OSError:
        return False


def check_suite(baseline: Baseline, suite: str) -> None:
    """Raises NothingToCompare for a baseline of another suite."""
    if baseline.run.suite != suite:
        raise NothingToCompare(
            f"is a baseline of the suite '{baseline.run.suite}', not of '{suite}'",
            where=baseline.path,
            do="`leanmark baseline list` shows which there are.",
        )


def artifact_files(baseline: Baseline) -> Callable[[str, str], bytes]:
    """What reads a file of an artifact by content hash and name. Raises InvalidInput where the zip file is another."""
    _check_packed(baseline)
    assert baseline.artifacts is not None
    path = baseline.path.parent / baseline.artifacts.file
    left = [MAX_ARTIFACT_BYTES]

    def read_file(content: str, name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as packed:
                entry = packed.getinfo(f"{content}/{name}")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InvalidInput("is packed in a way that no baseline is", where=path)
                left[0] -= entry.file_size
                if left[0] < 0:
                    raise InvalidInput("unpacks to more than it may", where=path)
                return _unpacked(packed, entry)
        except (KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
            raise InvalidInput(f"lacks {content[:12]}/{name} of its artifacts: {error}", where=path) from error

    return read_file


def _unpacked(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """As many bytes as the entry says, piece by piece, so that one that lies fills no memory."""
    parts: list[bytes] = []
    size = 0
    with packed.open(entry) as file:
        while part := file.read(_PIECE_BYTES):
            parts.append(part)
            size += len(part)
            if size > entry.file_size:
                raise zipfile.BadZipFile("it is larger than it says")
    return b"".join(parts)


def _check_plain(path: Path) -> None:
    """Raises InvalidInput for anything but a file: a link leads elsewhere, a device has no end."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InvalidInput("is no plain file", where=path)


def _check_packed(baseline: Baseline) -> None:
    assert baseline.artifacts is not None
    path = baseline.path.parent / baseline.artifacts.file
    _check_plain(path)
    if not path.is_file():
        raise InvalidInput(
            f"its artifacts, {path.name}, are not beside it",
            where=baseline.path,
            do="Fetch them, or save the baseline again; with numbers only, gate by a run: leanmark gate RUN.",
        )
    if _sha256(path) != baseline.artifacts.sha256 or not zipfile.is_zipfile(path):
        raise InvalidInput("its artifacts are not those that it was saved with", where=path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- find -------------------------------------------------------------------------


def stored_in(folder: Path) -> Iterator[tuple[Path, Baseline | None]]:
    """Every baseline of a folder by its path; None for a file that is none."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            yield path, read(path)
        except LeanmarkError:
            yield path, None


def find(name: str, folder: Path) -> Baseline:
    """A baseline by path or by name. Raises InvalidInput with the nearest name."""
    for path in (Path(name), folder / f"{name}.json", folder / name):
        if path.is_file():
            return read(path)
    known = [path.name.removesuffix(".json") for path, _ in stored_in(folder)]
    raise InvalidInput(f"there is no baseline '{name}' in {folder.absolute()}", do=did_you_mean(name, known))


def fitting(suite: str, machine_class: str, folder: Path, *, pinned_only: bool = False) -> list[Baseline]:
    """What a run of a suite on such a machine is compared with, where nobody said: its baseline, and the pinned one.

    Of its own machine class, or else of another, the newest.
    """
    found = [entry for entry in stored_in(folder) if entry[0].stem.endswith(PINNED) or not pinned_only]
    for path, item in found:
        if item is None and re.fullmatch(rf"{re.escape(_safe(suite))}-[0-9a-z]+({PINNED})?\.json", path.name):
            read(path)  # says what is wrong with it: an anchor that cannot be read is not to be passed over
    known = [item for _, item in found if item is not None and item.run.suite == suite]
    return [
        chosen
        for pinned in (False, True)
        if (chosen := _nearest([item for item in known if item.is_pinned is pinned], machine_class)) is not None
    ]


def _nearest(known: Sequence[Baseline], machine_class: str) -> Baseline | None:
    def order(baseline: Baseline) -> tuple[bool, str]:
        return baseline.run.environment.get("machine_class") == machine_class, baseline.saved

    return max(known, key=order, default=None)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def describe(baseline: Baseline) -> dict[str, Any]:
    """What `leanmark baseline list` shows of one, as JSON values."""
    run = baseline.run
    return {
        "name": baseline.name,
        "suite": run.suite,
        "pinned": baseline.is_pinned,
        "cells": len(run.results),
        "started": run.started,
        "saved": baseline.saved,
        "commit": run.commit.get("id"),
        "cpu": run.environment.get("cpu"),
        "machine_class": run.environment.get("machine_class"),
        "artifacts": baseline.artifacts is not None,
        "path": str(baseline.path),
    }
