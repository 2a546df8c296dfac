"""Which test examples were answered rightly, as a short text that a document can hold.

So two documents can be compared on the same examples, paired, without their answers.
The text is the number of examples, a colon, and their bits, compressed, in base 64.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

from leanmark.arrays import Array
from leanmark.arrays import numpy as np

MAX_EXAMPLES = 10_000_000  # over all seeds


def pack(scores: Array) -> str:
    """Scores of 0 and 1, shape (examples,), as a text."""
    bits = np.packbits(scores.astype(bool)).tobytes()
    return f"{len(scores)}:{base64.b64encode(zlib.compress(bits, 9)).decode()}"


def unpack_all(texts: Sequence[str]) -> Array:
    """The scores of every seed, shape (seeds, examples). Raises ValueError as `unpack`, and where seeds differ."""
    counts = {text.partition(":")[0] for text in texts}
    if len(counts) != 1 or len(texts) * len(unpack(texts[0])) > MAX_EXAMPLES:
        raise ValueError("its seeds have other numbers of examples, or more than anything measured has")
    return np.stack([unpack(text) for text in texts])


def unpack(text: str) -> Array:
    """The scores again. Raises ValueError for a text that `pack` did not write."""
    count, _, packed = text.partition(":")
    if not count.isdecimal() or not 0 < int(count) <= MAX_EXAMPLES:
        raise ValueError("it does not begin with a number of examples")
    size = -(-int(count) // 8)
    try:
        reader = zlib.decompressobj()
        bits = reader.decompress(base64.b64decode(packed, validate=True), size)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(bits) != size or reader.unconsumed_tail or not reader.eof:
        raise ValueError("it holds another number of examples than it says")
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8))[: int(count)].astype(np.float64)
