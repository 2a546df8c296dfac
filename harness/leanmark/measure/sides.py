"""The sides of a measurement: what each one runs, and the worker process that runs it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmark import registry
from leanmark.channel import PROTOCOL_VERSION, ChannelClosed
from leanmark.host import available_cpus
from leanmark.processes import Child, Death, child_threads
from leanmark.results import ColdStart, Status, Target, from_json

OPEN_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Side:
    """What a worker runs: an artifact, where, and on which inputs."""

    name: str
    artifact: Path
    target: Target
    splits: Path
    metric: str = "accuracy"
    paths: tuple[Path, ...] = ()
    extra_call_every: int | None = None

    def opening(self) -> dict[str, Any]:
        """The message that opens a worker."""
        runtime = registry.get_runtime(self.target.runtime)
        return {
            "op": "open",
            "artifact": str(self.artifact),
            "loader": runtime.loader,
            "library": runtime.libraries[0],
            "device": self.target.device,
            "threads": self.target.threads,
            "batch": self.target.batch,
            "splits": str(self.splits),
            "metric": self.metric,
        }


class SideError(Exception):
    """A side that could not be opened or stopped answering."""

    def __init__(self, death: Death) -> None:
        self.death = death
        super().__init__(death.reason)


class Worker:
    """A live worker process for one side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.child = Child("leanmark.measure.worker", threads=side.target.threads, paths=side.paths)

    def open(self) -> ColdStart:
        """Load the artifact and wait for its first answer; returns what that cost. Raises SideError."""
        answer = self.ask(OPEN_TIMEOUT_SECONDS, **self.side.opening())
        if answer["protocol"] != PROTOCOL_VERSION:
            raise SideError(Death(Status.FAILED, f"it speaks version {answer['protocol']} of the worker protocol"))
        return from_json(ColdStart, {**answer["cold_start"], "rss_peak_bytes": answer["peak"]})

    def ask(self, timeout: float, **message: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises SideError."""
        try:
            self.child.channel.send(message)
        except ChannelClosed:
            raise SideError(self.child.death()) from None
        return self._receive(timeout)

    def _receive(self, timeout: float) -> dict[str, Any]:
        try:
            answer = self.child.channel.receive(timeout)
        except ChannelClosed:
            raise SideError(self.child.death()) from None
        except TimeoutError:
            raise SideError(Death(Status.TIMEOUT, f"it did not answer within {timeout:g} s")) from None
        if "error" in answer:
            text = str(answer["error"])
            memory = "can't allocate memory" in text or text.startswith("MemoryError")
            raise SideError(Death(Status.OUT_OF_MEMORY if memory else Status.FAILED, text[:500]))
        return answer

    def close(self) -> None:
        self.child.kill()


Opened = Callable[[Worker, ColdStart], None]


@contextmanager
def open_workers(sides: Sequence[Side], deaths: dict[str, Death], opened: Opened) -> Generator[list[Worker]]:
    """Workers for all sides that can be opened; the others' deaths are recorded.

    `opened` is called with each of them, in the thread that opened it.

    As many start at once as there are processors, slow runtimes first, so that none of
    them is still starting when the others are done.
    """
    workers: dict[str, Worker] = {}

    def start(side: Side) -> None:
        worker = workers[side.name] = Worker(side)
        try:
            opened(worker, worker.open())
        except SideError as error:
            deaths[side.name] = error.death

    try:
        with child_threads(len(available_cpus())) as pool:
            slow_first = sorted(sides, key=lambda side: -registry.get_runtime(side.target.runtime).start_seconds)
            for started in [pool.submit(start, side) for side in slow_first]:
                started.result()
        yield [workers[side.name] for side in sides if side.name not in deaths]
    finally:
        for worker in workers.values():
            worker.child.begin_kill()
        for worker in workers.values():
            worker.close()
