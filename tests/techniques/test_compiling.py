"""What is compiled is compiled by the runtime, and evidence looks at what the compiler made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leanmark.declare.plan import make_plan
from leanmark.declare.suite import load
from leanmark.networks.lenet import build_lenet_5
from leanmark.networks.resnet import build_resnet_8
from leanmark.openvino_runtime import load_openvino
from leanmark.results import Status
from leanmark.runtimes import load_torch
from leanmark.stages import Context, Program, Split, TorchModel
from techniques import applying
from techniques.applying import evidence, stored

IMAGES = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, np.arange(4) % 10), 0)


def apply(name: str, stage: TorchModel | Program, **params):
    return applying.apply(name, stage, CONTEXT, **params)


def resnet() -> TorchModel:
    torch.manual_seed(0)
    return TorchModel(build_resnet_8().eval(), "leanmark.networks.resnet:build_resnet_8")


@pytest.mark.slow
@pytest.mark.parametrize("tune", [False, True])
def test_inductor_makes_one_graph_and_the_same_answers(tmp_path: Path, tune: bool):
    model = resnet()
    artifact = stored(apply("compile.inductor", model, tune=tune), tmp_path / "compiled")
    found = evidence("compile.inductor", artifact, tune=tune)
    assert found.effective, found.reason
    assert (found.facts["graphs"], found.facts["graph_breaks"]) == (1, 0)
    assert found.facts["fused_kernels"] >= 1
    assert found.facts["first_call_seconds"] > 0
    # Frozen weights let batch norms be folded, and sums and ReLUs be part of convolutions.
    assert any("pointwise" in name for name in found.facts["library_calls"]) is tune
    loaded = load_torch(artifact, 1, "cpu")
    (answers,) = loaded.outputs(loaded.call(loaded.bind({"image": IMAGES})))
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(IMAGES)).numpy()
    assert np.abs(answers - expected).max() <= 1e-4 * np.abs(expected).max()


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1)).relu()
        print(end="")  # which no graph can hold
        return x.relu()


@pytest.mark.slow
def test_a_graph_that_breaks_is_told(tmp_path: Path):
    model = TorchModel(Broken().eval(), f"{__name__}:Broken")
    found = evidence("compile.inductor", stored(apply("compile.inductor", model), tmp_path / "broken"))
    assert not found.effective
    assert found.facts["graph_breaks"] > 0
    assert "was cut into" in found.reason


def test_what_a_later_step_lost_is_told(tmp_path: Path):
    plain = stored(resnet(), tmp_path / "plain")
    assert not evidence("compile.inductor", plain).effective
    program = stored(apply("export.onnx", TorchModel(build_lenet_5(), "x:y")), tmp_path / "program")
    assert not evidence("compile.openvino", program).effective


def test_integers_alone_are_no_bf16(tmp_path: Path):
    program = apply("quantize.static", apply("export.onnx", TorchModel(build_lenet_5().eval(), "x:y")))
    artifact = stored(apply("compile.openvino", program, precision="bf16"), tmp_path / "int8")
    found = evidence("compile.openvino", artifact, precision="bf16")
    assert {kind for layers in found.facts["layers"].values() for kind in layers} <= {"i8", "u8"}
    assert not found.effective


def test_openvino_tells_the_precision_that_it_computes_in(tmp_path: Path):
    program = apply("export.onnx", resnet())
    compiled = stored(apply("compile.openvino", program), tmp_path / "f32")
    found = evidence("compile.openvino", compiled)
    assert found.effective, found.reason
    assert found.facts["layers"]["Convolution"] == {"f32": 9}
    # As a program that asks for nothing: f32 is what is measured, though OpenVINO's own default may be bf16.
    assert load_openvino(compiled, 1, "cpu")
    lied = stored(replace(program, delivery=compiled.delivery), tmp_path / "lied")
    assert not evidence("compile.openvino", lied, precision="bf16").effective


def test_bf16_is_found_where_the_processor_has_it_and_its_lack_told(tmp_path: Path):
    artifact = stored(apply("compile.openvino", apply("export.onnx", resnet()), precision="bf16"), tmp_path / "bf16")
    found = evidence("compile.openvino", artifact, precision="bf16")
    has = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert found.effective is has
    assert has or "this processor may not have bf16" in found.reason


SUITE = """\
suite: s
workloads: [lenet-5]
recipes:
  inductor: [compile.inductor]
  openvino: [export.onnx, compile.openvino]
targets: [{runtime: torch}, {runtime: onnxruntime}, {runtime: openvino}]
"""


def test_each_is_for_its_own_runtime(tmp_path: Path):
    (tmp_path / "s.yaml").write_text(SUITE)
    cells = {(cell.recipe, cell.target.runtime): cell for cell in make_plan(load(tmp_path / "s.yaml")).cells}
    assert cells["inductor", "torch"].skip is None
    assert cells["openvino", "openvino"].skip is None
    without = make_plan(load(tmp_path / "s.yaml"), lambda name, _: "no C++" if name == "torch-compile" else None)
    skipped = {(cell.recipe, cell.target.runtime): cell.skip for cell in without.cells}
    assert skipped["inductor", "torch"] == (Status.SKIPPED, "no C++")
    assert skipped["fp32", "torch"] is None
    assert cells["inductor", "openvino"].skip == (
        Status.NOT_APPLICABLE,
        "compile.inductor is for torch",
    )
    assert cells["openvino", "onnxruntime"].skip == (Status.NOT_APPLICABLE, "compile.openvino is for openvino")
