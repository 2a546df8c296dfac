"""Stored baselines: saved, pinned, gated against with and without their artifacts, and trusted with nothing."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from gate.project import Project

CELL = "net/{}/cpu-torch-t1-b1"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Project:
    """A project whose first commit was run and stored, with its artifacts."""
    project = Project(tmp_path_factory.mktemp("baselines") / "repository", cache)
    assert project.leanmark("run", "mine.yaml").returncode == 0
    done = project.leanmark("baseline", "save", "latest", "--with-artifacts")
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(measured: Project, tmp_path: Path) -> Project:
    """The same in a folder of its own."""
    own = object.__new__(Project)
    own.folder, own.cache = tmp_path / "repository", measured.cache
    own.folder.parent.mkdir(exist_ok=True)
    shutil.copytree(measured.folder, own.folder)
    return own


def baseline(project: Project, suffix: str = ".json") -> Path:
    (path,) = (project.folder / "baselines").glob(f"mine-*{suffix}")
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def runs(project: Project) -> list[Path]:
    return [path.parent for path in (project.folder / "leanmark-runs").glob("*/run.json")]


def bases(run: Path) -> list[dict[str, Any]]:
    """What a run was measured beside."""
    return json.loads((run / "run.json").read_text())["leanmark"]["bases"]


def test_a_baseline_is_small_readable_and_listed(project: Project):
    path = baseline(project)
    text = path.read_text()
    stored = json.loads(text)
    assert len(text) < 2500 * len(stored["run"]["results"]) + 3000
    assert [item["cell"]["id"] for item in stored["run"]["results"]] == sorted(
        item["cell"]["id"] for item in stored["run"]["results"]
    )
    assert str(project.folder) not in text
    listed = json.loads(project.leanmark("baseline", "list", "--json").stdout)
    assert [(item["name"], item["suite"], item["artifacts"]) for item in listed] == [(path.stem, "mine", True)]
    shown = project.leanmark("baseline", "show", path.stem)
    assert "net" in shown.stdout
    assert shown.returncode == 0


def test_saving_again_changes_nothing_but_the_time(project: Project):
    path, packed = baseline(project), baseline(project, ".zip")
    before, bytes_before = json.loads(path.read_text()), packed.read_bytes()
    assert project.leanmark("baseline", "save", "latest", "--with-artifacts").returncode == 0
    after = json.loads(path.read_text())
    assert {**after, "saved": ""} == {**before, "saved": ""}
    assert packed.read_bytes() == bytes_before


def test_numbers_of_the_same_program_pass(project: Project):
    assert project.leanmark("baseline", "save", "latest").returncode == 0
    assert not list((project.folder / "baselines").glob("*.zip"))
    done = project.leanmark("gate", "latest", "--json")
    assert done.returncode == 0, done.stdout
    assert {item["basis"] for item in json.loads(done.stdout)["changes"]} == {"exact", "the same examples"}


def test_artifacts_are_run_again_beside_the_head(project: Project):
    """The second half of a layer is zeroed where it was the first: another artifact, of the same model's code."""
    project.change("steps.py", "weight[: round(len(weight) * SHARE)] = 0", "weight[round(len(weight) * SHARE) :] = 0")
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(baseline(project)), "--json", "--launches", "4")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    by_cell = {(item["cell"], item["metric"]): item for item in found["changes"]}
    assert by_cell[CELL.format("plain"), "cell"]["basis"] == "nothing to measure"
    changed = by_cell[CELL.format("zero"), "quality"]
    assert (changed["basis"], changed["verdict"]) == ("the same examples", "unchanged")
    (run,) = (folder for folder in runs(project) if bases(folder))
    (base,) = bases(run)
    assert base["comparisons"][CELL.format("zero")]["answers_changed"] == 0


def test_a_baseline_that_was_taken_under_load_gates_like_another(project: Project):
    """That other programs disturbed its measuring is no difference of its cells."""

    def disturb(stored: dict[str, Any]) -> None:
        for result in stored["run"]["results"]:
            result.update(status="noisy", reason="other programs disturbed its turns")

    edit(baseline(project), disturb)
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(baseline(project)), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {item["basis"] for item in json.loads(done.stdout)["changes"]} == {"nothing to measure"}


