"""A plain convolutional network of any length: what `leanmark doctor --power` measures."""

from __future__ import annotations

from torch import nn

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
