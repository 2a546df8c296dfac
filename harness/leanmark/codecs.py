"""Encoded weights: one file that holds tensors in fewer bits than their dtype.

A packed file is ``LMPACK1\\n``, an unsigned 32-bit little-endian header length, a
JSON header, and the payload. Each tensor is stored by one codec:

raw      its bytes, C order, little-endian
palette  its distinct values once (the codebook), then one index an element,
         bit-packed, most significant bit first; ceil(log2(codebook size)) bits
bitmask  one bit an element that tells whether it is zero, then what is not, as it is or,
         where that is smaller, by a palette of its own
huffman  the codebook of what is not zero, how often each value and each gap of zeros
         occurs, and both sequences in Huffman's code
ans      the codebook, how often each value occurs, and the sequence of indices by
         asymmetric numeral systems, which also takes less than a bit an element

`pack` takes for each tensor the smallest of raw, palette and the coding that was asked
for, and proves by decoding that nothing was lost. Decoding treats its input as untrusted:
every length is checked before anything is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leanmark import entropy
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput

Coding = Literal["palette", "bitmask", "huffman", "ans"]
MAGIC = b"LMPACK1\n"
MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSOR_BYTES = 4 * 2**30
MAX_PALETTE = 2**16
_DTYPES = frozenset(
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)
# What a tensor's entry may say beside its name, dtype, shape, codec and bytes; all of them counts.
_COUNTS = ("palette", "nonzero", "gaps", "gap_bytes")
_Coded = tuple[dict[str, int], bytes]


def pack(tensors: Mapping[str, Array], coding: Coding = "palette") -> bytes:
    """Encode named tensors losslessly, each by the smallest of raw, palette and `coding`.

    Raises ValueError for a dtype that the format does not know.
    """
    header: list[dict[str, Any]] = []
    payload: list[bytes] = []
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name]).reshape(np.shape(tensors[name]))
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"tensor '{name}' has dtype {array.dtype.name}, which a packed file cannot hold")
        codec, fields, chunk = _smallest(array, coding)
        entry: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "codec": codec}
        header.append(entry | fields | {"bytes": len(chunk)})
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
        fields = {key: _count(name, entry, key) for key in _COUNTS}
        flat = _DECODERS[codec](_Chunk(name, chunk), fields, dtype, math.prod(shape))
        tensors[name] = flat.reshape(shape).copy()
    if offset != len(packed):
        raise InvalidInput(f"packed weights have {len(packed) - offset} bytes too many")
    return tensors


@dataclass(frozen=True)
class Stored:
    """How one tensor lies in a packed file; bytes without its entry in the header."""

    name: str
    codec: str
    elements: int
    bytes: int


def described(packed: bytes) -> list[Stored]:
    """What `unpack` would decode, without decoding it. Raises InvalidInput."""
    header, _ = _read_header(packed)
    found = map(_checked, header)
    return [Stored(name, codec, math.prod(shape), size) for name, _, shape, codec, size in found]


class _Chunk:
    """The bytes of one tensor, taken piece by piece from the front."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content, self.at = name, content, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.content):
            raise InvalidInput(f"tensor '{self.name}' is shorter than what it should hold")
        piece = self.content[self.at : self.at + size]
        self.at += size
        return piece

    def array(self, dtype: Any, count: int) -> Array:
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(count * kind.itemsize), dtype=kind)

    def rest(self) -> bytes:
        return self.take(len(self.content) - self.at)

    def end(self) -> None:
        if self.at != len(self.content):
            raise InvalidInput(f"tensor '{self.name}' has {len(self.content) - self.at} bytes too many")


# --- tensors ------------------------------------------------------------------------


def _smallest(array: Array, coding: Coding) -> tuple[str, dict[str, int], bytes]:
    found: list[tuple[str, dict[str, int], bytes]] = [("raw", {}, _to_bytes(array))]
    for codec in dict.fromkeys(("palette", coding)):
        coded = _ENCODERS[codec](array.reshape(-1))
        if coded is not None:
            found.append((codec, *coded))
    return min(found, key=lambda item: len(item[2]) + len(json.dumps(item[1])))


def _encode_palette(flat: Array) -> _Coded | None:
    palette = _palette(flat)
    if palette is None:
        return None
    codebook, indices = palette
    return {"palette": int(codebook.size)}, _to_bytes(codebook) + pack_indices(indices, index_bits(codebook.size))


