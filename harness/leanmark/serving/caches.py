"""Caches of a service: in the instance, shared between instances, or both, one before the other.

A cache holds rows of arrays by the bytes of their key, and the time when each was computed, so that the age of what is
served can be told. The shared tier is a Redis server; where it is gone or slow, the service goes on without it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from leanmark.serving.config import Policy

_STAMP = struct.Struct("<d")
# A shared tier that does not answer within this is left out for a while: waiting for it would cost more than it saves.
ANSWER_SECONDS = 0.05
_LONGEST_SECONDS = 3600.0  # so that nothing is left for ever in a server of somebody's
REST_SECONDS = 1.0


@dataclass(frozen=True)
class Kept:
    """What a cache has of a key: bytes, and when they were computed, in seconds of the system's clock."""

    content: bytes
    computed: float


@dataclass
class Counts:
    """What a tier was asked since it was last told, and what became of it."""

    asked: int = 0
    hits: int = 0
    evicted: int = 0
    failed: int = 0  # requests to a shared tier that it did not answer
    age_seconds: float = 0.0  # of all hits together
    oldest_seconds: float = 0.0


class Tier(Protocol):
    """One cache."""

    name: str
    counts: Counts

    def get(self, keys: Sequence[bytes]) -> list[Kept | None]:
        """What is kept of each key, in order."""
        ...

    def forget(self) -> None:
        """Begin anew, empty."""
        ...

    def told(self) -> dict[str, float]:
        """Its counts, which begin anew."""
        ...

    def put(self, found: Mapping[bytes, Kept]) -> None:
        """Keep these."""
        ...


class _Counted:
    """What both tiers count."""

    def __init__(self) -> None:
        self.counts = Counts()

    def told(self) -> dict[str, float]:
        found, self.counts = self.counts, Counts()
        return asdict(found)


class Instance(_Counted):
    """A cache in the memory of the service's own process."""

    name = "instance"

    def __init__(self, policy: Policy, entries: int, ttl_seconds: float | None) -> None:
        import cachetools

        super().__init__()

        def counting(kind: type[Any]) -> type[Any]:
            tier = self

            class Counting(kind):
                def popitem(self) -> tuple[Any, Any]:
                    tier.counts.evicted += 1
                    return super().popitem()

            return Counting

        self._kept: Any
        self._longest = ttl_seconds or _LONGEST_SECONDS
        if policy == "ttl":
            self._kept = counting(cachetools.TTLCache)(entries, self._longest, timer=time.monotonic)
        else:
            self._kept = counting(cachetools.LRUCache if policy == "lru" else cachetools.LFUCache)(entries)

    def get(self, keys: Sequence[bytes]) -> list[Kept | None]:
        now = time.time()
        found = [self._kept.get(key) for key in keys]
        # What came from another tier was computed before it was put here.
        young = [None if kept is None or now - kept.computed > self._longest else kept for kept in found]
        return _count(self.counts, young)

    def put(self, found: Mapping[bytes, Kept]) -> None:
        self._kept.update(found)

    def forget(self) -> None:
        evicted = self.counts.evicted
        self._kept.clear()
        self.counts.evicted = evicted  # forgetting is no eviction


class Shared(_Counted):
    """A cache in a Redis server, which instances share; it outlives them."""

    name = "shared"

    def __init__(self, url: str, prefix: bytes, ttl_seconds: float | None) -> None:
        """prefix: of its keys; what others keep in the same server is left alone."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        super().__init__()
        self._own, self._errors, self._refusal = prefix, (redis.RedisError, OSError), redis.ResponseError
        self._milliseconds = max(1, round((ttl_seconds or _LONGEST_SECONDS) * 1000))
        self._generation = self._evicted = 0
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._rests_until = 0.0

    @property
    def _prefix(self) -> bytes:
        return self._own + b"%d:" % self._generation

    def forget(self) -> None:
        self._generation += 1  # what was kept under the last one goes with its time to live

    def told(self) -> dict[str, float]:
        """Its counts; what the server has evicted is of anybody who uses it."""
        before, failed = self._evicted, self.counts.failed
        self._evicted = int((self._ask(lambda: self._client.info("stats")) or {}).get("evicted_keys", before))
        self.counts.evicted, self.counts.failed = max(0, self._evicted - before), failed
        return super().told()

    def get(self, keys: Sequence[bytes]) -> list[Kept | None]:
        raw = self._ask(lambda: self._client.mget([self._prefix + key for key in keys])) if keys else []
        return _count(self.counts, [None] * len(keys) if raw is None else [_unpacked(value) for value in raw])

    def put(self, found: Mapping[bytes, Kept]) -> None:
        def write() -> Any:
            pipe = self._client.pipeline(transaction=False)
            for key, kept in found.items():
                pipe.set(self._prefix + key, _STAMP.pack(kept.computed) + kept.content, px=self._milliseconds)
            return pipe.execute()

        if found:
            self._ask(write)

    def _ask(self, what: Any) -> Any:
        """What the server answers; None where it does not."""
        if time.monotonic() < self._rests_until:
            self.counts.failed += 1
            return None
        try:
            return what()
        except self._errors as error:
            self.counts.failed += 1
            if isinstance(error, self._refusal):  # it is there, but full, say: what it has can still be read
                return None
            self._rests_until = time.monotonic() + REST_SECONDS
            return None


def _unpacked(value: bytes | None) -> Kept | None:
    if value is None or len(value) < _STAMP.size:
        return None
    return Kept(value[_STAMP.size :], *_STAMP.unpack_from(value))


def _count(counts: Counts, found: list[Kept | None]) -> list[Kept | None]:
    now = time.time()
    ages = [max(0.0, now - kept.computed) for kept in found if kept is not None]
    counts.asked += len(found)
    counts.hits += len(ages)
    counts.age_seconds += sum(ages)
    counts.oldest_seconds = max([counts.oldest_seconds, *ages])
    return found


@dataclass
class Tiers:
    """Caches in the order in which they are asked; what a later one has, the earlier ones keep, too."""

    tiers: Sequence[Tier] = ()
    computed: int = field(default=0)  # keys that no tier had

    def look_up(self, keys: Sequence[bytes], compute: Any) -> list[bytes]:
        """The content of every key: from the first tier that has it, else computed, all missing ones at once.

        compute: distinct keys in order -> their contents.
        """
        distinct = list(dict.fromkeys(keys))
        found: dict[bytes, Kept] = {}
        missing = distinct
        lacking: list[tuple[Tier, list[bytes]]] = []
        for tier in self.tiers:
            if not missing:
                break
            kept = tier.get(missing)
            found |= {key: item for key, item in zip(missing, kept, strict=True) if item is not None}
            missing = [key for key, item in zip(missing, kept, strict=True) if item is None]
            lacking.append((tier, missing))
        if missing:
            self.computed += len(missing)
            now = time.time()
            found |= {key: Kept(content, now) for key, content in zip(missing, compute(missing), strict=True)}
        for tier, keys_without in lacking:
            tier.put({key: found[key] for key in keys_without})
        return [found[key].content for key in keys]
