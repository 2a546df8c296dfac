"""Services under traffic: their processes, the generator in front of them, and rounds A B B A of tests.

All sides of a block are there at once, on the same core, each with a socket of its own; the generator is on another.
What is tested runs alone: the others wait for requests that do not come.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.measure.rounds import PROBE_SECONDS, PROBES, BlockServed, Check, Round, Test, first_rate, next_rate
from leanmark.measure.running import ANSWER_SECONDS, ASK_SECONDS, OPEN_SECONDS, Cores, Running, ask, traffic_of
from leanmark.measure.sides import Side, SideError
from leanmark.processes import Death, Fresh
from leanmark.results import Status, short_id
from leanmark.serving.config import ServiceConfig
from leanmark.stages import Artifact
from leanmark.traffic import Scenario

# A test is given up when it lasts this many times as long as it should, and some seconds.
_PATIENCE = 4.0
# What fills no cache only warms up.
_WARM_SECONDS = 0.5
_OFFLINE_HASTE = 1.3
_REDIS_MEMORY = "256mb"
# Requests that may be under way of an overloaded test: it ends where more are.
_MOST_WAITING = 2000
_LOG = (
    *("completed_rate", "mean", "minimum", "p50", "p90", "p95", "p99"),
    *("queries", "seconds", "busy", "rejected", "failed", "late", "lost"),
)

Tell = Callable[[float, str], None]


class Bench:
    """All services of a block, the generator, and a Redis server if one of them needs it.

    Use as a context manager; leaving it ends all of them.
    """

    def __init__(self, sides: Sequence[Side], cpus: Sequence[int]) -> None:
        self.sides = {side.name: side for side in sides}
        self.traffic = traffic_of(sides[0])
        self.cores = Cores.of(cpus, sides[0].target.threads)
        self.deaths: dict[str, Death] = {}
        self.running: dict[str, Running] = {}
        self._rates: dict[str, float] = {}  # of offline traffic, in requests a second
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="leanmark-services-")))
            self._generator = self._kept(Fresh("leanmark.measure.generator"))
            self._redis = self._redis_url()
            for number, side in enumerate(self.sides.values()):
                own = folder / str(number)
                own.mkdir()
                self._attempt(side.name, lambda side=side, own=own: self._open(side, own))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.running.values():
            running.close()
        self._stack.close()

    def _kept(self, child: Fresh) -> Fresh:
        self._stack.callback(child.kill)
        return child

    def _redis_url(self) -> str | SideError:
        """Of a server that is started where a side needs one and names none."""
        cachings = [
            ServiceConfig.read(Artifact.open(side.artifact).manifest["service"]).caching for side in self.sides.values()
        ]
        if not any(own is not None and own.tier != "instance" and not own.redis_url for own in cachings):
            return ""
        child = self._kept(Fresh("leanmark.measure.redis_server"))
        try:
            told = ask(child, ASK_SECONDS, cpus=list(self.cores.around), memory=_REDIS_MEMORY)
        except SideError as error:
            return error
        return SideError(Death(Status.SKIPPED, told["missing"])) if "missing" in told else str(told["url"])

    def _open(self, side: Side, folder: Path) -> None:
        if _needs_redis(side) and isinstance(self._redis, SideError):
            raise self._redis
        running = Running(side, self.cores, "" if isinstance(self._redis, SideError) else self._redis, folder)
        self.running[side.name] = running
        running.open()
        running.serve()
        ask(
            self._generator,
            OPEN_SECONDS,
            op="open",
            name=side.name,
            artifact=str(side.artifact),
            splits=str(side.splits),
            traffic=asdict(self.traffic),
            sockets=running.sockets,
            cpus=list(self.cores.around),
        )
        warm = self.traffic.warm and running.config.caching is not None
        short = min(_WARM_SECONDS, self.traffic.seconds)
        seconds = OPEN_SECONDS if warm else short
        found = ask(self._generator, OPEN_SECONDS + ASK_SECONDS, op="warm", name=side.name, seconds=seconds)
        if self.traffic.scenario is Scenario.OFFLINE:
            # LoadGen must know about how many it can ask at once for its test to last long enough: a first test tells.
            self._rates[side.name] = found["rate"]
            self._rates[side.name] = _OFFLINE_HASTE * self.test(side.name, 0.0, 0, short).completed_rate

    def _attempt(self, name: str, what: Callable[[], Any]) -> Any:
        """What it gives; None where the side dies of it."""
        try:
            return what()
        except SideError as error:
            self.deaths[name] = error.death
            if name in self.running:
                self.running.pop(name).close()
            return None

    @property
    def alive(self) -> list[str]:
        return [name for name in self.sides if name not in self.deaths]

    def round(self, number: int, tell: Tell) -> Round:
        """Every side that lives twice, there and back again, all with the same arrivals and the same requests."""
        order = [
            self.alive[index] for index in np.random.default_rng([number, len(self.alive)]).permutation(len(self.alive))
        ]
        tests: list[Test] = []
        there_and_back = [*order, *reversed(order)]
        for index, name in enumerate(there_and_back):
            if name in self.deaths:
                continue
            tell(index / len(there_and_back), short_id(name))
            seed = 1000 * number + (index >= len(order))
            test = self._attempt(name, lambda name=name, seed=seed: self.test(name, self.traffic.rate, seed))
            if test is not None:
                tests.append(test)
        return Round(tuple(test for test in tests if test.side not in self.deaths), dict(self.deaths))

    def test(self, name: str, rate: float, seed: int, seconds: float | None = None, *, again: bool = False) -> Test:
        """One test of LoadGen's; again: for the second time. Raises SideError."""
        running, traffic = self.running[name], self.traffic
        if not traffic.warm:
            running.forget()
        running.counts()
        lasting = seconds or traffic.seconds
        if traffic.scenario is Scenario.SERVER:
            lasting = max(lasting, traffic.queries / rate)
        elif traffic.scenario is Scenario.OFFLINE:
            rate = self._rates[name]
        running.begin_neighbours()
        found = ask(
            self._generator,
            _PATIENCE * lasting + ASK_SECONDS,
            op="test",
            name=name,
            scenario=traffic.scenario.value,
            seconds=lasting,
            most_seconds=_PATIENCE * lasting + 10,
            queries=traffic.queries,
            seed=seed + traffic.seed + 1,
            rate=rate,
            limit_seconds=traffic.limit_seconds,
            percentile=traffic.percentile,
            most_waiting=_MOST_WAITING,
        )
        busy = running.end_neighbours()
        test = test_of(name, rate, found, running.counts(), busy)
        if traffic.scenario is Scenario.OFFLINE and not again and test.completed_rate > rate:
            # It was faster than before, so that what LoadGen had drawn was answered too soon.
            self._rates[name] = _OFFLINE_HASTE * test.completed_rate
            return self.test(name, rate, seed, seconds, again=True)
        return test

    def search(
        self, names: Sequence[str], before: Mapping[str, Sequence[Test]], tell: Tell
    ) -> dict[str, tuple[Test, ...]]:
        """The probes for the highest rate of some sides, each one's first, then each one's second, and so on."""
        probes: dict[str, list[Test]] = {name: [] for name in names}
        ended: set[str] = set()
        number = 0
        while len(ended) < len(names):
            for name in names:
                rate = next_rate(probes[name], self.traffic, first_rate(before[name])) if name in self.alive else None
                if name in ended or rate is None:
                    ended.add(name)
                    continue
                tell(min(1.0, number / (PROBES * len(names))), f"{short_id(name)}: {rate:.0f} requests/s")
                number += 1
                seed = 500_000 + len(probes[name])
                test = self._attempt(
                    name, lambda name=name, rate=rate, seed=seed: self.test(name, rate, seed, PROBE_SECONDS)
                )
                if test is not None:
                    probes[name].append(test)
        return {name: tuple(tests) for name, tests in probes.items()}

    def checks(self, reference: str, limits: Mapping[str, float | None]) -> dict[str, Check]:
        """Every side's answers beside the reference's; limits: what a side may move them by, None for any."""
        answers = {
            name: found
            for name in self.alive
            if (found := self._attempt(name, lambda name=name: self._answers(name))) is not None
        }
        if reference not in answers:
            return {}
        return {name: check(found, answers[reference], limits.get(name)) for name, found in answers.items()}

    def _answers(self, name: str) -> dict[str, Any]:
        return ask(self._generator, ANSWER_SECONDS, op="answers", name=name)


