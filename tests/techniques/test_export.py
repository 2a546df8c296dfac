"""An exported program gives torch's answers, for any batch size, and is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from leanmark.arrays import Array
from leanmark.errors import PreparationError
from leanmark.graphs import op_counts
from leanmark.registry import get_step
from leanmark.stages import Artifact, Context, Delivery, Program, Split, TorchModel, save
from leanmark.techniques.cleanup import clean
from leanmark.techniques.export import is_program, to_onnx
from leanmark.techniques.fusion import graph
from leanmark.techniques.quantization import static

IMAGES = np.random.default_rng(0).random((6, 1, 12, 12), dtype=np.float32)


def network() -> nn.Sequential:
    """Two convolutions, batch norm, dropout and a linear layer; random weights from a seed."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(144, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    return module.eval()


def context(inputs: Mapping[str, Array] | None = None) -> Context:
    split = Split({"image": IMAGES} if inputs is None else inputs)
    return Context(lambda name: split, seed=0)


def artifact_of(stage: TorchModel | Program, folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    return save(stage, folder)


def export_and_hash() -> str:
    program = to_onnx(TorchModel(network(), "torch.nn:Identity", delivery=Delivery(slowdown=0.03)), context())
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save(program, Path(folder)).manifest["files"]["model.onnx"]


SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("test_export", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["test_export"] = module
spec.loader.exec_module(module)
print(module.export_and_hash())
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[subprocess.Popen[str]]:
    """The same export in a process of its own, started before anything else is done here."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, __file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def program(elsewhere: subprocess.Popen[str]) -> Program:
    model = TorchModel(network(), "torch.nn:Identity", delivery=Delivery(slowdown=0.03))
    return to_onnx(model, context())


def run(program: Program, inputs: Mapping[str, Array]) -> list[Array]:
    return onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"]).run(None, dict(inputs))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_answers_are_torchs_for_any_batch_size(program: Program, batch: int) -> None:
    with torch.inference_mode():
        expected = network()(torch.from_numpy(IMAGES[:batch])).numpy()
    (answers,) = run(program, {"image": IMAGES[:batch]})
    exact = get_step("export.onnx").exact
    assert exact is not None
    assert np.abs(answers - expected).max() <= exact / 10 * np.abs(expected).max()


def test_names_are_the_splits_and_the_batch_is_dynamic(program: Program) -> None:
    model = program.proto()
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["output"]
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_program_is_plain_but_computes_no_shapes_when_run(program: Program) -> None:
    ops = op_counts(program.proto())
    assert ops["BatchNormalization"] == 1
    assert ops["Relu"] == 3
    assert not {"Shape", "Concat", "Squeeze", "Gather"} & set(ops)


def test_delivery_is_handed_on(program: Program) -> None:
    assert program.delivery.slowdown == 0.03


@pytest.mark.slow
def test_another_process_exports_the_same_bytes_and_prints_nothing(
    program: Program, elsewhere: subprocess.Popen[str], tmp_path: Path
) -> None:
    here = artifact_of(program, tmp_path / "here").manifest["files"]["model.onnx"]
    out, err = elsewhere.communicate(timeout=120)
    assert out == f"{here}\n", err
    assert err == ""


def test_nothing_in_the_program_names_this_machine(program: Program) -> None:
    assert b"site-packages" not in program.onnx
    assert str(Path(__file__).parent).encode() not in program.onnx


class Both(nn.Module):
    """Two inputs, of which only the order tells them apart, and two outputs."""

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return left - right, {"sum": left.flatten(1) + right.flatten(1)}


def test_inputs_go_by_position_and_outputs_are_numbered() -> None:
    inputs = {"b": IMAGES, "a": IMAGES[::-1].copy()}
    program = to_onnx(TorchModel(Both(), "unused:unused"), context(inputs))
    model = program.proto()
    assert [value.name for value in model.graph.input] == ["b", "a"]
    assert [value.name for value in model.graph.output] == ["output_0", "output_1"]
    difference, _ = run(program, inputs)
    assert np.array_equal(difference, inputs["b"] - inputs["a"])


class FixedBatch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.reshape(2, 144)


class DependsOnValues(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image if image.sum() > 0 else -image


@pytest.mark.parametrize(("module", "word"), [(FixedBatch(), "batch of 2"), (DependsOnValues(), "cannot export")])
def test_a_model_that_cannot_be_exported_is_an_error_without_noise(
    module: nn.Module, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PreparationError, match=word):
        to_onnx(TorchModel(module, "unused:unused"), context())
    assert capfd.readouterr() == ("", "")


def test_evidence_is_a_program_that_the_checker_accepts(program: Program, tmp_path: Path) -> None:
    evidence = is_program(artifact_of(program, tmp_path / "good"), {})
    assert evidence.effective
    assert evidence.facts["opset"] == 20
    assert evidence.facts["nodes"] == len(program.proto().graph.node)

    broken = program.proto()
    broken.graph.node[3].input[0] = "from nowhere"
    changed = replace(program, onnx=broken.SerializeToString())
    assert "checker" in is_program(artifact_of(changed, tmp_path / "broken"), {}).reason

    torch_model = TorchModel(network(), "torch.nn:Identity")
    module = nn.Sequential(*(layer for layer in network() if not isinstance(layer, nn.Dropout)))
    artifact = artifact_of(torch_model.with_module(module), tmp_path / "torch")
    assert not is_program(artifact, {}).effective


def test_what_comes_after_can_work_on_it(program: Program) -> None:
    cleaned = clean(program, context())
    fused = graph(cleaned, context())
    integers = static(cleaned, context(), samples=4)
    assert {"Identity", "Constant"} & set(op_counts(program.proto()))
    assert not {"Identity", "Constant"} & set(op_counts(cleaned.proto()))
    (expected,) = run(program, {"image": IMAGES})
    for other, tolerance in ((cleaned, 1e-6), (fused, 1e-6), (integers, 0.15)):
        (answers,) = run(other, {"image": IMAGES})
        assert np.abs(answers - expected).max() <= tolerance * np.abs(expected).max()
