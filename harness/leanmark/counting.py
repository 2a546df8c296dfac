"""Counts of a torch structure: parameters and multiply-accumulates.

One counter for both, so that figures of different techniques can be compared; six
counters gave six answers for one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanmark.arrays import Array
from leanmark.results import Footprint
from leanmark.stages import Artifact, TorchModel

ZSTD_LEVEL = 19

if TYPE_CHECKING:
    import torch
    from torch import nn


def macs(model: TorchModel, inputs: Mapping[str, Array]) -> int:
    """Multiply-accumulates of one inference on the first example of `inputs`.

    Counted where torch runs convolutions, matrix products and attention; half of
    what `torch.utils.flop_counter` calls FLOPs. Element-wise work does not count.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    one = [torch.from_numpy(array[:1].copy()) for array in inputs.values()]
    spared = [0]

    def spare(layer: Any, arguments: Any, _: Any) -> None:
        rows = arguments[0].numel() // layer.in_features
        spared[0] += rows * (layer.in_features * layer.out_features - layer.nonzero)

    with torch.inference_mode():
        model.module(*one)  # what is put together once belongs to no inference
    # The counter takes a product with a sparse matrix for one with a dense one.
    sparse = [part for part in model.module.modules() if type(part).__name__ == "SparseLinear"]
    hooks = [part.register_forward_hook(spare) for part in sparse]
    # The counter does not know the CPU's fused attention; as matrix products it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.module(*one)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 - spared[0]


def parameter_counts(model: TorchModel) -> tuple[int, int]:
    """Numbers in memory that parameters refer to: all, and those that are not zero.

    Tied weights, also where one is a transposed or partial view of the other, count
    once, and so do all elements of a parameter that is one number expanded.
    """
    every = nonzero = 0
    for covered, values in _storages(model.module):
        every += int(covered.sum())
        nonzero += int(values[covered].count_nonzero())
    return every, nonzero


def _storages(module: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each storage: which of its elements parameters refer to, and the elements."""
    import torch

    found: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
    for parameter in module.parameters():
        values = parameter.detach()
        storage = values.untyped_storage()
        if not values.numel():
            continue
        key = (storage.data_ptr(), values.dtype)
        if key not in found:
            flat = torch.empty(0, dtype=values.dtype, device=values.device).set_(storage)
            found[key] = (torch.zeros(flat.numel(), dtype=torch.bool, device=values.device), flat)
        found[key][0].as_strided(values.size(), values.stride(), values.storage_offset()).fill_(True)
    return list(found.values())


def weigh(artifact: Artifact, counts: Mapping[str, int | None]) -> Footprint:
    """Size of every file of the artifact, and zstd level 19 of each of them.

    counts: parameters, nonzero_parameters and macs of its fp32 structure.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    contents = [path.read_bytes() for path in artifact.files()]
    notes = {} if counts.get("macs") is not None else {"macs": "counted on torch structures only"}
    return Footprint(
        parameters=counts.get("parameters"),
        nonzero_parameters=counts.get("nonzero_parameters"),
        macs=counts.get("macs"),
        size_bytes=sum(map(len, contents)),
        compressed_bytes=sum(len(compressor.compress(content)) for content in contents),
        notes=notes,
    )
