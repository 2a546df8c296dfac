"""Who took what, in order of time: split so that the future is never trained on, and scored as a ranking.

An example is a query and its candidates; see `splits`. Metrics give a number an example, so that differences are
paired by user.
"""

from __future__ import annotations

from dataclasses import dataclass

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.stages import Split

HELD_OUT = 10  # interactions a user, the last ones, which are the test
VALIDATION = 5  # the ones before
CANDIDATES = 8  # of a training example: the item that was taken, and others that were drawn
_SEEN, _OTHER, _TAKEN = -1, 0, 1
_REDRAWN = 5
RECALL_AT, NDCG_AT = 20, 10


@dataclass(frozen=True)
class Interactions:
    """Users and items by number from 0, in the order in which they met; and what is known of each."""

    user: Array  # int64 (N,)
    item: Array  # int64 (N,)
    user_features: Array  # float32 (users, F)
    item_features: Array  # float32 (items, G)

    def known(self) -> dict[str, Array]:
        """The features as entries of a ranker's state, with which its training begins."""
        return {"query.known": self.user_features, "item.known": self.item_features}


def splits(found: Interactions, *, candidates: int = CANDIDATES, seed: int = 0) -> dict[str, Split]:
    """Train, calibration, validation and test of what users took.

    Inputs: `user`, int64 (N,), and `item`, int64 (N, C), the candidates. A training example is an item that was taken
    among others that its user never took in training, each as likely; its target is where it stands. So logits learn
    how likely each item is, popularity included. In the other splits an example is a user with all items as
    candidates, and targets, int64 (N, C), are 1 for an item of that split, -1 for one that was taken before, which is
    not ranked, and 0 for all others. All items stand in an order by chance, so that a tie favours none. Calibration is
    half of the users of validation, without targets.

    candidates: of a training example. seed: of what is drawn. Source of the split: He et al. 2017, Neural
    Collaborative Filtering, which leaves out each user's last; here all items are ranked, as Krichene and Rendle 2020,
    On Sampled Metrics for Item Recommendation, advise.
    """
    items = len(found.item_features)
    rank = _from_last(found.user)
    draw = np.random.default_rng(seed)
    test, train = rank < HELD_OUT, rank >= HELD_OUT + VALIDATION
    own = _taken(found, train)
    validation = _whole(found, own, ~test & ~train, draw)
    half = np.sort(draw.permutation(len(validation))[: len(validation) // 2])
    asked = validation.inputs["user"][half]
    return {
        "train": _drawn(found.user[train], found.item[train], own, candidates, draw),
        "calibration": Split({"user": asked, "item": _orders(len(asked), items, draw)}),
        "validation": validation,
        "test": _whole(found, _taken(found, ~test), test, draw),
    }


def _from_last(user: Array) -> Array:
    """How many interactions of the same user come after each."""
    order = np.argsort(user[::-1], kind="stable")
    ordered = user[::-1][order]
    starts = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1]
    within = np.arange(len(user)) - np.repeat(starts, np.diff(np.r_[starts, len(user)]))
    rank = np.empty(len(user), dtype=np.int64)
    rank[order] = within
    return rank[::-1].copy()


def _taken(found: Interactions, chosen: Array) -> Array:
    taken = np.zeros((len(found.user_features), len(found.item_features)), dtype=bool)
    taken[found.user[chosen], found.item[chosen]] = True
    return taken


def _orders(rows: int, items: int, draw: np.random.Generator) -> Array:
    """All items in an order by chance, a row each."""
    return draw.permuted(np.tile(np.arange(items, dtype=np.int64), (rows, 1)), axis=1)


def _whole(found: Interactions, before: Array, chosen: Array, draw: np.random.Generator) -> Split:
    targets = np.full(before.shape, _OTHER, dtype=np.int64)
    targets[_taken(found, chosen)] = _TAKEN
    targets[before] = _SEEN
    who = np.flatnonzero((targets == _TAKEN).any(axis=1))
    candidates = _orders(len(who), before.shape[1], draw)
    return Split({"user": who.astype(np.int64), "item": candidates}, targets[who[:, None], candidates])


def _drawn(user: Array, item: Array, own: Array, candidates: int, draw: np.random.Generator) -> Split:
    """A candidate that was taken already is drawn anew a few times; what remains is a rare mistake in a target."""
    drawn = draw.integers(own.shape[1], size=(len(user), candidates))
    for _ in range(_REDRAWN):
        again = own[user[:, None], drawn]
        drawn[again] = draw.integers(own.shape[1], size=int(again.sum()))
    place = draw.integers(candidates, size=len(user))
    drawn[np.arange(len(user)), place] = item
    return Split({"user": user.astype(np.int64), "item": drawn.astype(np.int64)}, place.astype(np.int64))


def taken_in(train: Split) -> tuple[Array, Array]:
    """Of a train split of this form, who took what: users and items, int64 (N,) each."""
    assert train.targets is not None
    user, candidates = train.inputs.values()
    return np.asarray(user), np.asarray(candidates)[np.arange(len(user)), train.targets]


# --- metrics -----------------------------------------------------------------------


def ndcg(outputs: Array, targets: Array) -> Array:
    """NDCG@10 of each user's ranking, shape (N,); items that were taken before are left out.

    Source: Järvelin, Kekäläinen 2002, Cumulated Gain-Based Evaluation of IR Techniques.
    """
    hits = _hits(outputs, targets, NDCG_AT)
    discount = 1 / np.log2(np.arange(2, NDCG_AT + 2))
    wanted = np.minimum((targets == _TAKEN).sum(axis=1), NDCG_AT)
    return (hits * discount[: hits.shape[1]]).sum(axis=1) / np.cumsum(discount)[wanted - 1]


def recall(outputs: Array, targets: Array) -> Array:
    """Share of the items that each user took which its first 20 hold, shape (N,)."""
    return _hits(outputs, targets, RECALL_AT).sum(axis=1) / (targets == _TAKEN).sum(axis=1)


def auc(outputs: Array, targets: Array) -> Array:
    """Share of pairs of an item that was taken and one that was not which are in order, by user, shape (N,)."""
    found = np.empty(len(outputs))
    for index, (scores, wanted) in enumerate(zip(outputs, targets, strict=True)):
        taken, others = np.sort(scores[wanted == _TAKEN]), np.sort(scores[wanted == _OTHER])
        below = np.searchsorted(others, taken, "left")
        ties = np.searchsorted(others, taken, "right") - below
        found[index] = float((below + ties / 2).mean()) / len(others)
    return found


def _hits(outputs: Array, targets: Array, count: int) -> Array:
    """Whether each of a user's first items was taken, in their order; of equal scores what stands first."""
    scores = np.where(targets == _SEEN, -np.inf, outputs)
    first = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return (np.take_along_axis(targets, first, axis=1) == _TAKEN).astype(np.float64)
