"""LeNet-300-100 and LeNet-5: the two networks that most compression papers report on.

Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to
Document Recognition. The sizes are those of Caffe's examples, which Han et al. 2015
(Learning both Weights and Connections) and Deep Compression count: 267k and 431k
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from leanmark.errors import InvalidInput

SIDE = 28  # pixels; grey images
CLASSES = 10


def build_lenet_300_100(widths: Sequence[int] = (300, 100)) -> nn.Sequential:
    """784-300-100-10 with ReLU between the layers; 266,610 parameters.

    widths: units of each hidden layer, so other depths are possible too.
    Takes (N, 1, 28, 28), gives (N, 10) logits. Layers: fc1, fc2, fc3, …
    """
    network = nn.Sequential()
    network.add_module("flatten", nn.Flatten())
    fan_in = SIDE * SIDE
    for number, width in enumerate(widths, start=1):
        network.add_module(f"fc{number}", nn.Linear(fan_in, width))
        network.add_module(f"relu{number}", nn.ReLU())
        fan_in = width
    network.add_module(f"fc{len(widths) + 1}", nn.Linear(fan_in, CLASSES))
    return network


def build_lenet_5(filters: Sequence[int] = (20, 50), units: int = 500) -> nn.Sequential:
    """Caffe's LeNet: two 5x5 convolutions, each max-pooled by 2, and two linear layers; 431,080 parameters.

    filters: output channels of conv1 and conv2. units: width of fc1.
    Takes (N, 1, 28, 28), gives (N, 10) logits.

    As in Caffe's definition, the convolutions have no ReLU of their own (max pooling
    is what bends their output) and the only ReLU stands after fc1: the published
    compression figures are for this network.

    Raises InvalidInput if `filters` are not two.
    """
    if len(filters) != 2:
        raise InvalidInput(f"lenet-5 has two convolutions, but filters has {len(filters)} entries: {list(filters)}")
    first, second = filters
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(1, first, kernel_size=5))
    network.add_module("pool1", nn.MaxPool2d(2))
    network.add_module("conv2", nn.Conv2d(first, second, kernel_size=5))
    network.add_module("pool2", nn.MaxPool2d(2))
    network.add_module("flatten", nn.Flatten())
    left = ((SIDE - 4) // 2 - 4) // 2  # a side of what pool2 leaves: 4 pixels
    network.add_module("fc1", nn.Linear(second * left * left, units))
    network.add_module("relu1", nn.ReLU())
    network.add_module("fc2", nn.Linear(units, CLASSES))
    return network
