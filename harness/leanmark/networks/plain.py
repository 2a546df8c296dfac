"""Plain networks of any size: a convolutional one, which `leanmark doctor --power` measures, and a wide one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

PIXELS = 784
CLASSES = 10


def build_plain_cnn(channels: int = 16, depth: int = 6) -> nn.Sequential:
    """`depth` + 1 convolutions of 3x3 with ReLU, global average pooling, one linear layer.

    Takes (N, 1, height, width), gives (N, 10) logits. Every convolution but the first
    has `channels` inputs and outputs, so its time grows evenly with `depth`.
    """
    network = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
    for _ in range(depth):
        network.extend([nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()])
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)])
    return network


def build_wide_mlp(widths: Sequence[int] = (1024, 1024, 1024)) -> nn.Sequential:
    """Linear layers with batch norm, with ReLU between; as it is, the network of BinaryConnect's figures on MNIST.

    Takes (N, 1, 28, 28), gives (N, 10) logits; 2,916,372 parameters.
    Source: Courbariaux, Bengio, David 2015, BinaryConnect, section 3.1 (with cross entropy here, not a hinge loss).
    """
    network = nn.Sequential(nn.Flatten())
    fan_in = PIXELS
    for width in widths:
        network.extend([nn.Linear(fan_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()])
        fan_in = width
    network.extend([nn.Linear(fan_in, CLASSES, bias=False), nn.BatchNorm1d(CLASSES)])
    return network
