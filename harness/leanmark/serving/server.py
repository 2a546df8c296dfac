"""The process of a service: frames in, a bounded queue, batches to a handler, frames out.

One thread reads, computes and writes, as a service on one core does: while it computes, requests wait in the socket,
and are read before the next batch is put together. A network between client and service is shaped here, both ways.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leanmark.serving.config import Batching
from leanmark.serving.payloads import BadPayload
from leanmark.serving.requests import REQUEST, BadFrame, Frames, Outcome, answer_frame

# Requests that may wait; what comes beyond them is rejected at once, so that nobody waits for what is hopeless.
QUEUE = 1000
DRAIN_SECONDS = 1.0


class Decoded(Protocol):
    """A request that was read."""

    @property
    def rows(self) -> int: ...


class Handler(Protocol):
    """What a service does with requests."""

    def decode(self, payload: bytes, /) -> Any:
        """A request, whose `rows` say how large it is. Raises BadPayload."""
        ...

    def answer(self, requests: Sequence[Any], /) -> list[bytes]:
        """The answers to a batch, in order. Whatever it raises is of the batch as a whole."""
        ...


class Client(Protocol):
    """Who asked."""

    def answer(self, frame: bytes, /) -> None:
        """Give it an answer, now or with the next flush."""
        ...

    def flush(self) -> None:
        """Send what it was given, all at once."""
        ...


@dataclass(frozen=True)
class Network:
    """A network between a client and the service. Simulated: frames are held back, not sent through anything else.

    bytes_a_second: of each direction; None for no limit. rtt_seconds: there and back.
    """

    bytes_a_second: float | None = None
    rtt_seconds: float = 0.0

    @property
    def is_shaped(self) -> bool:
        return self.bytes_a_second is not None or self.rtt_seconds > 0


@dataclass
class Counts:
    """What a service did since it was last asked."""

    requests: int = 0
    failed: int = 0
    rejected: int = 0
    late: int = 0
    decoded_seconds: float = 0.0  # of all requests together
    reason: str = ""  # of the first that failed
    bytes_in: int = 0
    bytes_out: int = 0
    batches: collections.Counter[int] = field(default_factory=collections.Counter[int])  # by their rows
    waited_seconds: list[float] = field(default_factory=list[float])  # of each request, from its arrival to its batch
    computed_seconds: list[float] = field(default_factory=list[float])  # of each request, its batch's computing


@dataclass
class _Waiting:
    number: int
    request: Decoded
    arrived: float
    client: Client


class Server:
    """Requests of any number of connections, one queue, one handler."""

    def __init__(
        self, handler: Handler, batching: Batching, network: Network, queue: int = QUEUE, slowdown: float = 0.0
    ) -> None:
        """slowdown: the fraction by which every batch is made to last longer (the positive control)."""
        self._slowdown = slowdown
        self.handler, self.batching, self.network, self.limit = handler, batching, network, queue
        self.counts = Counts()
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._ending = False

    def accept(self) -> _Connection:
        return _Connection(self)

    def take(self, number: int, payload: bytes, arrived: float, client: Client) -> None:
        """A request that has come in."""
        self.counts.requests += 1
        self.counts.bytes_in += REQUEST.size + len(payload)
        if self._ending or len(self._queue) >= self.limit:
            self.counts.rejected += 1
            client.answer(answer_frame(number, Outcome.REJECTED))
            client.flush()
            return
        begun = time.perf_counter()
        try:
            request = self.handler.decode(payload)
        except BadPayload as error:
            self._fail(number, error, client)
            return
        self.counts.decoded_seconds += time.perf_counter() - begun
        self._queue.append(_Waiting(number, request, arrived, client))
        self._rows += request.rows
        self._schedule()

    def _fail(self, number: int, error: Exception, client: Client) -> None:
        self.counts.failed += 1
        self.counts.reason = self.counts.reason or f"{type(error).__name__}: {error}"[:200]
        client.answer(answer_frame(number, Outcome.FAILED, f"{type(error).__name__}: {error}"[:500].encode()))
        client.flush()

    def _schedule(self) -> None:
        """A batch once it is full, or once its first request has waited long enough."""
        loop = asyncio.get_running_loop()
        if not self._queue or self._scheduled:
            return
        wait, full = self.batching.wait_seconds, self._rows >= self.batching.rows
        due = self._queue[0].arrived + wait
        if full or self._ending or due <= loop.time():
            self._scheduled = True
            loop.call_soon(self._compute)
        elif self._timer is None:
            self._timer = loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._schedule()

    def _compute(self) -> None:
        self._scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._next_batch()
        if batch:
            self._answer(batch)
        self._schedule()

    def _next_batch(self) -> list[_Waiting]:
        """Requests in order, as many as fit; one that is larger than a batch goes alone."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + self._queue[0].request.rows <= self.batching.rows):
            waiting = self._queue.popleft()
            rows += waiting.request.rows
            batch.append(waiting)
        self._rows -= rows
        return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        begun = time.monotonic()
        try:
            answers = self.handler.answer([waiting.request for waiting in batch])
        except Exception as error:  # a model may raise anything; only this batch's requests fail
            if len(batch) > 1:
                for waiting in batch:  # which of them it was shows when each is alone
                    self._answer([waiting])
                return
            self._fail(batch[0].number, error, batch[0].client)
            return
        seconds = time.monotonic() - begun
        while self._slowdown and time.monotonic() - begun < seconds * (1 + self._slowdown):
            pass
        self.counts.batches[sum(waiting.request.rows for waiting in batch)] += 1
        for waiting, content in zip(batch, answers, strict=True):
            self.counts.waited_seconds.append(begun - waiting.arrived)
            self.counts.computed_seconds.append(seconds)
            frame = answer_frame(waiting.number, Outcome.ANSWERED, content)
            self.counts.bytes_out += len(frame)
            waiting.client.answer(frame)
        for client in {id(waiting.client): waiting.client for waiting in batch}.values():
            client.flush()

    def drain(self) -> None:
        """Take nothing more, and answer what waits, for a limited time; the rest is told that it is late."""
        self._ending = True
        until = time.monotonic() + DRAIN_SECONDS
        while self._queue:
            if time.monotonic() < until:
                self._answer(self._next_batch())
                continue
            waiting = self._queue.popleft()
            self.counts.late += 1
            waiting.client.answer(answer_frame(waiting.number, Outcome.LATE))
            waiting.client.flush()
        self._rows = 0


