"""Stored splits come back as they were, by numpy alone, or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark.arrays import Array
from leanmark.errors import InvalidInput, StorageFull
from leanmark.stages import Split
from leanmark.workloads import split_store as module
from leanmark.workloads.split_store import INDEX, check_disjoint, open_split, store


def example_splits() -> dict[str, Split]:
    numbers = np.arange(40, dtype=np.float32).reshape(10, 2, 2)
    return {
        "train": Split({"x": numbers[:6], "a/b:0": numbers[:6, :, 0]}, np.arange(6)),
        "test": Split({"x": numbers[6:], "a/b:0": numbers[6:, :, 0]}),
    }


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "bool"]),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 5),
    st.data(),
)
def test_what_is_stored_comes_back(
    tmp_path_factory: pytest.TempPathFactory, types: dict[str, str], count: int, data: st.DataObject
) -> None:
    def draw(dtype: str) -> Array:
        return data.draw(hnp.arrays(dtype, st.tuples(st.just(count), st.integers(1, 4))))

    split = Split({name: draw(dtype) for name, dtype in types.items()}, draw("int64"))
    root = tmp_path_factory.mktemp("splits")
    hashes = store({"test": split}, root)
    back = open_split(root, "test")
    assert list(back.inputs) == list(split.inputs)
    assert back.targets is not None
    assert split.targets is not None
    for before, after in zip(
        [*split.inputs.values(), split.targets], [*back.inputs.values(), back.targets], strict=True
    ):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)
    assert check_disjoint({"test": back}) == hashes == check_disjoint({"test": split})


def test_opened_splits_are_mapped_and_read_only(tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    split = open_split(tmp_path, "train")
    assert all(isinstance(array, np.memmap) for array in (*split.inputs.values(), split.targets))
    with pytest.raises(ValueError, match="read-only"):
        split.inputs["x"][0] = 0


def test_index_says_what_is_there(tmp_path: Path) -> None:
    hashes = store(example_splits(), tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())["splits"]
    assert {name: entry["sha256"] for name, entry in index.items()} == hashes
    assert index["train"]["count"] == 6
    assert index["train"]["inputs"][1] == {"name": "a/b:0", "dtype": "float32", "shape": [6, 2]}
    assert index["test"]["targets"] is None
    assert open_split(tmp_path, "test").targets is None
    listed = {path.name for path in tmp_path.iterdir()}
    assert listed == {INDEX, "train-0.npy", "train-1.npy", "train-targets.npy", "test-0.npy", "test-1.npy"}


def test_reading_needs_numpy_only(tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    program = (
        "import sys; from pathlib import Path; from leanmark.workloads.split_store import open_split; "
        "assert len(open_split(Path(sys.argv[1]), 'test')) == 4; "
        "print([n for n in ('torch', 'pydantic', 'pandas', 'onnx', 'safetensors') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_splits_that_overlap_are_not_stored(tmp_path: Path) -> None:
    split = example_splits()["test"]
    with pytest.raises(InvalidInput, match="4 examples are in both 'train' and 'test'"):
        store({"train": split, "test": split}, tmp_path / "splits")
    assert not (tmp_path / "splits").exists()


def test_storing_again_replaces_without_disturbing_readers(tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    held = open_split(tmp_path, "test")
    before = held.inputs["x"].copy()
    store({"test": Split({"x": np.zeros((1, 1), np.float32)})}, tmp_path)
    np.testing.assert_array_equal(held.inputs["x"], before)
    assert open_split(tmp_path, "test").inputs["x"].shape == (1, 1)
    with pytest.raises(InvalidInput, match="no split 'train'"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("name", ["tset", "../test", "", "inputs"])
def test_unknown_split_is_refused(name: str, tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    with pytest.raises(InvalidInput, match="there is no split"):
        open_split(tmp_path, name)


def test_a_split_misspelt_gets_advice(tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    with pytest.raises(InvalidInput, match="Did you mean 'test'"):
        open_split(tmp_path, "tset")


def test_a_store_that_was_cut_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(example_splits(), tmp_path)
    put = module._put  # pyright: ignore[reportPrivateUsage]

    def cut_off(path: Path, array: Array) -> None:
        if path.name == "test-1.npy":
            raise KeyboardInterrupt
        put(path, array)

    monkeypatch.setattr(module, "_put", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store(example_splits(), tmp_path)
    with pytest.raises(InvalidInput, match="no readable splits"):
        open_split(tmp_path, "train")


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: Array) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "_put", full)
    with pytest.raises(StorageFull, match="no room for the splits"):
        store(example_splits(), tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(InvalidInput, match=r"occupied.*cannot be written"):
        store(example_splits(), tmp_path / "occupied")


def damage_shape(root: Path) -> None:
    np.save(root / "test-0.npy", np.zeros((3, 2, 2), np.float32))


def damage_type(root: Path) -> None:
    np.save(root / "test-0.npy", np.zeros((4, 2, 2), np.float64))


def damage_length(root: Path) -> None:
    path = root / "test-0.npy"
    path.write_bytes(path.read_bytes()[:-8])


def damage_by_pickle(root: Path) -> None:
    np.save(root / "test-0.npy", np.array([{}] * 4, dtype=object), allow_pickle=True)


def damage_missing(root: Path) -> None:
    (root / "test-0.npy").unlink()


def damage_index(root: Path) -> None:
    (root / INDEX).write_text('{"format": 1, "splits": {"test": {"inputs": [{}]}}}')


def damage_format(root: Path) -> None:
    index: dict[str, Any] = json.loads((root / INDEX).read_text())
    (root / INDEX).write_text(json.dumps(index | {"format": 99}))


@pytest.mark.parametrize(
    "damage",
    [damage_shape, damage_type, damage_length, damage_by_pickle, damage_missing, damage_index, damage_format],
)
def test_damaged_splits_are_refused(damage: Any, tmp_path: Path) -> None:
    store(example_splits(), tmp_path)
    damage(tmp_path)
    with pytest.raises(InvalidInput):
        open_split(tmp_path, "test")
