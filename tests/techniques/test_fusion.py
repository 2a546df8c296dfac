"""Fusing changes the shape of the work and not its result."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from leanmark.arrays import Array
from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import op_counts
from leanmark.registry import get_step
from leanmark.stages import Artifact, Context, Delivery, Program, Split, TorchModel, save
from leanmark.techniques.fusion import batchnorm, fused_operators, graph, no_batch_norm

IMAGES = np.random.default_rng(0).random((4, 3, 10, 10), dtype=np.float32)


def context(inputs: Array = IMAGES) -> Context:
    split = Split({"image": inputs})
    return Context(lambda name: split, seed=0)


def settle(module: nn.Module) -> nn.Module:
    """Random statistics and scales from a seed, as after training."""
    generator = torch.Generator().manual_seed(0)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in ((child.running_mean, -1, 1), (child.running_var, 0.3, 3)):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
            if child.affine:
                child.weight.data.uniform_(0.5, 2, generator=generator)
                child.bias.data.uniform_(-1, 1, generator=generator)
    return module.eval()


def network() -> nn.Module:
    torch.manual_seed(0)
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.Identity(), nn.BatchNorm2d(8, affine=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 20), nn.BatchNorm1d(20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5),
        )
    )  # fmt: skip


def model(module: nn.Module) -> TorchModel:
    return TorchModel(module, "torch.nn:Identity", delivery=Delivery(packed=True))


def answers(module: nn.Module, inputs: Array = IMAGES) -> Array:
    with torch.inference_mode():
        return module(torch.from_numpy(inputs)).numpy()


def artifact_of(stage: TorchModel | Program, folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    return save(stage, folder)


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) for child in module.modules())


def close(got: Array, expected: Array, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(got - expected).max() <= tolerance * np.abs(expected).max())


# --- fuse.batchnorm -----------------------------------------------------------------


def test_every_batch_norm_goes_and_answers_stay(tmp_path: Path) -> None:
    module = network()
    folded = batchnorm(model(module), context())
    assert batch_norms(folded.module) == 0
    assert close(answers(folded.module), answers(module))
    exact = get_step("fuse.batchnorm").exact
    assert exact is not None
    assert exact >= 1e-5


def test_what_is_saved_is_built_again_without_them(tmp_path: Path) -> None:
    module = network()
    artifact = artifact_of(batchnorm(model(module), context()), tmp_path / "folded")
    loaded = artifact.load()
    assert isinstance(loaded, TorchModel)
    assert loaded.delivery.packed
    assert close(answers(loaded.module), answers(module))
    evidence = no_batch_norm(replace(artifact, reference=artifact_of(model(module), tmp_path / "plain")), {})
    assert evidence.effective
    assert evidence.facts == {"batch_norms": 0, "batch_norms_before": 4}


def test_the_model_that_came_in_is_left_alone() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    batchnorm(model(module), context())
    assert batch_norms(module) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_zeros_stay_zeros() -> None:
    module = network()
    convolution = module[0]
    assert isinstance(convolution, nn.Conv2d)
    convolution.weight.data[::2] = 0
    folded = batchnorm(model(module), context()).module[0]
    assert isinstance(folded, nn.Conv2d)
    assert torch.equal(folded.weight == 0, convolution.weight == 0)


class Residual(nn.Module):
    """One convolution's result is also added to the batch norm's: only the other may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.second, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.first(image)
        return self.other(self.second(self.norm(hidden) + hidden))


def test_a_result_that_is_read_twice_keeps_its_batch_norm(tmp_path: Path) -> None:
    module = settle(Residual())
    folded = batchnorm(model(module), context()).module
    assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)
    assert isinstance(folded.get_submodule("other"), nn.Identity)
    assert close(answers(folded), answers(module))


def test_a_batch_norm_that_is_left_is_ineffective(tmp_path: Path) -> None:
    evidence = no_batch_norm(artifact_of(model(network()), tmp_path / "plain"), {})
    assert not evidence.effective
    assert evidence.reason == "4 batch norms are left"


def test_a_model_without_any_before_is_ineffective(tmp_path: Path) -> None:
    plain = artifact_of(model(nn.Sequential(nn.Linear(3, 3))), tmp_path / "plain")
    assert "either" in no_batch_norm(replace(plain, reference=plain), {}).reason


class Twice(nn.Module):
    """A convolution that is called twice, of which one result is normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.layer(self.layer(image)))


class Tied(nn.Module):
    """Two convolutions with the same weights, of which one is normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.tied.weight = self.layer.weight

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.layer(self.tied(image)))


