"""Every error that a user can see, each with its exit code.

An error says what happened, where, and what to do about it. Anything else that
escapes is a fault of leanmark's own and ends with exit code 70.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

EXIT_OK = 0
EXIT_REGRESSED = 1
EXIT_INVALID = 2
EXIT_INCONCLUSIVE = 3
EXIT_NOTHING_TO_COMPARE = 4
EXIT_CELLS_FAILED = 5
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Position:
    """A place in a file that a user wrote; line and column count from 1."""

    file: Path
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class LeanmarkError(Exception):
    """Base of every error that is shown to a user without a traceback."""

    exit_code: int = EXIT_INTERNAL

    def __init__(self, what: str, *, where: Position | Path | str | None = None, do: str | None = None) -> None:
        self.what = what
        self.where = where
        self.do = do
        super().__init__(self.message)

    @property
    def sentence(self) -> str:
        """What happened and what to do, on one line and without the place."""
        return f"{self.what}. {self.do}" if self.do else self.what

    @property
    def message(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        advice = f"\n  {self.do}" if self.do else ""
        return f"{place}{self.what}{advice}"


class InvalidInput(LeanmarkError):
    """Wrong usage, an invalid suite, or a file or folder that cannot be used."""

    exit_code = EXIT_INVALID


class NotWritable(InvalidInput):
    """A file or folder cannot be written."""


class StorageFull(NotWritable):
    """A disk or quota is full; what was written before stays valid."""


@contextlib.contextmanager
def telling(path: Path) -> Generator[None]:
    """Turn what the operating system says about writing into an error with advice."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                "the disk is full", where=path, do="Free some space, then resume; what was measured is kept."
            ) from error
        raise NotWritable(
            f"cannot be written: {error.strerror}", where=path, do="Choose another folder, or mend its permissions."
        ) from error


class NothingToCompare(LeanmarkError):
    """There is no base that a run could be compared with."""

    exit_code = EXIT_NOTHING_TO_COMPARE


class Interrupted(LeanmarkError):
    """The user stopped a run; it can be resumed."""

    exit_code = EXIT_INTERRUPTED


class PreparationError(LeanmarkError):
    """A recipe could not be prepared; becomes the status of its cells."""


class NotApplicable(PreparationError):
    """A step has nothing to work on in this model; raised by steps."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, or None."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """An advice sentence for an unknown name."""
    names = sorted(known)
    match = nearest(name, names)
    if match is not None:
        return f"Did you mean '{match}'?"
    return f"Known here: {', '.join(names)}." if names else "Nothing is known here."
