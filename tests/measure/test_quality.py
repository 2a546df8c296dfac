"""Quality: scores on the same examples, paired, for classes, values and numbers of a user's own."""

import numpy as np
import pytest

from leanmark.measure.quality import Answers, assess, changed, largest_difference

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.integers(0, 4, 200)
LOGITS = np.eye(4, dtype=np.float32)[TARGETS] * 3 + RANDOM.normal(size=(200, 4)).astype(np.float32)


def answers(logits: np.ndarray) -> Answers:
    return Answers((logits,), TARGETS)


def test_the_reference_is_scored_alone():
    quality = assess("accuracy", [answers(LOGITS)], None)
    assert quality.score.value == np.mean(LOGITS.argmax(axis=1) == TARGETS)
    assert quality.score.low < quality.score.value < quality.score.high
    assert (quality.difference, quality.answers_changed) == (None, None)


def test_equal_answers_differ_by_nothing():
    quality = assess("accuracy", [answers(LOGITS)], [answers(LOGITS.copy())])
    assert quality.difference is not None
    assert quality.difference.value == 0
    assert quality.difference.low < 0 < quality.difference.high
    assert quality.answers_changed == 0


def test_worse_answers_are_seen_as_worse():
    worse = LOGITS.copy()
    worse[:40] = np.roll(worse[:40], 1, axis=1)
    quality = assess("accuracy", [answers(worse)], [answers(LOGITS)])
    assert quality.difference is not None
    assert quality.difference.high < 0
    assert quality.answers_changed == pytest.approx(0.2, abs=0.02)


def test_seeds_are_reported_one_by_one():
    quality = assess("accuracy", [answers(LOGITS), answers(-LOGITS)], [answers(LOGITS), answers(LOGITS)])
    assert len(quality.by_seed) == 2
    assert quality.by_seed[0] > quality.by_seed[1]
    assert quality.score.value == pytest.approx(np.mean(quality.by_seed))


def test_agreement_needs_no_targets():
    other = LOGITS.copy()
    other[:10] = -other[:10]
    quality = assess("agreement", [Answers((other,), None)], [Answers((LOGITS,), None)])
    assert quality.score.value == 1 - (other.argmax(axis=1) != LOGITS.argmax(axis=1)).mean()


def test_values_agree_within_a_tolerance():
    values = Answers((np.linspace(1, 2, 50, dtype=np.float32)[:, None],), None)
    near = Answers((values.outputs[0] * (1 + 1e-6),), None)
    far = Answers((values.outputs[0] * 1.01,), None)
    assert changed(near, values).sum() == 0
    assert changed(far, values).sum() == 50


def test_embeddings_change_although_their_largest_number_stays_where_it_is():
    ratings = RANDOM.random((200, 201), dtype=np.float32)
    embeddings, moved = Answers((LOGITS,), ratings), Answers((LOGITS * 1.01,), ratings)
    assert changed(embeddings, embeddings).sum() == 0
    assert changed(moved, embeddings).sum() == 200


def test_answers_that_are_no_numbers_differ_from_everything():
    broken = LOGITS.copy()
    broken[3] = np.nan
    assert largest_difference(answers(broken), answers(LOGITS)) == float("inf")
    assert largest_difference(answers(LOGITS[:, :3]), answers(LOGITS)) == float("inf")


def test_a_number_with_replicates_is_compared_by_replicate():
    draws = RANDOM.normal(0, 0.01, 500)
    one = Answers((LOGITS,), TARGETS, None, 0.9, 0.9 + draws)
    other = Answers((LOGITS,), TARGETS, None, 0.88, 0.88 + draws)
    quality = assess("own:f1", [one], [other])
    assert quality.metric == "f1"
    assert quality.difference is not None
    assert quality.difference.low == pytest.approx(0.02)
    assert quality.score.high - quality.score.low > 0.02


def test_further_metrics_are_scored_beside_the_first_and_do_not_change_it():
    right, half = np.ones(200), np.arange(200) % 2.0
    own, reference = (Answers((LOGITS,), TARGETS, also={"recall": scores}) for scores in (half, right))
    quality = assess("accuracy", [own], [reference])
    assert quality.score == assess("accuracy", [answers(LOGITS)], None).score
    found = quality.also["recall"]
    assert found.score.value == 0.5
    assert found.by_seed == (0.5,)
    assert found.difference is not None
    assert found.difference.high < 0
    assert not assess("accuracy", [own], [answers(LOGITS)]).also["recall"].difference
