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


def build_frame_mlp(
    shape: Sequence[int] = (40, 40), widths: Sequence[int] = (256, 256), classes: int = 5
) -> nn.Sequential:
    """Linear layers with ReLU between, of pictures of sound: bands by frames.

    Takes (N, 1, bands, frames), gives (N, classes) logits; 476,933 parameters, of which the first layer has 409,856.
    Source: its form is that of the networks of Nakkiran et al. 2015, Compressing Deep Neural Networks Using a
    Rank-Constrained Topology.
    """
    bands, frames = shape
    network = nn.Sequential(nn.Flatten())
    fan_in = bands * frames
    for width in widths:
        network.extend([nn.Linear(fan_in, width), nn.ReLU()])
        fan_in = width
    network.append(nn.Linear(fan_in, classes))
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
