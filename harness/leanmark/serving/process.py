"""The process of one instance of a service: it loads an artifact, answers on a Unix socket, and tells what it did.

It imports nothing that the service does not need. Messages are requests with an ``op``; each gets one answer.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanmark import modules
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.channel import PROTOCOL_VERSION, Channel, ChannelClosed, end_with_parent, inherited
from leanmark.host import peak_rss_bytes, pin, rss_and_uss_bytes
from leanmark.serving.asking import answers, payloads
from leanmark.serving.caches import Tier
from leanmark.serving.config import ServiceConfig
from leanmark.serving.making import make_handler
from leanmark.serving.server import QUEUE, Counts, Network, Server, serve
from leanmark.stages import Artifact
from leanmark.traffic import Scenario, Traffic
from leanmark.workloads.split_store import open_split

Message = dict[str, Any]


class Instance:
    """A loaded service, before and while it answers."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.traffic = Traffic.read(message["traffic"])
        artifact = Artifact.open(Path(message["artifact"]))
        self.slowdown = artifact.delivery.slowdown
        self.split = open_split(Path(message["splits"]), "test")
        config = ServiceConfig.read(artifact.manifest["service"])
        first = payloads(config, _one_request(self.traffic), artifact.tables(), self.split)[0]
        loader = modules.resolve(message["loader"])
        gc.collect()
        clock, memory = [time.perf_counter()], [rss_and_uss_bytes()]

        def lap() -> None:
            clock.append(time.perf_counter())
            memory.append(rss_and_uss_bytes())

        importlib.import_module(message["library"])
        lap()
        self.handler = make_handler(
            artifact, self.traffic, loader, message["threads"], message["redis_url"], message["cache_name"]
        )
        lap()
        self.handler.answer([self.handler.decode(first)])
        lap()
        self.cold_start = cold_start(clock, memory)
        self.forget()

    def forget(self) -> None:
        """Empty its caches."""
        for tier in self._tiers():
            tier.forget()

    def _tiers(self) -> list[Tier]:
        parts = self.handler.parts
        return [tier for tiers in (parts.features, parts.embeddings) if tiers is not None for tier in tiers.tiers]

    def answers(self) -> tuple[Message, dict[str, Array]]:
        """What it answers on the whole test split."""
        arrays = {"output_0": answers(self.handler, self.split)}
        if self.split.targets is not None:
            arrays["targets"] = np.ascontiguousarray(self.split.targets)
        return {"outputs": 1, "rss_peak_bytes": peak_rss_bytes()}, arrays

    def counted(self, counts: Counts, began: float) -> Message:
        """What it did since it was last asked."""
        work = self.handler.work
        self.handler.work = type(work)()
        return {
            "requests": counts.requests,
            "failed": counts.failed,
            "rejected": counts.rejected,
            "late": counts.late,
            "bytes_in": counts.bytes_in,
            "bytes_out": counts.bytes_out,
            "batches": {str(rows): number for rows, number in sorted(counts.batches.items())},
            "waited": spread(counts.waited_seconds),
            "computed": spread(counts.computed_seconds),
            "decoded_seconds": counts.decoded_seconds,
            "reason": counts.reason,
            "busy": time.process_time() - began,
            "work": vars(work),
            "tiers": {tier.name: tier.told() for tier in self._tiers()},
        }


def _one_request(traffic: Traffic) -> Traffic:
    return replace(traffic, requests=1)


def spread(seconds: list[float]) -> list[float] | None:
    """Median and 99th percentile; None of nothing."""
    return None if not seconds else [float(np.quantile(np.array(seconds), part)) for part in (0.5, 0.99)]


def cold_start(clock: list[float], memory: list[tuple[int, int | None]]) -> Message:
    """What import, load and first call cost, in seconds and bytes."""
    found: Message = {}
    for number, name in enumerate(("import", "load", "first_call")):
        before, after = memory[number], memory[number + 1]
        found[f"{name}_seconds"] = clock[number + 1] - clock[number]
        found[f"rss_{name}_bytes"] = after[0] - before[0]
        found[f"uss_{name}_bytes"] = None if after[1] is None or before[1] is None else after[1] - before[1]
    return found


async def _answer_traffic(instance: Instance, channel: Channel) -> None:
    """Serve until told to end; messages are answered between requests."""
    message, handler = instance.message, instance.handler
    network = Network(instance.traffic.bytes_a_second, instance.traffic.rtt_seconds)
    # Offline, all requests are there at once, and none is turned away.
    queue = QUEUE if instance.traffic.scenario is not Scenario.OFFLINE else sys.maxsize
    server = Server(handler, handler.config.batching, network, queue, instance.slowdown)
    until, loop, began = asyncio.Event(), asyncio.get_running_loop(), [time.process_time()]

    def on_message() -> None:
        try:
            asked = channel.receive()
            if asked["op"] == "counts":
                counts, server.counts = server.counts, Counts()
                told = instance.counted(counts, began[0])
                began[0] = time.process_time()
                channel.send(told)
            elif asked["op"] == "forget":
                instance.forget()
                channel.send({})
            else:
                until.set()
        except ChannelClosed:
            until.set()

    loop.add_reader(channel.fileno(), on_message)
    serving = asyncio.ensure_future(serve(server, Path(message["socket"]), until))
    while not serving.done() and not Path(message["socket"]).exists():
        await asyncio.sleep(0.001)
    if not serving.done():
        channel.send({"serving": True})
    await serving
    loop.remove_reader(channel.fileno())


def main(descriptor: int, *paths: str) -> None:
    """Open, answer for the test split if asked, then serve."""
    modules.look_in(map(Path, paths))
    channel = inherited(descriptor)
    end_with_parent(channel)
    instance: Instance | None = None
    try:
        while True:
            message = channel.receive()
            try:
                if message["op"] == "open":
                    pin(message["cpus"])
                    instance = Instance(message)
                    told = {"protocol": PROTOCOL_VERSION, "cold_start": instance.cold_start, "peak": peak_rss_bytes()}
                    channel.send(told)
                    continue
                assert instance is not None, "a service is opened first"
                if message["op"] == "answers":
                    channel.send(*instance.answers())
                elif message["op"] == "serve":
                    gc.collect()
                    gc.freeze()
                    gc.disable()
                    asyncio.run(_answer_traffic(instance, channel))
                    channel.send({"ended": True})
            except ChannelClosed:
                raise
            except Exception as error:
                channel.send({"error": f"{type(error).__name__}: {error}"})
    except ChannelClosed:
        return


if __name__ == "__main__":
    os.umask(0o077)
    main(int(sys.argv[1]), *sys.argv[2:])
