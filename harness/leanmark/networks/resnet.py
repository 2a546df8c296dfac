"""ResNet-8: the size of residual network that MLPerf Tiny classifies images with.

Source: He et al. 2016, Deep Residual Learning for Image Recognition, whose form it has: no bias before a batch norm,
and a batch norm in shortcuts too. Banbury et al. 2021, MLPerf Tiny Benchmark, has the depth and the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from leanmark.errors import InvalidInput

CLASSES = 10


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input; a 1x1 convolution fits the input where shapes differ.

    Takes (N, incoming, H, W), gives (N, outgoing, H / stride, W / stride), halves rounded up.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outgoing)
        self.shortcut = nn.Sequential()
        if stride != 1 or incoming != outgoing:
            self.shortcut.add_module("conv", nn.Conv2d(incoming, outgoing, 1, stride, bias=False))
            self.shortcut.add_module("norm", nn.BatchNorm2d(outgoing))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ResNet8(nn.Module):
    """One convolution, three blocks, the mean over the image, one linear layer."""

    def __init__(self, widths: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        first, second, third = widths
        self.conv = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(first)
        self.block1 = Block(first, first, 1)
        self.block2 = Block(first, second, 2)
        self.block3 = Block(second, third, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(self.pool(x).flatten(1))


def build_resnet_8(widths: Sequence[int] = (16, 32, 64), channels: int = 1, classes: int = CLASSES) -> nn.Module:
    """ResNet-8: 77,754 parameters with one colour, 78,042 and 12.5 million MACs at 32x32 pixels with three.

    widths: channels of the three blocks. channels: of the input. Takes (N, channels, H, W), gives (N, classes) logits.

    Raises InvalidInput if `widths` are not three.
    """
    if len(widths) != 3:
        raise InvalidInput(f"resnet-8 has three blocks, but widths has {len(widths)} entries: {list(widths)}")
    return ResNet8(widths, channels, classes)
