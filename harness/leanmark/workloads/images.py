"""Image classifiers on the 12,000 Fashion-MNIST images that come with leanmark, and on larger sets.

How the LeNets are trained was chosen on the validation split, by its mean accuracy over several
seeds; docs/results.md has the figures. The networks themselves are in `leanmark.networks`, so that knowing these
workloads costs no import of torch.
"""

from __future__ import annotations

from leanmark.registry import Workload, register_workload

_NETWORKS = {
    "lenet-300-100": ("LeNet-300-100", "leanmark.networks.lenet:build_lenet_300_100", {}),
    "lenet-5": ("LeNet-5", "leanmark.networks.lenet:build_lenet_5", {}),
    "mlp-1024": ("MLP 3 x 1,024", "leanmark.networks.plain:build_wide_mlp", {}),
    "row-encoder": ("Row encoder", "leanmark.networks.encoder:build_row_encoder", {}),
    "plain-cnn": ("CNN of 3x3 convolutions", "leanmark.networks.plain:build_plain_cnn", {"channels": 64, "depth": 3}),
    "resnet-8": ("ResNet-8", "leanmark.networks.resnet:build_resnet_8", {}),
}
# Each data set: what a workload's name ends with, its title, and the function that gives its splits.
_DATA = {
    "": ("Fashion-MNIST (12,000 images)", "leanmark.workloads.fashion_mnist:small_splits"),
    "fashion-mnist": ("Fashion-MNIST", "leanmark.workloads.fashion_mnist:splits"),
    "mnist": ("MNIST", "leanmark.workloads.mnist:splits"),
}
_EPOCHS = {
    ("lenet-300-100", ""): 14,
    ("lenet-300-100", "fashion-mnist"): 12,
    ("lenet-300-100", "mnist"): 12,
    ("lenet-5", ""): 8,
    ("lenet-5", "fashion-mnist"): 8,
    ("lenet-5", "mnist"): 8,
    ("mlp-1024", "mnist"): 10,
    ("plain-cnn", ""): 6,
    ("row-encoder", ""): 8,
    ("row-encoder", "fashion-mnist"): 5,
    ("resnet-8", ""): 8,
    ("resnet-8", "fashion-mnist"): 5,
}
# About, of an epoch of 10,000 images on one core of a Zen 4; and how many images each set trains on.
_EPOCH_SECONDS = {
    "lenet-300-100": 0.25,
    "lenet-5": 2.7,
    "mlp-1024": 4.0,
    "plain-cnn": 67.0,
    "row-encoder": 5.0,
    "resnet-8": 9.5,
}
_IMAGES = {"": 8_000, "fashion-mnist": 54_000, "mnist": 54_000}

for (_name, _set), _epochs in _EPOCHS.items():
    register_workload(
        Workload(
            name=f"{_name}-{_set}" if _set else _name,
            title=f"{_NETWORKS[_name][0]} on {_DATA[_set][0]}",
            model=_NETWORKS[_name][1],
            config=_NETWORKS[_name][2],
            data=_DATA[_set][1],
            metric="accuracy",
            train={"epochs": _epochs, "batch_size": 64, "learning_rate": 0.004, "label_smoothing": 0.1},
            needs=(_set,) if _set else (),
            epoch_seconds=_EPOCH_SECONDS[_name] * _IMAGES[_set] / 10_000,
        )
    )
