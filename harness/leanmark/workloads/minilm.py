"""How alike people find two documents: MiniLM-L6-v2's published weights, and the pairs that were rated.

`leanmark fetch minilm-l6 sentence-pairs` brings both here. Nothing is trained. The test split are the 50 news items of
Lee, Pincombe, Welsh 2005, An Empirical Evaluation of Models of Text Document Similarity, each pair of which about ten
people rated; validation are the words of Finkelstein et al. 2002, Placing Search in Context (WordSim-353).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.registry import Workload, register_workload
from leanmark.stages import Split
from leanmark.workloads import data_sets

WEIGHTS, PAIRS = "minilm-l6", "sentence-pairs"
LENGTH = 64  # tokens, the two that mark a text's ends among them
CALIBRATION = 1000  # sentences
UNRATED = -1.0
_SENTENCE_END = re.compile(r"""(?<=[.!?])\s+|(?<=[.!?]["'])\s+""")


def splits() -> dict[str, Split]:
    """The splits; there is none to train with.

    Inputs: `ids` and `mask`, int64 (N, 64): a text's tokens, padded with 0, and 1 where a token is. What is longer is
    cut, as most of the documents are. Targets: as `rated` has them. Test: 50 documents. Validation: the words of
    WordSim-353. Calibration: 1,000 sentences of other news, without targets, in an order by chance; `mask` has their
    lengths. None of them shares eight words in a row with a test document.

    Raises InvalidInput if the data or the tokenizer are not here.
    """
    documents = _lines("lee.cor")
    words, pairs = word_pairs("wordsim353.tsv")
    test, validation = tokenize(documents), tokenize(words)
    taken = {ids.tobytes() for split in (test, validation) for ids in split["ids"]}
    calibration = tokenize(_sentences())
    chosen = [row for row, ids in enumerate(calibration["ids"]) if _is_new(ids, taken)][:CALIBRATION]
    return {
        "calibration": Split({name: array[chosen] for name, array in calibration.items()}),
        "validation": Split(validation, rated(len(words), pairs)),
        "test": Split(test, rated(len(documents), document_pairs())),
    }


def _is_new(ids: Array, taken: set[bytes]) -> bool:
    """Whether no text before had these tokens; it has from now on."""
    known = ids.tobytes() in taken
    taken.add(ids.tobytes())
    return not known


def _sentences() -> list[str]:
    """What other news items say, one sentence each, in an order by chance that is always the same."""
    found = {sentence for item in _lines("lee_background.cor") for sentence in _SENTENCE_END.split(item)}
    return sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())


def _lines(part: str) -> list[str]:
    lines = data_sets.read(PAIRS, part).decode("latin-1").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


# --- Ratings -----------------------------------------------------------------------

Pair = tuple[int, int, float]  # the numbers of two examples, and how alike people find them


def document_pairs() -> list[Pair]:
    """Lee's 1,225 pairs of documents, rated from 0.2 to 1."""
    table = [[float(cell) for cell in line.split()] for line in _lines("similarities0-1.txt")]
    return [(a, b, row[b]) for a, row in enumerate(table) for b in range(a + 1, len(row))]


def word_pairs(part: str) -> tuple[list[str], list[Pair]]:
    """The words of a list of pairs, in small letters and in order, and the pairs of two words that are not the same."""
    lines = [line.split("\t")[:3] for line in _lines(part)]
    rows = [(first.lower(), second.lower(), float(rating)) for first, second, rating in lines]
    numbers = {word: number for number, word in enumerate(sorted({word for row in rows for word in row[:2]}))}
    return list(numbers), [(numbers[a], numbers[b], rating) for a, b, rating in rows if a != b]


def rated(count: int, pairs: Iterable[Pair]) -> Array:
    """Targets of examples that are rated in pairs: float32 (count, 1 + count).

    Each row is an example's number, then its rating with every other, -1 where there is none: so rows can be drawn
    again, or left out, and still be paired.
    """
    found = np.full((count, 1 + count), UNRATED, dtype=np.float32)
    found[:, 0] = np.arange(count)
    for first, second, rating in pairs:
        found[first, 1 + second] = found[second, 1 + first] = rating
    return found


def pearson(outputs: Array, targets: Array) -> float:
    """Pearson's correlation of the cosines of embeddings with the ratings of their pairs, from -1 to 1.

    outputs: embeddings, (N, width). targets: as `rated` gives them, of these N examples. An example that was drawn
    twice is no pair with itself, since nobody rated that; its other pairs count twice. Embeddings that are all alike,
    or not finite, go with no rating: 0.
    """
    numbers, ratings = targets[:, 0].astype(np.int64), targets[:, 1:]
    first, second = np.triu_indices(len(targets), k=1)
    rating = ratings[first, numbers[second]].astype(np.float64)
    known = rating != UNRATED
    vectors = outputs.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths > 0, lengths, 1.0)
    cosines = (vectors @ vectors.T)[first, second][known]
    return _correlation(cosines, rating[known])


def _correlation(a: Array, b: Array) -> float:
    if len(a) < 2 or not np.isfinite(a).all():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else 0.0


# --- Texts and weights -------------------------------------------------------------


def tokenize(texts: Sequence[str], length: int = LENGTH) -> dict[str, Array]:
    """`ids` and `mask`, int64 (N, length), as the published tokenizer has them; what is longer is cut.

    Source: WordPiece, as in Devlin et al. 2018, BERT. Raises InvalidInput if the library or the data are not here.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InvalidInput(
            "the library 'tokenizers', which reads its texts, is not installed",
            do="Install it: pip install 'leanmark[text]'.",
        ) from error
    tokenizer = Tokenizer.from_str(data_sets.read(WEIGHTS, "tokenizer.json").decode())
    tokenizer.enable_truncation(max_length=length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(list(texts))
    return {
        "ids": np.array([text.ids for text in found], dtype=np.int64),
        "mask": np.array([text.attention_mask for text in found], dtype=np.int64),
    }


def published_weights() -> dict[str, Array]:
    """MiniLM-L6-v2's weights, as the network names them. Raises InvalidInput if they are not here."""
    from safetensors.numpy import load

    from leanmark.networks.minilm import from_bert

    return from_bert(load(data_sets.read(WEIGHTS, "model.safetensors")))


register_workload(
    Workload(
        name="minilm-l6",
        title="MiniLM-L6-v2, a sentence encoder with published weights",
        model="leanmark.networks.minilm:build_minilm",
        config={},
        data="leanmark.workloads.minilm:splits",
        metric="leanmark.workloads.minilm:pearson",
        needs=(WEIGHTS, PAIRS),
        initial="leanmark.workloads.minilm:published_weights",
    )
)
