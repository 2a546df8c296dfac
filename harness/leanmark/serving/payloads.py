"""Payload formats: the arrays of a request or of an answer as bytes.

Every format carries the same arrays; what differs is bytes on the wire and the time that it takes to read them. The
names, types and row shapes are known to both ends, as they are wherever a client is generated from a schema; how many
rows there are is what a message says. Measured by `inputs.payload`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from leanmark.arrays import Array
from leanmark.arrays import numpy as np

Format = Literal["json", "tf-example", "msgpack", "arrow", "raw"]
FORMATS: tuple[Format, ...] = get_args(Format)
# What each format needs beside leanmark's own dependencies: the module that it imports.
NEEDS: Mapping[Format, str] = {
    "json": "orjson",
    "tf-example": "google.protobuf",
    "msgpack": "msgpack",
    "arrow": "pyarrow",
    "raw": "numpy",
}
MOST_ROWS = 2**24


class BadPayload(ValueError):
    """A message that is not what its format and fields say."""


@dataclass(frozen=True)
class Field:
    """One array of a message: its rows have this type and shape."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Numbers a row."""
        return math.prod(self.shape)

    def rows(self, flat: Any) -> Array:
        """Numbers in order as rows. Raises BadPayload where they are no whole rows, or no numbers of this type."""
        try:
            array = np.asarray(flat)
        except (ValueError, OverflowError) as error:
            raise BadPayload(f"'{self.name}' holds what is no number") from error
        if array.ndim != 1 or array.size % max(self.width, 1):
            raise BadPayload(f"'{self.name}' has {array.size} numbers, which are no rows of {self.width}")
        if array.size and array.dtype.kind not in ("iu" if self.dtype == "int64" else "iuf"):
            raise BadPayload(f"'{self.name}' holds {array.dtype.name}, not {self.dtype}")
        return array.astype(self.dtype, copy=False).reshape(-1, *self.shape)


class Codec(Protocol):
    """Both directions of a format, for one list of fields."""

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        """The arrays as one message; shape (rows, *field shape) each."""
        ...

    def decode(self, content: bytes) -> dict[str, Array]:
        """The arrays of a message. Raises BadPayload."""
        ...


@functools.cache
def codec(name: Format, fields: tuple[Field, ...]) -> Codec:
    """The codec of a format. Raises ImportError where its library is not installed."""
    makers: Mapping[Format, Any] = {
        "json": _Json,
        "tf-example": _Example,
        "msgpack": _MessagePack,
        "arrow": _Arrow,
        "raw": _Raw,
    }
    return makers[name](fields)


class _Json:
    """JSON: an object of lists, one number after the other; what most services speak."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        import orjson

        self.fields, self._orjson = fields, orjson

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        flat = {field.name: np.ascontiguousarray(arrays[field.name]).reshape(-1) for field in self.fields}
        return self._orjson.dumps(flat, option=self._orjson.OPT_SERIALIZE_NUMPY)

    def decode(self, content: bytes) -> dict[str, Array]:
        try:
            found = self._orjson.loads(content)
        except self._orjson.JSONDecodeError as error:
            raise BadPayload(f"it is no JSON: {error}") from error
        return _named(found, self.fields)


class _MessagePack:
    """MessagePack: a map of arrays of numbers, floats in single precision."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        import msgpack

        self.fields, self._msgpack = fields, msgpack

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        flat = {field.name: arrays[field.name].reshape(-1).tolist() for field in self.fields}
        return self._msgpack.packb(flat, use_single_float=True)

    def decode(self, content: bytes) -> dict[str, Array]:
        try:
            found = self._msgpack.unpackb(content)
        except Exception as error:  # of bytes of unknown origin: it raises half a dozen kinds
            raise BadPayload(f"it is no MessagePack: {type(error).__name__}") from error
        return _named(found, self.fields)


def _named(found: object, fields: Sequence[Field]) -> dict[str, Array]:
    """The lists of an object by name, as arrays."""
    if not isinstance(found, dict):
        raise BadPayload("it is no object of arrays")
    arrays: dict[str, Array] = {}
    for field in fields:
        flat = found.get(field.name)
        if not isinstance(flat, list):
            raise BadPayload(f"'{field.name}' is missing, or is no list")
        arrays[field.name] = field.rows(flat)
    return arrays


