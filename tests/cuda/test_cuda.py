"""The real thing: every runtime on a CUDA device, where there is one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leanmark import registry
from leanmark.host import available_cpus
from leanmark.measure import quality
from leanmark.measure.launches import compare
from leanmark.measure.paired import measure
from leanmark.measure.sides import Side
from leanmark.networks.plain import build_plain_cnn
from leanmark.results import Target
from leanmark.runtimes import supported
from leanmark.stages import Delivery, Program, Split, TorchModel, save
from leanmark.workloads import split_store

RUNTIMES = ["torch", "torch-compile", "onnxruntime"]
BUILDER = "leanmark.networks.plain:build_plain_cnn"


@pytest.fixture(scope="module", autouse=True)
def known():
    registry.load_builtins()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cuda")
    images = np.random.default_rng(0).normal(size=(32, 1, 28, 28)).astype(np.float32)
    split_store.store({"test": Split({"image": images})}, root / "splits")
    torch.manual_seed(0)
    model = TorchModel(build_plain_cnn().eval(), BUILDER)
    for name, slowdown in (("plain", 0.0), ("slower", 0.1)):
        (root / name).mkdir()
        save(TorchModel(model.module, BUILDER, delivery=Delivery(slowdown=slowdown)), root / name)
        (root / f"{name}-program").mkdir()
        save(replace(program(), delivery=Delivery(slowdown=slowdown)), root / f"{name}-program")
    return root


def program() -> Program:
    """A convolution as an ONNX graph."""
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).normal(size=(32, 1, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel"], ["output"], pads=[1, 1, 1, 1])],
        "convolution",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 32, 28, 28])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return Program(model.SerializeToString())


def side(folder: Path, name: str, runtime: str, device: str) -> Side:
    why = supported(runtime, device)
    if why is not None:
        pytest.skip(f"{runtime} on {device}: {why}")
    artifact = f"{name}-program" if runtime == "onnxruntime" else name
    return Side(f"{name}-{device}", folder / artifact, Target(device, runtime), folder / "splits")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_answers_as_the_processor_does_and_tells_events_and_memory(folder: Path, runtime: str):
    on_cuda = quality.inspect(side(folder, "plain", runtime, "cuda"))
    on_cpu = quality.inspect(side(folder, "plain", runtime.removesuffix("-compile"), "cpu"))
    np.testing.assert_allclose(on_cuda.answers.outputs[0], on_cpu.answers.outputs[0], rtol=1e-3, atol=1e-4)
    assert on_cuda.on_device is not None
    if runtime != "onnxruntime":  # which tells neither
        assert on_cuda.on_device.event_seconds is not None
        assert 0 < on_cuda.on_device.event_seconds.value < 1
        assert on_cuda.on_device.peak_bytes
    assert on_cpu.on_device is None


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_slowdown_of_a_tenth_is_seen(folder: Path, runtime: str):
    sides = [side(folder, name, runtime, "cuda") for name in ("plain", "slower")]
    launches = list(measure(sides, launches=4, seconds=0.3, cpus=available_cpus(), seed=0))
    interval = compare(launches, "slower-cuda", "plain-cuda").interval()
    assert interval.low > 1.0
    assert not interval.excludes(1.1)
