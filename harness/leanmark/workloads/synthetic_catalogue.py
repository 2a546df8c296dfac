"""A made-up catalogue and who takes what from it, drawn from a seed: a ranking task that needs no file.

Items are taken by how popular they are, which falls with their rank as Zipf's law has it, and by how well their hidden
factors fit a user's. What is known of users and items shows part of these factors, with noise. So a ranking by
popularity is a good one, and one by taste is better.
"""

from __future__ import annotations

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.registry import Workload, register_workload
from leanmark.stages import Split
from leanmark.workloads import interactions
from leanmark.workloads.interactions import Interactions

SEED = 20161
USERS, ITEMS = 600, 500
FEWEST, MOST = 30, 50  # interactions a user
SKEW = 1.0  # of popularity: the item of rank r is taken as often as 1 / r**SKEW
FACTORS = 8  # hidden, of each user and item
SHOWN = 4  # of these a feature tells, with noise
TASTE, NOISE = 2.0, 0.5  # what a user's taste adds to the log of popularity; the deviation of a feature's noise


def made() -> Interactions:
    """The same interactions each time.

    Each user takes items one after the other, each at most once, as likely as popularity times exp(taste): the first
    draws of a Plackett-Luce model (Plackett 1975, The Analysis of Permutations). Source of the form: Koren, Bell,
    Volinsky 2009, Matrix Factorization Techniques for Recommender Systems.
    """
    draw = np.random.default_rng(SEED)
    users, items = (draw.standard_normal((count, FACTORS)) for count in (USERS, ITEMS))
    popularity = -SKEW * np.log(draw.permutation(ITEMS) + 1.0)
    chance = popularity + TASTE * users @ items.T / np.sqrt(FACTORS)
    order = np.argsort(-(chance + draw.gumbel(size=chance.shape)), axis=1)
    counts = draw.integers(FEWEST, MOST + 1, size=USERS)
    return Interactions(
        user=np.repeat(np.arange(USERS), counts),
        item=np.concatenate([row[:count] for row, count in zip(order, counts, strict=True)]),
        user_features=_shown(users, draw),
        item_features=_shown(items, draw),
    )


def _shown(factors: Array, draw: np.random.Generator) -> Array:
    """The first factors, with noise."""
    shown = factors[:, :SHOWN]
    return (shown + NOISE * draw.standard_normal(shown.shape)).astype(np.float32)


def splits() -> dict[str, Split]:
    """Who took what next; see `interactions.splits`."""
    return interactions.splits(made())


def known_features() -> dict[str, Array]:
    """What is known of users and items, for the model to begin with."""
    return made().known()


register_workload(
    Workload(
        name="catalogue-ranking",
        title="Ranking DNN on a made-up catalogue",
        model="leanmark.networks.rankers:build_cross",
        config={
            "users": USERS,
            "items": ITEMS,
            "user_features": SHOWN,
            "item_features": SHOWN,
            "width": 16,
            "hidden": [128, 64],
        },
        data="leanmark.workloads.synthetic_catalogue:splits",
        metric="leanmark.workloads.interactions:ndcg",
        also=("leanmark.workloads.interactions:recall", "leanmark.workloads.interactions:auc"),
        train={"epochs": 4, "batch_size": 128, "learning_rate": 0.004, "weight_decay": 0.01},
        epoch_seconds=0.7,
        initial="leanmark.workloads.synthetic_catalogue:known_features",
    )
)