class _Connection(asyncio.Protocol):
    """One client; it may go at any time, and what it asked for is then computed for nobody."""

    def __init__(self, server: Server) -> None:
        self._server, self._frames = server, Frames(REQUEST)
        self._transport: asyncio.Transport | None = None
        self._ready: list[bytes] = []
        self._inward = _Link(server.network)
        self._outward = _Link(server.network)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            for (number,), payload in self._frames.feed(data):
                self._inward.carry(REQUEST.size + len(payload), self._take, number, payload)
        except BadFrame:
            if self._transport is not None:
                self._transport.abort()

    def _take(self, number: int, payload: bytes) -> None:
        self._server.take(number, payload, time.monotonic(), self)

    def answer(self, frame: bytes, /) -> None:
        if self._server.network.is_shaped:
            self._outward.carry(len(frame), self._write, frame)
        else:
            self._ready.append(frame)

    def flush(self) -> None:
        if self._ready:
            ready, self._ready = self._ready, []
            self._write(b"".join(ready))

    def _write(self, frames: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)


class _Link:
    """One direction of a network: a frame arrives after those before it, its own bytes, and half of the round trip."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free_at = 0.0

    def carry(self, size: int, arrive: Callable[..., None], *what: object) -> None:
        if not self._network.is_shaped:
            arrive(*what)
            return
        loop = asyncio.get_running_loop()
        rate = self._network.bytes_a_second
        self._free_at = max(self._free_at, loop.time()) + (0.0 if rate is None else size / rate)
        loop.call_at(self._free_at + self._network.rtt_seconds / 2, arrive, *what)


async def serve(server: Server, path: Path, until: asyncio.Event) -> None:
    """Answer on a Unix socket until told to end; then drain."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_unix_server(server.accept, str(path))
    try:
        await until.wait()
    finally:
        listening.close()
        server.drain()
        await asyncio.sleep(0)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
