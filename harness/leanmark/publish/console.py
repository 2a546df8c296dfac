"""The terminal: a console, and the progress of long work."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from leanmark.progress import Advance

if TYPE_CHECKING:
    from rich.console import Console

# Where there is no terminal, one line of progress is printed this often.
_PLAIN_SECONDS = 10.0


def make_console(*, stderr: bool = False) -> Console:
    """A console that colours only on a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def running(console: Console) -> Generator[Advance]:
    """A progress bar with the time left; plain lines where there is no terminal."""
    if console.is_terminal:
        with _bar(console) as advance:
            yield advance
    else:
        yield lines(console)


@contextmanager
def _bar(console: Console) -> Generator[Advance]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    with Progress(
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]:>12}"),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("starting", total=1.0, left="")
        begun = time.monotonic()

        def advance(share: float, text: str) -> None:
            progress.update(task, completed=share, description=text[:80], left=_left(share, time.monotonic() - begun))

        yield advance


def lines(console: Console) -> Advance:
    begun = time.monotonic()
    last = [0.0]

    def advance(share: float, text: str) -> None:
        now = time.monotonic()
        if now - last[0] >= _PLAIN_SECONDS:
            last[0] = now
            console.print(f"{share:4.0%} {_left(share, now - begun):>12}  {text}", soft_wrap=True, markup=False)

    return advance


def _left(share: float, elapsed: float) -> str:
    if share < 0.02 or elapsed < 2:
        return ""
    seconds = max(0.0, elapsed / share - elapsed)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} left"
