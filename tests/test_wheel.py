"""The wheel carries suites, templates and images: it works in a clean environment, outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("leanmark-*.whl")
    return built


def test_it_holds_what_is_needed_at_run_time(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("_suites/quick.yaml", "_reports/page.html.j2", "data/fashion-mnist-12k.npz", "py.typed"):
        assert f"leanmark/{name}" in names
    assert not [name for name in names if name.startswith(("tests/", "harness/"))]
    assert wheel.stat().st_size < 8e6


@pytest.mark.slow
def test_it_runs_two_cells_in_a_clean_environment(wheel: Path, tmp_path: Path):
    """The environment is new; the libraries that it depends on are lent by path, not the package."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # Appended to the path by a .pth file, so that the wheel's own package comes first.
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    suite = tmp_path / "two.yaml"
    suite.write_text(
        "suite: two\nworkloads: [lenet-300-100]\nrecipes: {int8: [export.onnx, quantize.dynamic]}\n"
        "targets: [{}]\nmeasure: {budget: 200ms, launches: 4}\ncontrols: off\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(environment / "bin" / "leanmark")]
    where = subprocess.run(
        [str(python), "-c", "import leanmark; print(leanmark.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(environment))
    done = subprocess.run(
        [*command, "run", str(suite)], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "lenet-300-100" in done.stdout
    (run,) = (tmp_path / "leanmark-runs").iterdir()
    assert (run / "index.html").stat().st_size > 10_000
    listed = subprocess.run(
        [*command, "list", "suites"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=True
    )
    assert "quick" in listed.stdout
