"""Packed weights: lossless, small, and safe to decode from anywhere."""

import json
import struct
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark import codecs, entropy
from leanmark.errors import InvalidInput

dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
codings = st.sampled_from(get_args(codecs.Coding))
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
)


@given(st.dictionaries(st.text(max_size=10), arrays, max_size=4), codings)
def test_round_trip_is_bit_for_bit(tensors: dict[str, Any], coding: codecs.Coding):
    back = codecs.unpack(codecs.pack(tensors, coding))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


@given(
    st.integers(0, 16).flatmap(
        lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1), max_size=200))
    )
)
def test_indices_round_trip(case: tuple[int, list[int]]):
    bits, indices = case
    packed = codecs.pack_indices(np.array(indices, dtype=np.uint32), bits)
    assert len(packed) == (len(indices) * bits + 7) // 8
    assert codecs.unpack_indices(packed, bits, len(indices)).tolist() == indices


@pytest.mark.parametrize(("distinct", "bits"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5), (256, 8), (257, 9)])
def test_few_distinct_values_take_few_bits(distinct: int, bits: int):
    weights = np.linspace(-1, 1, distinct, dtype=np.float32)[np.arange(300 * 100) % distinct].reshape(300, 100)
    packed = codecs.pack({"w": weights})
    payload = 4 * distinct + (weights.size * bits + 7) // 8
    assert payload < len(packed) < payload + 200


def test_many_distinct_values_stay_as_they_are():
    weights = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    assert len(codecs.pack({"w": weights})) < weights.nbytes + 200


def test_zeros_and_nans_keep_their_bits():
    weights = np.array([0.0, -0.0, np.nan, -np.nan, np.inf] * 100, dtype=np.float32)
    assert codecs.unpack(codecs.pack({"w": weights}))["w"].tobytes() == weights.tobytes()


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(content: bytes):
    for candidate in (content, codecs.MAGIC + content):
        try:
            codecs.unpack(candidate)
        except InvalidInput:
            continue


def sparse_shared(size: int, sparsity: float, values: int, seed: int = 0) -> np.ndarray:
    """Float32 weights of which a share is zero and the others are one of a few values, small ones more often."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, values + 1)
    kept = random.choice(np.arange(1, values + 1), size, p=shares / shares.sum()).astype(np.float32)
    return np.where(random.random(size) < sparsity, np.float32(0), kept)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95, 0.99])
def test_codes_come_within_three_percent_of_the_entropy(sparsity: float):
    weights = sparse_shared(200_000, sparsity, 15)
    _, counts = np.unique(weights, return_counts=True)
    packed = codecs.pack({"w": weights}, "ans")
    assert len(packed) < 1.03 * entropy.entropy_bits(counts) / 8 + 300
    positions = np.flatnonzero(weights)
    gaps, values = entropy.gaps_of(positions), np.unique(weights[positions], return_counts=True)[1]
    bits = entropy.entropy_bits(np.bincount(gaps)) + entropy.entropy_bits(values)
    if sparsity >= 0.9:  # codes of whole bits need symbols of several
        assert len(codecs.pack({"w": weights}, "huffman")) < 1.03 * bits / 8 + 600


def test_a_bitmask_takes_one_bit_a_zero():
    """At 90 % zeros, float32 values as they are: 0.1 + 1/32 of dense."""
    random = np.random.default_rng(0)
    weights = np.where(random.random(300_000) < 0.9, 0, random.normal(size=300_000)).astype(np.float32)
    assert len(codecs.pack({"w": weights}, "bitmask")) == pytest.approx((0.1 + 1 / 32) * weights.nbytes, rel=0.01)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=60))
def test_positions_come_back_from_their_gaps(steps: list[int]):
    positions = np.cumsum(np.array(steps) + 1) - 1
    gaps = entropy.gaps_of(positions)
    assert gaps.min() >= 0
    assert gaps.max() < 2**entropy.GAP_BITS
    assert entropy.positions_of(gaps).tolist() == positions.tolist()


@given(st.data(), codings)
def test_damage_to_a_code_is_refused_or_harmless(data: st.DataObject, coding: codecs.Coding):
    packed = bytearray(codecs.pack({"w": sparse_shared(400, 0.9, 5)}, coding))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] = data.draw(st.integers(0, 255))
    try:
        tensors = codecs.unpack(bytes(packed))
    except InvalidInput:
        return
    assert sum(array.nbytes for array in tensors.values()) < 10_000


@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject):
    packed = bytearray(codecs.pack({"w": np.arange(64, dtype=np.float32) % 7, "b": np.zeros(3, np.int8)}))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] = data.draw(st.integers(0, 255))
    try:
        tensors = codecs.unpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]))
    except InvalidInput:
        return
    assert sum(array.nbytes for array in tensors.values()) < 10_000


def _file(header: Any, payload: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return codecs.MAGIC + struct.pack("<I", len(head)) + head + payload


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**9, 10**9]},
        {"shape": [-1]},
        {"shape": [True]},
        {"dtype": "object"},
        {"dtype": "float32; import os"},
        {"codec": "pickle"},
        {"bytes": -4},
        {"bytes": 10**12},
        {"bytes": 3},
        {"name": 5},
        {"codec": "palette"},
        {"codec": "palette", "palette": 0},
        {"codec": "palette", "palette": 2**40},
        {"codec": "palette", "palette": True},
        {"codec": "bitmask", "nonzero": 2},
        {"codec": "huffman", "palette": 1, "nonzero": 1, "gaps": 10**9},
        {"codec": "huffman", "palette": 1, "nonzero": 1, "gaps": 1, "gap_bytes": 2},
        {"codec": "ans", "palette": 1},
    ],
)
def test_headers_that_lie_are_refused(change: dict[str, Any]):
    entry = {"name": "w", "dtype": "float32", "shape": [1], "codec": "raw", "bytes": 4}
    assert codecs.unpack(_file([entry], b"\0" * 4))["w"].tolist() == [0.0]
    with pytest.raises(InvalidInput):
        codecs.unpack(_file([entry | change], b"\0" * 4))


def test_an_index_beyond_the_codebook_is_refused():
    entry = {"name": "w", "dtype": "int8", "shape": [4], "codec": "palette", "palette": 3, "bytes": 4}
    with pytest.raises(InvalidInput, match="beyond its codebook"):
        codecs.unpack(_file([entry], b"\1\2\3" + bytes([0b00011011])))
