"""Layers of leanmark's own: such as torch has not, or whose parts steps can take away."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        last: Any = self.out[-1] if isinstance(self.out, nn.Sequential) else self.out  # a step may have split it
        return last.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.into(x)) + self.dense(x[..., self.chosen])


class _SignWithGradient(torch.autograd.Function):
    """-1 or 1; backwards, the gradient itself where the input is between -1 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _signs(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() <= 1)


def _signs(x: Tensor) -> Tensor:
    below, above = (torch.tensor(value, dtype=x.dtype, device=x.device) for value in (-1.0, 1.0))
    return torch.where(x < 0, below, above)


class Sign(nn.Module):
    """An activation of one bit: -1 below zero, else 1. Takes and gives any shape.

    Source: Hubara et al. 2016, Binarized Neural Networks (section 1.3: how gradients pass).
    """

    def forward(self, x: Tensor) -> Tensor:
        return _SignWithGradient.apply(x) if x.requires_grad else _signs(x)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, in plain layers, with any number of heads.

    Takes (N, length, width), gives the same shape. Its heads need not fill the width. `bias`, if given, is added to the
    scores (N, heads, length, length) before the softmax: a large negative one hides a token.
    Source: Vaswani et al. 2017, Attention Is All You Need.
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.width, self.heads, self.head_width = width, heads, head_width
        inner = heads * head_width
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        count, length, _ = x.shape
        parts = (layer(x).reshape(count, length, self.heads, self.head_width).transpose(1, 2)
                 for layer in (self.query, self.key, self.value))  # fmt: skip
        query, key, value = parts
        scores = query @ key.transpose(2, 3) / self.head_width**0.5
        weights = torch.softmax(scores if bias is None else scores + bias, dim=3)
        return self.out((weights @ value).transpose(1, 2).reshape(count, length, self.heads * self.head_width))


class _Assembled(nn.Module, ABC):
    """A layer whose matrix is put together from its parameters: in each call while it is trained, else once."""

    def __init__(self) -> None:
        super().__init__()
        self._matrix: Tensor | None = None
        self._made_of: tuple[tuple[int, int], ...] = ()
        self.register_load_state_dict_post_hook(_forgetting)

    @abstractmethod
    def assemble(self) -> Tensor:
        """The matrix as the parameters have it now."""

    def matrix(self) -> Tensor:
        """The matrix, of what is only asked put together once."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.assemble()
        own = [parameter for parameter in self._parameters.values() if parameter is not None]
        made_of = tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in own)
        if self._matrix is None or made_of != self._made_of:
            self._matrix, self._made_of = self.assemble(), made_of
        return self._matrix

    def train(self, mode: bool = True) -> Self:
        self._forget()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_matrix": None}  # a copy puts its own together

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        self._matrix = None


def _forgetting(layer: nn.Module, _: Any) -> None:
    layer.train(layer.training)


class SparseLinear(_Assembled):
    """A linear layer whose weights are kept, and multiplied, as compressed sparse rows.

    Takes (…, in_features), gives (…, out_features); `nonzero` weights are not zero.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, in_features: int, out_features: int, nonzero: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.nonzero = in_features, out_features, nonzero
        self.values = nn.Parameter(torch.zeros(nonzero))
        self.register_buffer("rows", torch.zeros(out_features + 1, dtype=torch.int32))
        self.register_buffer("columns", torch.zeros(nonzero, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def assemble(self) -> Tensor:
        shape = (self.out_features, self.in_features)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that compressed rows are in beta
            return torch.sparse_csr_tensor(self.rows, self.columns, self.values, shape, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        answer = (self.matrix() @ x.reshape(-1, self.in_features).T).T.reshape(*x.shape[:-1], self.out_features)
        return answer if self.bias is None else answer + self.bias


class RankConstrainedLinear(_Assembled):
    """A linear layer over pictures, whose filters are sums of `rank` products of a column and a row of weights.

    Takes (N, rows * columns), gives (N, out_features). The filters are put together when it is loaded, so that it
    computes as any linear layer does; `down` (out_features, rows, rank) and `along` (out_features, rank, columns) are
    what is stored and trained.
    Source: Nakkiran et al. 2015, Compressing Deep Neural Networks Using a Rank-Constrained Topology.
    """

    def __init__(self, rows: int, columns: int, out_features: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.rows, self.columns, self.out_features, self.rank = rows, columns, out_features, rank
        self.down = nn.Parameter(torch.zeros(out_features, rows, rank))
        self.along = nn.Parameter(torch.zeros(out_features, rank, columns))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def assemble(self) -> Tensor:
        return (self.down @ self.along).reshape(self.out_features, self.rows * self.columns)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.matrix(), self.bias)
