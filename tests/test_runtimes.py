"""Every runtime gives the same answers, and a process imports the one it runs alone."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from leanmark import runtimes
from leanmark.arrays import Array
from leanmark.errors import InvalidInput, PreparationError
from leanmark.networks.lenet import build_lenet_5
from leanmark.openvino_runtime import load_openvino
from leanmark.registry import get_runtime, get_step
from leanmark.runtimes import Session, load_onnxruntime, load_torch, supported
from leanmark.stages import Artifact, Context, Delivery, Program, Split, TorchModel, save

CONTEXT = Context(lambda _: Split({}), 0)
IMAGES = np.random.default_rng(0).random((5, 1, 28, 28), dtype=np.float32)


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_lenet_5().eval()


@pytest.fixture(scope="module")
def expected(module: torch.nn.Module) -> Array:
    with torch.inference_mode():
        return module(torch.from_numpy(IMAGES)).numpy()


def lenet_5(module: torch.nn.Module) -> Program:
    """The network as a program, written by hand."""
    stored = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    stored["shape"] = np.array([-1, 800])
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.weight", "conv1.bias"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], **pool),
        helper.make_node("Conv", ["b", "conv2.weight", "conv2.bias"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], **pool),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Gemm", ["e", "fc1.weight", "fc1.bias"], ["f"], transB=1),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "fc2.weight", "fc2.bias"], ["output"], transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "test", [image], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program(model.SerializeToString())


def artifact_of(stage: TorchModel | Program, folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    return save(stage, folder)


def session(runtime: str, module: torch.nn.Module, folder: Path, packed: bool = False) -> Session:
    delivery = Delivery(packed=packed)
    if runtime == "torch":
        stage = TorchModel(module, "leanmark.networks.lenet:build_lenet_5", delivery=delivery)
        return load_torch(artifact_of(stage, folder / "torch"), 1, "cpu")
    load = {"onnxruntime": load_onnxruntime, "openvino": load_openvino}[runtime]
    return load(artifact_of(replace(lenet_5(module), delivery=delivery), folder / "onnx"), 1, "cpu")


RUNTIMES = pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])


@RUNTIMES
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_answers_agree(runtime: str, packed: bool, module: torch.nn.Module, expected: Array, tmp_path: Path) -> None:
    loaded = session(runtime, module, tmp_path, packed)
    for batch in (1, 5):
        raw = loaded.call(loaded.bind({"image": IMAGES[:batch]}))
        (answers,) = loaded.outputs(raw)
        assert isinstance(answers, np.ndarray)
        assert np.abs(answers - expected[:batch]).max() <= 1e-5 * np.abs(expected).max()


@RUNTIMES
def test_what_was_bound_is_a_copy(runtime: str, module: torch.nn.Module, expected: Array, tmp_path: Path) -> None:
    loaded = session(runtime, module, tmp_path)
    images = IMAGES[::1].copy()
    bound = loaded.bind({"image": images})
    images[:] = 0
    (answers,) = loaded.outputs(loaded.call(bound))
    assert np.allclose(answers, expected, rtol=1e-4, atol=1e-5)


@RUNTIMES
def test_views_can_be_bound(runtime: str, module: torch.nn.Module, expected: Array, tmp_path: Path) -> None:
    loaded = session(runtime, module, tmp_path)
    frozen = IMAGES[::-1]
    frozen.flags.writeable = False
    (answers,) = loaded.outputs(loaded.call(loaded.bind({"image": frozen})))
    assert np.allclose(answers, expected[::-1], rtol=1e-4, atol=1e-5)


def with_integer_weights(scales: Array) -> tuple[Program, Array]:
    """One layer whose weights are int8 in the file; and its weights as they are meant."""
    stored = np.random.default_rng(1).integers(-127, 128, (64, 32)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["weights", "scales"], ["decoded"], axis=1),
        helper.make_node("MatMul", ["image", "decoded"], ["output"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])]
        for name, size in (("image", 64), ("output", 32))
    )
    tensors = [numpy_helper.from_array(stored, "weights"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program(model.SerializeToString()), stored * scales


@pytest.mark.parametrize("load", [load_openvino, load_onnxruntime])
@pytest.mark.parametrize("scales", [np.float32(0.01), np.linspace(0.001, 0.01, 32, dtype=np.float32)])
def test_integer_weights_alone_quantize_nothing_else(load: Any, scales: Array, tmp_path: Path) -> None:
    """By themselves both runtimes would quantize what such a layer is given, and be off by 0.5 %."""
    program, weights = with_integer_weights(scales)
    images = np.random.default_rng(2).random((5, 64), dtype=np.float32)
    loaded = load(artifact_of(program, tmp_path / "int8"), 1, "cpu")
    (answers,) = loaded.outputs(loaded.call(loaded.bind({"image": images})))
    expected = images @ weights
    assert np.abs(answers - expected).max() <= 1e-5 * np.abs(expected).max()


def test_openvino_computes_with_blocks_of_weights_as_onnxruntime_does(module: torch.nn.Module, tmp_path: Path) -> None:
    step = get_step("quantize.weights")
    program = step.function(lenet_5(module), CONTEXT, **step.parameters(bits=8).model_dump())
    artifact = artifact_of(program, tmp_path / "int8")
    answers = [
        loaded.outputs(loaded.call(loaded.bind({"image": IMAGES})))[0]
        for loaded in (load_openvino(artifact, 1, "cpu"), load_onnxruntime(artifact, 1, "cpu"))
    ]
    assert np.abs(answers[0] - answers[1]).max() <= 1e-5 * np.abs(answers[1]).max()


def test_packed_weights_are_loaded_from_their_own_file(module: torch.nn.Module, tmp_path: Path) -> None:
    clustered = build_lenet_5().eval()
    clustered.load_state_dict({name: torch.sign(tensor) for name, tensor in module.state_dict().items()})
    packed = artifact_of(replace(lenet_5(clustered), delivery=Delivery(packed=True)), tmp_path / "packed")
    plain = artifact_of(lenet_5(clustered), tmp_path / "plain")
    assert sum(path.stat().st_size for path in packed.files()) < sum(path.stat().st_size for path in plain.files()) / 10
    one, other = (load_onnxruntime(artifact, 1, "cpu") for artifact in (packed, plain))
    (a,), (b,) = (loaded.outputs(loaded.call(loaded.bind({"image": IMAGES}))) for loaded in (one, other))
    assert np.array_equal(a, b)


def test_every_output_comes_in_order_whatever_holds_it() -> None:
    class Nested(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x, [x + 1, {"c": x + 2, "a": (x + 3,)}]

    loaded = runtimes._TorchSession(Nested(), "cpu")
    outputs = loaded.outputs(loaded.call(loaded.bind({"x": np.zeros(1, np.float32)})))
    assert [float(array[0]) for array in outputs] == [0, 1, 2, 3]


def test_loading_torch_leaves_training_possible(module: torch.nn.Module, tmp_path: Path) -> None:
    loaded = session("torch", module, tmp_path)
    loaded.call(loaded.bind({"image": IMAGES}))
    assert not torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == 1


SCRIPT = """
import sys
import numpy as np
import leanmark.runtimes, leanmark.stages
early = set(sys.modules)
from pathlib import Path
from leanmark import modules, registry
runtime = registry.get_runtime("onnxruntime")
session = modules.resolve(runtime.loader)(leanmark.stages.Artifact.open(Path(sys.argv[1])), 1, "cpu")
answers = session.outputs(session.call(session.bind({"image": np.zeros((2, 1, 28, 28), np.float32)})))
assert answers[0].shape == (2, 10)
heavy = ["torch", "onnx", "onnxscript", "pandas", "pydantic", "scipy", "sklearn", "altair"]
print(sorted(early & {"onnxruntime", *heavy}), sorted(set(sys.modules) & set(heavy)), "onnxruntime" in sys.modules)
"""


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_a_process_that_runs_onnxruntime_imports_nothing_else(
    packed: bool, module: torch.nn.Module, tmp_path: Path
) -> None:
    program = replace(lenet_5(module), delivery=Delivery(packed=packed))
    artifact = artifact_of(program, tmp_path / "program")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(artifact.root)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "[] [] True\n", done.stderr
    assert done.stderr == ""


# --- what cannot run ------------------------------------------------------------------


def test_a_runtime_refuses_the_other_stage(module: torch.nn.Module, tmp_path: Path) -> None:
    program = artifact_of(lenet_5(module), tmp_path / "program")
    with pytest.raises(PreparationError, match="torch models"):
        load_torch(program, 1, "cpu")
    model = artifact_of(TorchModel(module, "leanmark.networks.lenet:build_lenet_5"), tmp_path / "model")
    with pytest.raises(PreparationError, match="programs"):
        load_onnxruntime(model, 1, "cpu")


def test_a_program_that_cannot_be_loaded_is_an_error(module: torch.nn.Module, tmp_path: Path) -> None:
    broken = lenet_5(module).proto()
    broken.graph.node[2].op_type = "NoSuchOperator"
    artifact = artifact_of(Program(broken.SerializeToString()), tmp_path / "broken")
    with pytest.raises(PreparationError, match="NoSuchOperator"):
        load_onnxruntime(artifact, 1, "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_an_error(module: torch.nn.Module, tmp_path: Path) -> None:
    program = artifact_of(lenet_5(module), tmp_path / "program")
    with pytest.raises(PreparationError, match="CUDA"):
        load_onnxruntime(program, 1, "cuda")
    model = artifact_of(TorchModel(module, "leanmark.networks.lenet:build_lenet_5"), tmp_path / "model")
    with pytest.raises(PreparationError, match="CUDA"):
        load_torch(model, 1, "cuda")


@RUNTIMES
def test_the_cpu_is_supported(runtime: str) -> None:
    assert supported(runtime, "cpu") is None


def test_unknown_names_are_told() -> None:
    assert supported("torch", "tpu") == "torch runs on cpu and cuda, not on tpu"
    with pytest.raises(InvalidInput, match="unknown runtime 'onnxruntim'"):
        supported("onnxruntim", "cpu")


def test_a_library_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    assert supported("torch", "cpu") == "torch is not installed"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for programs in place of PATH, on a machine without the driver's own folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runtimes, "Path", lambda text: tmp_path / "no driver")
    runtimes._nvidia_devices.cache_clear()
    yield tmp_path
    runtimes._nvidia_devices.cache_clear()


def answering(folder: Path, text: str, code: int = 0) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && echo '{text}'\nexit {code}\n")
    command.chmod(0o755)


def test_no_cuda_device_is_a_reason(driver: Path) -> None:
    assert supported("torch", "cuda") == "this machine has no CUDA device"
    answering(driver, "NVIDIA-SMI has failed because it could not communicate with the driver", 9)
    runtimes._nvidia_devices.cache_clear()
    assert supported("torch", "cuda") == "this machine has no CUDA device"


def test_a_library_without_cuda_is_a_reason(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(driver, "GPU 0: NVIDIA H100")
    versions = {"torch": "2.13.0+cpu", "onnxruntime": "1.31.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise runtimes.importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(runtimes.importlib.metadata, "version", version)
    assert supported("torch", "cuda") == "the installed torch is a build for CPUs"
    assert supported("onnxruntime", "cuda") == "the installed onnxruntime is a build for CPUs; onnxruntime-gpu has CUDA"
    versions |= {"torch": "2.13.0", "onnxruntime-gpu": "1.31.1"}
    assert supported("torch", "cuda") is None
    assert supported("onnxruntime", "cuda") is None
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert supported("torch", "cuda") == "CUDA_VISIBLE_DEVICES hides every CUDA device"


def test_lowering_states_every_parameter() -> None:
    assert get_runtime("onnxruntime").lowering == (get_step("export.onnx").validate({}),)
    assert get_runtime("torch").lowering == ()


def test_settings_are_the_fair_ones(module: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read off the session that onnxruntime made, where a wrong name would go unnoticed."""
    seen: list[Any] = []
    ort = runtimes.import_onnxruntime()

    def watch(program: Any, options: Any, providers: Any) -> Any:
        seen.append(SimpleNamespace(options=options, providers=providers))
        return ort.InferenceSession(program, options, providers=providers)

    names = {
        name: getattr(ort, name) for name in ("SessionOptions", "GraphOptimizationLevel", "get_available_providers")
    }
    monkeypatch.setattr(runtimes, "import_onnxruntime", lambda: SimpleNamespace(**names, InferenceSession=watch))
    load_onnxruntime(artifact_of(lenet_5(module), tmp_path / "program"), 2, "cpu")
    options = seen[0].options
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert seen[0].providers == ["CPUExecutionProvider"]
