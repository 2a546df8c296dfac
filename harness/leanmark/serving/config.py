"""What a service is made of, as data: what its steps set, and its artifact's manifest holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from leanmark.serving.payloads import Field, Format
from leanmark.traffic import Traffic

Policy = Literal["lru", "lfu", "ttl"]
Place = Literal["instance", "shared", "both"]
What = Literal["features", "embeddings"]
QUERY_ID, ITEM_ID = Field("query_id", "int64"), Field("item_id", "int64")


@dataclass(frozen=True)
class Caching:
    """entries: of the instance's tier. ttl_seconds: after which an entry is no longer served; None for never."""

    tier: Place
    what: What
    policy: Policy
    entries: int
    ttl_seconds: float | None = None
    redis_url: str = ""


@dataclass(frozen=True)
class Batching:
    """rows: how many at most a call takes. wait_seconds: for how long the first request of a batch waits for others.

    static: whether a call always has that many rows, filled up with the last. instances: processes that share the
    traffic. split: rows a call, into which a larger request is divided; 0 for never.
    """

    rows: int = 1
    wait_seconds: float = 0.0
    static: bool = False
    instances: int = 1
    split: int = 0


@dataclass(frozen=True)
class Index:
    """How the items that fit a query best are found. lists and probes: of `ivf`; links and effort: of `hnsw`."""

    kind: Literal["exact", "ivf", "hnsw"]
    lists: int = 0
    probes: int = 0
    links: int = 0
    effort: int = 0


@dataclass(frozen=True)
class ServiceConfig:
    """How requests become answers.

    kind: `rows`, a program that answers row by row; or `towers`, a query and an item program whose answers' product is
    the score. query: fields that a request has once; items: those that it has for each candidate, or the fields of an
    example where nothing is ranked. answer: the shape of what each of these is answered with. entries: items that the
    workload knows; what lies beyond them in the tables are copies with noise. sequence: the fields whose rows may be
    shorter. neighbours: other processes that compute on the same cores.
    """

    kind: Literal["rows", "towers"]
    query: tuple[Field, ...]
    items: tuple[Field, ...]
    entries: int = 0
    answer: tuple[int, ...] = ()
    sequence: tuple[str, ...] = ()
    payload: Format = "json"
    precomputed: bool = False
    index: Index | None = None
    caching: Caching | None = None
    batching: Batching = field(default_factory=Batching)
    buckets: tuple[int, ...] = ()
    neighbours: int = 0

    @property
    def ranks(self) -> bool:
        """Whether a request is a query with candidates."""
        return bool(self.query)

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)

    @staticmethod
    def read(found: Mapping[str, Any]) -> ServiceConfig:
        """From a manifest. Raises TypeError, KeyError or ValueError for what is none."""
        parts: dict[str, Any] = dict(found)
        for name in ("query", "items"):
            parts[name] = tuple(Field(item["name"], item["dtype"], tuple(item["shape"])) for item in parts[name])
        for name in ("answer", "sequence", "buckets"):
            parts[name] = tuple(parts.get(name, ()))
        for name, kind in (("caching", Caching), ("batching", Batching), ("index", Index)):
            if parts.get(name) is not None:
                parts[name] = kind(**parts[name])
        return ServiceConfig(**parts)


@dataclass(frozen=True)
class Carried:
    """What a request brings, and what it is answered with.

    query and items: features, or their ids. answer: what comes back. top: how many of the whole catalogue it wants; 0
    for a score for each candidate that it names.
    """

    query: tuple[Field, ...]
    items: tuple[Field, ...]
    answer: tuple[Field, ...]
    top: int = 0

    @property
    def request(self) -> tuple[Field, ...]:
        return (*self.query, *self.items)


def carried(config: ServiceConfig, traffic: Traffic) -> Carried:
    """What requests of some traffic bring: features, or ids where a store or what was computed before has the rest."""
    stored = traffic.features == "store" and config.ranks
    query = ((QUERY_ID,) if stored else config.query) if config.ranks else ()
    answer = (Field("answer", "float32", config.answer),)
    if config.ranks and traffic.candidates is None:
        return Carried(query, (), (Field("item", "int64"), *answer), traffic.top)
    by_id = config.ranks and (stored or config.precomputed)
    return Carried(query, (ITEM_ID,) if by_id else config.items, answer)
