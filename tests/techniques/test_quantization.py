"""Quantized programs hold integers, compute with them, and answer nearly as before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanmark.arrays import Array
from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import op_counts
from leanmark.registry import get_step
from leanmark.stages import Artifact, Context, Delivery, Program, Split, save
from leanmark.techniques.quantization import dynamic, dynamic_reached, static, static_reached

IMAGES = np.random.default_rng(0).normal(size=(40, 1, 12, 12)).astype(np.float32)


@dataclass(frozen=True)
class Splits:
    """A context's splits, and a note of which were asked for."""

    inputs: Array = field(default_factory=lambda: IMAGES)
    asked: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> Split:
        self.asked.append(name)
        return Split({"image": self.inputs})


def context(splits: Splits | None = None) -> Context:
    return Context(splits or Splits(), seed=0)


def network(linear: int = 64) -> Program:
    """Convolution, batch norm, ReLU, pooling and two linear layers, as the exporter writes them."""
    draw = np.random.default_rng(1)

    def normal(*shape: int) -> Array:
        return (draw.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    ones = np.ones(8, np.float32)
    stored = {
        "kernel": normal(8, 1, 3, 3), "gamma": 2 * ones, "beta": ones / 3, "mean": ones / 5, "variance": ones,
        "shape": np.array([-1, 200]), "fc1": normal(linear, 200), "bias1": normal(linear),
        "fc2": normal(10, linear), "bias2": normal(10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Gemm", ["e", "fc1", "bias1"], ["f"], transB=1),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "fc2", "bias2"], ["output"], transB=1),
    ]
    return program(nodes, stored)


def program(nodes: list[helper.NodeProto], stored: dict[str, Array]) -> Program:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 12, 12])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "test", [image], [output], tensors)
    # The dynamo exporter states the shapes of weights too, which the quantizer then contradicts.
    for name, array in stored.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.value_info.append(helper.make_tensor_value_info(name, kind, array.shape))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program(model.SerializeToString())


def run(program: Program, images: Array = IMAGES) -> Array:
    session = onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def moved(before: Program, after: Program) -> float:
    """How far answers moved, root mean square, relative to their own."""
    old, new = run(before), run(after)
    return float(np.sqrt(np.mean((new - old) ** 2) / np.mean(old**2)))


def artifact_of(program: Program, folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    return save(program, folder)


def weights(program: Program) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in program.proto().graph.initializer}


DYNAMIC: list[dict[str, Any]] = [
    {},
    {"weight_type": "uint8"},
    {"per_channel": False},
    {"convolutions": True, "weight_type": "uint8"},
    {"convolutions": True},
    {"reduce_range": False, "weight_type": "uint8"},
]
STATIC: list[dict[str, Any]] = [
    {},
    {"activations": "int8"},
    {"activations": "uint16"},
    {"activations": "int16"},
    {"calibration": "entropy"},
    {"calibration": "percentile"},
    {"per_channel": False},
]


@pytest.mark.parametrize("options", DYNAMIC, ids=str)
def test_dynamic_keeps_answers_and_shrinks_weights(options: dict[str, Any], tmp_path: Path) -> None:
    before = network()
    after = dynamic(before, context(), **options)
    assert moved(before, after) < 0.05
    evidence = dynamic_reached(artifact_of(after, tmp_path / "after"), {})
    assert evidence.effective
    assert evidence.facts["integer_weights"] > 0.9
    assert evidence.facts["integer_operators"] == (3 if options.get("convolutions") else 2)
    assert ("ConvInteger" in op_counts(after.proto())) == bool(options.get("convolutions"))
    assert options.get("weight_type", "int8") in evidence.facts["bytes_by_type"]


@pytest.mark.parametrize("options", STATIC, ids=str)
def test_static_keeps_answers_and_shrinks_weights(options: dict[str, Any], tmp_path: Path) -> None:
    before = network()
    after = static(before, context(), **options)
    assert moved(before, after) < (0.15 if options.get("calibration") == "entropy" else 0.05)
    assert len(after.onnx) < len(before.onnx) / 2.5
    evidence = static_reached(artifact_of(after, tmp_path / "after"), {})
    assert evidence.effective
    assert evidence.facts["integer_operators"] == 3
    assert evidence.facts["float_operators"] == 0
    # There is one zero point for each quantized activation, of the type that was asked for.
    assert any(array.dtype.name == options.get("activations", "uint8") for array in weights(after).values())


def test_more_bits_are_closer() -> None:
    before = network()
    eight, sixteen = (moved(before, static(before, context(), activations=kind)) for kind in ("uint8", "uint16"))
    assert sixteen < eight


@pytest.mark.parametrize("step", [dynamic, static], ids=["dynamic", "static"])
def test_a_reduced_range_is_seven_bits(step: Any) -> None:
    def largest(program: Program) -> int:
        return max(
            int(np.abs(array.astype(int)).max()) for array in weights(program).values() if array.dtype == np.int8
        )

    assert largest(step(network(), context())) <= 64
    assert largest(step(network(), context(), reduce_range=False)) == 127


