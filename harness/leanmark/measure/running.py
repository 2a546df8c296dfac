"""The processes of one service: its instances, its neighbours, and where they run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanmark import registry
from leanmark.channel import PROTOCOL_VERSION, ChannelClosed
from leanmark.host import one_per_core
from leanmark.jsonable import from_json
from leanmark.measure.sides import Side, SideError
from leanmark.processes import Child, Death, Fresh
from leanmark.results import ColdStart, Status
from leanmark.serving.config import ServiceConfig
from leanmark.stages import Artifact
from leanmark.traffic import Traffic

OPEN_SECONDS = 300.0
ASK_SECONDS = 60.0
ANSWER_SECONDS = 900.0


@dataclass(frozen=True)
class Cores:
    """Where services run, and where what is around them does; the same where there is one core only."""

    services: tuple[int, ...]
    around: tuple[int, ...]

    @staticmethod
    def of(cpus: Sequence[int], threads: int) -> Cores:
        cores = one_per_core(cpus)
        return Cores(tuple(cores[: max(1, min(threads, len(cores) - 1))]), (cores[-1],))


def ask(child: Child, patience: float, /, **message: Any) -> dict[str, Any]:
    """Send a request to a process and wait so many seconds for its answer. Raises SideError."""
    try:
        child.channel.send(message)
        answer = child.channel.receive(patience)
    except ChannelClosed:
        raise SideError(child.death()) from None
    except TimeoutError:
        raise SideError(Death(Status.TIMEOUT, f"it did not answer within {patience:g} s")) from None
    if "error" in answer:
        raise SideError(Death(Status.FAILED, str(answer["error"])[:500]))
    return answer


def traffic_of(side: Side) -> Traffic:
    """The traffic of a side."""
    assert side.target.traffic is not None
    return side.target.traffic


class Running:
    """The processes of one side: its instances, and its neighbours."""

    def __init__(self, side: Side, cores: Cores, redis_url: str = "", folder: Path | None = None) -> None:
        self.side, self._cores, self.redis_url, self._folder = side, cores, redis_url, folder
        self.config = ServiceConfig.read(Artifact.open(side.artifact).manifest["service"])
        self.instances: list[Child] = []
        self.neighbours: list[Child] = []
        self.sockets: list[str] = []

    def open(self) -> ColdStart:
        """Load it; what that cost its first instance. Raises SideError."""
        costs: list[ColdStart] = []
        for _ in range(self.config.batching.instances):
            child = Fresh("leanmark.serving.process", threads=self.side.target.threads, code=self.side.code)
            self.instances.append(child)
            costs.append(self._opened(child))
        return costs[0]

    def _opened(self, child: Child) -> ColdStart:
        opening = self.side.opening()
        answer = ask(
            child,
            OPEN_SECONDS,
            op="open",
            **{key: opening[key] for key in ("artifact", "splits", "loader", "library", "threads")},
            traffic=asdict(traffic_of(self.side)),
            cpus=list(self._cores.services),
            redis_url=self.redis_url,
            cache_name=f"{time.time_ns():x}-{self.side.name}",
            socket="" if self._folder is None else self._socket(),
        )
        if answer["protocol"] != PROTOCOL_VERSION:
            raise SideError(Death(Status.FAILED, f"it speaks version {answer['protocol']} of the worker protocol"))
        return from_json(ColdStart, {**answer["cold_start"], "rss_peak_bytes": answer["peak"]})

    def _socket(self) -> str:
        assert self._folder is not None
        self.sockets.append(str(self._folder / f"s{len(self.sockets)}"))
        return self.sockets[-1]

    def answers(self) -> dict[str, Any]:
        """What its first instance answers on the test split. Raises SideError."""
        return ask(self.instances[0], ANSWER_SECONDS, op="answers")

    def serve(self) -> None:
        """Listen for requests. Raises SideError."""
        for child in self.instances:
            ask(child, ASK_SECONDS, op="serve")
        for _ in range(self.config.neighbours):
            child = Fresh("leanmark.serving.neighbour", threads=1, code=self.side.code)
            self.neighbours.append(child)
            loader = registry.get_runtime(self.side.target.runtime).loader
            cpus = list(self._cores.services)
            ask(child, OPEN_SECONDS, artifact=str(self.side.artifact), loader=loader, cpus=cpus)

    def counts(self) -> list[dict[str, Any]]:
        """What each instance did since it was last asked. Raises SideError."""
        return [ask(child, ASK_SECONDS, op="counts") for child in self.instances]

    def forget(self) -> None:
        """Empty all caches. Raises SideError."""
        for child in self.instances:
            ask(child, ASK_SECONDS, op="forget")

    def begin_neighbours(self) -> None:
        for child in self.neighbours:
            child.channel.send({})

    def end_neighbours(self) -> float:
        """Seconds that they computed, together. Raises SideError."""
        return sum(float(ask(child, ASK_SECONDS)["busy"]) for child in self.neighbours)

    def close(self) -> None:
        for child in (*self.instances, *self.neighbours):
            child.kill()