def _needs_redis(side: Side) -> bool:
    """Whether it has a shared tier, and names no server for it."""
    caching = ServiceConfig.read(Artifact.open(side.artifact).manifest["service"]).caching
    return caching is not None and caching.tier != "instance" and not caching.redis_url


def test_of(name: str, rate: float, found: Mapping[str, Any], counts: Sequence[Mapping[str, Any]], busy: float) -> Test:
    """What LoadGen and the instances of a service say of a test."""
    seconds = float(found["seconds"])
    batches: dict[str, int] = {}
    tiers: dict[str, dict[str, float]] = {}
    for item in counts:
        for rows, number in item["batches"].items():
            batches[rows] = batches.get(rows, 0) + number
        for tier, values in item["tiers"].items():
            before = tiers.get(tier, {})
            joined = {key: before.get(key, 0.0) + value for key, value in values.items()}
            joined["oldest_seconds"] = max(before.get("oldest_seconds", 0.0), values["oldest_seconds"])
            tiers[tier] = joined
    used = [item for item in counts if item["requests"]]
    work = {key: sum(item["work"][key] for item in counts) for key in counts[0]["work"]}
    log = {key: found[key] for key in _LOG if key in found}
    log.setdefault("completed_rate", float(found.get("queries", 0)) / seconds)  # which single stream does not tell
    log |= {key: float(found.get(f"{key}_ns", 0.0)) * 1e-9 for key in ("mean", "minimum", "p50", "p90", "p95", "p99")}
    return Test(
        side=name,
        rate=rate,
        valid=found.get("validity") == "VALID",
        reason=str(found.get("reason", "it wrote no result"))[:300],
        service_busy=sum(item["busy"] for item in counts) / seconds,
        requests=sum(item["requests"] for item in counts),
        failure=next((item["reason"] for item in counts if item["reason"]), ""),
        bytes_in=sum(item["bytes_in"] for item in counts),
        bytes_out=sum(item["bytes_out"] for item in counts),
        waited=_middle([item["waited"] for item in used]),
        computed=_middle([item["computed"] for item in used]),
        decoded_seconds=sum(item["decoded_seconds"] for item in counts),
        batches=batches,
        work=work,
        tiers=tiers,
        instances_used=len(used),
        neighbours_busy=busy / seconds,
        **{key: log.get(key, 0) for key in _LOG},
    )


