"""Python modules by name: where they are looked for, their sources, what they hold."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from leanmark.errors import InvalidInput


def look_in(folders: Iterable[Path]) -> None:
    """Let modules in these folders be imported, before installed ones but after Python's own.

    So a user's ``select.py`` beside a suite does not take the place of Python's.
    """
    installed = [Path(entry).name in ("site-packages", "dist-packages") for entry in sys.path]
    place = installed.index(True) if any(installed) else len(sys.path)
    sys.path[place:place] = map(str, folders)
    importlib.invalidate_caches()


@contextmanager
def import_path(*folders: Path) -> Generator[None]:
    """Look in these folders for a while."""
    look_in(folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))


def is_pythons_own(module: str) -> bool:
    """Whether Python has a module of this name, which is then the one that is imported."""
    return module.split(".")[0] in sys.stdlib_module_names


_sources: dict[tuple[str, tuple[str, ...]], Path] = {}


def find_source(module: str) -> Path | None:
    """The file of a Python module, found without importing anything; None if there is none."""
    asked = (module, tuple(sys.path))
    if asked not in _sources:
        search: list[str] | None = list(sys.path)
        spec = None
        parts = module.split(".")
        for index in range(len(parts)):
            spec = PathFinder.find_spec(".".join(parts[: index + 1]), search)
            if spec is None:
                return None
            search = list(spec.submodule_search_locations or [])
        if spec is None or spec.origin is None:
            return None
        _sources[asked] = Path(spec.origin)
    return _sources[asked]


def resolve(reference: str) -> Any:
    """The object that "package.module:name" names. Raises InvalidInput if it cannot be had."""
    module, _, name = reference.partition(":")
    if not module or not name:
        raise InvalidInput(f"'{reference}' is not of the form package.module:name")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"'{reference}' cannot be imported: {error}") from error
