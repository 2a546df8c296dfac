"""Every payload format gives back what went in, and refuses what did not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmark.serving.payloads import FORMATS, BadPayload, Field, Format, codec

FIELDS = (Field("query", "float32", (3,)), Field("item", "int64"), Field("grid", "float32", (2, 2)))
RESERVED = np.finfo(np.float32)


@st.composite
def messages(draw: st.DrawFn) -> dict[str, np.ndarray]:
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    found = {}
    for field in FIELDS:
        rows = draw(st.integers(0, 4))
        values = st.integers(-(2**63), 2**63 - 1) if field.dtype == "int64" else numbers
        flat = draw(st.lists(values, min_size=rows * field.width, max_size=rows * field.width))
        found[field.name] = np.array(flat, dtype=field.dtype).reshape(rows, *field.shape)
    return found


@pytest.mark.parametrize("name", FORMATS)
@given(message=messages())
def test_what_was_encoded_is_decoded(name: Format, message: dict[str, np.ndarray]):
    found = codec(name, FIELDS).decode(codec(name, FIELDS).encode(message))
    assert list(found) == list(message)
    for key, array in message.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert np.array_equal(found[key], array)


@pytest.mark.parametrize("name", FORMATS)
@given(message=messages(), damage=st.data())
def test_damaged_payloads_are_refused_or_read(name: Format, message: dict[str, np.ndarray], damage: st.DataObject):
    content = bytearray(codec(name, FIELDS).encode(message))
    for _ in range(damage.draw(st.integers(1, 3))):
        content[damage.draw(st.integers(0, len(content) - 1))] = damage.draw(st.integers(0, 255))
    content = content[: damage.draw(st.integers(0, len(content)))]
    try:
        found = codec(name, FIELDS).decode(bytes(content))
    except BadPayload:
        return
    for field in FIELDS:
        assert found[field.name].dtype == field.dtype
        assert found[field.name].shape[1:] == field.shape


@pytest.mark.parametrize("name", FORMATS)
@given(content=st.binary(max_size=200))
def test_anything_else_is_refused(name: Format, content: bytes):
    fields = (Field("x", "float32", (7,)), Field("y", "int64"))
    try:
        codec(name, fields).decode(content)
    except BadPayload:
        return
    assert name in ("raw", "tf-example")  # few bytes may happen to be a message of these
