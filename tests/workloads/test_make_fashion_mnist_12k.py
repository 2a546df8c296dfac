"""The script that makes the embedded images: balanced, without repetitions, the same each time."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmark.arrays import Array

SCRIPT = Path(__file__).parents[2] / "tools" / "make_fashion_mnist_12k.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_12k", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def labels_of(per_class: int) -> Array:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(10), per_class))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.integers(0, 5))
def test_splits_are_balanced_disjoint_and_reproducible(seed: int, first: int, second: int, spare: int) -> None:
    labels = labels_of(first + second + spare)
    candidates = np.arange(len(labels))
    counts = {"train": 10 * first, "test": 10 * second}
    chosen = script.choose(labels, candidates, counts, seed)
    for split, indices in chosen.items():
        assert np.bincount(labels[indices], minlength=10).tolist() == [counts[split] // 10] * 10
        assert (np.sort(labels[indices].reshape(-1, 10), axis=1) == np.arange(10)).all()
    together = np.concatenate(list(chosen.values()))
    assert len(set(together.tolist())) == len(together)
    for split, indices in script.choose(labels, candidates, counts, seed).items():
        np.testing.assert_array_equal(indices, chosen[split])


def test_another_seed_chooses_others() -> None:
    labels = labels_of(20)
    chosen = [script.choose(labels, np.arange(200), {"train": 50}, seed)["train"] for seed in (1, 2)]
    assert set(chosen[0].tolist()) != set(chosen[1].tolist())


def test_only_candidates_are_chosen_and_too_few_are_refused() -> None:
    labels = labels_of(4)
    candidates = np.flatnonzero(np.arange(40) != 7)
    with pytest.raises(SystemExit, match="needs 40 distinct images"):
        script.choose(labels, candidates, {"train": 40}, 0)
    assert 7 not in script.choose(labels, candidates, {"train": 30}, 0)["train"]


def test_repetitions_are_left_out_across_sources() -> None:
    images = np.array([[1, 1], [2, 2], [1, 1], [3, 3]], dtype=np.uint8)
    seen: set[bytes] = set()
    assert script.first_occurrences(images, seen).tolist() == [0, 1, 3]
    assert script.first_occurrences(np.array([[3, 3], [4, 4]], dtype=np.uint8), seen).tolist() == [1]


def test_the_file_holds_the_arrays_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"test_images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)}
    monkeypatch.setattr("time.localtime", lambda *_: (2001, 2, 3, 4, 5, 6, 0, 0, 0))
    content = script.encode(arrays)
    monkeypatch.setattr("time.localtime", lambda *_: (2011, 2, 3, 4, 5, 6, 0, 0, 0))
    assert script.encode(arrays) == content
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["test_images"], arrays["test_images"])


def test_another_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6]), mtime=0))
    with pytest.raises(SystemExit, match="not the Fashion-MNIST of 2017"):
        script.read_idx(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(SystemExit, match="cannot be read"):
        script.read_idx(path)


def test_a_file_that_is_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"test_labels": np.arange(5, dtype=np.uint8)}
    content = script.encode(arrays)
    assert "sha256" in script.difference(content, arrays)
    monkeypatch.setattr(script.fashion_mnist, "SHA256", hashlib.sha256(content).hexdigest())
    assert script.difference(content, arrays) is None
    assert "test_labels" in script.difference(content, {"test_labels": np.zeros(5, np.uint8)})
    assert "it holds" in script.difference(content, {})
