"""A service answers what it can, in batches, and tells every client what became of the rest."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from leanmark.serving.config import Batching
from leanmark.serving.payloads import BadPayload
from leanmark.serving.requests import ANSWER, Frames, Outcome, request_frame
from leanmark.serving.server import Network, Server, serve


@dataclass
class Word:
    text: bytes

    @property
    def rows(self) -> int:
        return len(self.text)


class Shouting:
    """Upper case; `!` cannot be read, and no batch with an `x` in it can be answered."""

    def decode(self, payload: bytes) -> Word:
        if b"!" in payload:
            raise BadPayload("a shout already")
        return Word(payload)

    def answer(self, requests: Sequence[Word]) -> list[bytes]:
        if any(b"x" in request.text for request in requests):
            raise ValueError("an x")
        return [request.text.upper() for request in requests]


async def ask(path: Path, words: Sequence[bytes]) -> list[tuple[Outcome, bytes]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.writelines(request_frame(number, word) for number, word in enumerate(words))
    await writer.drain()
    frames, found = Frames(ANSWER), dict[int, tuple[Outcome, bytes]]()
    while len(found) < len(words):
        for (number, outcome), payload in frames.feed(await reader.read(1 << 16)):
            found[number] = (Outcome(outcome), payload)
    writer.close()
    return [found[number] for number in range(len(words))]


def played(tmp_path: Path, words: Sequence[bytes], batching: Batching, queue: int = 100):
    server = Server(Shouting(), batching, Network(), queue)

    async def play() -> list[tuple[Outcome, bytes]]:
        end = asyncio.Event()
        task = asyncio.create_task(serve(server, tmp_path / "socket", end))
        while not (tmp_path / "socket").exists():
            await asyncio.sleep(0.001)
        found = await asyncio.wait_for(ask(tmp_path / "socket", words), 30)
        end.set()
        await task
        return found

    return asyncio.run(play()), server.counts


@pytest.mark.parametrize("batching", [Batching(), Batching(8, 0.01), Batching(64, 0.01)])
def test_a_request_that_fails_is_alone_with_it(tmp_path: Path, batching: Batching):
    words = [b"a", b"b!", b"cc", b"x", b"ddd", b"e" * 20]
    found, counts = played(tmp_path, words, batching)
    assert [outcome.name for outcome, _ in found] == [
        "ANSWERED",
        "FAILED",
        "ANSWERED",
        "FAILED",
        "ANSWERED",
        "ANSWERED",
    ]
    assert found[4] == (Outcome.ANSWERED, b"DDD")
    assert found[1][1] == b"BadPayload: a shout already"
    assert (counts.requests, counts.failed, counts.rejected) == (6, 2, 0)


def test_requests_that_wait_are_put_together(tmp_path: Path):
    _, alone = played(tmp_path, [b"ab"] * 12, Batching())
    assert alone.batches == {2: 12}
    _, together = played(tmp_path, [b"ab"] * 12, Batching(rows=8, wait_seconds=0.01))
    assert together.batches == {8: 3}


def test_what_no_queue_can_hold_is_rejected(tmp_path: Path):
    found, counts = played(tmp_path, [b"a"] * 50, Batching(rows=100, wait_seconds=0.05), queue=10)
    outcomes = [outcome for outcome, _ in found]
    assert outcomes.count(Outcome.ANSWERED) == 10
    assert counts.rejected == outcomes.count(Outcome.REJECTED) == 40


def test_a_shaped_network_holds_frames_back(tmp_path: Path):
    loop_seconds: list[float] = []

    async def timed(network: Network) -> float:
        server = Server(Shouting(), Batching(), network)
        end, path = asyncio.Event(), tmp_path / f"{len(loop_seconds)}"
        task = asyncio.create_task(serve(server, path, end))
        while not path.exists():
            await asyncio.sleep(0.001)
        begun = asyncio.get_running_loop().time()
        await ask(path, [b"a" * 1000] * 5)
        seconds = asyncio.get_running_loop().time() - begun
        end.set()
        await task
        return seconds

    for network in (Network(rtt_seconds=0.05), Network(bytes_a_second=50_000)):
        loop_seconds.append(asyncio.run(timed(network)))
    assert loop_seconds[0] >= 0.05
    assert loop_seconds[1] >= 5 * 1000 / 50_000  # both ways overlap, but for the last one


def test_whoever_goes_does_no_harm(tmp_path: Path):
    server = Server(Shouting(), Batching(8, 0.02), Network())

    async def play() -> list[tuple[Outcome, bytes]]:
        end, path = asyncio.Event(), tmp_path / "socket"
        task = asyncio.create_task(serve(server, path, end))
        while not path.exists():
            await asyncio.sleep(0.001)
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request_frame(1, b"gone") + b"\xff\xff\xff\xff and then no frame at all")
        await writer.drain()
        writer.close()
        found = await ask(path, [b"here"])
        end.set()
        await task
        return found

    assert asyncio.run(asyncio.wait_for(play(), 30)) == [(Outcome.ANSWERED, b"HERE")]
