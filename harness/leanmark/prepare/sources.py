"""What a module's source depends on, found without importing it."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from leanmark import modules
from leanmark.errors import InvalidInput, Position
from leanmark.jsonable import canonical_json

_MEMORY_FORMAT = 1


def default_store() -> Path:
    """The folder of the store: $LEANMARK_CACHE, or the user's cache folder."""
    configured = os.environ.get("LEANMARK_CACHE")
    return Path(configured).absolute() if configured else Path(platformdirs.user_cache_dir("leanmark")) / "store"


def source_hash(module: str) -> str:
    """A hash of a module's source and of the modules beside it that it imports.

    Followed are imports within the same top-level package, and, for modules that
    are not installed, within the same folder. Comments do not count.
    """
    first = modules.find_source(module)
    if first is None:
        raise InvalidInput(f"the source of module '{module}' cannot be found")
    beside = first.parents[len(module.split(".")) - 1 + (first.name == "__init__.py")]
    top = module.split(".")[0] if {"site-packages", "dist-packages"} & set(beside.parts) else None
    found = _closure(module, first, beside, top)
    facts = sorted((str(path.relative_to(beside)), _source(path).digest) for path in found)
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


@functools.cache
def _closure(module: str, first: Path, beside: Path, top: str | None) -> frozenset[Path]:
    """The files below `beside` (and, if it is given, of the package `top`) that `module` imports."""
    pending, seen = [(module, first)], {first}
    while pending:
        name, path = pending.pop()
        for imported in _source(path).imports(name, path):
            source = _file_below(beside, imported) if top in (None, imported.split(".")[0]) else None
            if source is not None and source not in seen:
                seen.add(source)
                pending.append((imported, source))
    return frozenset(seen)


@functools.cache
def _file_below(folder: Path, module: str) -> Path | None:
    """The source of a module below a folder; None for modules from elsewhere, and for what is no module."""
    place = folder.joinpath(*module.split("."))
    candidates = (place / "__init__.py", place.parent / f"{place.name}.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@dataclass(frozen=True)
class _Source:
    """What a file's syntax tree tells: a hash of it, and what it imports (level, module, name)."""

    digest: str
    imported: frozenset[tuple[int, str, str]]

    def imports(self, module: str, path: Path) -> set[str]:
        """Absolute names of everything that may be an imported module."""
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        found: set[str] = set()
        for level, base, name in self.imported:
            above = package[: len(package) - level + 1] if level else []
            parts = [*above, *filter(None, [base])]
            found |= {".".join(parts), ".".join([*parts, *filter(None, [name])])} - {""}
        return found


def file_digest(path: Path) -> str:
    """A hash of a module's file: of its syntax tree, or of its bytes where it is none of Python's."""
    return _source(path).digest


def _source(path: Path) -> _Source:
    status = path.stat()
    return _remembered(path, (status.st_mtime_ns, status.st_size))


@functools.cache
def _remembered(path: Path, stamp: tuple[int, int]) -> _Source:
    """What the file says, from the memory if its time and size are those of then."""
    memory = _memory()
    with contextlib.suppress(KeyError, TypeError, ValueError):  # a memory that somebody damaged is none
        known: dict[str, Any] = memory[str(path)]
        if tuple(known["stamp"]) == stamp:
            return _Source(known["digest"], frozenset((level, base, name) for level, base, name in known["imported"]))
    read = _read(path)
    memory[str(path)] = {"stamp": stamp, "digest": read.digest, "imported": sorted(read.imported)}
    _keep(memory)
    return read


def _read(path: Path) -> _Source:
    content = path.read_bytes()
    if path.suffix != ".py":
        return _Source(hashlib.sha256(content).hexdigest(), frozenset())
    try:
        tree = ast.parse(content)
        digest = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    except SyntaxError as error:
        where = Position(path, error.lineno or 1, error.offset or 1)
        raise InvalidInput(f"is no Python that can be read: {error.msg}", where=where) from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise InvalidInput(
            f"is no Python that can be read: {error or 'it is nested too deeply'}", where=path
        ) from error
    imported: set[tuple[int, str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(0, alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {(node.level, node.module or "", alias.name) for alias in node.names}
    return _Source(digest, frozenset(imported))


def _memory_file() -> Path:
    return default_store() / "sources.json"


@functools.cache
def _memory() -> dict[str, Any]:
    """Digests of files that were read before; reading two dozen syntax trees takes half a second."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        stored: Any = json.loads(_memory_file().read_text())
        if stored["format"] == _MEMORY_FORMAT and isinstance(stored["files"], dict):
            return stored["files"]
    return {}


def _keep(memory: dict[str, Any]) -> None:
    path = _memory_file()
    with contextlib.suppress(OSError):  # it only saves time
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            known = {name: facts for name, facts in memory.items() if Path(name).exists()}
            json.dump({"format": _MEMORY_FORMAT, "files": known}, file)
        os.replace(name, path)
