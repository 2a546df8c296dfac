"""What tests of services leave behind: rounds A B B A, looks for the highest rate, and what they say. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from leanmark import stats
from leanmark.processes import Death
from leanmark.results import Timing
from leanmark.traffic import Point, Scenario, Served, Spread, TierUse, Traffic

# Where the generator itself computes for so much of its time, what it measures may be its own.
SATURATED = 0.9
# A search ends when the highest rate that holds and the lowest that does not are so close.
CLOSE = 1.05
PROBES = 6
PROBE_SECONDS = 5.0
_STEP = 1.6


@dataclass(frozen=True)
class Test:
    """One of LoadGen's tests, of one side: what its log says in seconds, and what the service counted meanwhile.

    valid: LoadGen's own result. busy: share of its time that the generator computed; service_busy: the service.
    work: what the handler counted. tiers: of each cache.
    """

    side: str
    rate: float
    valid: bool
    reason: str
    queries: int
    seconds: float
    completed_rate: float
    mean: float
    minimum: float
    p50: float
    p90: float
    p95: float
    p99: float
    busy: float
    service_busy: float
    requests: int
    rejected: int
    failed: int
    late: int
    lost: int
    failure: str
    bytes_in: int
    bytes_out: int
    waited: tuple[float, float] | None
    computed: tuple[float, float] | None
    decoded_seconds: float
    batches: Mapping[str, int]
    work: Mapping[str, int]
    tiers: Mapping[str, Mapping[str, float]]
    instances_used: int = 1
    neighbours_busy: float = 0.0

    def figure(self, traffic: Traffic) -> float:
        """Seconds by which sides are compared."""
        if traffic.scenario is Scenario.OFFLINE:
            return 1 / max(self.completed_rate, 1e-9)
        return self.p90 if traffic.scenario is Scenario.SINGLE_STREAM else self.p99

    @property
    def problem(self) -> str:
        """Why it does not count; empty if it does."""
        if self.lost:
            return f"{self.lost} requests were lost when the service ended"
        if self.failed:
            return f"{self.failed} of {self.queries} requests failed, the first with {self.failure}"
        if self.rejected or self.late:
            return f"{self.rejected + self.late} of {self.queries} requests were turned away: it is overloaded"
        if self.busy > SATURATED:
            return f"the generator itself was busy for {self.busy:.0%} of its time"
        return "" if self.valid else f"LoadGen calls it invalid: {self.reason}"


@dataclass(frozen=True)
class Round:
    """Every side's two tests, in the order in which they ran."""

    tests: tuple[Test, ...]
    deaths: Mapping[str, Death] = field(default_factory=dict[str, Death])


@dataclass(frozen=True)
class Check:
    """A side's answers beside the plain service's: different requests, those that are wrong, the largest difference.

    changed: answers to a request that were not those that it was given the first time.
    """

    compared: int
    wrong: int
    moved: float
    changed: int


@dataclass(frozen=True)
class BlockServed:
    """All that was measured of one workload's services under one traffic."""

    rounds: tuple[Round, ...] = ()
    probes: Mapping[str, tuple[Test, ...]] = field(default_factory=dict[str, "tuple[Test, ...]"])
    checks: Mapping[str, Check] = field(default_factory=dict[str, Check])

    def tests(self, side: str) -> list[Test]:
        """Of the rounds, in order."""
        return [test for item in self.rounds for test in item.tests if test.side == side]

    def death(self, side: str) -> Death | None:
        return next((item.deaths[side] for item in self.rounds if side in item.deaths), None)

    def problem(self, side: str) -> str:
        """Why its tests do not count; empty if they do."""
        tests = self.tests(side)
        bad = [test.problem for test in tests if test.problem]
        return f"{len(bad)} of {len(tests)} tests do not count: {bad[0]}" if bad else ""