def _middle(found: Sequence[Sequence[float] | None]) -> tuple[float, float] | None:
    known = [item for item in found if item is not None]
    return (float(np.mean([item[0] for item in known])), max(item[1] for item in known)) if known else None


def check(own: Mapping[str, Any], reference: Mapping[str, Any], limit: float | None) -> Check:
    """Answers to the same requests beside each other; wrong is what moved beyond `limit`, relative to the largest.

    A request may have been answered differently from time to time: what counts is the worst, beside the reference's
    first answer.
    """
    mine, theirs = _by_request(own), _by_request(reference)
    both = mine.keys() & theirs.keys()
    if not both:
        return Check(0, 0, 0.0, int(own["changed"]))
    scale = max(1.0, *(float(np.abs(theirs[index][0].scores).max(initial=0.0)) for index in both))
    moved = np.array([max(_moved(answer, theirs[index][0]) for answer in mine[index]) for index in both]) / scale
    wrong = 0 if limit is None else int((moved > limit).sum())
    return Check(len(both), wrong, float(min(moved.max(), 1e30)), int(own["changed"]))


class _Answer(NamedTuple):
    """Scores, and which items they are of where the service chose them."""

    scores: Array
    items: Array | None


def _by_request(found: Mapping[str, Any]) -> dict[int, list[_Answer]]:
    """The answers to each request, the first one first."""
    ends = np.cumsum(found["rows"])[:-1]
    scores = np.split(np.asarray(found["of_answer"], np.float64), ends)
    items: list[Array | None] = [None] * len(scores)
    if "of_item" in found:
        items = list(np.split(found["of_item"], ends))
    answers: dict[int, list[_Answer]] = {}
    for index, own, chosen in zip(found["indices"], scores, items, strict=True):
        answers.setdefault(int(index), []).append(_Answer(own, chosen))
    return answers


def _moved(own: _Answer, reference: _Answer) -> float:
    """By how much scores differ; an item that only one of them chose differs by what it is better than the worst."""
    if own.scores.shape != reference.scores.shape or not np.isfinite(own.scores).all():
        return math.inf
    if own.items is None or reference.items is None or not len(own.items):
        return float(np.abs(own.scores - reference.scores).max(initial=0.0))
    mine = dict(zip(own.items.tolist(), own.scores.tolist(), strict=True))
    theirs = dict(zip(reference.items.tolist(), reference.scores.tolist(), strict=True))
    worst, best = min(theirs.values()), min(mine.values())
    return max(
        *(abs(score - theirs.get(item, worst)) for item, score in mine.items()),
        *(abs(score - mine.get(item, best)) for item, score in theirs.items()),
    )


def play(
    sides: Sequence[Side],
    rounds: int,
    cpus: Sequence[int],
    limits: Mapping[str, float | None],
    before: BlockServed,
    keep: Callable[[str, Any], None],
    tell: Tell,
) -> BlockServed:
    """Rounds, probes and checks of some services; the first is the reference. What `before` has is not done again.

    keep: told of each piece as it is done, under `round`, `probes` or `checks`.
    """
    traffic = traffic_of(sides[0])
    if len(before.rounds) >= rounds and before.checks and (before.probes or not traffic.search):
        return before
    done = list(before.rounds)
    share = 0.5 if traffic.search else 1.0
    with Bench(sides, cpus) as bench:
        reference = sides[0].name
        while len(done) < rounds and reference in bench.alive:
            first = share * len(done) / rounds
            played = bench.round(
                len(done),
                lambda part, text, first=first: tell(first + share * part / rounds, f"{text}, round {len(done) + 1}"),
            )
            done.append(played)
            keep("round", played)
        found = BlockServed(tuple(done), before.probes, before.checks)
        if traffic.search and not found.probes and reference in bench.alive:
            able = {name: tests for name in bench.alive if (tests := found.tests(name))}
            probes = bench.search(list(able), able, lambda part, text: tell(share + share * part, text))
            keep("probes", probes)
            found = BlockServed(found.rounds, probes, found.checks)
        checks = bench.checks(reference, limits)
        keep("checks", checks)
        deaths = dict(bench.deaths)
    if deaths:
        played = Round((), deaths)
        keep("round", played)
        return BlockServed((*found.rounds, played), found.probes, checks)
    return BlockServed(found.rounds, found.probes, checks)
