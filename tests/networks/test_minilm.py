"""Sentences are encoded alike however much padding stands behind them."""

import pytest
import torch
from torch import Tensor

from leanmark.networks.minilm import SentenceEncoder, build_minilm, from_bert

LENGTHS = torch.tensor([3, 7, 12, 1])


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    torch.manual_seed(0)
    network = build_minilm(vocabulary=50, width=24, heads=4, hidden=48, layers=3, longest=32).eval()
    assert isinstance(network, SentenceEncoder)
    return network


def encode(encoder: SentenceEncoder, length: int) -> Tensor:
    """Four sentences of LENGTHS tokens, padded to `length` with tokens that mean something elsewhere."""
    ids = torch.randint(1, 50, (4, 32), generator=torch.Generator().manual_seed(0))[:, :length]
    mask = (torch.arange(length) < LENGTHS[:, None]).long()
    with torch.inference_mode():
        return encoder(ids, mask)


def test_it_has_the_size_of_the_published_model():
    assert sum(parameter.numel() for parameter in build_minilm().parameters()) == 22_564_608


@pytest.mark.parametrize("length", [13, 32])
def test_padding_changes_no_embedding(encoder: SentenceEncoder, length: int):
    assert set(encoder.sequence_inputs) == {"ids", "mask"}
    torch.testing.assert_close(encode(encoder, length), encode(encoder, 12), rtol=0, atol=1e-6)
    assert torch.linalg.norm(encode(encoder, length), dim=1) == pytest.approx([1.0] * 4)


def test_what_is_padding_does_not_matter_and_what_is_none_does(encoder: SentenceEncoder):
    ids, mask = torch.randint(0, 50, (1, 8)), torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    behind, before = ids.clone(), ids.clone()
    behind[0, 5], before[0, 4] = (ids[0, 5] + 1) % 50, (ids[0, 4] + 1) % 50
    with torch.inference_mode():
        same, other, here = encoder(behind, mask), encoder(before, mask), encoder(ids, mask)
    torch.testing.assert_close(same, here, rtol=0, atol=1e-6)
    assert (other - here).abs().max() > 1e-3


def test_published_names_are_all_taken_over(encoder: SentenceEncoder):
    """Weights of a small BERT, under the names that it is published with, fill the whole state."""
    state = {name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    bert = {
        "embeddings.word_embeddings.weight": state["words.weight"],
        "embeddings.position_embeddings.weight": state["places"] - 1,
        "embeddings.token_type_embeddings.weight": torch.ones(2, 24).numpy(),
        "embeddings.position_ids": torch.arange(32)[None].numpy(),
        "embeddings.LayerNorm.weight": state["norm.weight"],
        "embeddings.LayerNorm.bias": state["norm.bias"],
        "pooler.dense.weight": torch.ones(24, 24).numpy(),
    }
    parts = (
        ("attention.query", "attention.self.query"),
        ("attention.key", "attention.self.key"),
        ("attention.value", "attention.self.value"),
        ("attention.out", "attention.output.dense"),
        ("norm1", "attention.output.LayerNorm"),
        ("enter", "intermediate.dense"),
        ("leave", "output.dense"),
        ("norm2", "output.LayerNorm"),
    )
    for layer in range(3):
        for own, theirs in parts:
            for kind in ("weight", "bias"):
                bert[f"encoder.layer.{layer}.{theirs}.{kind}"] = state[f"layers.{layer}.{own}.{kind}"]
    found = from_bert(bert)
    assert found.keys() == state.keys()
    for name, array in found.items():
        assert array == pytest.approx(state[name], abs=1e-6)