def compare(block: BlockServed, side: str, reference: str, traffic: Traffic) -> stats.LogRatio:
    """The log ratio of a side's figure over another's; a round is the unit. Raises ValueError with too few rounds."""
    logs = [
        own - other
        for item in block.rounds
        if (own := _log_figure(item, side, traffic)) is not None
        and (other := _log_figure(item, reference, traffic)) is not None
    ]
    return stats.log_ratio_of_rounds(logs)


def _log_figure(item: Round, side: str, traffic: Traffic) -> float | None:
    """The mean of a side's log figures in a round; None where a test does not count."""
    tests = [test for test in item.tests if test.side == side]
    if len(tests) < 2 or any(test.problem for test in tests):
        return None
    return sum(math.log(test.figure(traffic)) for test in tests) / len(tests)


def timing(block: BlockServed, side: str, traffic: Traffic) -> Timing | None:
    """Latency of one side alone, as LoadGen sees it; None without any test that counts.

    Offline, where all requests are there at once, how long one waits says nothing: each takes its share of the test.
    """
    tests = [test for test in block.tests(side) if not test.problem]
    if not tests:
        return None

    def middle(name: str) -> float:
        found = [test.figure(traffic) if offline else getattr(test, name) for test in tests]
        return math.exp(sum(math.log(max(seconds, 1e-9)) for seconds in found) / len(found))

    offline = traffic.scenario is Scenario.OFFLINE
    return Timing(
        calls=sum(test.queries for test in tests),
        launches=len(block.rounds),
        minimum=min(test.figure(traffic) if offline else test.minimum for test in tests),
        median=middle("p50"),
        p90=middle("p90"),
        p95=middle("p95"),
        p99=middle("p99"),
        calls_per_second=sum(test.completed_rate for test in tests) / len(tests),
        cpu_per_wall=sum(test.service_busy for test in tests) / len(tests),
        disturbed_turns=0.0,
    )


def served(block: BlockServed, side: str, traffic: Traffic, instances: int, longest: int) -> Served | None:
    """What a side did, over all its tests; None without any. longest: positions of a sequence, 0 where it has none."""
    tests = block.tests(side)
    if not tests:
        return None
    requests = max(1, sum(test.requests for test in tests))
    work = {name: sum(test.work.get(name, 0) for test in tests) for name in tests[0].work}
    batches: dict[str, int] = {}
    for test in tests:
        for rows, number in test.batches.items():
            batches[rows] = batches.get(rows, 0) + number
    check = block.checks.get(side, Check(0, 0, 0.0, 0))
    highest = bracket(block.probes.get(side, ()), traffic)
    facts = {
        "calls": work["calls"] / requests,
        "lookups": work["lookups"] / requests,
        "searched": traffic.candidates is None,
        "positions_a_row": work["positions"] / max(1, work["rows"]),
        "longest": longest,
        "decode_seconds": sum(test.decoded_seconds for test in tests) / requests,
        "instances": instances,
        "instances_used": max(test.instances_used for test in tests),
        "neighbours_busy": sum(test.neighbours_busy for test in tests) / len(tests),
        "changed_answers": check.changed,
    }
    return Served(
        figure=traffic.figure,
        seconds=math.exp(sum(math.log(max(test.figure(traffic), 1e-9)) for test in tests) / len(tests)),
        tests=len(tests),
        queries=sum(test.requests for test in tests),
        rejected=sum(test.rejected for test in tests),
        failed=sum(test.failed for test in tests),
        late=sum(test.late for test in tests),
        bytes_in=sum(test.bytes_in for test in tests) / requests,
        bytes_out=sum(test.bytes_out for test in tests) / requests,
        waiting=_spread([test.waited for test in tests]),
        computing=_spread([test.computed for test in tests]),
        batches=dict(sorted(batches.items(), key=lambda item: int(item[0]))),
        computed=work["rows"] / requests,
        padding=work["padded"] / max(1, work["positions"]),
        tiers=_tiers(tests),
        curve=tuple(_curve([*tests, *block.probes.get(side, ())], traffic)),
        highest=highest,
        cost_per_million=_cost(highest, tests, traffic, instances),
        compared=check.compared,
        wrong=check.wrong,
        moved=check.moved,
        generator_busy=max(test.busy for test in tests),
        facts=facts,
    )


