"""Networks that rank items for a query: a cross network on both together, and two towers that meet in a product.

Either is called with queries, int64 (N,), and candidates, int64 (N, C), and gives logits (N, C). What a query and an
item are is read from tables: features that are known of them, and features that are learned. What is computed on top of
a row of each is `network`, which a service runs alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Table(nn.Module):
    """Rows of features: what is known of each entry, and as many numbers that are learned."""

    def __init__(self, entries: int, known: int, learned: int) -> None:
        super().__init__()
        self.learned = nn.Embedding(entries, learned)
        nn.init.normal_(self.learned.weight, std=0.05)
        self.known: Tensor
        self.register_buffer("known", torch.zeros(entries, known))

    @property
    def width(self) -> int:
        """Numbers a row."""
        return self.learned.embedding_dim + self.known.shape[1]

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([self.learned(rows), self.known[rows]], dim=-1)


class Ranker(nn.Module):
    """Tables of queries and items, and a network on a row of each.

    network: takes queries (R, query width) and items (R, item width), and gives logits (R, 1).
    """

    def __init__(self, query: Table, item: Table, network: nn.Module) -> None:
        super().__init__()
        self.query, self.item, self.network = query, item, network

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        queries = self.query(user).unsqueeze(1).expand(-1, item.shape[1], -1)
        items = self.item(item)
        rows = self.network(queries.reshape(-1, queries.shape[-1]), items.reshape(-1, items.shape[-1]))
        return rows.reshape(item.shape)


class Cross(nn.Module):
    """One network on both rows, one after the other: every candidate of every query costs a whole pass.

    Covington, Adams, Sargin 2016, Deep Neural Networks for YouTube Recommendations (its ranking network's form).
    """

    def __init__(self, query: int, item: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (query + item, *hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        return self.layers(torch.cat([query, item], dim=-1))


class Towers(nn.Module):
    """A tower for queries, one for items, and the product of what they give: items can be computed beforehand.

    Huang et al. 2013, Learning Deep Structured Semantic Models; here the answer is a dot product and a bias, whose
    sigmoid is the score.
    """

    def __init__(self, query: int, item: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.query, self.item = (
            nn.Sequential(nn.Dropout(dropout), nn.Linear(row, hidden), nn.ReLU(), nn.Linear(hidden, width))
            for row in (query, item)
        )
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        return (self.query(query) * self.item(item)).sum(dim=-1, keepdim=True) + self.bias


class Product(nn.Module):
    """The dot product of a query's row and an item's."""

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        return (query * item).sum(dim=-1, keepdim=True)


def build_cross(
    *,
    users: int,
    items: int,
    user_features: int,
    item_features: int,
    width: int = 64,
    hidden: Sequence[int] = (256, 128),
) -> Ranker:
    """A cross network on learned rows of `width` numbers beside those that are known."""
    query, item = Table(users, user_features, width), Table(items, item_features, width)
    return Ranker(query, item, Cross(query.width, item.width, hidden))


def build_towers(
    *,
    users: int,
    items: int,
    user_features: int,
    item_features: int,
    width: int = 64,
    hidden: int = 128,
    dropout: float = 0.3,
) -> Ranker:
    """Two towers on tables of the same form; `dropout` of their inputs is left out in training."""
    query, item = Table(users, user_features, width), Table(items, item_features, width)
    return Ranker(query, item, Towers(query.width, item.width, hidden, width, dropout))


def build_product(*, users: int, items: int, width: int) -> Ranker:
    """The product of two rows of `width` numbers, and nothing else: what floors are made of."""
    return Ranker(Table(users, 0, width), Table(items, 0, width), Product())
