"""`leanmark init`: a suite, a workflow and a folder of baselines for a repository."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from leanmark import __version__
from leanmark.errors import InvalidInput, telling
from leanmark.judge import store

_ALWAYS = {"leanmark.yaml": "leanmark.yaml", "baselines.md": "baselines/README.md"}
_GITHUB = {"gate.yml": ".github/workflows/leanmark.yml", "pages.yml": ".github/workflows/leanmark-pages.yml"}
_GITLAB = {"gitlab.yml": ".gitlab/leanmark.yml"}


def start(folder: Path, *, gitlab: bool) -> Iterator[tuple[Path, bool]]:
    """Write what is missing; yields each path and whether it was written. Raises InvalidInput for no folder."""
    if not folder.is_dir():
        raise InvalidInput("is no folder", where=folder)
    for name, place in {**_ALWAYS, **(_GITLAB if gitlab else _GITHUB)}.items():
        path = folder / place
        if path.exists():
            yield path, False
            continue
        with telling(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        text = (files("leanmark") / "starters" / name).read_text(encoding="utf-8")
        store.write_atomically(path, text.replace("leanmark==VERSION", f"leanmark=={__version__}"))
        yield path, True
