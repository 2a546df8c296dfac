"""MiniLM-L6: an encoder of sentences, whose embeddings are near each other where the meanings are.

Source: Reimers, Gurevych 2019, Sentence-BERT; Wang et al. 2020, MiniLM. Layers as Devlin et al. 2018, BERT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanmark.arrays import Array
from leanmark.networks.layers import SelfAttention

# What is added to a score to hide padding. The published weights give padding scores up to 17.5 above those of tokens,
# so what is left of it is below e-82. BERT's own -10,000 gives the same answers, but widens the range that static
# quantization sees until no score is told from another: Pearson .30 instead of .57 (fp32: .65) on Lee's documents.
_HIDDEN = -100.0
_EPSILON = 1e-12  # of every layer norm, as published


class BertLayer(nn.Module):
    """Attention and two linear layers, each added to what it got and then normalized.

    Takes and gives (N, length, width); bias as `SelfAttention` has it.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, width // heads)
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.leave(functional.gelu(self.enter(x))))


class SentenceEncoder(nn.Module):
    """Tokens become vectors, with a learned place; encoder layers; the mean over the tokens, of length 1.

    `ids` and `mask` are int64 (N, length), the mask 1 where a token is and 0 where padding; gives float32 (N, width).
    Any length up to that of `places` is right: padding changes nothing but the time.
    """

    # The axis of each input along which a call may be shorter than the examples are.
    sequence_inputs: ClassVar[Mapping[str, int]] = {"ids": 1, "mask": 1}

    def __init__(self, vocabulary: int, width: int, heads: int, hidden: int, layers: int, longest: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.layers = nn.ModuleList(BertLayer(width, heads, hidden) for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places[: ids.shape[1]])
        there = mask.to(x.dtype)
        bias = (1.0 - there)[:, None, None, :] * _HIDDEN
        for layer in self.layers:
            x = layer(x, bias)
        # The mean is of length 1 afterwards, so the sum has the same direction and will do.
        return functional.normalize((x * there[:, :, None]).sum(dim=1), dim=1)


def build_minilm(
    vocabulary: int = 30_522, width: int = 384, heads: int = 12, hidden: int = 1536, layers: int = 6, longest: int = 512
) -> nn.Module:
    """MiniLM-L6-v2's sentence encoder; 22,564,608 parameters.

    Takes `ids` and `mask`, int64 (N, length) with length <= longest, and gives embeddings (N, width) of length 1.
    """
    return SentenceEncoder(vocabulary, width, heads, hidden, layers, longest)


_OWN_NAMES = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "enter",
    "output.dense": "leave",
    "output.LayerNorm": "norm2",
}


def from_bert(published: Mapping[str, Array]) -> dict[str, Array]:
    """A BERT encoder's tensors under the names of `SentenceEncoder`; float32.

    A single sentence has type 0 throughout, so that type's vector is added to every place. The pooling layer, which
    sentence embeddings do not use, is left out.
    """
    found: dict[str, Any] = {
        "words.weight": published["embeddings.word_embeddings.weight"],
        "places": published["embeddings.position_embeddings.weight"]
        + published["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = published[f"embeddings.LayerNorm.{kind}"]
    for name, array in published.items():
        if name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            part, _, kind = rest.rpartition(".")
            found[f"layers.{number}.{_OWN_NAMES[part]}.{kind}"] = array
    return found
