"""The embedded images: complete, balanced, upright, and refused when damaged."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from leanmark.arrays import Array
from leanmark.errors import InvalidInput
from leanmark.stages import Split
from leanmark.workloads.fashion_mnist import FILE, MEAN, STD, small_splits
from leanmark.workloads.split_store import check_disjoint

TROUSER, SNEAKER = 1, 7


@pytest.fixture(scope="module")
def splits() -> dict[str, Split]:
    return small_splits()


def grey_levels(split: Split) -> Array:
    return split.inputs["image"].astype(np.float64) * STD + MEAN


def test_four_balanced_splits(splits: dict[str, Split]) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 8000,
        "calibration": 1000,
        "validation": 1000,
        "test": 2000,
    }
    for split in splits.values():
        images, targets = split.inputs["image"], split.targets
        assert targets is not None
        assert images.shape == (len(split), 1, 28, 28)
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert targets.dtype == np.int64
        assert np.bincount(targets, minlength=10).tolist() == [len(split) // 10] * 10


def test_no_image_appears_twice(splits: dict[str, Split]) -> None:
    hashes = check_disjoint(splits)
    assert len(set(hashes.values())) == 4
    assert len({image.tobytes() for split in splits.values() for image in split.inputs["image"]}) == 12_000


def test_normalised_by_the_train_split(splits: dict[str, Split]) -> None:
    train = splits["train"].inputs["image"].astype(np.float64)
    assert abs(train.mean()) < 1e-3
    assert abs(train.std() - 1) < 1e-3
    for split in splits.values():
        pixels = grey_levels(split) * 255
        assert np.abs(pixels - pixels.round()).max() < 1e-3
        assert pixels.round().min() == 0
        assert pixels.round().max() == 255


def test_pictures_stand_upright(splits: dict[str, Split]) -> None:
    def extent(label: int) -> tuple[float, float]:
        train = splits["train"]
        inked = grey_levels(train)[train.targets == label, 0] > 0.05
        return inked.any(axis=2).sum(axis=1).mean(), inked.any(axis=1).sum(axis=1).mean()

    height, width = extent(TROUSER)
    assert height > 1.5 * width
    height, width = extent(SNEAKER)
    assert width > 1.5 * height


def test_labels_belong_to_their_images(splits: dict[str, Split]) -> None:
    train = splits["train"]
    centroids = np.stack([train.inputs["image"][train.targets == label].mean(axis=0).ravel() for label in range(10)])
    for name in ("calibration", "validation", "test"):
        images = splits[name].inputs["image"].reshape(len(splits[name]), -1)
        distances = ((images[:, None, :] - centroids) ** 2).sum(axis=2)
        assert (distances.argmin(axis=1) == splits[name].targets).mean() > 0.6


def test_the_first_images_of_a_split_are_balanced_too(splits: dict[str, Split]) -> None:
    for split in splits.values():
        assert split.targets is not None
        tens = split.targets.reshape(-1, 10)
        assert (np.sort(tens, axis=1) == np.arange(10)).all()
        assert len({ten.tobytes() for ten in tens}) > 0.9 * len(tens)


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip_a_byte, lambda content: content[:-1], lambda content: b""])
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (importlib.resources.files("leanmark") / "data" / FILE).read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_bytes(damage(original))
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(InvalidInput, match=rf"(?s){FILE}.*damaged.*Install leanmark again"):
        small_splits()


def test_a_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        small_splits()


@pytest.mark.parametrize("words", ["Copyright © 2017 Zalando SE", "Permission is hereby granted, free of charge"])
def test_its_licence_lies_beside_it(words: str) -> None:
    folder = importlib.resources.files("leanmark") / "data"
    assert words in (folder / "LICENSE-fashion-mnist.txt").read_text(encoding="utf-8")
