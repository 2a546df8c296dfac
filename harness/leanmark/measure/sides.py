"""The sides of a measurement: what each one runs, and the worker process that runs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanmark import registry
from leanmark.arrays import Array
from leanmark.channel import PROTOCOL_VERSION, ChannelClosed
from leanmark.host import available_memory, pin
from leanmark.jsonable import from_json
from leanmark.processes import CAN_FORK, Base, Child, Code, Copy, Death, Fresh
from leanmark.results import ColdStart, Status, Target

_MODULE = "leanmark.measure.worker"
OPEN_TIMEOUT_SECONDS = 120.0
# Beside what is measured, not on its core: torch is 8 % slower in the first 25 ms of a copy.
_WARM_SECONDS = 0.03
_END_SECONDS = 1.0


@dataclass(frozen=True)
class Side:
    """What a worker runs: an artifact, where, and on which inputs; and the interpreter and code that run it."""

    name: str
    artifact: Path
    target: Target
    splits: Path
    metric: str = "accuracy"
    also: tuple[str, ...] = ()  # further metrics
    code: Code = field(default_factory=Code)

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
            "also": list(self.also),
        }


class SideError(Exception):
    """A side that could not be opened or stopped answering."""

    def __init__(self, death: Death) -> None:
        self.death = death
        super().__init__(death.reason)


class Worker:
    """A live worker process for one side: a fresh interpreter, or a copy of a base."""

    def __init__(self, side: Side, base: Base | None = None) -> None:
        self.side = side
        if base is None:
            self.child: Child = Fresh(_MODULE, threads=side.target.threads, code=side.code)
        else:
            self.child = Copy(base)

    def open(self, warm_seconds: float = 0.0) -> ColdStart:
        """Load the artifact and wait for its first answer; returns what that cost a fresh process. Raises SideError.

        warm_seconds: for how long it then runs calls that count for nothing.
        """
        fresh = isinstance(self.child, Fresh)
        answer = self.ask(OPEN_TIMEOUT_SECONDS, **self.side.opening(), fresh=fresh, warm_seconds=warm_seconds)
        if answer["protocol"] != PROTOCOL_VERSION:
            raise SideError(Death(Status.FAILED, f"it speaks version {answer['protocol']} of the worker protocol"))
        return from_json(ColdStart, {**answer["cold_start"], "rss_peak_bytes": answer["peak"]})

    def ask(self, timeout: float, arrays: Mapping[str, Array] | None = None, **message: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises SideError."""
        try:
            self.child.channel.send(message, arrays)
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


class Bases:
    """The interpreters that a launch's workers are copies of: one for each runtime and its settings.

    Where the system cannot fork safely there are none, and every worker is a fresh interpreter; so it is where a
    runtime starts a thread when it is imported.
    """

    def __init__(self, sides: Sequence[Side], cpus: Sequence[int]) -> None:
        """Start importing, on these processors; nothing waits yet."""
        self._bases: dict[_BaseKey, Base] = {}
        pin(cpus)
        for side in sides if CAN_FORK else ():
            key = _base_key(side)
            if key not in self._bases:
                opening = side.opening()
                message = {key: opening[key] for key in ("library", "loader", "threads")}
                self._bases[key] = Base(_MODULE, message, threads=side.target.threads, code=side.code)

    def worker(self, side: Side, cpus: Sequence[int]) -> Worker:
        """A new worker for a side, on these processors. Raises SideError."""
        base = self._bases.get(_base_key(side))
        if base is None:
            return Worker(side)
        try:
            base.wait(OPEN_TIMEOUT_SECONDS)
            pin(cpus, base.pid)
            return Worker(side, base)
        except ChannelClosed:
            if base.exit_code(_END_SECONDS) == 0:  # its runtime has a thread: it cannot be copied
                return Worker(side)
            raise SideError(base.death()) from None
        except TimeoutError:
            raise SideError(Death(Status.TIMEOUT, "its runtime could not be imported in time")) from None
        except OSError as error:
            raise SideError(Death(Status.FAILED, f"no process could be made for it: {error}")) from None

    def close(self) -> None:
        for base in self._bases.values():
            base.kill()


_BaseKey = tuple[str, str, int, Code]


def _base_key(side: Side) -> _BaseKey:
    runtime = registry.get_runtime(side.target.runtime)
    return (runtime.libraries[0], runtime.loader, side.target.threads, side.code)


@dataclass(frozen=True)
class Seats:
    """Workers of all sides that could be opened, and why the others could not."""

    workers: tuple[Worker, ...]
    deaths: Mapping[str, Death]
    memory_bytes: int  # by how much the machine's available memory went down


class Opener:
    """Opens workers in threads of its own, so that something else can be measured meanwhile.

    Use as a context manager; leaving it ends whatever is still open.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._bases: list[Bases] = []
        self._workers: list[Worker] = []

    def __enter__(self) -> Opener:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._kill()  # whoever waits for one of them is told so
        self._pool.shutdown(cancel_futures=True)
        self._kill()

    def _kill(self) -> None:
        for worker in list(self._workers):
            worker.close()
        for bases in list(self._bases):
            bases.close()

    def begin_bases(self, sides: Sequence[Side], cpus: Sequence[int]) -> Future[Bases]:
        """Start what the workers of a launch will be copies of, on these processors."""

        def begin() -> Bases:
            bases = Bases(sides, cpus)
            self._bases.append(bases)
            return bases

        return self._pool.submit(begin)

    def begin_seats(self, sides: Sequence[Side], bases: Future[Bases], cpus: Sequence[int]) -> Future[Seats]:
        """Open a worker for every side, as many at once as there are of these processors."""
        return self._pool.submit(self._open_all, sides, bases, cpus)

    def _open_all(self, sides: Sequence[Side], bases: Future[Bases], cpus: Sequence[int]) -> Seats:
        memory = available_memory()
        workers: dict[str, Worker] = {}
        deaths: dict[str, Death] = {}

        def start(side: Side) -> None:
            pin(cpus)
            if self._stopped.is_set():
                return
            try:
                worker = bases.result().worker(side, cpus)
            except SideError as error:
                deaths[side.name] = error.death
                return
            self._workers.append(worker)
            try:
                if self._stopped.is_set():  # whoever ended the others did not see this one
                    worker.close()
                worker.open(_WARM_SECONDS)
                workers[side.name] = worker
            except SideError as error:
                deaths[side.name] = error.death
                worker.close()
                self._workers.remove(worker)

        with ThreadPoolExecutor(len(cpus)) as pool:
            # Slow runtimes first, so that none is still starting when the others are done.
            order = sorted(sides, key=lambda side: -registry.get_runtime(side.target.runtime).start_seconds)
            for started in [pool.submit(start, side) for side in order]:
                started.result()
        opened = tuple(workers[side.name] for side in sides if side.name in workers)
        return Seats(opened, deaths, memory - available_memory())

    def close(self, seats: Seats) -> None:
        """End these workers."""
        for worker in seats.workers:
            worker.child.begin_kill()
        for worker in seats.workers:
            worker.close()
            self._workers.remove(worker)

    def close_bases(self, bases: Future[Bases]) -> None:
        """End these bases; none of their workers is needed any more."""
        self._bases.remove(bases.result())
        bases.result().close()
