"""Fashion-MNIST: the 12,000 images that come with leanmark, and all 70,000, which are fetched.

10 classes of clothing, 28x28 pixels, one channel. Source: Xiao, Rasul, Vollgraf
2017, arXiv 1708.07747; MIT licence. `tools/make_fashion_mnist_12k.py` made the file.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.stages import Split
from leanmark.workloads import idx

FILE = "fashion-mnist-12k.npz"
SHA256 = "714ed51e1104b38da5e5ef882afff566563e7d53c3aa53933abe19bad4bb8ddf"
# Of the grey levels of the train split, from 0 to 1.
MEAN = 0.2862
STD = 0.3530
SPLITS = ("train", "calibration", "validation", "test")


def small_splits() -> dict[str, Split]:
    """8,000 train, 1,000 calibration, 1,000 validation and 2,000 test images, every class equally often.

    Inputs: `image`, float32 (N, 1, 28, 28), grey levels from 0 to 1, less `MEAN`,
    over `STD`. Targets: int64 (N,), the class from 0 to 9. The splits are disjoint; test images come from the
    publisher's own test set.

    Raises InvalidInput if the file in the installation is missing or damaged.
    """
    content = _read()
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {
            name: Split({"image": _normalized(archive[f"{name}_images"])}, archive[f"{name}_labels"].astype(np.int64))
            for name in SPLITS
        }


def splits() -> dict[str, Split]:
    """The four splits of the whole set; see `idx.splits`. Raises InvalidInput if the data are not here."""
    return idx.splits("fashion-mnist", MEAN, STD)


def _read() -> bytes:
    resource = importlib.resources.files("leanmark") / "data" / FILE
    advice = "Install leanmark again; its data came with it."
    try:
        content = resource.read_bytes()
    except OSError as error:
        raise InvalidInput(f"the embedded data cannot be read: {error}", where=str(resource), do=advice) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InvalidInput("the embedded data are damaged: their sha256 is wrong", where=str(resource), do=advice)
    return content


def _normalized(columns: Array) -> Array:
    # The file holds images column by column, which compresses better.
    images = columns.transpose(0, 2, 1)[:, None].astype(np.float32, order="C")
    images /= np.float32(255)
    images -= np.float32(MEAN)
    images /= np.float32(STD)
    return images
