"""Caches give back what was kept, count what they do, and are done without where their server fails."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from leanmark.measure.redis_server import PROGRAM, started
from leanmark.serving.caches import ANSWER_SECONDS, Instance, Shared, Tiers
from leanmark.serving.config import Policy


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[Popen[bytes], str]]:
    if shutil.which(PROGRAM) is None:
        if os.environ.get("LEANMARK_REQUIRE_REDIS"):
            pytest.fail(f"no {PROGRAM} is installed")
        pytest.skip(f"no {PROGRAM} is installed")
    process, port = started(tmp_path, "3mb")
    yield process, f"redis://127.0.0.1:{port}/0"
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()


def keys(*numbers: int) -> list[bytes]:
    return [str(number).encode() for number in numbers]


class Computing:
    """Doubles; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, missing: list[bytes]) -> list[bytes]:
        self.asked += missing
        return [key * 2 for key in missing]


def test_what_is_kept_is_not_computed_again():
    tier, compute = Instance("lru", 10, None), Computing()
    tiers = Tiers([tier])
    assert tiers.look_up(keys(1, 2, 1, 3), compute) == [b"11", b"22", b"11", b"33"]
    assert compute.asked == keys(1, 2, 3)
    assert tiers.look_up(keys(3, 4), compute) == [b"33", b"44"]
    assert compute.asked == keys(1, 2, 3, 4)
    told = tier.told()
    assert (told["asked"], told["hits"], told["evicted"]) == (5, 1, 0)
    assert tier.told()["asked"] == 0


def test_the_least_recently_or_least_often_used_goes_first():
    kept: dict[str, list[bytes]] = {}
    for policy in ("lru", "lfu"):
        tier = Instance(policy, 2, None)  # pyright: ignore[reportArgumentType]
        tiers = Tiers([tier])
        for number in (1, 1, 1, 2, 2, 3):
            tiers.look_up(keys(number), Computing())
        compute = Computing()
        tiers.look_up(keys(1, 2, 3), compute)
        kept[policy] = compute.asked
        assert tier.counts.evicted >= 1
    assert kept["lru"] == keys(1)
    assert kept["lfu"] == keys(2)


@pytest.mark.parametrize("policy", ["lru", "lfu", "ttl"])
def test_what_is_too_old_is_computed_again(policy: Policy):
    tiers = Tiers([Instance(policy, 10, 0.05)])
    tiers.look_up(keys(1), Computing())
    time.sleep(0.06)
    compute = Computing()
    tiers.look_up(keys(1), compute)
    assert compute.asked == keys(1)


def test_instances_share_what_one_of_them_computed(redis: tuple[Popen[bytes], str]):
    first, second = (Tiers([Instance("lru", 10, None), Shared(redis[1], b"a:", None)]) for _ in range(2))
    first.look_up(keys(1, 2), Computing())
    compute = Computing()
    assert second.look_up(keys(1, 2, 3), compute) == [b"11", b"22", b"33"]
    assert compute.asked == keys(3)
    own, shared = (tier.told() for tier in second.tiers)
    assert (own["asked"], own["hits"]) == (3, 0)
    assert (shared["asked"], shared["hits"]) == (3, 2)
    assert 0 <= shared["oldest_seconds"] < 30
    second.tiers[0].forget()
    second.tiers[1].forget()
    again = Computing()
    second.look_up(keys(1), again)
    assert again.asked == keys(1)


def test_a_server_that_is_killed_is_done_without(redis: tuple[Popen[bytes], str]):
    tiers = Tiers([Shared(redis[1], b"a:", None)])
    tiers.look_up(keys(1), Computing())
    redis[0].kill()
    redis[0].wait()
    compute, began = Computing(), time.monotonic()
    for _ in range(50):
        assert tiers.look_up(keys(1), compute) == [b"11"]
    assert len(compute.asked) == 50
    assert time.monotonic() - began < 5
    assert tiers.tiers[0].told()["failed"] > 0


def test_a_server_that_does_not_answer_costs_little(redis: tuple[Popen[bytes], str]):
    tiers = Tiers([Shared(redis[1], b"a:", None)])
    tiers.look_up(keys(1), Computing())
    redis[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for _ in range(20):
        assert tiers.look_up(keys(1), Computing()) == [b"11"]
    assert time.monotonic() - began < 20 * ANSWER_SECONDS
    redis[0].send_signal(signal.SIGCONT)
    time.sleep(1.1)
    compute = Computing()
    tiers.look_up(keys(1), compute)
    assert not compute.asked


def test_a_server_that_is_full_still_gives_what_it_has(redis: tuple[Popen[bytes], str]):
    import redis as client

    own = client.Redis.from_url(redis[1])
    own.config_set("maxmemory-policy", "noeviction")
    shared = Shared(redis[1], b"a:", None)
    tiers = Tiers([shared])
    tiers.look_up(keys(1), Computing())
    own.config_set("maxmemory", "1mb")
    compute = Computing()
    assert tiers.look_up(keys(2), compute) == [b"22"]
    assert tiers.look_up(keys(1), compute) == [b"11"]
    assert compute.asked == keys(2)
    assert shared.told()["failed"] > 0


def test_a_port_that_is_taken_is_left_alone(redis: tuple[Popen[bytes], str], tmp_path: Path):
    taken = int(redis[1].rpartition(":")[2].partition("/")[0])
    folder = tmp_path / "other"
    folder.mkdir()
    process, port = started(folder, "3mb", ports=[taken])
    try:
        assert port != taken
    finally:
        process.kill()
        process.wait()