def _spread(found: Sequence[tuple[float, float] | None]) -> Spread | None:
    known = [item for item in found if item is not None]
    if not known:
        return None
    return Spread(sum(item[0] for item in known) / len(known), sum(item[1] for item in known) / len(known))


def _tiers(tests: Sequence[Test]) -> dict[str, TierUse]:
    names = dict.fromkeys(name for test in tests for name in test.tiers)
    found: dict[str, TierUse] = {}
    for name in names:
        counts = [test.tiers[name] for test in tests if name in test.tiers]
        hits = sum(item["hits"] for item in counts)
        found[name] = TierUse(
            asked=int(sum(item["asked"] for item in counts)),
            hits=int(hits),
            evicted=int(sum(item["evicted"] for item in counts)),
            failed=int(sum(item["failed"] for item in counts)),
            mean_age_seconds=sum(item["age_seconds"] for item in counts) / max(1.0, hits),
            oldest_seconds=max(item["oldest_seconds"] for item in counts),
        )
    return found


def _curve(tests: Sequence[Test], traffic: Traffic) -> Iterator[Point]:
    """One point a rate; of several tests at one rate, their middle."""
    by_rate: dict[float, list[Test]] = {}
    for test in tests:
        by_rate.setdefault(test.rate, []).append(test)
    for rate in sorted(by_rate):
        same = by_rate[rate]
        count = len(same)
        yield Point(
            rate,
            sum(test.completed_rate for test in same) / count,
            sum(test.p50 for test in same) / count,
            sum(test.p90 for test in same) / count,
            sum(test.p99 for test in same) / count,
            all(holds(test, traffic) for test in same),
        )


def _cost(
    highest: tuple[float, float | None] | None, tests: Sequence[Test], traffic: Traffic, instances: int
) -> float | None:
    """Of a million requests at the highest rate that held the limit; without a search, at the one there was."""
    if not traffic.price:
        return None
    rate = highest[0] if highest is not None else sum(test.completed_rate for test in tests) / len(tests)
    return traffic.price * instances / 3600 / rate * 1e6 if rate else None


# --- the highest rate ---------------------------------------------------------------


def holds(test: Test, traffic: Traffic) -> bool:
    """Whether a test counts, and its percentile is within the limit."""
    return not test.problem and test.p99 <= traffic.limit_seconds


def bracket(probes: Sequence[Test], traffic: Traffic) -> tuple[float, float | None] | None:
    """The highest rate that held the limit, 0 if none did, and the lowest above it that did not. None unprobed."""
    if not probes:
        return None
    failed = [test.rate for test in probes if not holds(test, traffic)]
    held = [test.rate for test in probes if holds(test, traffic) and test.rate < min(failed, default=math.inf)]
    return max(held, default=0.0), min(failed, default=None)


def next_rate(probes: Sequence[Test], traffic: Traffic, first: float) -> float | None:
    """At which rate to probe next, in requests a second; None where nothing more is to be found.

    Steps by a factor until one holds and one does not, then halves what is between them, in log space.
    """
    if len(probes) >= PROBES:
        return None
    found = bracket(probes, traffic)
    if found is None:
        return first
    low, high = found
    if high is None:
        return low * _STEP
    if not low:
        return high / _STEP
    return math.sqrt(low * high) if high / low > CLOSE else None


def first_rate(tests: Sequence[Test]) -> float:
    """Where to begin: what the service could answer if its time were all that it takes."""
    rate = sum(test.completed_rate for test in tests) / len(tests)
    busy = sum(test.service_busy for test in tests) / len(tests)
    return 0.8 * rate / min(1.0, max(busy, 0.02))
