"""Training is repeatable, learns, and keeps what it is told to keep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from leanmark import registry
from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.lenet import build_lenet_5, build_lenet_300_100
from leanmark.stages import Artifact, Context, Split, TorchModel, save
from leanmark.techniques.training import fit
from techniques import applying
from techniques.applying import stored

MLP = "leanmark.networks.lenet:build_lenet_300_100"


def blobs(count: int = 400, seed: int = 0) -> Split:
    """Ten classes, each a bright square at a place of its own in noise."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 10
    images = random.normal(0, 1, (count, 1, 28, 28)).astype(np.float32)
    for index, label in enumerate(classes):
        row, column = divmod(int(label), 5)
        images[index, 0, row * 14 : row * 14 + 5, column * 5 : column * 5 + 5] += 1.5
    return Split({"image": images}, classes.astype(np.int64))


def accuracy(module: nn.Module, split: Split) -> float:
    with torch.inference_mode():
        answers = module(torch.from_numpy(split.inputs["image"])).argmax(1).numpy()
    return float((answers == split.targets).mean())


def trained(build=build_lenet_300_100, seed: int = 1, split: Split | None = None, **changes) -> nn.Module:
    torch.manual_seed(0)
    module = build()
    settings = {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3} | changes
    fit(module, split or blobs(), generator=torch.Generator().manual_seed(seed), **settings)
    return module


def state(module: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in module.state_dict().values()]


def small_model(seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(build_lenet_300_100((23, 11)).eval(), MLP, {"widths": [23, 11]})


def context(split: Split | None = None, seed: int = 0) -> Context:
    return Context(lambda name: {"train": split or blobs()}[name], seed)


def finetune(model: TorchModel, ctx: Context | None = None, **params) -> TorchModel:
    step = registry.get_step("train.finetune")
    return step.function(model, ctx or context(), **step.parameters(**params).model_dump())


def evidence(model: TorchModel, folder: Path, reference: Artifact | None = None, **params):
    return applying.evidence("train.finetune", stored(model, folder, reference), **params)


def test_a_trained_network_knows_images_it_has_not_seen():
    module = trained()
    assert accuracy(module, blobs(200, seed=9)) > 0.9
    assert not module.training


def test_a_trained_convolutional_network_keeps_the_usual_memory_layout():
    module = trained(build_lenet_5, split=blobs(160), epochs=3)
    assert accuracy(module, blobs(200, seed=9)) > 0.5
    for parameter in module.parameters():
        assert parameter.stride() == torch.empty(parameter.shape).stride()


class WithDropout(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


@pytest.mark.parametrize("build", [WithDropout, build_lenet_5])
def test_the_same_generator_state_gives_the_same_weights_bit_for_bit(build):
    def build_and_draw():
        module = build()
        torch.rand(7)  # the state of the global generator must not matter
        return module

    split = blobs(96)
    first = trained(build, split=split, epochs=1)
    again = trained(build_and_draw, split=split, epochs=1)
    other = trained(build, seed=2, split=split, epochs=1)
    assert state(first) == state(again)
    assert state(first) != state(other)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    module = WithDropout()
    torch.manual_seed(5)
    fit(module, blobs(64), epochs=1, batch_size=32, learning_rate=1e-3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 5), (2, 20), (1.25, 12), (0.001, 1)])
def test_epochs_may_be_fractions(epochs, steps):
    calls: list[int] = []
    trained(split=blobs(320), epochs=epochs, after_step=lambda module: calls.append(1))
    assert len(calls) == steps


def test_progress_rises_to_the_end_and_tells_epoch_and_loss():
    told: list[tuple[float, str]] = []
    trained(epochs=1, progress=lambda fraction, text: told.append((fraction, text)))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "epoch 1.0 of 1" in told[-1][1]
    assert "loss" in told[-1][1]


