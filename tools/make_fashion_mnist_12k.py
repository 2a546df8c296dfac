"""Make the 12,000 Fashion-MNIST images that leanmark carries.

Source: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747; MIT licence) as
Debian packages it: `apt-get download dataset-fashion-mnist`, unpack it with
`dpkg-deb -x`, and give the folder with its four `.gz` files where it is not installed.
The packaged `.gz` differ from upstream's, so the decoded arrays are checked.

Use: PYTHONPATH=harness python tools/make_fashion_mnist_12k.py [--check] [FOLDER]

Train, calibration and validation images are drawn from the 60,000 training images,
test images from the 10,000 test images, the same number of every class. Nothing
appears twice, in one split or in two.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanmark.workloads import fashion_mnist

Array = NDArray[Any]

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(fashion_mnist.__file__).parents[1] / "data" / fashion_mnist.FILE
SEED = 20170825  # the day on which its paper was submitted
CLASSES = 10
FROM_TRAINING = {"train": 8000, "calibration": 1000, "validation": 1000}
FROM_TEST = {"test": 2000}

# sha256 of the decoded arrays' bytes, without the header of their file.
DECODED_SHA256 = {
    "train-images-idx3-ubyte": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train-labels-idx1-ubyte": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "t10k-images-idx3-ubyte": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "t10k-labels-idx1-ubyte": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}


def read_idx(path: Path) -> Array:
    """The uint8 array of a gzip-compressed IDX file. Raises SystemExit if it is another than expected."""
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read: {error}") from error
    (magic,) = struct.unpack_from(">I", content)
    shape = struct.unpack_from(f">{magic & 0xFF}I", content, 4)
    array = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    if hashlib.sha256(array.tobytes()).hexdigest() != DECODED_SHA256[path.stem]:
        raise SystemExit(f"{path}: not the Fashion-MNIST of 2017")
    return array


def first_occurrences(images: Array, seen: set[bytes]) -> Array:
    """Indices of the images that are neither in `seen` nor a repetition; adds them to `seen`."""
    kept: list[int] = []
    for index, image in enumerate(images):
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    return np.array(kept)


def choose(labels: Array, candidates: Array, counts: Mapping[str, int], seed: int) -> dict[str, Array]:
    """Indices for each split, drawn from `candidates`: every class once in each ten, in random order.

    So the first images of a split are as balanced as all of them. The random order
    comes from the raw stream of PCG64, which numpy keeps the same in every version;
    that of its `Generator` methods it does not.
    """
    drawing, placing = np.random.PCG64(seed).random_raw((2, len(candidates)))
    order = candidates[np.argsort(drawing, kind="stable")]
    rank = np.empty(len(order), np.int64)
    for label in range(CLASSES):
        of_class = labels[order] == label
        rank[of_class] = np.arange(np.count_nonzero(of_class))
    chosen: dict[str, Array] = {}
    start = 0
    for split, count in counts.items():
        stop = start + count // CLASSES
        drawn = np.flatnonzero((start <= rank) & (rank < stop))
        chosen[split] = order[drawn[np.lexsort((placing[drawn], rank[drawn]))]]
        start = stop
        if len(chosen[split]) != count:
            raise SystemExit(f"split '{split}' needs {count} distinct images, {count // CLASSES} of every class")
    return chosen


def subset(folder: Path) -> dict[str, Array]:
    """The arrays of the embedded file by name; images column by column, which deflates 3 % smaller."""
    arrays: dict[str, Array] = {}
    seen: set[bytes] = set()
    for source, counts in (("train", FROM_TRAINING), ("t10k", FROM_TEST)):
        images = read_idx(folder / f"{source}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{source}-labels-idx1-ubyte.gz")
        for split, indices in choose(labels, first_occurrences(images, seen), counts, SEED).items():
            arrays[f"{split}_images"] = images[indices].transpose(0, 2, 1)
            arrays[f"{split}_labels"] = labels[indices]
    return arrays


def encode(arrays: Mapping[str, Array]) -> bytes:
    """A compressed .npz with no time stamps: the same bytes whenever the same zlib writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, wherever this runs
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def difference(content: bytes, arrays: Mapping[str, Array]) -> str | None:
    """How the file `content` differs from what it should be; None if it does not."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != fashion_mnist.SHA256:
        return f"its sha256 is {digest}, fashion_mnist.py expects {fashion_mnist.SHA256}"
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        if set(archive.files) != set(arrays):
            return f"it holds {sorted(archive.files)}"
        for name, array in arrays.items():
            if not np.array_equal(archive[name], array):
                return f"'{name}' is another than the one made from the source"
    return None


def main() -> int:
    """Write the file, or with --check compare the one that is there. 0 if all is as it should be."""
    parser = argparse.ArgumentParser(description="Make the Fashion-MNIST subset that leanmark carries.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN_FOLDER, help="folder of the four .gz files")
    parser.add_argument("--check", action="store_true", help="compare the file in the repository, write nothing")
    arguments = parser.parse_args()
    arrays = subset(arguments.folder)
    if not arguments.check:
        TARGET.write_bytes(encode(arrays))
    problem = difference(TARGET.read_bytes(), arrays)
    print(f"{TARGET}: {problem or f'{TARGET.stat().st_size} bytes, as it should be'}")
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
