"""Encoded weights: one file that holds tensors in fewer bits than their dtype.

A packed file is ``LMPACK1\\n``, an unsigned 32-bit little-endian header length, a
JSON header, and the payload. Each tensor is stored by one codec:

raw      its bytes, C order, little-endian
palette  its distinct values once (the codebook), then one index an element,
         bit-packed, most significant bit first; ceil(log2(codebook size)) bits

`pack` takes for each tensor whichever is smaller and proves by decoding that
nothing was lost. Decoding treats its input as untrusted: every length is checked
before anything is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput

MAGIC = b"LMPACK1\n"
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSOR_BYTES = 4 * 2**30
MAX_PALETTE = 2**16
_DTYPES = frozenset(
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)


def pack(tensors: Mapping[str, Array]) -> bytes:
    """Encode named tensors losslessly, each by its smallest codec.

    Raises ValueError for a dtype that the format does not know.
    """
    header: list[dict[str, Any]] = []
    payload: list[bytes] = []
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name]).reshape(np.shape(tensors[name]))
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"tensor '{name}' has dtype {array.dtype.name}, which a packed file cannot hold")
        entry: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "codec": "raw"}
        chunk = _to_bytes(array)
        palette = _palette(array)
        if palette is not None:
            codebook, indices = palette
            bits = index_bits(codebook.size)
            encoded = _to_bytes(codebook) + pack_indices(indices, bits)
            if len(encoded) < len(chunk):
                entry |= {"codec": "palette", "palette": int(codebook.size)}
                chunk = encoded
        entry["bytes"] = len(chunk)
        header.append(entry)
        payload.append(chunk)
    head = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    packed = b"".join([MAGIC, struct.pack("<I", len(head)), head, *payload])
    _prove_lossless(tensors, unpack(packed))
    return packed


def unpack(packed: bytes) -> dict[str, Array]:
    """Decode what `pack` wrote. Raises InvalidInput for anything else."""
    header, offset = _read_header(packed)
    tensors: dict[str, Array] = {}
    for entry in header:
        name, dtype, shape, codec, size = _checked(entry)
        if offset + size > len(packed):
            raise InvalidInput(f"packed weights end inside tensor '{name}'")
        chunk = packed[offset : offset + size]
        offset += size
        count = math.prod(shape)
        if codec == "raw":
            if size != count * dtype.itemsize:
                raise InvalidInput(f"tensor '{name}' holds {size} bytes, its shape asks for {count * dtype.itemsize}")
            flat = np.frombuffer(chunk, dtype=dtype)
        else:
            flat = _decode_palette(name, chunk, entry.get("palette"), dtype, count)
        tensors[name] = flat.reshape(shape).copy()
    if offset != len(packed):
        raise InvalidInput(f"packed weights have {len(packed) - offset} bytes too many")
    return tensors


def index_bits(palette_size: int) -> int:
    """Bits that an index into a codebook of `palette_size` values takes."""
    return max(0, (palette_size - 1).bit_length())


def pack_indices(indices: Array, bits: int) -> bytes:
    """Non-negative integers below 2**bits, most significant bit first."""
    if bits == 0 or indices.size == 0:
        return b""
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    table = (indices.astype(np.uint32)[:, None] >> shifts) & 1
    return np.packbits(table.astype(np.uint8).reshape(-1)).tobytes()


def unpack_indices(packed: bytes, bits: int, count: int) -> Array:
    """The inverse of `pack_indices`: `count` integers as uint32."""
    if bits == 0 or count == 0:
        return np.zeros(count, dtype=np.uint32)
    table = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count * bits).reshape(count, bits)
    weights = (1 << np.arange(bits - 1, -1, -1, dtype=np.uint32)).astype(np.uint32)
    return (table * weights).sum(axis=1, dtype=np.uint32)


def _palette(array: Array) -> tuple[Array, Array] | None:
    if array.size == 0 or array.dtype.name == "bool":
        return None
    # Bit patterns, not values: keeps -0.0 and every NaN as it is.
    patterns = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    codebook, indices = np.unique(patterns, return_inverse=True)
    if codebook.size > MAX_PALETTE:
        return None
    return codebook.view(array.dtype), indices.reshape(-1)


def _decode_palette(name: str, chunk: bytes, palette: Any, dtype: np.dtype[Any], count: int) -> Array:
    if type(palette) is not int or not 1 <= palette <= MAX_PALETTE:
        raise InvalidInput(f"tensor '{name}' has no valid codebook")
    bits = index_bits(palette)
    head = palette * dtype.itemsize
    if len(chunk) != head + (count * bits + 7) // 8:
        raise InvalidInput(f"tensor '{name}' does not hold {count} indices of {bits} bits")
    codebook = np.frombuffer(chunk[:head], dtype=dtype)
    indices = unpack_indices(chunk[head:], bits, count)
    if indices.size and int(indices.max()) >= palette:
        raise InvalidInput(f"tensor '{name}' has an index beyond its codebook")
    return codebook[indices]


def _read_header(packed: bytes) -> tuple[list[Any], int]:
    start = len(MAGIC) + 4
    if len(packed) < start or packed[: len(MAGIC)] != MAGIC:
        raise InvalidInput("not a file of packed weights")
    (length,) = struct.unpack("<I", packed[len(MAGIC) : start])
    if length > MAX_HEADER_BYTES or start + length > len(packed):
        raise InvalidInput("the header of the packed weights is too long")
    try:
        header = json.loads(packed[start : start + length])
    except (ValueError, RecursionError):
        raise InvalidInput("the header of the packed weights is not JSON") from None
    if not isinstance(header, list):
        raise InvalidInput("the header of the packed weights is not a list")
    return header, start + length


def _checked(entry: Any) -> tuple[str, np.dtype[Any], tuple[int, ...], str, int]:
    if not isinstance(entry, dict):
        raise InvalidInput("a tensor of the packed weights has no description")
    fields: dict[str, Any] = entry
    name, dtype, shape, codec, size = (fields.get(key) for key in ("name", "dtype", "shape", "codec", "bytes"))
    fits = (
        isinstance(name, str)
        and isinstance(dtype, str)
        and dtype in _DTYPES
        and isinstance(shape, list)
        and len(shape) <= 32
        and all(type(side) is int and side >= 0 for side in shape)
        and codec in ("raw", "palette")
        and type(size) is int
        and size >= 0
    )
    if not fits:
        raise InvalidInput(f"tensor {name!r} of the packed weights is not described validly")
    kind, sides = np.dtype(str(dtype)).newbyteorder("<"), tuple(int(side) for side in shape or ())
    if math.prod(sides) * max(kind.itemsize, 8) > MAX_TENSOR_BYTES:
        raise InvalidInput(f"tensor '{name}' of the packed weights is larger than {MAX_TENSOR_BYTES} bytes")
    return str(name), kind, sides, str(codec), int(size or 0)


def _to_bytes(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _prove_lossless(before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
    for name, array in before.items():
        if np.ascontiguousarray(array).tobytes() != after[name].tobytes():
            raise AssertionError(f"packing changed tensor '{name}'")
