"""A service that ends, is overloaded, loses its cache or lies: its row says so, and the others go on."""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from leanmark.measure.redis_server import PROGRAM
from leanmark.measure.services import Bench
from leanmark.measure.sides import Side
from leanmark.processes import kill_all
from leanmark.results import Target
from leanmark.serving.process import __name__ as PROCESS  # noqa: N812
from leanmark.stages import Service
from leanmark.traffic import Scenario, Traffic
from leanmark.workloads import split_store
from serving.small import examples, kept, service

CPUS = sorted(os.sched_getaffinity(0))
QUIET = Traffic("quiet", rate=400.0, candidates=(1, 9), zipf=1.0, requests=200, seconds=1.0, limit_seconds=5.0)


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    kill_all()


def sides(folder: Path, traffic: Traffic, **made: Service) -> list[Side]:
    split_store.store({"test": examples()}, folder / "splits")
    target = Target(traffic=traffic)
    return [Side(name, kept(item, folder / name).root, target, folder / "splits") for name, item in made.items()]


def tell(_share: float, _text: str) -> None: ...


def later(seconds: float, what: Any) -> threading.Thread:
    def run() -> None:
        time.sleep(seconds)
        what()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def children(word: str) -> Sequence[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if any(word in part for part in process.cmdline())]


def test_a_service_that_is_killed_is_left_out_and_the_others_go_on(tmp_path: Path):
    with Bench(sides(tmp_path, QUIET, plain=service("cross"), dying=service("cross")), CPUS) as bench:
        assert bench.alive == ["plain", "dying"]
        pid = bench.running["dying"].instances[0].pid
        killing = later(0.5, psutil.Process(pid).kill)
        began = time.monotonic()
        played = bench.round(0, tell)
        killing.join()
        assert time.monotonic() - began < 60
        assert bench.alive == ["plain"]
        assert "SIGKILL" in played.deaths["dying"].reason
        assert [test.side for test in played.tests] == ["plain", "plain"]
        assert [test.problem for test in bench.round(1, tell).tests] == ["", ""]
    assert not children(PROCESS)


def test_overload_ends_in_time_and_is_told(tmp_path: Path):
    busy = Traffic("busy", rate=40_000.0, candidates=(60, 60), requests=64, seconds=1.0, limit_seconds=0.01)
    with Bench(sides(tmp_path, busy, plain=service("cross")), CPUS) as bench:
        began = time.monotonic()
        test = bench.test("plain", busy.rate, 0)
        assert time.monotonic() - began < 60
    assert test.rejected > 0
    assert "turned away: it is overloaded" in test.problem
    assert test.requests == test.queries


def test_a_shared_cache_that_is_killed_is_done_without(tmp_path: Path):
    if shutil.which(PROGRAM) is None:
        if os.environ.get("LEANMARK_REQUIRE_REDIS"):
            pytest.fail(f"no {PROGRAM} is installed")
        pytest.skip(f"no {PROGRAM} is installed")
    cached = service("cross", ("serve.cache", {"tier": "both", "entries": 20}))
    with Bench(sides(tmp_path, QUIET, plain=service("cross"), cached=cached), CPUS) as bench:
        before = bench.test("cached", QUIET.rate, 0)
        assert before.tiers["shared"]["hits"] > 0
        (server,) = [process for process in children(PROGRAM) if process.name() == PROGRAM]
        killing = later(0.3, server.kill)
        during = bench.test("cached", QUIET.rate, 1)
        killing.join()
        after = bench.test("cached", QUIET.rate, 2)
        bench.test("plain", QUIET.rate, 2)
        found = bench.checks("plain", {"cached": 1e-4})
    assert (during.problem, after.problem) == ("", "")
    assert during.tiers["shared"]["failed"] > 0
    assert after.tiers["shared"]["hits"] == 0
    assert found["cached"].compared > 100
    assert (found["cached"].wrong, found["cached"].changed) == (0, 0)
    assert not children(PROGRAM)


def test_answers_that_are_wrong_under_traffic_are_found(tmp_path: Path):
    other = service("cross")
    table = other.tables["item"].copy()
    table[3] += 1.0  # as if a cache gave one item for another
    lying = Service(other.programs, {**other.tables, "item": table}, other.config)
    stored = Traffic("stored", Scenario.SINGLE_STREAM, candidates=(1, 9), requests=200, seconds=0.5, features="store")
    with Bench(sides(tmp_path, stored, plain=service("cross"), lying=lying), CPUS) as bench:
        bench.round(0, tell)
        found = bench.checks("plain", {"lying": 1e-4})
    assert 0 < found["lying"].wrong < found["lying"].compared
    assert found["plain"].wrong == 0


def test_a_cache_that_lies_later_on_is_found(tmp_path: Path):
    import redis

    caching = ("serve.cache", {"what": "features", "tier": "shared"})
    stored = Traffic("stored", Scenario.SINGLE_STREAM, candidates=(1, 9), requests=200, seconds=0.5, features="store")
    with Bench(sides(tmp_path, stored, plain=service("cross"), cached=service("cross", caching)), CPUS) as bench:
        bench.round(0, tell)
        right = bench.checks("plain", {"cached": 1e-4})
        client = redis.Redis.from_url(bench.running["cached"].redis_url)
        one = client.get(next(client.scan_iter("leanmark:*:item:1")))
        for key in client.scan_iter("leanmark:*:item:*"):  # every item's features are those of one
            client.set(key, one)
        bench.round(1, tell)
        found = bench.checks("plain", {"cached": 1e-4})
    assert right["cached"].compared > 100
    assert right["cached"].wrong == 0
    assert 0 < found["cached"].wrong < found["cached"].compared


def test_offline_tests_are_valid_however_fast_a_service_is(tmp_path: Path):
    everything = Traffic("all", Scenario.OFFLINE, candidates=None, top=5, requests=64, seconds=0.3)
    towers = service("towers", ("inputs.precompute", {}), ("serve.batch", {"rows": 64, "wait_ms": 1}))
    with Bench(sides(tmp_path, everything, plain=service("cross"), fast=towers), CPUS) as bench:
        played = bench.round(0, tell)
    assert [test.problem for test in played.tests] == [""] * 4
