"""Traffic that a service gets, declared in a suite and the same for both sides of a duel; and what came of it.

What is asked for is skewed as Zipf says: the k-th most wanted entry is asked for in proportion to 1 / k^s (Zipf 1949;
of web requests s is 0.64 to 0.83, Breslau et al. 1999).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from leanmark.arrays import Array
from leanmark.arrays import numpy as np

# What LoadGen's early stopping needs for a percentile (Reddi et al. 2020; seen with its version 6).
QUERIES = {0.90: 64, 0.99: 662}


class Scenario(StrEnum):
    """How requests arrive: one when the last is answered; at random with a rate; or all at once."""

    SINGLE_STREAM = "single-stream"
    SERVER = "server"
    OFFLINE = "offline"


@dataclass(frozen=True)
class Traffic:
    """Requests, and the network and the features that they find.

    rate: requests a second of `server`. candidates: the fewest and the most of a request, each number as likely; None
    for the whole catalogue, of which the `top` first are wanted. Of what ranks nothing, examples. zipf: the exponent of
    how often entries are asked for; 0 for all alike. users: how many different queries there are; 0 for all. catalogue:
    how many items there are, those of the workload again and again with noise; 0 for the workload's own. requests: how
    many different ones. seconds: how long a test lasts at least. limit_seconds: what a percentile must hold. search:
    whether the highest such rate is looked for. warm: whether what a test would cache is cached before it. features:
    whether they come with a request, or from a store by their id, of which each reading takes store_seconds longer than
    this machine's own disk. examples: the split that is asked about where nothing
    is ranked. bytes_a_second and rtt_seconds: the network in front of the service; None and 0 for none. price: what an
    instance costs an hour, in any currency; 0 for unknown.
    """

    name: str
    scenario: Scenario = Scenario.SERVER
    rate: float = 100.0
    candidates: tuple[int, int] | None = (1, 1)
    top: int = 20
    zipf: float = 0.0
    users: int = 0
    catalogue: int = 0
    requests: int = 4096
    seconds: float = 3.0
    limit_seconds: float = 0.1
    search: bool = False
    warm: bool = True
    features: Literal["request", "store"] = "request"
    store_seconds: float = 0.0
    examples: Literal["test", "validation", "calibration"] = "test"
    bytes_a_second: float | None = None
    rtt_seconds: float = 0.0
    price: float = 0.0
    seed: int = 0

    @staticmethod
    def read(message: Mapping[str, Any]) -> Traffic:
        """Traffic that was sent to another process as JSON."""
        candidates = message["candidates"]
        found: dict[str, Any] = {
            **message,
            "scenario": Scenario(message["scenario"]),
            "candidates": None if candidates is None else tuple(candidates),
        }
        return Traffic(**found)

    @property
    def percentile(self) -> float:
        """The one that LoadGen judges this scenario by."""
        return 0.90 if self.scenario is Scenario.SINGLE_STREAM else 0.99

    @property
    def queries(self) -> int:
        """How many a test needs at least."""
        return 1 if self.scenario is Scenario.OFFLINE else QUERIES[self.percentile]

    @property
    def figure(self) -> str:
        """What sides are compared by."""
        names = {Scenario.SINGLE_STREAM: "p90 latency", Scenario.SERVER: "p99 latency"}
        return names.get(self.scenario, "seconds a request")


@dataclass(frozen=True)
class Trace:
    """Requests by number: who asks, int64 (requests,), and of which entries, int64, one after the other.

    ends: where each request's candidates end; None where each is about the whole catalogue.
    """

    query: Array
    items: Array
    ends: Array | None

    def __len__(self) -> int:
        return len(self.query)

    def candidates(self, number: int) -> Array:
        """The entries that a request asks about."""
        assert self.ends is not None
        return self.items[0 if number == 0 else self.ends[number - 1] : self.ends[number]]


def draw_trace(traffic: Traffic, queries: int, entries: int) -> Trace:
    """Requests as declared, of so many queries and entries.

    Which entries are wanted most is drawn too, so that it does not go with how they are numbered.
    """
    draw = np.random.default_rng([traffic.seed, queries, entries])
    wanted = min(traffic.users or queries, queries)
    who = draw.integers(wanted, size=traffic.requests) if queries else np.zeros(traffic.requests, np.int64)
    if traffic.candidates is None:
        return Trace(who, np.empty(0, np.int64), None)
    least, most = traffic.candidates
    counts = draw.integers(least, most + 1, size=traffic.requests)
    order = draw.permutation(entries)
    ends = np.cumsum(counts)
    below = np.cumsum(zipf(entries, traffic.zipf))
    items = order[np.searchsorted(below, draw.random(int(ends[-1])) * below[-1], "right").clip(max=entries - 1)]
    return Trace(who, items, ends)


def zipf(entries: int, exponent: float) -> Array:
    """The chance of each entry by its rank, shape (entries,), adding up to 1."""
    weights = np.arange(1, entries + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


# --- what came of it --------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Seconds of some requests."""

    median: float
    p99: float


@dataclass(frozen=True)
class TierUse:
    """What a cache's tier was asked, of all tests together. failed: how often a shared tier did not answer."""

    asked: int
    hits: int
    evicted: int
    failed: int
    mean_age_seconds: float
    oldest_seconds: float

    @property
    def hit_rate(self) -> float:
        return self.hits / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Point:
    """One test at a rate, in requests a second: what LoadGen measured; whether that is valid and holds the limit."""

    rate: float
    completed: float
    p50: float
    p90: float
    p99: float | None
    holds: bool


@dataclass(frozen=True)
class Served:
    """What a service did under its traffic, over all tests of a run.

    figure: what it is compared by, and seconds of it. bytes_in and bytes_out: on the wire, of a request.
    waiting: from a request's arrival to its batch; computing: of its batch. batches: by rows. computed: rows that a
    program was called for, a request. padding: share of rows or positions that were computed for nothing. highest: the
    highest rate that held the limit and the lowest that did not, in requests a second. compared: different requests
    whose answers were compared with the plain service's; wrong: those that differ beyond what the steps declare; moved:
    the largest difference, relative. facts: what else is known.
    """

    figure: str
    seconds: float
    tests: int
    queries: int
    rejected: int
    failed: int
    late: int
    bytes_in: float
    bytes_out: float
    waiting: Spread | None
    computing: Spread | None
    batches: Mapping[str, int]
    computed: float
    padding: float
    tiers: Mapping[str, TierUse] = field(default_factory=dict[str, TierUse])
    curve: tuple[Point, ...] = ()
    highest: tuple[float, float | None] | None = None
    cost_per_million: float | None = None
    compared: int = 0
    wrong: int = 0
    moved: float = 0.0
    generator_busy: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
