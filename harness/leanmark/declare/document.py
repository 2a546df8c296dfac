"""YAML to plain values, with the position of every one of them.

Untrusted input: no tag builds an object, aliases cannot blow a small file up, keys
are unique, and size and depth are limited.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanmark.errors import InvalidInput, Position

MAX_FILE_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 40

Location = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null")}


@dataclass(frozen=True)
class Document:
    """A YAML file as plain values; `position` tells where each of them stands."""

    value: Any
    file: Path
    keys: dict[Location, Position] = field(default_factory=dict[Location, Position])
    values: dict[Location, Position] = field(default_factory=dict[Location, Position])

    def position(self, location: Location, *, key: bool = False) -> Position:
        """Where the value (or its key) stands; the nearest enclosing one if unknown."""
        table = self.keys if key else self.values
        for length in range(len(location), -1, -1):
            found = table.get(location[:length]) or self.values.get(location[:length])
            if found is not None:
                return found
        return Position(self.file, 1, 1)


def parse(path: Path) -> Document:
    """Read a YAML file. Raises InvalidInput with file, line and column."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidInput("is no file", where=_shortened(path), do="Name a suite file, or a built-in suite.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidInput(f"the file has {size:,} bytes; a suite has at most {MAX_FILE_BYTES:,}", where=path)
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", where=_shortened(path)) from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        where = Position(path, content.count(b"\n", 0, error.start) + 1, 1)
        raise InvalidInput(f"is not UTF-8 text (byte {error.start})", where=where) from error
    return parse_text(text, path)


def _shortened(path: Path) -> Path | str:
    return path if len(str(path)) <= 200 else f"{str(path)[:200]}..."


def parse_text(text: str, path: Path) -> Document:
    """The same from text that stands in `path`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        yaml = YAML(typ="safe", pure=True)
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Position(path, mark.line + 1, mark.column + 1) if mark else path
        raise InvalidInput(f"is not valid YAML: {error.problem or error.context}", where=where) from None
    except RecursionError:
        raise InvalidInput(f"is nested deeper than {MAX_DEPTH} levels", where=path) from None
    except (YAMLError, ValueError) as error:
        at = getattr(error, "position", None)  # of a character that YAML forbids
        where = path if at is None else Position(path, text.count("\n", 0, at) + 1, 1)
        raise InvalidInput(f"is not valid YAML: {str(error).splitlines()[0]}", where=where) from None
    if root is None:
        raise InvalidInput("is empty", where=path, do="A suite begins with `suite: NAME`.")
    document = Document(None, path)
    value = _Reader(document, yaml).read(root, (), 0)
    return Document(value, path, document.keys, document.values)


class _Reader:
    def __init__(self, document: Document, yaml: Any) -> None:
        self.document = document
        self.constructor = yaml.constructor
        self.nodes = 0

    def read(self, node: Any, location: Location, depth: int) -> Any:
        here = self._position(node)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise InvalidInput(f"unfolds to more than {MAX_NODES:,} values", where=here, do="Use fewer aliases.")
        if depth > MAX_DEPTH:
            raise InvalidInput(f"is nested deeper than {MAX_DEPTH} levels", where=here)
        self.document.values[location] = here
        tag = str(node.tag)
        if node.id == "mapping" and tag == _TAG + "map":
            return dict(self._pairs(node, location, depth))
        if node.id == "sequence" and tag == _TAG + "seq":
            return [self.read(child, (*location, index), depth + 1) for index, child in enumerate(node.value)]
        if node.id == "scalar" and tag in _PLAIN_TAGS:
            try:
                value = self.constructor.construct_object(node)
            except (ValueError, KeyError):
                shown = f"{node.value[:60]!r}" + ("..." if len(node.value) > 60 else "")
                raise InvalidInput(f"{shown} is not a valid {tag.removeprefix(_TAG)}", where=here) from None
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidInput(f"{node.value} is not a finite number", where=here)
            if isinstance(value, int) and abs(value) >= 2**63:
                raise InvalidInput("a whole number has at most 63 bits", where=here)
            return value
        if node.id == "scalar" and tag == _TAG + "timestamp":
            return str(node.value)
        raise InvalidInput(f"the tag {_shown(tag)} is not allowed", where=here, do="A suite holds plain values only.")

    def _pairs(self, node: Any, location: Location, depth: int) -> Iterator[tuple[str, Any]]:
        seen: set[str] = set()
        for key_node, value_node in node.value:
            where = self._position(key_node)
            if key_node.id != "scalar":
                raise InvalidInput("a key must be plain text", where=where)
            key = str(key_node.value)
            if key in seen:
                raise InvalidInput(f"'{key}' stands here twice", where=where, do="Rename or remove one of them.")
            seen.add(key)
            self.document.keys[(*location, key)] = where
            yield key, self.read(value_node, (*location, key), depth + 1)

    def _position(self, node: Any) -> Position:
        mark = node.start_mark
        return Position(self.document.file, mark.line + 1, mark.column + 1)


def _shown(tag: str) -> str:
    return tag.replace(_TAG, "!!")
