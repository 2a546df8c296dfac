"""Dataclasses as JSON values, and back.

Coming back, values are checked: whoever wrote them may have been another program.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from leanmark.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
_DIGITS = 20

# JSON values: facts, parameters and environments are open sets of these. (Not a
# recursive type: pyright and pydantic each read those differently.)
Json: TypeAlias = Any


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def to_json(value: object) -> Json:
    """A dataclass as JSON values; a number that is not finite becomes null."""
    return _finite(_adapter(type(value)).dump_python(value, mode="json"))


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def read_json(text: str) -> Json:
    """The value of a document that may come from anybody. Raises ValueError, RecursionError.

    No figure of a run has twenty digits; one with hundreds is too large for a float.
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else float(digits))


def from_json(kind: type[T], value: Json, source: Path | None = None) -> T:
    """The dataclass `kind` from JSON values that nobody has checked yet.

    Raises InvalidInput, naming `source`, where they do not fit.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            f"not a valid {kind.__name__.lower()}: {place}: {first['msg']}",
            where=source,
            do="It was written by another program or edited by hand; run the suite again.",
        ) from None


def canonical_json(value: Json) -> str:
    """One text a value: sorted keys, no spaces, no NaN. Used for keys and hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
