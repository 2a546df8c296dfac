"""The process that sends traffic: MLPerf's LoadGen in front of sockets.

LoadGen decides when a request is sent and measures from when it was due, so what a service makes wait counts (an open
loop). Payloads are made before the test; between LoadGen and a socket there is nothing but a header. What is valid
is what LoadGen's own log calls so, and no request rejected. Source: Reddi et al. 2020, MLPerf Inference Benchmark.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.channel import Channel, ChannelClosed, end_with_parent, inherited
from leanmark.host import pin
from leanmark.serving.asking import payloads
from leanmark.serving.config import ServiceConfig, carried
from leanmark.serving.payloads import Codec, codec
from leanmark.serving.requests import ANSWER, Frames, Outcome, request_frame
from leanmark.stages import Artifact
from leanmark.traffic import Traffic
from leanmark.workloads.split_store import open_split

Message = dict[str, Any]
# A receiver that waits 5 ms for the interpreter would add them to a percentile.
SWITCH_SECONDS = 0.0002
_READ_BYTES = 1 << 18
_AT_ONCE = 32
_MOST_ANSWERS = 16  # different ones of a request that are looked at
# LoadGen draws as many requests beforehand as fit a test of this latency, and calls a test invalid that needs more.
_SHORTEST_NS = 20_000
_PATIENCE_SECONDS = 60.0
# What of LoadGen's log is read: names of its keys, and ours.
_KEYS = {
    "result_validity": "validity",
    "result_query_count": "queries",
    "result_scheduled_samples_per_sec": "scheduled_rate",
    "result_completed_samples_per_sec": "completed_rate",
    "result_samples_per_second": "completed_rate",
    "result_mean_latency_ns": "mean_ns",
    "result_min_latency_ns": "minimum_ns",
    "result_max_latency_ns": "maximum_ns",
    "result_50.00_percentile_latency_ns": "p50_ns",
    "result_90.00_percentile_latency_ns": "p90_ns",
    "result_95.00_percentile_latency_ns": "p95_ns",
    "result_99.00_percentile_latency_ns": "p99_ns",
    "result_invalid_reason": "reason",
}
_SCENARIOS = {"single-stream": "SingleStream", "server": "Server", "offline": "Offline"}


@dataclass(frozen=True)
class _Sample:
    """What LoadGen gives to be asked, in our own words."""

    id: int
    index: int


class Client:
    """Connections to the instances of one service; requests go to them in turn."""

    def __init__(self, sockets: Sequence[str], payloads: Sequence[bytes], answers: Codec) -> None:
        self.payloads, self._codec = payloads, answers
        self.answers: dict[int, list[bytes]] = {}  # of each payload, all that were different, byte by byte
        self.changed = 0  # answers that were not those of the first time
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.gone, self.lost = False, 0  # whether a service has ended, and how many requests with it
        self._samples: dict[int, int] = {}
        self._turn = 0
        self._sockets = [_connected(path) for path in sockets]
        self._complete: Any = None
        for number, end in enumerate(self._sockets):
            threading.Thread(target=self._receive, args=(end,), name=f"receive-{number}", daemon=True).start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Send LoadGen's samples, all that are due now in one write a socket."""
        parts: list[list[bytes]] = [[] for _ in self._sockets]
        for sample in samples:
            self._samples[sample.id] = sample.index
            parts[self._turn].append(request_frame(sample.id, self.payloads[sample.index]))
            self._turn = (self._turn + 1) % len(parts)
        for end, frames in zip(self._sockets, parts, strict=True):
            try:
                if frames:
                    end.sendall(b"".join(frames))
            except OSError:
                self.gone = True
        if self.gone:
            self._lose()

    def begin(self, complete: Any) -> None:
        self._complete = complete
        self.outcomes = dict.fromkeys(Outcome, 0)

    def ask_all(self, seconds: float) -> float:
        """Every request once, or as many as fit, a few at a time: what fills caches. Returns how many a second.

        Raises TimeoutError where one is not answered.
        """
        free = threading.Semaphore(_AT_ONCE)
        self.begin(lambda numbers: [free.release() for _ in numbers])
        began, asked = time.perf_counter(), 0
        while asked < len(self.payloads) and (time.perf_counter() < began + seconds or asked < 2):
            _acquire(free)
            self.issue([_Sample(asked, asked)])
            asked += 1
        for _ in range(_AT_ONCE):
            _acquire(free)
        return asked / (time.perf_counter() - began)

    def decoded(self) -> dict[str, Array]:
        """Every different answer to each request that was answered, in order of requests, the first answer first.

        indices: int64 (n,), of each answer; rows: int64 (n,); and the answers' arrays by name, one after the other.
        """
        indices = [index for index in sorted(self.answers) for _ in self.answers[index]]
        found = [self._codec.decode(answer) for index in sorted(self.answers) for answer in self.answers[index]]
        names = list(found[0]) if found else []
        return {
            "indices": np.array(indices, dtype=np.int64),
            "rows": np.array([len(next(iter(item.values()))) for item in found], dtype=np.int64),
            **{f"of_{name}": np.concatenate([item[name] for item in found]) for name in names},
        }

    def _receive(self, end: socket.socket) -> None:
        frames = Frames(ANSWER)
        while True:
            try:
                content = end.recv(_READ_BYTES)
            except OSError:
                content = b""
            if not content:
                self._lose()
                return
            done: list[int] = []
            for (number, outcome), payload in frames.feed(content):
                done.append(number)
                self.outcomes[Outcome(outcome)] += 1
                index = self._samples.pop(number)
                if outcome == Outcome.ANSWERED:
                    self._keep(index, payload)
            self._complete(done)

    def _keep(self, index: int, answer: bytes) -> None:
        """A request may be answered from a cache, in another batch, by another instance: all of it must be right."""
        known = self.answers.setdefault(index, [answer])
        if known[0] != answer:
            self.changed += 1
            if answer not in known and len(known) < _MOST_ANSWERS:
                known.append(answer)

    def _lose(self) -> None:
        """The service is gone: what it was asked and did not answer is lost, so that a test ends."""
        self.gone = True
        lost: list[int] = []
        while self._samples:  # more may come meanwhile, and each is told once
            with contextlib.suppress(KeyError):
                lost.append(self._samples.popitem()[0])
        self.lost += len(lost)
        if lost and self._complete is not None:
            self._complete(lost)

    def close(self) -> None:
        for end in self._sockets:
            end.close()


