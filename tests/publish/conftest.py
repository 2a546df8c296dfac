"""The sample runs of this folder, importable as `runs`, and one bundle of Vega for a session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pages_cache(store: Path) -> Path:
    """Where the plot library is kept during this session; tests/browser uses the same folder."""
    return store.parent / "pages"
