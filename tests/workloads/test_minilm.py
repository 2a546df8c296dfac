"""Embeddings are scored by what people said of pairs, and no text is in two splits."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from leanmark.errors import InvalidInput
from leanmark.registry import get_workload
from leanmark.stages import build
from leanmark.workloads import minilm
from leanmark.workloads.data_sets import get_data_set
from leanmark.workloads.minilm import document_pairs, pearson, rated, splits, tokenize, word_pairs
from leanmark.workloads.split_store import check_disjoint

RANDOM = np.random.default_rng(0)
ANGLES = np.radians([0, 10, 35, 80, 170])
VECTORS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
COSINES = np.cos(ANGLES[:, None] - ANGLES)
PAIRS = [(a, b, 3 + 2 * COSINES[a, b]) for a in range(5) for b in range(a + 1, 5)]


def test_ratings_that_go_with_the_cosines_are_met():
    assert pearson(VECTORS, rated(5, PAIRS)) == pytest.approx(1)
    assert pearson(VECTORS * [[1], [7], [0.1], [2], [3]], rated(5, PAIRS)) == pytest.approx(1)
    assert pearson(VECTORS, rated(5, [(a, b, 9 - rating) for a, b, rating in PAIRS])) == pytest.approx(-1)


def test_a_pair_that_nobody_rated_does_not_count():
    outputs, some = RANDOM.normal(size=(5, 3)), [PAIRS[1], PAIRS[4], PAIRS[9], PAIRS[6]]
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    by_hand = np.corrcoef([unit[a] @ unit[b] for a, b, _ in some], [rating for *_, rating in some])[0, 1]
    assert pearson(outputs, rated(5, some)) == pytest.approx(by_hand, abs=1e-6)


def test_drawn_again_an_example_is_paired_with_others_only():
    outputs, rows = RANDOM.normal(size=(5, 3)), np.array([3, 0, 3, 1, 1, 4])
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    ratings = {(a, b): rating for a, b, rating in PAIRS}
    drawn = [
        (unit[a] @ unit[b], ratings[min(a, b), max(a, b)])
        for place, a in enumerate(rows) for b in rows[place + 1 :] if a != b
    ]  # fmt: skip
    by_hand = np.corrcoef(np.array(drawn).T)[0, 1]
    assert pearson(outputs[rows], rated(5, PAIRS)[rows]) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("outputs", [np.ones((5, 3)), np.zeros((5, 3)), np.full((5, 3), np.nan)])
def test_embeddings_that_say_nothing_score_nothing(outputs: np.ndarray):
    assert pearson(outputs, rated(5, PAIRS)) == pytest.approx(0, abs=1e-6)


def test_without_the_data_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path))
    with pytest.raises(InvalidInput, match="leanmark fetch sentence-pairs"):
        splits()
    with pytest.raises(InvalidInput, match="leanmark fetch minilm-l6"):
        minilm.published_weights()


def test_without_the_tokenizer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InvalidInput, match=r"leanmark\[text\]"):
        tokenize(["a sentence"])


@pytest.fixture
def fetched():
    for name in get_workload("minilm-l6").needs:
        if not get_data_set(name).is_here():
            pytest.skip(f"`leanmark fetch {name}` has not been run")
    pytest.importorskip("tokenizers")


def test_no_text_is_in_two_splits_and_lengths_differ(fetched: None):
    found = splits()
    check_disjoint(found)
    assert {name: len(split) for name, split in found.items()} == {"calibration": 1000, "validation": 437, "test": 50}
    lengths = found["calibration"].inputs["mask"].sum(axis=1)
    assert len({ids.tobytes() for ids in found["calibration"].inputs["ids"]}) == 1000
    assert lengths.min() < 8
    assert lengths.max() == 64


@pytest.mark.slow
def test_the_published_weights_agree_with_people_as_they_are_known_to(fetched: None):
    network = build("leanmark.networks.minilm:build_minilm", {})
    network.load_state_dict({name: torch.from_numpy(array) for name, array in minilm.published_weights().items()})

    def encode(texts: list[str], length: int) -> np.ndarray:
        with torch.inference_mode():
            return network(*map(torch.from_numpy, tokenize(texts, length).values())).numpy()

    documents = minilm._lines("lee.cor")
    assert pearson(encode(documents, 256), rated(50, document_pairs())) == pytest.approx(0.656, abs=0.005)
    for part, known in (("wordsim353.tsv", 0.729), ("simlex999.txt", 0.446)):
        words, pairs = word_pairs(part)
        found = encode(words, 16)
        cosines = [found[a] @ found[b] for a, b, _ in pairs]
        assert spearmanr(cosines, [rating for *_, rating in pairs]).statistic == pytest.approx(known, abs=0.005)
