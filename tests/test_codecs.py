"""Packed weights: lossless, small, and safe to decode from anywhere."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark import codecs
from leanmark.errors import InvalidInput

dtypes = st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
)


@given(st.dictionaries(st.text(max_size=10), arrays, max_size=4))
def test_round_trip_is_bit_for_bit(tensors: dict[str, Any]):
    back = codecs.unpack(codecs.pack(tensors))
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
