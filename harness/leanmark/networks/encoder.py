"""A small transformer encoder that reads an image row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from leanmark.networks.layers import SelfAttention

SIDE = 28  # pixels; grey images
CLASSES = 10


class EncoderLayer(nn.Module):
    """Attention and two linear layers, each added to what it got; takes and gives (N, length, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, width // heads)
        self.norm2 = nn.LayerNorm(width)
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.leave(torch.relu(self.enter(self.norm2(x))))


class RowEncoder(nn.Module):
    """Rows become vectors, with a learned place; encoder layers; the mean over the rows; one linear layer."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, width)
        self.places = nn.Parameter(torch.randn(SIDE, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, 2 * width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)) + self.places
        return self.fc(self.norm(self.layers(x).mean(dim=1)))


def build_row_encoder(width: int = 64, heads: int = 4, layers: int = 3) -> nn.Module:
    """A transformer encoder over the 28 rows of an image. Takes (N, 1, 28, 28), gives (N, 10) logits.

    Layers normalize what goes into each part (Xiong et al. 2020, On Layer Normalization in the Transformer
    Architecture), so that each can also be left out.
    """
    return RowEncoder(width, heads, layers)
