"""A small ranker as a service, and the steps of its recipes."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanmark.runtimes import load_onnxruntime
from leanmark.serving.handlers import Handler
from leanmark.serving.making import make_handler
from leanmark.stages import Artifact, Context, Service, Split, TorchModel, save
from leanmark.traffic import Traffic
from techniques.applying import apply

USERS, ITEMS = 30, 60
SIZES = {"users": USERS, "items": ITEMS, "user_features": 3, "item_features": 5, "width": 8}
NOWHERE = "redis://127.0.0.1:1/0"


def model(kind: str) -> TorchModel:
    """A ranker that nobody trained: `cross` or `towers`."""
    import torch

    from leanmark.networks import rankers

    torch.manual_seed(5)
    config = {**SIZES, "hidden": 32 if kind == "towers" else (32, 16)}
    module = getattr(rankers, f"build_{kind}")(**config)
    for table in (module.query, module.item):
        table.known.copy_(torch.rand(table.known.shape))
    return TorchModel(module.eval(), f"leanmark.networks.rankers:build_{kind}", config)


def examples() -> Split:
    users = np.arange(USERS, dtype=np.int64)
    return Split({"user": users, "item": np.tile(np.arange(ITEMS, dtype=np.int64), (USERS, 1))})


CONTEXT = Context(lambda _: examples(), 0)


@functools.cache
def plain(kind: str, **params: Any) -> Service:
    """A ranker in its plain form; exporting takes seconds."""
    return apply("serve.plain", model(kind), CONTEXT, **params)


def service(kind: str, *steps: tuple[str, Mapping[str, Any]], **params: Any) -> Service:
    """A ranker in its plain form, then the steps."""
    made = plain(kind, **params)
    for name, params in steps:
        made = apply(name, made, CONTEXT, **params)
    return made


def kept(made: Service, folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    return save(made, folder)


def handler(artifact: Artifact, redis_url: str = NOWHERE, **traffic: Any) -> Handler:
    return make_handler(artifact, Traffic("test", **traffic), load_onnxruntime, 1, redis_url, "test")
