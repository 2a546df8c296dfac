import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark.errors import InvalidInput
from leanmark.workloads import data_sets, idx
from leanmark.workloads.data_sets import DataSet, Part
from leanmark.workloads.split_store import check_disjoint


def encode(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)))
def test_an_array_comes_back(array: np.ndarray):
    assert np.array_equal(idx.decode(encode(array)), array)


@given(st.binary(max_size=40))
def test_anything_else_is_refused_or_is_an_array(content: bytes):
    with contextlib.suppress(InvalidInput):
        assert encode(idx.decode(content)) == content


def test_a_cut_file_is_refused():
    content = encode(np.zeros((3, 2), np.uint8))
    for length in range(len(content)):
        with pytest.raises(InvalidInput):
            idx.decode(content[:length])


def test_splits_share_no_image_and_the_test_split_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    counts = {"train": 60, "t10k": 10}
    pictures = {name: rng.integers(0, 256, (count, 28, 28), np.uint8) for name, count in counts.items()}
    pictures["train"][3] = pictures["t10k"][0]
    pictures["train"][4] = pictures["train"][50]
    for part, images in pictures.items():
        files[f"{part}-images-idx3-ubyte"] = encode(images)
        files[f"{part}-labels-idx1-ubyte"] = encode((np.arange(len(images)) % 10).astype(np.uint8))
    parts = {name: Part(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    made = DataSet("small", "Small", "", "", parts)
    monkeypatch.setattr(data_sets, "DATA_SETS", {"small": made})
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path))
    for name, where in (("TRAIN", (0, 40)), ("CALIBRATION", (40, 48)), ("VALIDATION", (48, 60))):
        monkeypatch.setattr(idx, name, slice(*where))
    made.folder.mkdir()
    for name, content in files.items():
        (made.folder / name).write_bytes(content)

    splits = idx.splits("small", 0.5, 0.25)
    check_disjoint(splits)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 38,
        "calibration": 8,
        "validation": 12,
        "test": 10,
    }
    image = splits["test"].inputs["image"]
    assert image.dtype == np.float32
    assert np.allclose(image[:, 0] * 0.25 + 0.5, pictures["t10k"] / 255, atol=1e-6)
    targets = splits["train"].targets
    assert targets is not None
    assert targets[:5].tolist() == [0, 1, 2, 5, 6]
