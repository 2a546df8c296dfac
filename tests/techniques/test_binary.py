"""Binary weights are one number with both signs, found by training, and take a bit each in the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.layers import Sign
from leanmark.stages import Context, Split, TorchModel
from leanmark.techniques.training import fit
from techniques.test_pruning import Tied, apply, evidence, lenet_5, mlp, stored, weights

# Classes that a few pixels tell, so that training a moment shows.
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 640)
PICTURES = RANDOM.normal(size=(640, 1, 28, 28)).astype(np.float32)
PICTURES[np.arange(640), 0, LABELS, :] += 1.5
TRAIN = Split({"image": PICTURES}, LABELS)
CONTEXT = Context(lambda _: TRAIN, 0)


@pytest.mark.parametrize("make", [mlp, lenet_5])
def test_weights_are_one_bit_each(make, tmp_path: Path):
    model = apply("quantize.binary", make(), CONTEXT, epochs=1)
    for array in weights(model):
        assert np.unique(np.abs(array)).size == 1
        assert np.unique(array).size == 2
    found = evidence("quantize.binary", model, tmp_path)
    assert found.effective, found.reason
    assert 1 <= found.facts["bits_per_binary_weight"] < 1.1


def test_it_learns_what_rounding_at_once_does_not():
    def accuracy(model: TorchModel) -> float:
        with torch.no_grad():
            answers = model.module(torch.from_numpy(PICTURES)).argmax(dim=1).numpy()
        return float((answers == LABELS).mean())

    full = mlp()
    fit(full.module, TRAIN, epochs=6, generator=torch.Generator().manual_seed(0))
    at_once = mlp()
    at_once.module.load_state_dict(full.module.state_dict())
    with torch.no_grad():
        for parameter in at_once.module.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.sign() * parameter.abs().mean())
    trained = apply("quantize.binary", full, CONTEXT, epochs=6)
    assert accuracy(trained) > accuracy(at_once) + 0.1


def test_layers_may_be_kept(tmp_path: Path):
    before = weights(mlp())
    model = apply("quantize.binary", mlp(), CONTEXT, epochs=0.5, keep=("first", "last"))
    after = weights(model)
    assert [np.unique(array).size == 2 for array in after] == [False, True, False]
    assert [array.shape for array in before] == [array.shape for array in after]
    assert evidence("quantize.binary", model, tmp_path, keep=("first", "last")).effective
    (tmp_path / "again").mkdir()
    assert not evidence("quantize.binary", model, tmp_path / "again").effective


def test_it_is_stored_and_loaded_as_it_answers(tmp_path: Path):
    model = apply("quantize.binary", lenet_5(), CONTEXT, epochs=0.5)
    again = stored(model, tmp_path / "a").load()
    assert isinstance(again, TorchModel)
    x = torch.from_numpy(PICTURES[:5])
    assert torch.equal(again.module(x), model.module(x))


def test_evidence_sees_what_a_later_step_did(tmp_path: Path):
    model = apply("quantize.binary", mlp(), CONTEXT, epochs=0.5)
    unpacked = replace(model, delivery=replace(model.delivery, packed=False))
    assert "one bit each" in evidence("quantize.binary", unpacked, tmp_path).reason
    fit(model.module, TRAIN, epochs=0.1, generator=torch.Generator().manual_seed(0))
    (tmp_path / "trained").mkdir()
    assert "a later step moved them" in evidence("quantize.binary", model, tmp_path / "trained").reason


@pytest.mark.parametrize("as_program", [False, True])
def test_activations_may_have_one_bit_too(tmp_path: Path, as_program: bool):
    model = apply("quantize.binary", mlp(), CONTEXT, epochs=4, activations=True)
    seen: list[torch.Tensor] = []
    for name in ("fc2", "fc3"):
        model.module.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        answers = model.module(torch.from_numpy(PICTURES))
    assert torch.cat([values.flatten() for values in seen]).abs().unique().tolist() == [1.0]
    assert (answers.argmax(dim=1).numpy() == LABELS).mean() > 0.3  # it learned; one in ten by lot
    final = apply("export.onnx", model, CONTEXT) if as_program else model
    found = evidence("quantize.binary", final, tmp_path, activations=True)
    assert found.effective, found.reason
    assert found.facts["binary_activations"] == 2
    assert "storage only" in found.facts["computed"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 16), self.relu, nn.Linear(16, 16), self.relu, nn.Linear(16, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_relu_that_stands_in_several_places_becomes_a_sign_in_each(tmp_path: Path):
    model = apply(
        "quantize.binary", TorchModel(Twice().eval(), f"{__name__}:Twice"), CONTEXT, epochs=0.2, activations=True
    )
    program = apply("export.onnx", model, CONTEXT)
    found = evidence("quantize.binary", program, tmp_path, activations=True)
    assert found.effective, found.reason
    assert found.facts["binary_activations"] == 2


def test_activations_of_one_bit_beside_others_are_not_called_so(tmp_path: Path):
    model = apply("quantize.binary", mlp(), CONTEXT, epochs=0.2, activations=True)
    model.module.set_submodule("relu2", nn.ReLU())
    for name, final in (("torch", model), ("onnx", apply("export.onnx", model, CONTEXT))):
        (tmp_path / name).mkdir()
        found = evidence("quantize.binary", final, tmp_path / name, activations=True)
        assert not found.effective
        assert "1 activations" in found.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_signs_keep_the_type_and_pass_gradients_when_only_asked(dtype: torch.dtype):
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=dtype, requires_grad=True)
    signs = Sign().eval()(x)
    assert (signs.dtype, signs.tolist()) == (dtype, [-1, -1, 1, 1, 1])
    signs.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_activations_that_have_more_bits_are_told(tmp_path: Path):
    model = apply("quantize.binary", mlp(), CONTEXT, epochs=0.5)
    assert "no activation" in evidence("quantize.binary", model, tmp_path, activations=True).reason
    with pytest.raises(NotApplicable, match="no ReLU"):
        apply(
            "quantize.binary",
            TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "x:y"),
            CONTEXT,
            activations=True,
        )


def test_models_that_cannot_be_binary_say_so():
    with pytest.raises(NotApplicable, match="one tensor"):
        apply("quantize.binary", TorchModel(Tied().eval(), "x:y"), CONTEXT)
    with pytest.raises(NotApplicable, match="no weight tensor"):
        apply("quantize.binary", TorchModel(nn.Sequential(nn.Flatten()), "x:y"), CONTEXT)
    with pytest.raises(NotApplicable, match="no weight tensor"):
        apply("quantize.binary", mlp((8,)), CONTEXT, keep=("first", "last"))
    broken = mlp()
    with torch.no_grad():
        broken.module.get_parameter("fc1.weight")[0, 0] = float("nan")
    with pytest.raises(PreparationError, match="NaN or infinite"):
        apply("quantize.binary", broken, CONTEXT)