@pytest.mark.parametrize("step", [dynamic, static], ids=["dynamic", "static"])
def test_a_channel_has_a_scale_of_its_own_unless_told_otherwise(step: Any) -> None:
    def scales(program: Program) -> set[int]:
        return {array.size for name, array in weights(program).items() if name == "fc1_scale"}

    assert scales(step(network(), context())) == {64}
    assert scales(step(network(), context(), per_channel=False)) == {1}


def test_calibration_reads_its_split_alone_and_as_many_examples_as_asked() -> None:
    early = IMAGES.copy()
    early[10:] *= 100  # would widen every range
    splits = Splits(early)
    limited = static(network(), context(splits), samples=10)
    assert splits.asked == ["calibration"]
    assert limited.onnx == static(network(), context(Splits(IMAGES[:10])), samples=10).onnx
    assert limited.onnx != static(network(), context(splits), samples=11).onnx
    assert get_step("quantize.static").splits == ("calibration",)


def test_dynamic_needs_no_data() -> None:
    splits = Splits()
    dynamic(network(), context(splits))
    assert splits.asked == []


def test_each_way_to_calibrate_finds_another_range_where_values_have_tails() -> None:
    heavy = np.random.default_rng(2).standard_t(1.2, size=IMAGES.shape).astype(np.float32)

    def input_scale(calibration: Any) -> float:
        model = static(network(), context(Splits(heavy)), calibration=calibration).proto()
        (first,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image"]
        return float({t.name: numpy_helper.to_array(t) for t in model.graph.initializer}[first.input[1]])

    whole, cut, informative = (input_scale(kind) for kind in ("minmax", "percentile", "entropy"))
    assert informative < 0.9 * whole
    assert cut < whole


def test_packed_delivery_is_kept() -> None:
    packed = replace(network(), delivery=Delivery(packed=True))
    assert dynamic(packed, context()).delivery.packed
    assert static(packed, context()).delivery.packed


def test_nothing_is_printed_and_no_file_is_left(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    dynamic(network(), context())
    static(network(), context(), calibration="percentile")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def hashes() -> str:
    import hashlib

    made = [dynamic(network(), context()), static(network(), context(), calibration="percentile")]
    return " ".join(hashlib.sha256(program.onnx).hexdigest() for program in made)


SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("test_quantization", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["test_quantization"] = module
spec.loader.exec_module(module)
print(module.hashes())
"""


@pytest.fixture(scope="module", autouse=True)
def elsewhere() -> Iterator[subprocess.Popen[str]]:
    """The same steps in a process of its own, which runs beside the other tests."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, __file__], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_another_process_makes_the_same_bytes(elsewhere: subprocess.Popen[str]) -> None:
    out, _ = elsewhere.communicate(timeout=120)
    assert out == f"{hashes()}\n"


def test_a_program_in_floating_point_is_ineffective(tmp_path: Path) -> None:
    evidence = static_reached(artifact_of(network(), tmp_path / "plain"), {})
    assert not evidence.effective
    assert "no weight" in evidence.reason


def test_fake_quantization_is_ineffective(tmp_path: Path) -> None:
    """Weights that are rounded in the graph are still stored, and loaded, as floats."""
    stored = {
        "w": np.ones((144, 10), np.float32),
        "scale": np.float32(0.1),
        "zero": np.int8(0),
        "shape": np.array([-1, 144]),
    }
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("QuantizeLinear", ["w", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["back"]),
        helper.make_node("MatMul", ["flat", "back"], ["output"]),
    ]
    evidence = static_reached(artifact_of(program(nodes, stored), tmp_path / "fake"), {})
    assert not evidence.effective
    assert evidence.reason == "only 0% of the weights are 8-bit integers"


def test_integers_that_are_turned_back_before_use_are_ineffective(tmp_path: Path) -> None:
    """Weight-only: a fourth of the size, but the work is in floating point."""
    stored = {"w": np.ones((144, 10), np.int8), "scale": np.float32(0.1), "shape": np.array([-1, 144])}
    nodes = [
        helper.make_node("Reshape", ["image", "shape"], ["flat"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["back"]),
        helper.make_node("MatMul", ["flat", "back"], ["output"]),
    ]
    evidence = static_reached(artifact_of(program(nodes, stored), tmp_path / "weights"), {})
    assert not evidence.effective
    assert evidence.reason == "no operator computes with the integers"


def test_a_minority_of_integers_is_ineffective(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "big"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["output"]),
    ]
    draw = np.random.default_rng(3)
    stored = {
        "big": draw.normal(size=(16, 1, 5, 5)).astype(np.float32),
        "w": draw.normal(size=(16, 4)).astype(np.float32),
    }
    evidence = dynamic_reached(artifact_of(dynamic(program(nodes, stored), context()), tmp_path / "few"), {})
    assert not evidence.effective
    assert evidence.reason == "only 14% of the weights are 8-bit integers"


@pytest.mark.parametrize("step", [dynamic, static], ids=["dynamic", "static"])
def test_a_program_without_products_is_not_applicable(step: Any) -> None:
    with pytest.raises(NotApplicable):
        step(program([helper.make_node("Relu", ["image"], ["output"])], {}), context())


def test_inputs_that_do_not_fit_are_an_error() -> None:
    wrong = Context(lambda name: Split({"picture": IMAGES}), seed=0)
    with pytest.raises(PreparationError, match="onnxruntime"):
        static(network(), wrong)