def test_inputs_of_any_type_are_passed_by_position_in_their_order():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.last = nn.Linear(12, 10)

        def forward(self, word, values):
            assert word.dtype == torch.int64
            assert values.dtype == torch.float32
            return self.last(torch.cat([self.table(word), values], 1))

    words = np.arange(200) % 10
    split = Split({"word": words, "values": np.zeros((200, 4), dtype=np.float64)}, words)
    module = Two()
    fit(module, split, epochs=8, batch_size=20, learning_rate=0.05, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = module(torch.arange(10), torch.zeros(10, 4)).argmax(1)
    assert answers.tolist() == list(range(10))


def moved(split: Split, down: int, right: int) -> Split:
    images = np.roll(split.inputs["image"], (down, right), axis=(2, 3))
    return Split({"image": images}, split.targets)


def test_pictures_that_were_moved_in_training_are_known_elsewhere_too():
    there = moved(blobs(200, seed=9), 2, -2)
    plain, shifted = (trained(epochs=8, shift=shift) for shift in (0, 3))
    assert accuracy(shifted, there) > accuracy(plain, there) + 0.1
    assert state(shifted) == state(trained(epochs=8, shift=3))


def test_a_picture_is_moved_whole_to_any_place_and_its_edge_is_repeated():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 1))
            self.seen: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.extend(x)
            return self.weight.T.expand(len(x), 2)

    looks = Looks()
    picture = np.random.default_rng(0).random((3, 5, 6), dtype=np.float32)
    split = Split({"image": np.repeat(picture[None], 64, axis=0)}, np.arange(64) % 2)
    fit(looks, split, epochs=4, generator=torch.Generator().manual_seed(0), shift=1)
    wide = np.pad(picture, [(0, 0), (1, 1), (1, 1)], mode="edge")
    places = {wide[..., i : i + 5, j : j + 6].tobytes() for i in range(3) for j in range(3)}
    assert {seen.numpy().tobytes() for seen in looks.seen} == places


@pytest.mark.parametrize(
    ("shape", "shift", "said"),
    [
        ((4,), 1, "no input of this model is"),
        ((3, 4), 1, "no input of this model is"),
        ((1, 2, 9), 2, "leaves nothing"),
    ],
)
def test_what_is_no_picture_cannot_be_moved(shape, shift, said):
    split = Split({"x": np.zeros((8, *shape), dtype=np.float32)}, np.arange(8) % 2)
    module = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(1, *shape))
    with pytest.raises(NotApplicable, match=said):
        fit(module, split, epochs=1, generator=torch.Generator(), shift=shift)


@pytest.mark.parametrize("name", ["train.finetune", "prune.iterative"])
@pytest.mark.parametrize("params", [{"shift": 2}, {"dropout": 0.3}])
def test_steps_that_train_hand_shift_and_dropout_on(name, params):
    own = {"epochs": 1, **({"sparsity": 0.5, "rounds": 1} if name == "prune.iterative" else {})}
    plain, changed = (applying.apply(name, small_model(), context(), **own, **more) for more in ({}, params))
    assert state(plain.module) != state(changed.module)


def test_dropout_leaves_out_inputs_of_later_linear_layers_while_training():
    plain, dropped, again = (trained(dropout=share) for share in (0, 0.4, 0.4))
    assert state(plain) != state(dropped)
    assert state(dropped) == state(again)
    assert not any(layer._forward_pre_hooks for layer in dropped.modules())
    x = torch.from_numpy(blobs(8).inputs["image"])
    with torch.no_grad():
        assert torch.equal(dropped(x), dropped.train()(x))  # nothing of it is left in the model
    split = Split({"x": np.ones((8, 4), dtype=np.float32)}, np.arange(8) % 2)
    with pytest.raises(NotApplicable, match="none but the first layer"):
        fit(nn.Linear(4, 2), split, epochs=1, generator=torch.Generator(), dropout=0.5)


@pytest.mark.parametrize(
    ("loss", "target"),
    [("mse", lambda x: 3 * x[:, 0] - 1), ("binary_cross_entropy", lambda x: (x[:, 0] > 0).astype(int))],
)
def test_other_losses_fit_their_targets(loss, target):
    points = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    fit(
        module, Split({"x": points}, target(points)), loss=loss, epochs=12, batch_size=32, learning_rate=0.1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    weight = module.weight.detach().numpy()[0]
    assert weight[0] > 2.5
    assert abs(weight[1:]).max() < 0.3 * weight[0]


def test_what_cannot_be_trained_is_refused_with_its_reason():
    images = blobs(40)
    with pytest.raises(PreparationError, match="no targets"):
        trained(split=Split(images.inputs))
    with pytest.raises(PreparationError, match="targets go from 0 to 11"):
        trained(split=Split(images.inputs, np.arange(40) % 12))
    with pytest.raises(PreparationError, match="not whole numbers"):
        trained(split=Split(images.inputs, np.linspace(0, 1, 40)))
    with pytest.raises(NotApplicable, match="no parameters"):
        trained(build=nn.Flatten, split=images)
    poisoned = Split({"image": np.full_like(images.inputs["image"], np.nan)}, images.targets)
    with pytest.raises(PreparationError, match="loss is nan"):
        trained(split=poisoned)


def test_fine_tuning_wins_back_accuracy_and_depends_on_the_seed_alone():
    def tuned(seed: int) -> TorchModel:
        return finetune(damaged(), context(seed=seed), epochs=3, learning_rate=4e-3, preserve=["sparsity"])

    unseen = blobs(200, seed=9)
    first, again, other = tuned(0), tuned(0), tuned(1)
    assert accuracy(first.module, unseen) > accuracy(damaged().module, unseen) + 0.1
    assert state(first.module) == state(again.module)
    assert state(first.module) != state(other.module)


def damaged() -> TorchModel:
    """A trained network that lost nearly all its weights."""
    step = registry.get_step("prune.magnitude")
    model = TorchModel(trained(lambda: build_lenet_300_100((64, 32)), epochs=4), MLP, {"widths": [64, 32]})
    return step.function(model, context(), sparsity=0.95)


def pruned_model() -> TorchModel:
    step = registry.get_step("prune.magnitude")
    return step.function(small_model(), context(), sparsity=0.8)


def clustered_model(model: TorchModel | None = None, preserve: tuple[str, ...] = ()) -> TorchModel:
    step = registry.get_step("cluster.kmeans")
    return step.function(model or small_model(), context(), clusters=8, preserve=preserve)


def weights(model: TorchModel) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in model.module.parameters() if p.dim() > 1]


