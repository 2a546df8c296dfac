"""However a service finds its answers, they are those of its model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanmark.errors import NotApplicable
from leanmark.results import Evidence
from leanmark.serving.asking import answers, payloads
from leanmark.serving.handlers import Handler, best
from leanmark.serving.payloads import BadPayload, codec
from leanmark.stages import Split
from serving.small import CONTEXT, ITEMS, USERS, examples, handler, kept, model, service
from techniques.applying import apply, evidence

WAYS = {
    "plain": ("cross", ()),
    "raw": ("cross", (("inputs.payload", {"format": "raw"}),)),
    "cached": ("cross", (("serve.cache", {"entries": 100}),)),
    "shared, and its server gone": ("cross", (("serve.cache", {"tier": "both", "entries": 100}),)),
    "split": ("cross", (("serve.batch", {"split": 7}),)),
    "static": ("cross", (("serve.batch", {"rows": 16, "static": True}),)),
    "towers": ("towers", ()),
    "cached towers": ("towers", (("serve.cache", {"share": 0.5}),)),
    "precomputed": ("towers", (("inputs.precompute", {}),)),
    "msgpack": ("towers", (("inputs.precompute", {}), ("inputs.payload", {"format": "msgpack"}))),
}


def wanted(kind: str) -> Any:
    import torch

    found = examples()
    with torch.inference_mode():
        return model(kind).module(*(torch.from_numpy(array) for array in found.inputs.values())).numpy()


def asked(made: Handler, requests: list[bytes]) -> list[dict[str, Any]]:
    """Answers to all requests in one batch, read as a client reads them."""
    reading = codec(made.config.payload, made.carried.answer)
    return [reading.decode(answer) for answer in made.answer([made.decode(request) for request in requests])]


def requests(made: Handler, count: int, **traffic: Any) -> list[bytes]:
    from leanmark.traffic import Traffic

    return payloads(made.config, Traffic("test", requests=count, **traffic), made.parts.tables, None)


@pytest.mark.parametrize(("kind", "steps"), WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize("features", ["request", "store"])
def test_answers_are_those_of_the_model(kind: str, steps: Any, features: Any, tmp_path: Path):
    made = handler(kept(service(kind, *steps), tmp_path), features=features, candidates=(1, 9))
    assert np.allclose(answers(made, examples()), wanted(kind), atol=1e-5)
    plain = handler(kept(service(kind), tmp_path / "plain"), candidates=(1, 9))
    traffic: Any = {"candidates": (1, 9), "zipf": 1.0}
    for _ in range(2):  # the second time a cache has some of it
        found = asked(made, requests(made, 20, features=features, **traffic))
        expected = asked(plain, requests(plain, 20, **traffic))
        for own, other in zip(found, expected, strict=True):
            assert np.allclose(own["answer"], other["answer"], atol=1e-6)
            assert ((own["answer"] > 0) & (own["answer"] < 1)).all()


@pytest.mark.parametrize("kind", ["cross", "towers"])
def test_the_whole_catalogue_is_ranked(kind: str, tmp_path: Path):
    made = handler(kept(service(kind), tmp_path), candidates=None, top=5)
    logits = wanted(kind)
    seen = 0
    for request in requests(made, 12, candidates=None, top=5):
        user_row = made.decode(request).query["query"]
        user = int(np.flatnonzero((made.parts.tables["query"] == user_row).all(axis=1))[0])
        (found,) = asked(made, [request])
        assert found["item"].tolist() == best(logits[user], 5)[0].tolist()
        assert (np.diff(found["answer"]) <= 0).all()
        seen += 1
    assert seen == 12


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_an_index_finds_what_looking_at_all_finds(kind: str, tmp_path: Path):
    steps = (("inputs.precompute", {}), ("serve.ann", {"kind": kind, "lists": 4, "probes": 4, "effort": 128}))
    artifact = kept(service("towers", *steps, entries=300), tmp_path)
    found = evidence("serve.ann", artifact)
    assert found.effective
    assert found.facts["items"] == 300
    assert found.facts["recall_at_20"] > 0.95
    made, plain = (
        handler(kept(service("towers", *own, entries=300), tmp_path / str(len(own))), candidates=None, top=10)
        for own in (steps, steps[:1])
    )
    same = [
        len(set(a["item"].tolist()) & set(b["item"].tolist()))
        for a, b in zip(
            asked(made, requests(made, 20, candidates=None)),
            asked(plain, requests(plain, 20, candidates=None)),
            strict=True,
        )
    ]
    assert np.mean(same) > 9


def test_a_catalogue_grows_by_copies_of_its_items(tmp_path: Path):
    small, large = (service("cross", entries=entries) for entries in (0, 200))
    assert len(large.tables["item"]) == 200
    assert (large.tables["item"][:ITEMS] == small.tables["item"]).all()
    near = np.abs(large.tables["item"][ITEMS : 2 * ITEMS] - small.tables["item"])
    assert 0 < near.max() < np.abs(small.tables["item"]).max()


def test_sequences_of_one_length_are_cut_alike():
    """A program that adds up what its mask lets it see, cut or not."""
    from leanmark.serving.config import Carried, ServiceConfig
    from leanmark.serving.handlers import Parts
    from leanmark.serving.payloads import Field

    fields = (Field("ids", "int64", (16,)), Field("mask", "int64", (16,)))
    widths: list[int] = []

    def program(arrays: Any) -> Any:
        widths.append(arrays["ids"].shape[1])
        return (arrays["ids"] * arrays["mask"]).sum(axis=1, keepdims=True).astype(np.float32)

    lengths = np.array([3, 16, 4, 1, 9])
    draw = np.random.default_rng(0)
    split = Split(
        {
            "ids": draw.integers(1, 50, (5, 16)),
            "mask": (np.arange(16) < lengths[:, None]).astype(np.int64),
        }
    )
    found = []
    for buckets in ((), (4, 8)):
        config = ServiceConfig("rows", (), fields, answer=(1,), sequence=("ids", "mask"), buckets=buckets)
        made = Handler(config, Carried((), fields, (Field("answer", "float32", (1,)),)), Parts({"rows": program}))
        found.append((answers(made, split), made.work))
    (whole, plain), (cut, bucketed) = found
    assert (whole == cut).all()
    assert sorted(widths) == [4, 16, 16]
    assert (plain.positions, plain.padded) == (80, 80 - 33)
    assert (bucketed.positions, bucketed.padded) == (3 * 4 + 2 * 16, 3 * 4 + 2 * 16 - 33)


@pytest.mark.parametrize(
    ("features", "content"),
    [("request", {"query": [[0.0] * 11], "item": []}), ("store", {"query_id": [0], "item_id": [ITEMS]})],
)
def test_requests_about_what_is_not_there_are_refused(features: Any, content: Any, tmp_path: Path):
    made = handler(kept(service("cross"), tmp_path), features=features)
    arrays = {
        item.name: np.array(content[item.name], item.dtype).reshape(-1, *item.shape) for item in made.carried.request
    }
    request = codec("json", made.carried.request).encode(arrays)
    with pytest.raises(BadPayload):
        made.decode(request)


@pytest.mark.parametrize(
    ("kind", "steps", "why"),
    [
        ("cross", [("inputs.precompute", {})], "two towers"),
        ("towers", [("serve.ann", {})], "an index is of embeddings"),
        ("towers", [("inputs.precompute", {}), ("serve.ann", {"lists": 5000})], "do not fit"),
        ("towers", [("inputs.precompute", {}), ("serve.cache", {})], "nothing left to keep"),
        ("cross", [("serve.bucket", {})], "no sequences"),
    ],
)
def test_steps_say_where_they_are_of_no_use(kind: str, steps: Any, why: str):
    made = service(kind, *steps[:-1])
    name, params = steps[-1]
    with pytest.raises(NotApplicable, match=why):
        apply(name, made, CONTEXT, **params)


def test_evidence_is_of_the_final_service(tmp_path: Path):
    artifact = kept(service("towers", ("inputs.precompute", {}), ("inputs.payload", {"format": "arrow"})), tmp_path)
    found: list[Evidence] = [
        evidence("serve.plain", artifact),
        evidence("inputs.precompute", artifact),
        evidence("inputs.payload", artifact, format="arrow"),
    ]
    assert all(item.effective for item in found)
    assert found[1].facts == {"items": ITEMS, "bytes": ITEMS * 8 * 4}
    assert artifact.programs == ["query"]
    undone = evidence("inputs.payload", artifact, format="raw")
    assert not undone.effective
    assert "a later step made it arrow" in undone.reason
    assert not evidence("serve.batch", artifact).effective
    assert len(artifact.tables()["query"]) == USERS
