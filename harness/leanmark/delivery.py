"""`leanmark export`: the artifact of a cell in a folder of its own, with a script that loads it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from leanmark.errors import InvalidInput, did_you_mean
from leanmark.judge import store as runs
from leanmark.prepare.artifacts import Store, writing_to
from leanmark.prepare.sources import default_store
from leanmark.results import Result
from leanmark.stages import Artifact, Program, Service

# Names come from files that anybody may have written: they go in as literals only.
_ONNX = '''"""Loads the model beside this file."""

from pathlib import Path

import onnxruntime

CELL = {cell}
INPUT = {input}
session = onnxruntime.InferenceSession(str(Path(__file__).parent / "model.onnx"))

if __name__ == "__main__":
    for value in session.get_inputs():
        print("input ", value.name, value.shape, value.type)
    for value in session.get_outputs():
        print("output", value.name, value.shape, value.type)
    # answers = session.run(None, {{INPUT: array}})
'''

_PACKED = '''"""Loads the model beside this file. Its weights are packed: decoding them needs leanmark installed."""

from pathlib import Path

import onnxruntime

from leanmark.stages import Artifact

CELL = {cell}
INPUT = {input}
program = Artifact.open(Path(__file__).parent).load()
session = onnxruntime.InferenceSession(program.onnx)

if __name__ == "__main__":
    for value in session.get_inputs():
        print("input ", value.name, value.shape, value.type)
    for value in session.get_outputs():
        print("output", value.name, value.shape, value.type)
    # answers = session.run(None, {{INPUT: array}})
'''

_TORCH = '''"""Loads the model beside this file; BUILDER, which makes its structure, must be importable."""

from pathlib import Path

from leanmark.stages import Artifact

CELL = {cell}
BUILDER = {builder}
module = Artifact.open(Path(__file__).parent).load().module

if __name__ == "__main__":
    print(module)
    # with torch.inference_mode():
    #     answers = module(inputs)
'''


_SERVICE = '''"""Answers requests with the service beside this file; needs leanmark[serving]."""

from pathlib import Path

from leanmark.runtimes import load_onnxruntime
from leanmark.serving.making import make_handler
from leanmark.stages import Artifact
from leanmark.traffic import Traffic

CELL = {cell}
SHARED_CACHE = "redis://127.0.0.1:6379/0"  # where the service has one
traffic = Traffic("exported", candidates={candidates}, top={top}, features={features})
handler = make_handler(Artifact.open(Path(__file__).parent), traffic, load_onnxruntime, 1, SHARED_CACHE, CELL)

if __name__ == "__main__":
    print("payload", handler.config.payload)
    for field in handler.carried.request:
        print("request", field.name, field.dtype, list(field.shape))
    for field in handler.carried.answer:
        print("answer ", field.name, field.dtype, list(field.shape))
    # (answer,) = handler.answer([handler.decode(payload)])
'''


def export_cell(run: Path, cell: str, to: Path | None) -> tuple[Path, str | None]:
    """Write the artifact of one cell of a run. Raises InvalidInput.

    Returns the folder, and the user's module that its script imports, if there is one.
    """
    result = find_result(runs.read_run(run).results, cell)
    if result.artifact is None:
        raise InvalidInput(f"{result.cell.id} has no artifact: {result.status} ({result.reason})")
    store = Store(default_store())
    try:
        artifact = store.open(result.artifact)
        artifact.check()
    except InvalidInput as error:
        raise InvalidInput(
            f"the artifact of {result.cell.id} is not in the store, or damaged there",
            do="Run the suite again; then export.",
        ) from error
    folder = to or Path(re.sub(r"[^A-Za-z0-9._-]+", "-", result.cell.id))
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput("is not empty", where=folder, do="Choose another folder with --to.")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in artifact.files():
            shutil.copyfile(path, folder / path.name)
        (folder / "load.py").write_text(_script(artifact, result))
    builder = artifact.manifest.get("builder")
    needs = None if builder is None or builder.startswith("leanmark.") else builder.partition(":")[0]
    return folder, needs


def find_result(results: tuple[Result, ...], cell: str) -> Result:
    """The result whose id is `cell`, or the only one that holds it."""
    exact = [result for result in results if result.cell.id == cell]
    found = exact or [result for result in results if cell in result.cell.id]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(result.cell.id for result in found[:5])
        raise InvalidInput(f"'{cell}' fits {len(found)} cells", do=f"Say more of it: {names}.")
    raise InvalidInput(f"the run has no cell '{cell}'", do=did_you_mean(cell, [result.cell.id for result in results]))


def _script(artifact: Artifact, result: Result) -> str:
    traffic = result.cell.target.traffic
    if artifact.stage is Service and traffic is not None:
        whole = traffic.candidates is None
        return _SERVICE.format(
            cell=ascii(result.cell.id),
            candidates=None if whole else (1, 1),
            top=int(traffic.top),
            features=ascii(traffic.features),
        )
    if artifact.stage is not Program:
        return _TORCH.format(cell=ascii(result.cell.id), builder=ascii(artifact.manifest["builder"]))
    name = next(iter(value.name for value in artifact.proto().graph.input))
    return (_PACKED if artifact.delivery.packed else _ONNX).format(cell=ascii(result.cell.id), input=ascii(name))
