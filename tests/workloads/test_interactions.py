"""What users took is split in order of time, and rankings are scored as they are by hand."""

import math

import numpy as np
import pytest

from leanmark.workloads.interactions import HELD_OUT, VALIDATION, Interactions, auc, ndcg, recall, splits, taken_in
from leanmark.workloads.split_store import check_disjoint

USERS, ITEMS, EACH = 12, 60, 25


@pytest.fixture(scope="module")
def found() -> Interactions:
    """Users take items in turns, each another at each time."""
    draw = np.random.default_rng(0)
    taken = np.stack([draw.permutation(ITEMS)[:EACH] for _ in range(USERS)])
    none = np.zeros((ITEMS, 1), np.float32)
    return Interactions(np.tile(np.arange(USERS), EACH), taken.T.reshape(-1), none[:USERS], none)


def times(found: Interactions) -> np.ndarray:
    """When each user took each item; EACH for what it never took."""
    when = np.full((USERS, ITEMS), EACH)
    when[found.user, found.item] = np.repeat(np.arange(EACH), USERS)
    return when


def test_the_future_is_never_trained_on(found: Interactions):
    made, when = splits(found), times(found)
    before = {"validation": EACH - HELD_OUT - VALIDATION, "test": EACH - HELD_OUT}
    user, item = taken_in(made["train"])
    assert when[user, item].max() == before["validation"] - 1
    for name, start in before.items():
        split = made[name]
        assert split.targets is not None
        own = when[split.inputs["user"][:, None], split.inputs["item"]]
        end = start + (VALIDATION if name == "validation" else HELD_OUT)
        assert ((split.targets == -1) == (own < start)).all()  # what was taken before is not ranked
        assert ((split.targets == 1) == ((own >= start) & (own < end))).all()
        assert (np.sort(split.inputs["item"], axis=1) == np.arange(ITEMS)).all()


def test_what_a_training_example_is_compared_with_was_not_taken(found: Interactions):
    train, when = splits(found, candidates=5)["train"], times(found)
    early = when[train.inputs["user"][:, None], train.inputs["item"]] < EACH - HELD_OUT - VALIDATION
    assert early.shape == (USERS * (EACH - HELD_OUT - VALIDATION), 5)
    assert early.sum(axis=1).mean() < 1.05  # drawn anew a few times, not for ever


def test_splits_are_told_apart_and_always_the_same(found: Interactions):
    assert check_disjoint(splits(found)) == check_disjoint(splits(found))
    assert check_disjoint(splits(found)) != check_disjoint(splits(found, seed=1))


def test_metrics_of_rankings_done_by_hand():
    # The best score is of an item taken before, so the first that count are: taken, not, taken.
    targets = np.array([[-1, 1, 0, 1, 0]])
    scores = np.array([[9.0, 5.0, 4.0, 3.0, 2.0]])
    assert ndcg(scores, targets) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert auc(scores, targets) == pytest.approx(3 / 4)
    assert recall(scores, targets) == pytest.approx(1)
    assert auc(np.zeros((1, 5)), targets) == pytest.approx(1 / 2)


def test_recall_looks_at_twenty_and_ndcg_at_ten():
    targets = np.zeros((1, 40), dtype=np.int64)
    targets[0, [9, 10, 19, 20]] = 1
    scores = -np.arange(40.0)[None]
    assert recall(scores, targets) == pytest.approx(3 / 4)
    best = sum(1 / math.log2(place) for place in range(2, 6))
    assert ndcg(scores, targets) == pytest.approx(1 / math.log2(11) / best)