class Sequence(nn.Module):
    """The batch norm scales the axis of positions, not that of the linear layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(100, 3), nn.BatchNorm1d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.layer(image.flatten(2)))


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 3), Twice(), Tied(), Sequence()], ids=lambda module: type(module).__name__
)
def test_nothing_to_fold_is_not_applicable(module: nn.Module) -> None:
    with pytest.raises(NotApplicable):
        batchnorm(model(settle(module)), context())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(image) if image.sum() > 0 else image


def test_a_forward_that_cannot_be_followed_is_an_error() -> None:
    with pytest.raises(PreparationError, match="follow"):
        batchnorm(model(Branching()), context())


# --- fuse.graph ---------------------------------------------------------------------


def convolutional(branches: int = 6) -> Program:
    """Parallel convolutions with batch norm and ReLU, joined, then two linear layers."""
    draw = np.random.default_rng(1)
    nodes: list[helper.NodeProto] = []
    stored: dict[str, Array] = {}

    def weights(name: str, *shape: int) -> str:
        stored[name] = (draw.normal(size=shape) / 4).astype(np.float32)
        return name

    for index in range(branches):
        stored[f"variance{index}"] = np.ones(6, np.float32)
        norm = [weights(f"{part}{index}", 6) for part in ("gamma", "beta", "mean")]
        nodes += [
            helper.make_node("Conv", ["image", weights(f"kernel{index}", 6, 3, 3, 3)], [f"conv{index}"]),
            helper.make_node("BatchNormalization", [f"conv{index}", *norm, f"variance{index}"], [f"norm{index}"]),
            helper.make_node("Relu", [f"norm{index}"], [f"relu{index}"]),
        ]
    nodes += [
        helper.make_node("Concat", [f"relu{index}" for index in range(branches)], ["joined"], axis=1),
        helper.make_node("GlobalAveragePool", ["joined"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", weights("fc1", 6 * branches, 10), weights("bias", 10)], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", weights("fc2", 10, 5)], ["output"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 10, 10])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 5])
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    body = helper.make_graph(nodes, "test", [image], [output], initializers)
    made = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program(made.SerializeToString(), Delivery(packed=True))


def run(program: Program) -> Array:
    session = onnxruntime.InferenceSession(program.onnx, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": IMAGES})[0])


def evidence_of(level: str, folder: Path) -> tuple[bool, dict[str, int], str]:
    before = convolutional()
    artifact = artifact_of(graph(before, context(), level=level), folder / level)
    evidence = fused_operators(replace(artifact, reference=artifact_of(before, folder / f"before {level}")), {})
    return evidence.effective, evidence.facts["fused"], evidence.reason


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_answers_stay_at_every_level(level: str) -> None:
    before = convolutional()
    after = graph(before, context(), level=level)
    assert close(run(after), run(before))
    assert after.delivery.packed


def test_evidence_names_the_fused_operators(tmp_path: Path) -> None:
    effective, fused, _ = evidence_of("extended", tmp_path)
    assert effective
    assert fused == {"com.microsoft.FusedConv": 6, "com.microsoft.FusedGemm": 1}
    effective, fused, _ = evidence_of("basic", tmp_path)
    assert effective  # the batch norms are gone
    assert fused == {}


def test_a_program_as_before_is_ineffective(tmp_path: Path) -> None:
    fused = graph(convolutional(), context(), level="extended")
    again = artifact_of(graph(fused, context(), level="extended"), tmp_path / "again")
    evidence = fused_operators(replace(again, reference=artifact_of(fused, tmp_path / "fused")), {})
    assert not evidence.effective
    assert "same as before" in evidence.reason


def test_constants_that_become_initializers_are_no_fusion(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 10, 10])
    two = numpy_helper.from_array(np.array(2.0, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["two"], value=two),
        helper.make_node("Mul", ["image", "two"], ["output"]),
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3, 10, 10])
    made = helper.make_model(
        helper.make_graph(nodes, "test", [image], [output]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    before = Program(made.SerializeToString())
    after = graph(before, context(), level="all")
    assert op_counts(after.proto()) == {"Mul": 1}
    artifact = artifact_of(after, tmp_path / "after")
    assert not fused_operators(replace(artifact, reference=artifact_of(before, tmp_path / "before")), {}).effective


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_the_same_program_comes_out_every_time(level: str) -> None:
    # onnxruntime names nodes from a hash table of addresses: repeating it shows that.
    assert len({graph(convolutional(), context(), level=level).onnx for _ in range(6)}) == 1


def test_weights_keep_their_names_where_they_are_kept() -> None:
    names = {tensor.name for tensor in graph(convolutional(), context()).proto().graph.initializer}
    assert {"fc1", "fc2", "bias"} <= names


def test_a_program_that_onnxruntime_refuses_is_an_error() -> None:
    broken = convolutional().proto()
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(PreparationError, match="NoSuchOperator"):
        graph(Program(broken.SerializeToString()), context())
