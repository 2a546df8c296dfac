"""Saliencies are what they say: gradients, Taylor terms, and the curvature of the exact Hessian."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from leanmark.errors import NotApplicable, PreparationError
from leanmark.stages import Context, Split, TorchModel
from leanmark.techniques.saliency import gauss_newton_diagonal
from leanmark.weights import weight_parameters
from techniques.test_pruning import CONTEXT, apply, evidence, lenet_5, mlp, stored, weights

SIDE = 12


def tiny(hidden: int | None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if hidden is None:
        return nn.Sequential(nn.Linear(SIDE, 6)).eval()
    return nn.Sequential(nn.Linear(SIDE, hidden), nn.Tanh(), nn.Linear(hidden, 10)).eval()


def tiny_data(classes: int, targets: str = "classes") -> Context:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(256, SIDE)).astype(np.float32)
    labels = (inputs[:, :classes].argmax(axis=1)) if targets == "classes" else inputs[:, :classes] ** 2
    return Context(lambda _: Split({"x": inputs}, labels.astype(np.int64 if targets == "classes" else np.float32)), 0)


def exact_diagonal(module: nn.Module, ctx: Context, loss: str) -> dict[str, np.ndarray]:
    """Of the Hessian of the mean loss, by automatic differentiation twice."""
    split = ctx.split("train")
    inputs, targets = torch.from_numpy(split.inputs["x"]), torch.from_numpy(split.targets)
    found = {}
    for name, weight in weight_parameters(module).items():

        def mean_loss(values: torch.Tensor, name: str = name) -> torch.Tensor:
            answer = torch.func.functional_call(module, {name: values}, (inputs,))
            return getattr(functional, "cross_entropy" if loss == "cross_entropy" else "mse_loss")(answer, targets)

        hessian = torch.autograd.functional.hessian(mean_loss, weight.detach())
        found[name] = hessian.reshape(weight.numel(), weight.numel()).diagonal().numpy()
    return found


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_of_a_linear_model_the_curvature_is_the_hessians(loss: str):
    """There Gauss-Newton leaves nothing out; what is drawn scatters by some percent."""
    module, ctx = tiny(None), tiny_data(6, "classes" if loss == "cross_entropy" else "values")
    exact = exact_diagonal(module, ctx, loss)["0.weight"]
    seeds = (Context(ctx.splits, seed) for seed in range(8))
    found = np.mean([gauss_newton_diagonal(module, own, 256, loss)["0.weight"] for own in seeds], axis=0)
    assert np.corrcoef(exact, found)[0, 1] > 0.9
    assert found.sum() == pytest.approx(exact.sum(), rel=0.05)


def test_of_a_trained_network_saliencies_follow_the_exact_ones():
    module, ctx = tiny(8), tiny_data(10)
    split = ctx.split("train")
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        answer = module(torch.from_numpy(split.inputs["x"]))
        functional.cross_entropy(answer, torch.from_numpy(split.targets)).backward()
        optimizer.step()
    exact = exact_diagonal(module, ctx, "cross_entropy")
    found = gauss_newton_diagonal(module, ctx, 256, "cross_entropy")
    for name, weight in weight_parameters(module).items():
        square = weight.detach().numpy().reshape(-1) ** 2
        assert np.corrcoef(exact[name] * square, found[name] * square)[0, 1] > 0.8, name


@pytest.mark.parametrize("name", ["prune.random", "prune.taylor", "prune.obd"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_as_many_are_zero_and_the_artifact_says_so(name: str, scope: str, tmp_path: Path):
    before = weights(lenet_5())
    model = apply(name, lenet_5(), sparsity=0.8, scope=scope)
    after = weights(model)
    total = sum(array.size for array in before)
    assert sum(int((array == 0).sum()) for array in after) == round(0.8 * total)
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one[other != 0], other[other != 0])
    assert evidence(name, model, tmp_path, sparsity=0.8).effective
    (tmp_path / "again").mkdir()
    assert not evidence(name, lenet_5(), tmp_path / "again", sparsity=0.8).effective


@pytest.mark.parametrize("name", ["prune.random", "prune.taylor", "prune.obd"])
def test_what_is_zero_stays_zero_and_counts(name: str):
    model = apply("prune.magnitude", mlp(), sparsity=0.5)
    gone = [array == 0 for array in weights(model)]
    again = weights(apply(name, model, sparsity=0.7))
    assert all((array[zero] == 0).all() for array, zero in zip(again, gone, strict=True))


@pytest.mark.parametrize("name", ["prune.random", "prune.taylor", "prune.obd"])
def test_the_same_seed_takes_the_same_weights(name: str):
    one, other = (weights(apply(name, mlp(), sparsity=0.6)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    third = weights(apply(name, mlp(), Context(CONTEXT.splits, 1), sparsity=0.6))
    if name == "prune.random":
        assert not all(np.array_equal(a, b) for a, b in zip(one, third, strict=True))


def test_weights_whose_input_is_always_zero_have_no_saliency():
    """What the loss does not see goes first, however large it is."""
    inputs = np.random.default_rng(0).normal(size=(64, SIDE)).astype(np.float32)
    inputs[:, :3] = 0
    ctx = Context(lambda _: Split({"x": inputs}, np.arange(64) % 6), 0)
    for name, more in (("prune.taylor", {}), ("prune.taylor", {"saliency": "gradient"}), ("prune.obd", {})):
        module = tiny(None)
        with torch.no_grad():
            module[0].weight[:, :3] = 10.0
        model = apply(name, TorchModel(module, "unused:unused"), ctx, sparsity=0.25, **more)
        zero = model.module[0].weight.detach().numpy() == 0
        assert zero[:, :3].all()
        assert not zero[:, 3:].any()


def test_a_split_without_targets_and_a_model_without_weights_are_told():
    blind = Context(lambda _: Split(CONTEXT.split("train").inputs), 0)
    for name in ("prune.taylor", "prune.obd"):
        with pytest.raises(PreparationError, match="no examples with targets"):
            apply(name, mlp(), blind, sparsity=0.5)
    with pytest.raises(NotApplicable):
        apply("prune.random", TorchModel(nn.ReLU(), "unused:unused"), sparsity=0.5)


def test_nan_weights_are_told():
    for name in ("prune.random", "prune.taylor", "prune.obd"):
        model = mlp()
        with torch.no_grad():
            next(iter(weight_parameters(model.module).values()))[0, 0] = float("nan")
        with pytest.raises(PreparationError, match="NaN or infinite"):
            apply(name, model, sparsity=0.5)


def test_stored_again_they_are_the_same(tmp_path: Path):
    model = apply("prune.obd", mlp(), sparsity=0.9)
    back = stored(model, tmp_path / "model").load()
    assert isinstance(back, TorchModel)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), weights(back), strict=True))


# --- patterns and biases -------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_of_every_group_the_largest_stay(n: int, m: int, tmp_path: Path):
    before, model = weights(lenet_5()), apply("prune.nm", lenet_5(), n=n, m=m)
    for one, other in zip(before, weights(model), strict=True):
        rows, kept = one.reshape(len(one), -1), other.reshape(len(one), -1)
        whole = rows.shape[1] // m * m
        assert np.array_equal(rows[:, whole:], kept[:, whole:])
        groups, left = np.abs(rows[:, :whole]).reshape(-1, m), kept[:, :whole].reshape(-1, m)
        assert ((left != 0).sum(axis=1) == n).all()
        assert np.allclose(np.sort(groups, axis=1)[:, m - n :], np.sort(np.abs(left), axis=1)[:, m - n :])
    assert evidence("prune.nm", model, tmp_path, n=n, m=m).effective
    (tmp_path / "plain").mkdir()
    assert "a later step filled them" in evidence("prune.nm", lenet_5(), tmp_path / "plain", n=n, m=m).reason


def test_a_pattern_shows_on_programs_too(tmp_path: Path):
    model = apply("export.onnx", apply("prune.nm", mlp((40, 20)), n=2, m=4))
    assert evidence("prune.nm", model, tmp_path, n=2, m=4).effective


def test_a_pattern_that_takes_nothing_is_refused():
    with pytest.raises(PreparationError, match="leaves every weight"):
        apply("prune.nm", mlp(), n=4, m=4)


@pytest.mark.parametrize(("amount", "zeros"), [(3, 3), (0.5, 35)])
def test_biases_go_by_count_or_by_share(amount: float, zeros: int, tmp_path: Path):
    model = apply("prune.bias", mlp((40, 20)), amount=amount)  # 40 + 20 + 10 of them
    found = [p.detach().numpy() for p in model.module.parameters() if p.dim() == 1]
    assert sum(int((array == 0).sum()) for array in found) == zeros
    shown = evidence("prune.bias", model, tmp_path, amount=amount)
    assert shown.effective
    assert shown.facts == {"biases": 70, "zeros": zeros}


def test_more_biases_than_there_are_and_none_at_all():
    with pytest.raises(PreparationError, match="71 of 70"):
        apply("prune.bias", mlp((40, 20)), amount=71)
    with pytest.raises(NotApplicable, match="no layer with a bias"):
        apply("prune.bias", TorchModel(nn.Sequential(nn.Linear(9, 9, bias=False)), "unused:unused"), amount=1)
