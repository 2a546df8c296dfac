"""Imports run one way, and what must be quick imports nothing heavy."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import leanmark

PACKAGE = Path(leanmark.__file__).parent

# A module may import modules of its own layer or of lower ones.
LAYERS = [
    {"errors", "progress", "host", "arrays", "modules", "jsonable", "reported"},
    {"rules", "traffic"},
    {"results", "stats", "deciding", "frame"},
    {"judgement", "hits", "claims", "scoring"},
    {"entropy", "codecs", "structure", "channel", "copies"},
    {"onnx_files"},
    {"stages"},
    {"graphs", "weights", "counting", "registry", "processes"},
    {"jobs", "effort"},
    {"techniques", "workloads", "networks", "runtimes", "openvino_runtime", "serving"},
    {"declare", "prepare", "measure", "judge", "publish"},
    {"planned", "assembly", "power"},
    {"preparing", "inspecting", "measuring"},
    {"preparation", "revisions", "environments", "versions", "comparing"},
    {"runner", "duel", "delivery", "catalogue", "doctor", "gating", "starting", "fetching"},
    {"cli_options", "cli_gate", "cli", "pytest_plugin"},
]
VERBS = next(names for names in LAYERS if "measure" in names)
# What builds a module asks for its builder by name; what prints a duel or an examination names its type.
ALLOWED_UP = {("stages", "registry"), ("publish", "duel"), ("publish", "doctor"), ("publish", "power")}


def imports() -> list[tuple[str, str, Path]]:
    found: list[tuple[str, str, Path]] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = (
                    [f"{node.module}.{alias.name}" for alias in node.names]
                    if node.module == "leanmark"
                    else [node.module]
                )
            found += [(own, name.split(".")[1], path) for name in names if name.startswith("leanmark.")]
    return found


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)} imports leanmark.{name}"
        for own, name, path in imports()
        if own != "__init__" and name != "__version__" and layer(name) > layer(own) and (own, name) not in ALLOWED_UP
    ]
    assert not wrong


def test_no_verb_imports_another():
    wrong = [f"{path} imports {name}" for own, name, path in imports() if {own, name} <= VERBS and own != name]
    assert not wrong


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plan", "quick"], ["list", "steps"], ["list", "workloads", "--json"], ["schema"]]
)
def test_quick_commands_import_no_torch(arguments: list[str]):
    program = (
        "import sys\nsys.argv[1:] = " + repr(arguments) + "\nfrom leanmark.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'pandas', 'altair', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_judging_documents_imports_no_torch(tmp_path: Path):
    from judge.documents import result
    from judge.documents import run as made
    from leanmark.judge import baselines, store

    run = replace(made(result(), result("net/fp32/cpu-onnxruntime-t1-b1")), id="one", complete=True)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    store.write_run(tmp_path / "runs" / "one", run, {})
    saved = baselines.save(run, tmp_path / "baselines")
    for arguments in (["gate", "one"], ["compare", "one", saved.name], ["baseline", "list"]):
        where = ["--baselines", str(tmp_path / "baselines")]
        where += [] if arguments[0] == "baseline" else ["--out", str(tmp_path / "runs")]
        test_quick_commands_import_no_torch([*arguments, *where])


def test_a_measuring_process_imports_only_what_it_runs():
    program = (
        "import sys\nimport leanmark.measure.worker, leanmark.registry, leanmark.stages, leanmark.serving.process\n"
        "from leanmark.workloads.split_store import open_split\nleanmark.registry.load_builtins()\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'pandas', 'altair', 'scipy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_is_loaded():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for word in ("pickle.load", "torch.load(", "joblib.load", "allow_pickle=True", "yaml.load("):
            assert word not in text, f"{path} holds {word}"