def _acquire(free: threading.Semaphore) -> None:
    if not free.acquire(timeout=_PATIENCE_SECONDS):
        raise TimeoutError(f"a request was not answered in {_PATIENCE_SECONDS:g} s")


def _connected(path: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(path)
    return end


def run_test(client: Client, message: Message) -> Message:
    """One test of LoadGen's; what its log says of it, and what the client counted."""
    import mlperf_loadgen as loadgen

    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _SCENARIOS[message["scenario"]])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(message["seconds"] * 1000)
    settings.max_duration_ms = round(message["most_seconds"] * 1000)
    settings.min_query_count = message["queries"]
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, name, message["seed"])
    if message["scenario"] == "server":
        settings.server_target_qps = message["rate"]
        settings.server_target_latency_ns = round(message["limit_seconds"] * 1e9)
        settings.server_target_latency_percentile = message["percentile"]
        settings.server_max_async_queries = message["most_waiting"]
    elif message["scenario"] == "single-stream":
        settings.single_stream_expected_latency_ns = _SHORTEST_NS
    elif message["scenario"] == "offline":
        settings.offline_expected_qps = message["rate"]
    folder = Path(tempfile.mkdtemp(prefix="leanmark-loadgen-"))
    output = loadgen.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, False

    def complete(numbers: Sequence[int]) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(number, 0, 0) for number in numbers])

    client.begin(complete)
    system = loadgen.ConstructSUT(client.issue, lambda: None)
    count = len(client.payloads)
    library = loadgen.ConstructQSL(count, count, lambda _: None, lambda _: None)
    begun, used = time.perf_counter(), time.process_time()
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, logs, "")
        found = read_log(folder / "mlperf_log_detail.txt")
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
        shutil.rmtree(folder, ignore_errors=True)
    outcomes = {outcome.name.lower(): number for outcome, number in client.outcomes.items()}
    seconds = time.perf_counter() - begun
    return {
        **found,
        **outcomes,
        "lost": client.lost,
        "seconds": seconds,
        "busy": (time.process_time() - used) / seconds,
    }


def read_log(path: Path) -> Message:
    """What LoadGen wrote about a test: the values of `_KEYS` that it has, reasons of invalidity joined."""
    found: Message = {}
    for line in path.read_text(errors="replace").splitlines():
        if not line.startswith(":::MLLOG "):
            continue
        try:
            entry = json.loads(line.removeprefix(":::MLLOG "))
        except ValueError:
            continue
        name = _KEYS.get(entry.get("key", ""))
        if name == "reason" and name in found:
            found[name] += f"; {entry['value']}"
        elif name is not None:
            found[name] = entry["value"]
    return found


def main(descriptor: int) -> None:
    """Answer requests until the parent hangs up."""
    sys.setswitchinterval(SWITCH_SECONDS)
    channel = inherited(descriptor)
    end_with_parent(channel)
    clients: dict[str, Client] = {}
    try:
        while True:
            message = channel.receive()
            try:
                _do(channel, message, clients)
            except ChannelClosed:
                raise
            except Exception as error:
                channel.send({"error": f"{type(error).__name__}: {error}"})
    except ChannelClosed:
        return


def _do(channel: Channel, message: Message, clients: dict[str, Client]) -> None:
    if message["op"] == "open":
        clients[message["name"]] = _opened(message)
        channel.send({"bytes": sum(map(len, clients[message["name"]].payloads))})
        return
    client = clients[message["name"]]
    if message["op"] == "test":
        channel.send(run_test(client, message))
    elif message["op"] == "warm":
        channel.send({"rate": client.ask_all(message["seconds"])})
    elif message["op"] == "answers":
        channel.send({"changed": client.changed}, client.decoded())
    else:
        clients.pop(message["name"]).close()
        channel.send({})


def _opened(message: Message) -> Client:
    pin(message["cpus"])
    artifact = Artifact.open(Path(message["artifact"]))
    config, traffic = ServiceConfig.read(artifact.manifest["service"]), Traffic.read(message["traffic"])
    pool = None if config.ranks else open_split(Path(message["splits"]), traffic.examples)
    asked = payloads(config, traffic, artifact.tables(), pool)
    return Client(message["sockets"], asked, codec(config.payload, carried(config, traffic).answer))


if __name__ == "__main__":
    main(int(sys.argv[1]))