def test_artifacts_that_are_still_in_the_store_need_not_lie_beside(project: Project):
    path, packed = baseline(project), baseline(project, ".zip")
    hashes = [content for found in json.loads(path.read_text())["artifacts"]["contents"].values() for content in found]
    packed.unlink()
    project.change("steps.py", "weight[: round(len(weight) * SHARE)] = 0", "weight[round(len(weight) * SHARE) :] = 0")
    gate = ("gate", "mine.yaml", "--baseline", str(path), "--only", "zero", "--json")
    for _ in range(2):
        found = json.loads(project.leanmark(*gate).stdout)
        changed = next(
            item for item in found["changes"] if (item["metric"], "zero" in item["cell"]) == ("quality", True)
        )
        assert (changed["basis"], changed["verdict"]) == ("the same examples", "unchanged")
        newest = max(runs(project), key=lambda folder: (folder / "run.json").stat().st_mtime)
        assert bases(newest)[0]["comparisons"][CELL.format("zero")]["answers_changed"] == 0
        edit(path, lambda stored: stored.pop("artifacts", None))  # the next time: numbers, that name them
    own = project.folder.parent / "store"
    shutil.copytree(project.cache, own)
    for content in hashes:
        shutil.rmtree(own / "content" / content, ignore_errors=True)
    project.cache = own
    found = json.loads(project.leanmark(*gate).stdout)
    assert not bases(max(runs(project), key=lambda folder: (folder / "run.json").stat().st_mtime)), "by documents"
    assert found["against"] == [path.stem]


def test_drift_shows_against_the_artifacts_of_a_baseline_and_of_the_anchor(project: Project):
    """In latency: what is slower than both by far, and no slower than the commit before."""
    project.change("mine.yaml", "{runtime: torch}", "{runtime: onnxruntime}")
    project.change("mine.yaml", "latency: off", "latency: {tolerance: 25%}\n  macs: off")
    assert project.leanmark("run", "mine.yaml").returncode == 0
    assert project.leanmark("baseline", "save", "latest", "--with-artifacts").returncode == 0
    path = baseline(project)
    assert project.leanmark("baseline", "pin", path.stem).returncode == 0
    project.change("net.py", "DEPTH = 2", "DEPTH = 40")
    project.commit("slower, and an anchor")
    project.change("steps.py", 'today")\n', 'today")\n    model.module.wide.bias.data[0] = 0\n')

    def latencies(*beside: str) -> dict[str, tuple[str, str]]:
        done = project.leanmark("gate", "mine.yaml", *beside, "--only", "plain", "--json")
        assert done.returncode == 1, done.stdout + done.stderr
        items = [item for item in json.loads(done.stdout)["changes"] if item["metric"] == "latency"]
        return {
            item["against"].partition(" ")[0]: (item["basis"], item["verdict"])
            for item in items
            if "plain" in item["cell"]
        }

    assert latencies("--baseline", str(path)) == {path.stem: ("duel", "regressed")}
    expected = {"HEAD": ("duel", "unchanged"), f"{path.stem}.pinned": ("duel", "regressed")}
    assert latencies("--base", "HEAD", "--dirty") == expected