def test_preserved_zeros_stay_zero_and_the_other_weights_move():
    model = pruned_model()
    before = weights(model)
    after = weights(finetune(model, preserve=["sparsity"]))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one == 0, other == 0)
        assert not np.signbit(other[other == 0]).any()
        assert (one != other).sum() > 0.9 * (one != 0).sum()


def test_zeros_are_lost_when_they_are_not_preserved():
    model = finetune(pruned_model())
    assert sum((array == 0).sum() for array in weights(model)) < 200


def test_preserved_clusters_move_as_one():
    model = clustered_model()
    before = weights(model)
    after = weights(finetune(model, preserve=["clusters"]))
    for one, other in zip(before, after, strict=True):
        assert np.unique(other).size <= np.unique(one).size
        for value in np.unique(one):
            assert np.unique(other[one == value]).size == 1
        assert not np.array_equal(one, other)


def test_zeros_and_clusters_are_preserved_together():
    model = clustered_model(pruned_model(), preserve=("sparsity",))
    before = weights(model)
    after = weights(finetune(model, preserve=["sparsity", "clusters"], learning_rate=5e-3))
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one == 0, other == 0)
        assert np.unique(other).size <= np.unique(one).size <= 8
        assert not np.array_equal(one, other)


def test_a_shared_value_moves_by_the_sum_of_its_gradients():
    # One step of AdamW moves by the gradient's sign: two weights that pull one way each
    # follow the stronger pull together.
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 64), 0.5))

        def forward(self, x):
            return (x * self.weight).sum(1)

    pulls = np.ones((32, 64), dtype=np.float32)
    pulls[:, 5] = -200.0
    split = Split({"x": pulls}, np.full(32, 1000.0, dtype=np.float32))
    model = TorchModel(Pair(), f"{__name__}:Pair")
    finetune(model, context(split), preserve=["clusters"], loss="mse", epochs=1, batch_size=32)
    values = model.module.weight.detach().unique()
    assert len(values) == 1
    assert values[0] < 0.5


def test_nothing_to_preserve_is_a_contradiction():
    with pytest.raises(PreparationError, match="no weight is zero"):
        finetune(small_model(), preserve=["sparsity"])
    with pytest.raises(PreparationError, match="hardly any weights share"):
        finetune(small_model(), preserve=["clusters"])


def test_evidence_counts_what_was_preserved(tmp_path):
    kept = finetune(clustered_model(pruned_model(), preserve=("sparsity",)), preserve=["sparsity", "clusters"])
    found = evidence(kept, tmp_path / "kept", preserve=["sparsity", "clusters"])
    assert found.effective
    assert found.facts["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert found.facts["distinct_values"] == 8
    lost = evidence(small_model(), tmp_path / "lost", preserve=["sparsity"])
    assert not lost.effective
    assert "no sparsity" in lost.reason
    spread = evidence(small_model(), tmp_path / "spread", preserve=["clusters"])
    assert not spread.effective
    assert "no clusters" in spread.reason


def test_evidence_admits_what_an_artifact_cannot_show(tmp_path):
    (tmp_path / "reference").mkdir()
    reference = save(small_model(), tmp_path / "reference")
    tuned = evidence(finetune(small_model()), tmp_path / "tuned", reference, epochs=1)
    assert tuned.effective
    assert "cannot be read off" in tuned.reason
    untouched = evidence(small_model(), tmp_path / "untouched", reference, epochs=1)
    assert not untouched.effective
    assert "unmodified model" in untouched.reason


@pytest.mark.parametrize(
    "params",
    [{"epochs": 0}, {"epochs": -1}, {"preserve": ["zeros"]}, {"batch_size": 0}, {"learning_rate": 0}, {"lr": 1}],
)
def test_parameters_out_of_range_are_refused(params):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        registry.get_step("train.finetune").validate(params)
