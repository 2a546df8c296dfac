import pytest
import torch

from leanmark.errors import InvalidInput
from leanmark.networks.resnet import build_resnet_8
from leanmark.structure import apply_patches, patches


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_has_the_size_that_it_says():
    assert count(build_resnet_8()) == 77_754
    assert count(build_resnet_8(channels=3)) == 78_042


def test_it_takes_images_of_several_sizes():
    network = build_resnet_8(channels=3, classes=7).eval()
    for side in (8, 28, 32):
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)


def test_shortcuts_carry_the_input():
    network = build_resnet_8().eval()
    block = network.get_submodule("block1")
    for parameter in block.get_submodule("norm2").parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 6, 6)
    assert torch.equal(block(x), x)


def test_its_structure_can_be_written_down():
    narrow = build_resnet_8((4, 8, 8))
    again = apply_patches(build_resnet_8(), patches(build_resnet_8(), narrow))
    again.load_state_dict(narrow.state_dict())
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.eval()(x), narrow.eval()(x))


def test_three_widths_are_wanted():
    with pytest.raises(InvalidInput, match="three blocks"):
        build_resnet_8((16, 32))