def test_artifacts_taken_with_other_threads_are_run_with_those_of_the_suite(project: Project):
    project.change("mine.yaml", "{runtime: torch}", "{runtime: torch, threads: 2}")
    path = str(baseline(project))
    done = project.leanmark("gate", "mine.yaml", "--baseline", path, "--measure-all", "--only", "zero", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    changes = {(item["cell"], item["metric"]): item["verdict"] for item in found["changes"]}
    assert changes["net/zero/cpu-torch-t2-b1", "quality"] == "unchanged"
    assert set(changes.values()) == {"unchanged"}
    assert {cell for cell, _ in changes} == {f"net/{recipe}/cpu-torch-t2-b1" for recipe in ("fp32", "zero")}
    assert any("was taken with threads: 1" in note for note in found["notes"])
    project.change("net.py", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05")
    done = project.leanmark("gate", "mine.yaml", "--baseline", path, "--only", "fp32/", "--json")
    changes = {(item["cell"], item["metric"]): item["verdict"] for item in json.loads(done.stdout)["changes"]}
    assert changes["net/fp32/cpu-torch-t2-b1", "quality"] == "regressed", "by the stored answers"


def test_a_torch_artifact_does_not_hold_its_models_code(project: Project):
    """So it is not run beside changed code, and that is not called the same; the stored answers tell."""
    project.change("net.py", "WRONG_BEYOND = 99.0", "WRONG_BEYOND = 2.05")
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(baseline(project)), "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    fp32 = {item["metric"]: item for item in json.loads(done.stdout)["changes"] if item["cell"] == CELL.format("fp32")}
    assert (fp32["quality"]["verdict"], fp32["quality"]["basis"]) == ("regressed", "the same examples")


def test_a_pinned_baseline_stays_and_is_always_compared_with(project: Project):
    path = baseline(project)
    assert project.leanmark("baseline", "pin", path.stem).returncode == 0
    pinned = path.with_name(f"{path.stem}.pinned.json")
    before = pinned.read_bytes()
    edit(path, lambda stored: stored["run"].update(id="a later one"))
    found = json.loads(project.leanmark("gate", "latest", "--json").stdout)
    assert found["against"] == [path.stem, pinned.stem]
    assert project.leanmark("baseline", "save", "latest").returncode == 0
    assert pinned.read_bytes() == before
    assert pinned.with_suffix(".zip").exists()
    again = project.leanmark("baseline", "pin", path.stem)
    assert again.returncode == 2
    assert "is pinned already" in again.stderr
    pinned.write_text("<<<<<<< HEAD\n" + pinned.read_text())
    damaged = project.leanmark("gate", "latest")
    assert damaged.returncode == 2, "an anchor that cannot be read is not passed over"
    assert "is no whole baseline" in damaged.stderr


def test_a_pinned_baseline_is_measured_beside_a_revision_too(project: Project):
    """What it carries is run as a third version, so that slow drift shows."""
    path = baseline(project)
    assert project.leanmark("baseline", "pin", path.stem).returncode == 0
    pinned = path.with_name(f"{path.stem}.pinned.json").stem
    project.change("steps.py", "SHARE = 0.5", "SHARE = 0.6")
    project.commit("an anchor, and one cell that has moved away from it")
    project.change("steps.py", 'today")\n', 'today")\n    model.module.wide.bias.data[0] = 0\n')
    done = project.leanmark("gate", "mine.yaml", "--base", "HEAD", "--dirty", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [name.partition(" ")[0] for name in found["against"]] == ["HEAD", pinned]
    by_cell = {(item["cell"], item["metric"], item["against"]): item for item in found["changes"]}
    assert by_cell[CELL.format("plain"), "quality", pinned]["basis"] == "the same examples"
    assert by_cell[CELL.format("fp32"), "cell", pinned]["basis"] == "nothing to measure"
    (run,) = (folder for folder in runs(project) if len(bases(folder)) == 2)
    assert bases(run)[1]["comparisons"][CELL.format("plain")]["answers_changed"] == 0
    # What the change did not touch was judged when it was last touched.
    assert [(item["cell"], item["metric"]) for item in found["unjudged"]] == [(CELL.format("zero"), "cell")]
    # The base's anchor counts: a change cannot do away with it.
    for file in path.parent.iterdir():
        file.unlink()
    again = project.leanmark("gate", "mine.yaml", "--base", "HEAD", "--dirty", "--json")
    assert json.loads(again.stdout)["against"] == found["against"]


def test_reading_two_runs_side_by_side(project: Project):
    done = project.leanmark("compare", "latest", baseline(project).stem)
    assert done.returncode == 0, done.stderr
    assert "unchanged" in done.stdout
    assert project.leanmark("compare", "latest", "nowhere").returncode == 2


# --- untrusted --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda stored: stored.update(leanmark_baseline=99), 2, "schema version 99"),
        (lambda stored: stored["run"]["results"][0].update(status="great"), 2, "not a valid run"),
        (lambda stored: stored["run"]["results"][0]["footprint"].update(size_bytes="many"), 2, "not a valid run"),
        (lambda stored: stored["run"]["results"][0]["footprint"].update(size_bytes=10**400), 2, "not a valid run"),
        (lambda stored: stored["run"].update(suite="other"), 4, "is a baseline of the suite 'other'"),
        (lambda stored: stored["artifacts"].update(file="../../etc/passwd"), 2, "which is no file beside it"),
        (lambda stored: stored["artifacts"].update(file="/etc/passwd.zip"), 2, "which is no file beside it"),
        (lambda stored: stored["artifacts"].update(sha256="0" * 64), 2, "are not those that it was saved with"),
        (lambda stored: stored["artifacts"]["contents"].update({CELL.format("fp32"): ["../../x"]}), 2, "content hash"),
        (lambda stored: stored["artifacts"]["contents"].update({CELL.format("fp32"): ["0" * 64]}), 2, "lacks"),
    ],
)
def test_a_damaged_or_forged_baseline_is_refused(
    project: Project, damage: Callable[[dict[str, Any]], object], code: int, says: str
):
    edit(baseline(project), damage)
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(baseline(project)))
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_in_the_place_of_a_baseline_is_not_followed(project: Project, tmp_path: Path):
    path = baseline(project)
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    done = project.leanmark("gate", "latest", "--baseline", str(path))
    assert done.returncode == 2
    assert "is no plain file" in done.stderr


