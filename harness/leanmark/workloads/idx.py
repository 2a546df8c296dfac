"""Splits of MNIST, and of the data sets that have its form: four IDX files of 28x28 grey images.

Source of the format: LeCun, Cortes, Burges, THE MNIST DATABASE of handwritten digits (1998).
"""

from __future__ import annotations

import hashlib

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.stages import Split
from leanmark.workloads import data_sets

# Of the publisher's 60,000 training images, in their order; his 10,000 test images are the test split.
TRAIN = slice(0, 54_000)
CALIBRATION = slice(54_000, 55_000)
VALIDATION = slice(55_000, 60_000)


def splits(name: str, mean: float, std: float) -> dict[str, Split]:
    """54,000 train, 1,000 calibration, 5,000 validation and 10,000 test images, in the publisher's order.

    name: of the data set. mean, std: of the grey levels of its training images, from 0 to 1.

    Inputs: `image`, float32 (N, 1, 28, 28), grey levels from 0 to 1, less `mean`, over `std`. Targets: int64 (N,).
    An image that is in two splits stays in the one that is judged by it: test before validation before calibration
    before train.

    Raises InvalidInput if the data are not here, or damaged.
    """
    images, labels = _read(name, "train")
    parts = {"test": _read(name, "t10k")}
    for split, where in (("validation", VALIDATION), ("calibration", CALIBRATION), ("train", TRAIN)):
        parts[split] = (images[where], labels[where])
    seen: set[bytes] = set()
    found: dict[str, Split] = {}
    for split, (pictures, classes) in parts.items():
        digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
        new = np.array([digest not in seen for digest in digests])
        seen.update(digests)
        found[split] = Split({"image": _normalized(pictures[new], mean, std)}, classes[new].astype(np.int64))
    return {split: found[split] for split in ("train", "calibration", "validation", "test")}


def _read(name: str, part: str) -> tuple[Array, Array]:
    images = decode(data_sets.read(name, f"{part}-images-idx3-ubyte"))
    labels = decode(data_sets.read(name, f"{part}-labels-idx1-ubyte"))
    return images, labels


def decode(content: bytes) -> Array:
    """An IDX file of bytes as an array: two zero bytes, type 8, the number of axes, their lengths, the values.

    Raises InvalidInput if it is anything else.
    """
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != b"\x00\x00\x08" or not axes or len(content) < start:
        raise InvalidInput("this is no IDX file of bytes")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, offset=4))
    if len(content) != start + int(np.prod(shape, dtype=object)):
        raise InvalidInput(f"this IDX file says that it holds {shape}, and has {len(content) - start} values")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _normalized(images: Array, mean: float, std: float) -> Array:
    scaled = images[:, None].astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.float32(mean)
    scaled /= np.float32(std)
    return scaled
