"""Every test run has a store and a folder of runs of its own; nothing of the user's is touched."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True

# Machines are shared: how long an example takes says nothing.
settings.register_profile("leanmark", deadline=None, max_examples=60, print_blob=True)
settings.load_profile("leanmark")


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact store of this session; shared, so that a model is trained once."""
    folder = tmp_path_factory.mktemp("store")
    os.environ["LEANMARK_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Loading a torch session flushes denormals in the whole process; hypothesis needs them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
