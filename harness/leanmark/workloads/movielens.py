"""MovieLens-100k: 100,000 ratings by 943 people of 1,682 films; fetched, never part of leanmark.

Source: Harper, Konstan 2015, The MovieLens Datasets: History and Context. Its terms forbid passing it on.
"""

from __future__ import annotations

import io
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.registry import Workload, register_workload
from leanmark.stages import Split
from leanmark.workloads import data_sets
from leanmark.workloads.interactions import Interactions, splits

DATA_SET = "movielens-100k"
CANDIDATES = 4  # of a training example: with more of them an epoch teaches more, but two epochs are done sooner
_FIRST_GENRE = 5  # column of the table of films


def ranking_splits() -> dict[str, Split]:
    """What people rated next; see `interactions.splits`. Raises InvalidInput if the data are not here."""
    return splits(interactions(), candidates=CANDIDATES)


def known_features() -> dict[str, Array]:
    """What is known of people and films, for the model to begin with. Raises InvalidInput if the data are not here."""
    return interactions().known()


def interactions() -> Interactions:
    """Ratings in order of time, whatever they say; users and films from 0."""
    ratings, people, films = (_table(name) for name in ("data", "users", "items"))
    order = np.lexsort((np.arange(len(ratings["timestamp"])), ratings["timestamp"]))
    return Interactions(
        user=ratings["user_id"][order] - 1,
        item=ratings["movie_id"][order] - 1,
        user_features=_of_people(people),
        item_features=_of_films(films),
    )


def _of_people(table: dict[str, Array]) -> Array:
    """Age, sex, and which occupation."""
    occupations = np.unique(table["occupation"])
    one_hot = table["occupation"][:, None] == occupations[None]
    age = table["age"].astype(np.float32)[:, None] / 50 - 0.7
    return np.concatenate([age, table["gender"][:, None] == "M", one_hot], axis=1).astype(np.float32)


def _of_films(table: dict[str, Array]) -> Array:
    """The year, and which genres."""
    genres = np.stack(list(table.values())[_FIRST_GENRE:], axis=1)
    years = np.array([int(text[-4:]) if isinstance(text, str) else 1995 for text in table["release_date"]])
    return np.concatenate([(years[:, None] - 1985) / 15, genres], axis=1).astype(np.float32)


def _table(name: str) -> dict[str, Array]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidInput(
            "the library 'pyarrow', which reads its tables, is not installed",
            do='Install it: pip install "leanmark[serving]".',
        ) from error
    content = data_sets.read(DATA_SET, f"MovieLens100k_{name}.parquet.brotli")
    table: Any = pyarrow.parquet.read_table(io.BytesIO(content))
    return {column: table[column].to_numpy(zero_copy_only=False) for column in table.column_names}


register_workload(
    Workload(
        name="movielens-ranking",
        title="Ranking DNN on MovieLens-100k",
        model="leanmark.networks.rankers:build_cross",
        config={"users": 943, "items": 1682, "user_features": 23, "item_features": 20, "hidden": [512, 256, 128]},
        data="leanmark.workloads.movielens:ranking_splits",
        metric="leanmark.workloads.interactions:ndcg",
        also=("leanmark.workloads.interactions:recall", "leanmark.workloads.interactions:auc"),
        train={"epochs": 5, "batch_size": 512, "learning_rate": 0.003, "weight_decay": 0.1},
        needs=(DATA_SET,),
        epoch_seconds=13.0,
        initial="leanmark.workloads.movielens:known_features",
    )
)
