"""A user's own model, data and metric: small enough to prepare in a second."""

import numpy as np
import torch
from torch import nn


def build(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def splits() -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    random = np.random.default_rng(0)
    found = {}
    for name, count in {"train": 120, "calibration": 40, "validation": 40, "test": 60}.items():
        inputs = random.normal(size=(count, 4)).astype(np.float32)
        found[name] = (torch.from_numpy(inputs), inputs[:, :3].argmax(axis=1))
    return found


def share_right(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (outputs.argmax(axis=1) == targets).astype(float)


def macro_recall(outputs: np.ndarray, targets: np.ndarray) -> float:
    right = outputs.argmax(axis=1) == targets
    return float(np.mean([right[targets == label].mean() for label in range(3) if (targets == label).any()]))
