"""The LeNets are the published ones, and every kind of step can work on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from leanmark.errors import InvalidInput
from leanmark.networks.lenet import build_lenet_5, build_lenet_300_100
from leanmark.stages import TorchModel, save

BUILDERS = [build_lenet_300_100, build_lenet_5]
Builder = Callable[..., nn.Module]


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_are_those_of_the_papers() -> None:
    assert parameters(build_lenet_300_100()) == 266_610
    assert parameters(build_lenet_5()) == 431_080


@pytest.mark.parametrize("build", BUILDERS)
def test_one_logit_a_class_whatever_the_batch(build: Builder) -> None:
    network = build().eval()
    batch = images(5)
    with torch.inference_mode():
        together = network(batch)
        alone = torch.cat([network(batch[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 10)
    torch.testing.assert_close(together, alone)


def test_configuration_comes_from_json_as_lists() -> None:
    assert parameters(build_lenet_300_100(widths=[40])) == 784 * 40 + 40 + 40 * 10 + 10
    assert parameters(build_lenet_5(filters=[4, 6], units=20)) == (25 * 4 + 4) + (100 * 6 + 6) + (96 * 20 + 20) + 210


def test_lenet_5_rectifies_only_after_fc1() -> None:
    network = build_lenet_5().eval()
    seen: dict[str, Tensor] = {}
    for name, child in network.named_children():
        child.register_forward_hook(lambda _module, _given, out, name=name: seen.update({name: out}))
    with torch.inference_mode():
        network(images(4))
    assert (seen["pool1"] < 0).any()
    assert (seen["pool2"] < 0).any()
    assert (seen["relu1"] >= 0).all()
    assert (seen["fc1"] < 0).any()


@pytest.mark.parametrize("filters", [[20], [20, 50, 80], []])
def test_lenet_5_wants_two_convolutions(filters: list[int]) -> None:
    with pytest.raises(InvalidInput, match="two convolutions"):
        build_lenet_5(filters=filters)


@pytest.mark.parametrize("build", BUILDERS)
def test_tracing_and_exporting_keep_the_answers(build: Builder) -> None:
    network, batch = build().eval(), images(3)
    with torch.no_grad():
        expected = network(batch)
        torch.testing.assert_close(torch.fx.symbolic_trace(network)(batch), expected)
        exported = torch.export.export(network, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(exported.module()(batch), expected)


@pytest.mark.parametrize(
    ("build", "builder"),
    [
        (build_lenet_300_100, "leanmark.networks.lenet:build_lenet_300_100"),
        (build_lenet_5, "leanmark.networks.lenet:build_lenet_5"),
    ],
)
def test_a_layer_replaced_by_two_survives_the_artifact(build: Builder, builder: str, tmp_path: Path) -> None:
    network = build()
    network.fc1 = nn.Sequential(nn.Linear(network.fc1.in_features, 7), nn.Linear(7, network.fc1.out_features))
    model = TorchModel(network.eval(), builder, {})
    loaded = save(model, tmp_path).load()
    assert isinstance(loaded, TorchModel)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images(2)), network(images(2)))


@pytest.mark.parametrize(("build", "last"), [(build_lenet_300_100, "fc3"), (build_lenet_5, "fc2")])
def test_channels_can_be_removed(build: Builder, last: str) -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    network = build().eval()
    before = copy.deepcopy(network)
    torch_pruning.pruner.MagnitudePruner(
        network,
        images(1),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[network.get_submodule(last)],
    ).step()
    for name, module in before.named_children():
        if isinstance(module, nn.Linear | nn.Conv2d) and name != last:
            assert network.get_submodule(name).weight.shape[0] == module.weight.shape[0] // 2
    assert network(images(3)).shape == (3, 10)
