"""Entropy coding: sequences of small integers in about as many bits as they hold information.

Streams are 32-bit little-endian words. How often each symbol occurs is stored beside a
stream by whoever stores it: decoding needs the very same counts. Built on constriction.

Source: Huffman 1952, A Method for the Construction of Minimum-Redundancy Codes; Duda 2013,
Asymmetric Numeral Systems.
"""

from __future__ import annotations

from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput

# Symbols that are decoded one by one in Python: more of them would take minutes.
MAX_HUFFMAN_SYMBOLS = 20_000_000
# A gap of so many zeros or more is written as several.
GAP_BITS = 8
_LONGEST = 2**GAP_BITS - 1


def ans_encode(symbols: Array, counts: Array) -> bytes:
    """Non-negative integers below counts.size, by asymmetric numeral systems; `counts` says how often each occurs."""
    if _is_constant(counts) or not symbols.size:
        return b""
    constriction = _constriction()
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(np.ascontiguousarray(symbols, dtype=np.int32), _model(counts))
    return np.asarray(coder.get_compressed()).astype("<u4").tobytes()


def ans_decode(packed: bytes, counts: Array, size: int) -> Array:
    """The inverse of `ans_encode`. What was not written by it gives some symbols or raises InvalidInput."""
    if _is_constant(counts) or not size:
        return np.full(size, int(np.argmax(counts)), dtype=np.int64)
    constriction = _constriction()
    words = np.frombuffer(packed, dtype="<u4").astype(np.uint32)
    try:
        coder = constriction.stream.stack.AnsCoder(words)
        return np.asarray(coder.decode(_model(counts), size)).astype(np.int64)
    except ValueError as error:
        raise InvalidInput(f"coded weights cannot be decoded: {error}") from error


def huffman_encode(symbols: Array, counts: Array) -> bytes:
    """Non-negative integers below counts.size, each by a code of its own; `counts` says how often each occurs."""
    if _is_constant(counts) or not symbols.size:
        return b""
    constriction = _constriction()
    tree = constriction.symbol.huffman.EncoderHuffmanTree(_shares(counts))
    coder = constriction.symbol.QueueEncoder()
    used = np.flatnonzero(counts)
    places = np.zeros(counts.size, dtype=np.int64)
    places[used] = np.arange(used.size)
    for place in places[symbols].tolist():
        coder.encode_symbol(place, tree)
    words, _ = coder.get_compressed_and_bitrate()
    return np.asarray(words).astype("<u4").tobytes()


def huffman_decode(packed: bytes, counts: Array, size: int) -> Array:
    """The inverse of `huffman_encode`. Raises InvalidInput for what was not written by it."""
    if size > MAX_HUFFMAN_SYMBOLS:
        raise InvalidInput(f"{size:,} Huffman codes are more than {MAX_HUFFMAN_SYMBOLS:,}")
    if _is_constant(counts) or not size:
        return np.full(size, int(np.argmax(counts)), dtype=np.int64)
    constriction = _constriction()
    tree = constriction.symbol.huffman.DecoderHuffmanTree(_shares(counts))
    coder = constriction.symbol.QueueDecoder(np.frombuffer(packed, dtype="<u4").astype(np.uint32))
    try:
        places = [coder.decode_symbol(tree) for _ in range(size)]
    except ValueError as error:
        raise InvalidInput(f"coded weights cannot be decoded: {error}") from error
    return np.flatnonzero(counts)[places]


def gaps_of(positions: Array) -> Array:
    """Ascending positions as the zeros before each, and, where these are many, as several symbols of the longest gap.

    The longest symbol stands for as many zeros and for no position.
    """
    before = np.diff(positions, prepend=-1) - 1
    fillers = before // _LONGEST
    symbols = np.full(int(fillers.sum()) + positions.size, _LONGEST, dtype=np.int64)
    symbols[np.cumsum(fillers + 1) - 1] = before % _LONGEST
    return symbols


def positions_of(gaps: Array) -> Array:
    """The inverse of `gaps_of`."""
    is_filler = gaps == _LONGEST
    return (np.cumsum(np.where(is_filler, _LONGEST, gaps + 1)) - 1)[~is_filler]


def entropy_bits(counts: Array) -> float:
    """Bits that symbols of these counts hold together, each for itself (Shannon 1948)."""
    used = counts[counts > 0].astype(np.float64)
    return float(-(used * np.log2(used / used.sum())).sum()) if used.size else 0.0


def _constriction() -> Any:
    """The library, whose modules its stubs do not tell."""
    import constriction

    return constriction


def _is_constant(counts: Array) -> bool:
    return int(np.count_nonzero(counts)) <= 1


def _shares(counts: Array) -> Array:
    """Of the symbols that occur: a code for one that does not would only make others longer."""
    used = counts[counts > 0].astype(np.float64)
    return used / used.sum()


def _model(counts: Array) -> Any:
    constriction = _constriction()
    # Exact in float64, so that the same counts give the same model wherever they are decoded.
    shares = counts.astype(np.float64) / float(counts.sum())
    return constriction.stream.model.Categorical(shares, perfect=False)