class _Raw:
    """The bytes of the arrays themselves, little-endian: a count of rows before each."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        parts: list[bytes] = []
        for field in self.fields:
            array = np.ascontiguousarray(arrays[field.name], dtype=np.dtype(field.dtype).newbyteorder("<"))
            parts += [len(array).to_bytes(4, "little"), array.tobytes()]
        return b"".join(parts)

    def decode(self, content: bytes) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        at = 0
        for field in self.fields:
            kind = np.dtype(field.dtype).newbyteorder("<")
            rows = int.from_bytes(content[at : at + 4], "little")
            end = at + 4 + rows * field.width * kind.itemsize
            if at + 4 > len(content) or rows > MOST_ROWS or end > len(content):
                raise BadPayload(f"it ends within '{field.name}'")
            arrays[field.name] = np.frombuffer(content, kind, rows * field.width, at + 4).reshape(rows, *field.shape)
            at = end
        if at != len(content):
            raise BadPayload("it goes on after its last array")
        return arrays


class _Example:
    """A tf.Example in protobuf: a map of named lists of floats or integers (TensorFlow, example.proto)."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        from google.protobuf.message import DecodeError

        self.fields, self._message, self._error = fields, _example_message(), DecodeError

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        example = self._message()
        for field in self.fields:
            feature = example.features.feature[field.name]
            numbers = feature.int64_list if field.dtype == "int64" else feature.float_list
            numbers.value.extend(arrays[field.name].reshape(-1).tolist())
            if not arrays[field.name].size:
                numbers.SetInParent()
        return example.SerializeToString(deterministic=True)

    def decode(self, content: bytes) -> dict[str, Array]:
        example = self._message()
        try:
            example.ParseFromString(content)
        except self._error as error:
            raise BadPayload("it is no tf.Example") from error
        found = example.features.feature
        arrays: dict[str, Array] = {}
        for field in self.fields:
            kind = "int64_list" if field.dtype == "int64" else "float_list"
            if field.name not in found or found[field.name].WhichOneof("kind") != kind:
                raise BadPayload(f"'{field.name}' is missing, or holds no {field.dtype}")
            numbers = getattr(found[field.name], kind).value
            arrays[field.name] = field.rows(np.fromiter(numbers, field.dtype, len(numbers)))
        return arrays


@functools.cache
def _example_message() -> Any:
    """The class of tf.Example, from its published schema; TensorFlow itself is not needed to speak it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="leanmark/example.proto", package="tensorflow", syntax="proto3")

    def message(parent: Any, name: str, *fields: tuple[str, int, Any, Any, str]) -> Any:
        made = parent.add(name=name)
        for title, number, kind, label, of in fields:
            made.field.add(name=title, number=number, type=kind, label=label, type_name=of or None)
        return made

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message(file.message_type, "BytesList", ("value", 1, kinds.TYPE_BYTES, many, ""))
    message(file.message_type, "FloatList", ("value", 1, kinds.TYPE_FLOAT, many, ""))
    message(file.message_type, "Int64List", ("value", 1, kinds.TYPE_INT64, many, ""))
    lists = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    feature = message(
        file.message_type,
        "Feature",
        *((name, at, kinds.TYPE_MESSAGE, one, f".tensorflow.{of}") for at, (name, of) in enumerate(lists, 1)),
    )
    feature.oneof_decl.add(name="kind")
    for item in feature.field:
        item.oneof_index = 0
    entry = ".tensorflow.Features.FeatureEntry"
    features = message(file.message_type, "Features", ("feature", 1, kinds.TYPE_MESSAGE, many, entry))
    pair = message(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, kinds.TYPE_STRING, one, ""),
        ("value", 2, kinds.TYPE_MESSAGE, one, ".tensorflow.Feature"),
    )
    pair.options.map_entry = True
    message(file.message_type, "Example", ("features", 1, kinds.TYPE_MESSAGE, one, ".tensorflow.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


class _Arrow:
    """An Arrow IPC stream: a record batch of one row, each array a list in it."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        import pyarrow

        self.fields, self._arrow = fields, pyarrow
        kinds = {"float32": pyarrow.float32(), "int64": pyarrow.int64()}
        self._schema = pyarrow.schema([(field.name, pyarrow.list_(kinds[field.dtype])) for field in fields])

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        arrow = self._arrow
        columns: list[Any] = []
        for field in self.fields:
            flat = np.ascontiguousarray(arrays[field.name], dtype=field.dtype).reshape(-1)
            ends = arrow.array([0, flat.size], arrow.int32())
            columns.append(arrow.ListArray.from_arrays(ends, arrow.array(flat)))
        batch = arrow.RecordBatch.from_arrays(columns, schema=self._schema)
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, self._schema) as stream:
            stream.write_batch(batch)
        return sink.getvalue().to_pybytes()

    def decode(self, content: bytes) -> dict[str, Array]:
        arrow = self._arrow
        try:
            with arrow.ipc.open_stream(content) as stream:
                if not stream.schema.equals(self._schema):
                    raise BadPayload("its columns are others")
                batch = stream.read_next_batch()
                batch.validate(full=True)
        except (arrow.ArrowException, StopIteration, OSError) as error:
            raise BadPayload(f"it is no Arrow stream: {type(error).__name__}") from error
        if batch.num_rows != 1:
            raise BadPayload(f"it has {batch.num_rows} messages, not one")
        arrays: dict[str, Array] = {}
        for field, column in zip(self.fields, batch.columns, strict=True):
            flat = column.flatten()
            if column.null_count or flat.null_count:
                raise BadPayload(f"'{field.name}' has gaps")
            arrays[field.name] = field.rows(flat.to_numpy(zero_copy_only=False))
        return arrays
