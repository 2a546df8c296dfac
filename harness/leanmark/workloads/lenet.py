"""LeNet-300-100 and LeNet-5 on the 12,000 Fashion-MNIST images that come with leanmark.

How they are trained was chosen on the validation split, by its mean accuracy over three
seeds; docs/results.md has the figures. The networks themselves are in `leanmark.networks.lenet`, so that knowing these
workloads costs no import of torch.
"""

from __future__ import annotations

from leanmark.registry import Workload, register_workload

LENET_300_100 = register_workload(
    Workload(
        name="lenet-300-100",
        title="LeNet-300-100 on Fashion-MNIST (12,000 images)",
        model="leanmark.networks.lenet:build_lenet_300_100",
        config={},
        data="leanmark.workloads.fashion_mnist:small_splits",
        metric="accuracy",
        train={"epochs": 14, "batch_size": 64, "learning_rate": 0.004, "label_smoothing": 0.1},
    )
)

LENET_5 = register_workload(
    Workload(
        name="lenet-5",
        title="LeNet-5 on Fashion-MNIST (12,000 images)",
        model="leanmark.networks.lenet:build_lenet_5",
        config={},
        data="leanmark.workloads.fashion_mnist:small_splits",
        metric="accuracy",
        train={"epochs": 8, "batch_size": 64, "learning_rate": 0.004, "label_smoothing": 0.1},
    )
)
