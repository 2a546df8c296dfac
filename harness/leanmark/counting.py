"""Counts of a torch structure. (First version by the lead; extend or replace.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from leanmark.stages import TorchModel


def parameter_counts(model: TorchModel) -> tuple[int, int]:
    seen: dict[int, Any] = {p.data_ptr(): p for p in model.module.parameters()}
    return sum(p.numel() for p in seen.values()), sum(int(p.count_nonzero()) for p in seen.values())


def macs(model: TorchModel, inputs: Mapping[str, NDArray[Any]]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.module(*[torch.from_numpy(array.copy()) for array in inputs.values()])
    return counter.get_total_flops() // 2
