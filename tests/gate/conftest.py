"""One store for all projects: what is the same is prepared once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gate.project import Project


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate-store") / "store"


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Project:
    return Project(tmp_path / "repository", cache)


@pytest.fixture
def second(project: Project) -> Callable[[str, str, str], None]:
    """Makes a second commit that changes one text of one file."""

    def change(file: str, before: str, after: str) -> None:
        project.change(file, before, after)
        project.commit("the second")

    return change
