"""A browser, and pages to look at with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def missing(what: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("LEANMARK_REQUIRE_BROWSER"):
        pytest.fail(f"LEANMARK_REQUIRE_BROWSER is set, but {what}", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="module")  # its event loop runs in this thread, where later tests want one of their own
def browser() -> Iterator[Browser]:
    program = os.environ.get("LEANMARK_CHROMIUM") or shutil.which("chromium")
    if program is None:
        missing("there is no chromium; set LEANMARK_CHROMIUM to one")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the package playwright is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def pages(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: realistic, hostile, empty."""
    import runs

    from leanmark.publish import site

    folder = tmp_path_factory.mktemp("browser")
    made = {"realistic": runs.realistic_run(), "hostile": runs.hostile_run(), "empty": runs.empty_run()}
    for name, run in made.items():
        site.write_page(run, folder / f"{name}.html", cache=store.parent / "pages")
    return {name: folder / f"{name}.html" for name in made}