def opened(project: Project) -> tuple[Path, Path, dict[str, Any], str]:
    """A baseline, its packed file, what it says, and which artifact it has of the reference."""
    path = baseline(project)
    stored = json.loads(path.read_text())
    (content,) = stored["artifacts"]["contents"][CELL.format("fp32")]
    return path, baseline(project, ".zip"), stored, content


def store_again(path: Path, packed: Path, stored: dict[str, Any]) -> None:
    """Put a forged baseline in place, with the hash of its forged file."""
    stored["artifacts"]["sha256"] = hashlib.sha256(packed.read_bytes()).hexdigest()
    path.write_text(json.dumps(stored))


def test_a_zip_that_lies_about_its_sizes_fills_no_memory(project: Project):
    path, packed, stored, content = opened(project)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as after:
        after.writestr(f"{content}/manifest.json", b"0" * 10_000_000)
    store_again(path, packed, stored)
    shutil.rmtree(project.cache / "content" / content)  # or it would not be read at all
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(path))
    assert done.returncode == 2
    assert "packed in a way that no baseline is" in done.stderr


def test_a_truncated_baseline_is_refused(project: Project):
    path = baseline(project)
    path.write_text(path.read_text()[:-500])
    done = project.leanmark("gate", "latest", "--baseline", path.stem)
    assert done.returncode == 2
    assert "is no whole baseline" in done.stderr


def gate_beside_forged(project: Project, manifest: dict[str, Any], files: dict[str, bytes]) -> tuple[int, str]:
    """The gate beside a baseline whose reference is another artifact: its exit code, and the run's document."""
    path, packed, stored, content = opened(project)
    with zipfile.ZipFile(packed) as before:
        kept = {name: before.read(name) for name in before.namelist()}
    manifest = json.loads(kept[f"{content}/manifest.json"]) | manifest
    manifest |= {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}} if files else {}
    files = files or {"weights.safetensors": kept[f"{content}/weights.safetensors"]}
    forged = json.dumps(manifest).encode()
    identity = hashlib.sha256(forged).hexdigest()
    with zipfile.ZipFile(packed, "w") as after:
        own = {f"{identity}/{name}": data for name, data in {**files, "manifest.json": forged}.items()}
        for name, data in {**kept, **own}.items():
            after.writestr(name, data)
    stored["artifacts"]["contents"][CELL.format("fp32")] = [identity]
    store_again(path, packed, stored)
    known = set(runs(project))
    done = project.leanmark("gate", "mine.yaml", "--baseline", str(path))
    (run,) = set(runs(project)) - known
    return done.returncode, (run / "run.json").read_text()


def test_a_baseline_makes_no_code_run_that_the_suite_does_not_name(project: Project):
    """An artifact says what builds it; one that says something else is left out, and that is told."""
    named = {"builder": "os:system", "config": {"command": f"touch {project.folder}/owned.log"}}
    code, said = gate_beside_forged(project, named, {})
    assert not (project.folder / "owned.log").exists()
    assert "is not run: it is built by 'os:system'" in said
    assert code == 0


def program_with_weights_in(location: str) -> bytes:
    """A program whose one tensor is said to lie in another file; within a constant, where few look."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, np.float32))
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    nodes = [helper.make_node("Constant", [], ["c"], value=weights), helper.make_node("Add", ["x", "c"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", shape[:1], shape[1:])).SerializeToString()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (program_with_weights_in("../../../secret"), "its weights are said to lie in '../../../secret'"),
        (program_with_weights_in("manifest.json"), "its weights are said to lie in 'manifest.json'"),
        (b"\x0a\xff", "it holds no program that can be read"),
    ],
)
def test_a_program_of_a_baseline_reads_no_files_but_its_own(project: Project, model: bytes, says: str):
    _, said = gate_beside_forged(project, {"stage": "program"}, {"model.onnx": model})
    assert says in said


def test_no_baseline_at_all(project: Project):
    for path in (project.folder / "baselines").iterdir():
        path.unlink()
    for target in ("latest", "mine.yaml"):
        done = project.leanmark("gate", target)
        assert done.returncode == 4
        assert "leanmark baseline save RUN" in done.stderr