def _decode_palette(chunk: _Chunk, fields: Mapping[str, int], dtype: np.dtype[Any], count: int) -> Array:
    size = _palette_size(chunk, fields)
    codebook = chunk.array(dtype, size)
    bits = index_bits(size)
    indices = unpack_indices(chunk.take((count * bits + 7) // 8), bits, count)
    chunk.end()
    if indices.size and int(indices.max()) >= size:
        raise InvalidInput(f"tensor '{chunk.name}' has an index beyond its codebook")
    return codebook[indices]


def _decode_raw(chunk: _Chunk, _: Mapping[str, int], dtype: np.dtype[Any], count: int) -> Array:
    if len(chunk.content) != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise InvalidInput(f"tensor '{chunk.name}' holds {len(chunk.content)} bytes, its shape asks for {wanted}")
    return chunk.array(dtype, count)


def _encode_bitmask(flat: Array) -> _Coded | None:
    if not flat.size or flat.dtype.name == "bool":
        return None
    kept = _patterns(flat) != 0
    values = flat[kept]
    coded, raw = _encode_palette(values), _to_bytes(values)
    fields, body = coded if coded is not None and len(coded[1]) < len(raw) else ({"palette": 0}, raw)
    return {**fields, "nonzero": int(values.size)}, np.packbits(kept).tobytes() + body


def _decode_bitmask(chunk: _Chunk, fields: Mapping[str, int], dtype: np.dtype[Any], count: int) -> Array:
    kept = np.unpackbits(np.frombuffer(chunk.take((count + 7) // 8), dtype=np.uint8), count=count).astype(bool)
    nonzero = int(kept.sum())
    if nonzero != fields["nonzero"]:
        raise InvalidInput(f"tensor '{chunk.name}' has {nonzero} places for {fields['nonzero']} values")
    found = np.zeros(count, dtype=dtype)
    body = _Chunk(chunk.name, chunk.rest())
    found[kept] = (_decode_palette if fields["palette"] else _decode_raw)(body, fields, dtype, nonzero)
    return found


def _encode_ans(flat: Array) -> _Coded | None:
    palette = _palette(flat)
    if palette is None:
        return None
    codebook, indices = palette
    counts = np.bincount(indices, minlength=codebook.size)
    stream = entropy.ans_encode(indices, counts)
    return {"palette": int(codebook.size)}, _to_bytes(codebook) + _pack_counts(counts) + stream


def _decode_ans(chunk: _Chunk, fields: Mapping[str, int], dtype: np.dtype[Any], count: int) -> Array:
    size = _palette_size(chunk, fields)
    codebook, counts = chunk.array(dtype, size), _counts_of(chunk, size, count)
    return codebook[entropy.ans_decode(_words(chunk, len(chunk.content) - chunk.at), counts, count)]


def _encode_huffman(flat: Array) -> _Coded | None:
    if not flat.size or flat.dtype.name == "bool":
        return None
    positions = np.flatnonzero(_patterns(flat))
    gaps = entropy.gaps_of(positions)
    palette = _palette(flat[positions])
    if palette is None or gaps.size > entropy.MAX_HUFFMAN_SYMBOLS:
        return None
    codebook, indices = palette
    gap_counts = np.bincount(gaps, minlength=2**entropy.GAP_BITS)
    value_counts = np.bincount(indices, minlength=codebook.size)
    gap_stream = entropy.huffman_encode(gaps, gap_counts)
    fields = {"palette": int(codebook.size), "nonzero": int(positions.size), "gaps": int(gaps.size)}
    tables = _to_bytes(codebook) + _pack_counts(value_counts) + _pack_counts(gap_counts)
    values = entropy.huffman_encode(indices, value_counts)
    return {**fields, "gap_bytes": len(gap_stream)}, tables + gap_stream + values


def _decode_huffman(chunk: _Chunk, fields: Mapping[str, int], dtype: np.dtype[Any], count: int) -> Array:
    size, nonzero = _palette_size(chunk, fields), fields["nonzero"]
    if not nonzero <= fields["gaps"] <= count:
        raise InvalidInput(f"tensor '{chunk.name}' has {fields['gaps']} gaps for {nonzero} of {count} values")
    codebook = chunk.array(dtype, size)
    value_counts = _counts_of(chunk, size, nonzero)
    gap_counts = _counts_of(chunk, 2**entropy.GAP_BITS, fields["gaps"])
    gaps = entropy.huffman_decode(_words(chunk, fields["gap_bytes"]), gap_counts, fields["gaps"])
    indices = entropy.huffman_decode(_words(chunk, len(chunk.content) - chunk.at), value_counts, nonzero)
    positions = entropy.positions_of(gaps)
    if positions.size != nonzero or (positions.size and int(positions[-1]) >= count):
        raise InvalidInput(f"tensor '{chunk.name}' has values beyond its shape")
    found = np.zeros(count, dtype=dtype)
    found[positions] = codebook[indices]
    return found


_ENCODERS: dict[str, Callable[[Array], _Coded | None]] = {
    "palette": _encode_palette,
    "bitmask": _encode_bitmask,
    "huffman": _encode_huffman,
    "ans": _encode_ans,
}
_DECODERS: dict[str, Callable[[_Chunk, Mapping[str, int], np.dtype[Any], int], Array]] = {
    "raw": _decode_raw,
    "palette": _decode_palette,
    "bitmask": _decode_bitmask,
    "huffman": _decode_huffman,
    "ans": _decode_ans,
}


# --- parts of tensors ---------------------------------------------------------------


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


def _patterns(flat: Array) -> Array:
    """Bit patterns, not values: keeps -0.0 and every NaN as it is."""
    return flat.view(f"u{flat.dtype.itemsize}")


def _palette(flat: Array) -> tuple[Array, Array] | None:
    if flat.size == 0 or flat.dtype.name == "bool":
        return None
    codebook, indices = np.unique(_patterns(flat), return_inverse=True)
    if codebook.size > MAX_PALETTE:
        return None
    return codebook.view(flat.dtype), indices.reshape(-1)


def _palette_size(chunk: _Chunk, fields: Mapping[str, int]) -> int:
    if not 1 <= fields["palette"] <= MAX_PALETTE:
        raise InvalidInput(f"tensor '{chunk.name}' has no valid codebook")
    return fields["palette"]


def _pack_counts(counts: Array) -> bytes:
    """How often each symbol occurs, seven bits a byte, the lowest first, the last byte's highest bit clear (LEB128)."""
    packed = bytearray()
    for count in counts.tolist():
        while count > 0x7F:
            packed.append(count & 0x7F | 0x80)
            count >>= 7
        packed.append(count)
    return bytes(packed)


def _counts_of(chunk: _Chunk, size: int, total: int) -> Array:
    """The inverse of `_pack_counts`. Raises InvalidInput unless they add up to `total`."""
    counts = np.zeros(size, dtype=np.int64)
    for number in range(size):
        for shift in range(0, 35, 7):
            (byte,) = chunk.take(1)
            counts[number] |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
    if int(counts.sum()) != total:
        raise InvalidInput(f"tensor '{chunk.name}' counts {int(counts.sum())} symbols, not {total}")
    return counts


def _words(chunk: _Chunk, size: int) -> bytes:
    if size % 4:
        raise InvalidInput(f"tensor '{chunk.name}' holds {size} bytes of code, which are no whole words")
    return chunk.take(size)


# --- the file -----------------------------------------------------------------------


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
        and codec in _DECODERS
        and type(size) is int
        and size >= 0
    )
    if not fits:
        raise InvalidInput(f"tensor {name!r} of the packed weights is not described validly")
    kind, sides = np.dtype(str(dtype)).newbyteorder("<"), tuple(int(side) for side in shape or ())
    if math.prod(sides) * max(kind.itemsize, 8) > MAX_TENSOR_BYTES:
        raise InvalidInput(f"tensor '{name}' of the packed weights is larger than {MAX_TENSOR_BYTES} bytes")
    return str(name), kind, sides, str(codec), int(size or 0)


def _count(name: str, entry: Mapping[str, Any], key: str) -> int:
    value = entry.get(key, 0)
    if type(value) is not int or not 0 <= value <= MAX_TENSOR_BYTES:
        raise InvalidInput(f"tensor '{name}' of the packed weights has no valid {key}")
    return value


def _to_bytes(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _prove_lossless(before: Mapping[str, Array], after: Mapping[str, Array]) -> None:
    for name, array in before.items():
        if np.ascontiguousarray(array).tobytes() != after[name].tobytes():
            raise AssertionError(f"packing changed tensor '{name}'")
