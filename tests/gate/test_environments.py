"""A base whose lock file is another runs in an environment that is made from it."""

import json
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gate.project import Project
from leanmark.environments import _own_requirement

ROOT = Path(__file__).resolve().parents[2]


def wheel(folder: Path, name: str, version: str, file: str, text: str) -> str:
    """A requirement on a wheel of one file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(file, text)
        packed.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        packed.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{about}/RECORD", f"{file},,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return f"{name} @ {path.as_uri()}\n"


@pytest.mark.slow
def test_what_a_lock_file_names_is_what_the_base_imports(project: Project, tmp_path: Path):
    """The large libraries are lent by path, so that only the small package is really installed."""
    wheels, project.cache = tmp_path / "wheels", tmp_path / "cache" / "store"
    lent = wheel(wheels, "lent", "1.0", "lent.pth", f"{ROOT / 'harness'}\n{sysconfig.get_paths()['purelib']}\n")
    requirements = project.folder / "requirements.txt"
    requirements.write_text(lent + wheel(wheels, "marker", "1.0", "marker.py", "WIDTH = 20\n"))
    project.change(
        "net.py", "WIDTH = 20\n", "try:\n    from marker import WIDTH\nexcept ImportError:\n    WIDTH = 24\n"
    )
    project.commit("a width from a package")
    project.git("tag", "--force", "one")
    requirements.write_text(lent + wheel(wheels, "marker", "2.0", "marker.py", "WIDTH = 24\n"))
    project.commit("its next version")  # which this environment does not have: without one it is 24 wide
    for _ in range(2):
        done = project.leanmark("gate", "mine.yaml", "--base", "one", "--json", "--only", "fp32")
        assert done.returncode == 1, done.stdout + done.stderr
        sizes = {item["metric"]: item for item in json.loads(done.stdout)["changes"] if item["metric"] == "parameters"}
        grown = sizes["parameters"]["after"] - sizes["parameters"]["before"]
        assert grown == 4 * (64 + 1) + 4 * 4, "four more of the wide layer, and what they feed"
    (made,) = (project.cache.parent / "environments").glob("*/complete")
    assert (made.parent / "bin" / "python").exists()


def test_this_leanmark_can_be_named_to_pip():
    """For a lock file that names what the model needs, and not leanmark."""
    assert Requirement(_own_requirement()).name == "leanmark"


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_says_why(project: Project, tmp_path: Path):
    project.cache = tmp_path / "cache" / "store"
    requirements = project.folder / "requirements.txt"
    requirements.write_text("surely-there-is-no-such-package==1.0 ; python_version > '3'\n--no-index\n")
    project.commit("nothing that can be had")
    project.git("tag", "--force", "one")
    requirements.write_text("\n")
    project.commit("nothing")
    done = project.leanmark("gate", "mine.yaml", "--base", "one")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "the environment of one cannot be made" in done.stderr
    assert "surely-there-is-no-such-package" in done.stderr
    assert "--base-python" in done.stderr
    assert not list((project.cache.parent / "environments").glob("*/complete"))
