"""Layers that torch has not, which steps put in the place of others."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankPlusColumns(nn.Module):
    """A linear layer as a product of two thin ones plus whole columns of weights for some inputs.

    Takes (…, in_features), gives (…, out_features); `chosen` (columns,) says which inputs have columns of their own.
    Source: Ma et al. 2018, A Unified Approximation Framework for Compressing and Accelerating Deep Neural Networks.
    """

    chosen: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, columns: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank, self.columns = in_features, out_features, rank, columns
        self.into = nn.Linear(in_features, rank, bias=False)
        self.out = nn.Linear(rank, out_features, bias=bias)
        self.dense = nn.Linear(columns, out_features, bias=False)
        self.register_buffer("chosen", torch.zeros(columns, dtype=torch.int64))

    @property
    def bias(self) -> Tensor | None:
        """What is added to every answer."""
        return self.out.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x)) + self.dense(x[..., self.chosen])
