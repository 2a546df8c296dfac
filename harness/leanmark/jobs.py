"""Jobs: one message to a child of its own, answered by one message; several side by side."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from leanmark.channel import ChannelClosed
from leanmark.processes import CAN_FORK, Base, Child, Code, Copy, Death, Fresh
from leanmark.results import Status

_IMPORT_SECONDS = 120.0
_CODE = Code()


@dataclass(frozen=True)
class Job:
    """One message to a child of its own, answered by one ``done`` message."""

    name: str
    module: str
    message: Mapping[str, Any]
    timeout_seconds: float
    threads: int = 1
    code: Code = _CODE


@dataclass(frozen=True)
class Progress:
    """A child's own word on how far it is."""

    job: Job
    fraction: float
    text: str


@dataclass(frozen=True)
class Done:
    """A job's answer, or how it died."""

    job: Job
    answer: Mapping[str, Any] | None
    death: Death | None
    seconds: float


class Preloaded:
    """The interpreters that jobs are copies of, one for each module and code; they end with the block.

    A job gets a fresh interpreter where the system cannot fork safely, and where its base came to nothing:
    there it meets the fault itself, and can report it.
    """

    def __init__(self, message: Mapping[str, Any]) -> None:
        """message: what a base is told of what to import."""
        self._message, self._bases = message, dict[tuple[str, int, Code], Base | None]()

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        for base in self._bases.values():
            if base is not None:
                base.kill()

    def child(self, job: Job) -> Child:
        """A process that answers one job."""
        key = (job.module, job.threads, job.code)
        if key not in self._bases:
            self._bases[key] = self._base(job) if CAN_FORK else None
        base = self._bases[key]
        if base is not None:
            try:
                return Copy(base)
            except (ChannelClosed, OSError):
                base.kill()
                self._bases[key] = None
        return Fresh(job.module, threads=job.threads, code=job.code)

    def _base(self, job: Job) -> Base | None:
        """A base that has its imports behind it; None where it came to nothing."""
        try:
            base = Base(job.module, self._message, threads=job.threads, code=job.code)
        except (ChannelClosed, OSError):
            return None
        try:
            base.wait(min(job.timeout_seconds, _IMPORT_SECONDS))
        except (ChannelClosed, OSError):
            base.kill()
            return None
        return base


class Queue(Protocol):
    """Jobs that wait. Which is the next may depend on those that run and on what has become of others."""

    def take(self) -> Job | None:
        """The next job, which is then started; None if all must wait for one that runs."""
        ...

    def __len__(self) -> int: ...


class _InOrder:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = deque(jobs)

    def take(self) -> Job | None:
        return self._jobs.popleft() if self._jobs else None

    def __len__(self) -> int:
        return len(self._jobs)


def run_jobs(
    jobs: Sequence[Job] | Queue, at_once: int, preloaded: Preloaded | None = None
) -> Iterator[Progress | Done]:
    """Run jobs, each in a child of its own, `at_once` side by side; yields as they go.

    jobs: in the order that they start in, or a queue that says which is next.
    preloaded: whose copies the children are; None for fresh interpreters.

    A job that dies or runs past its limit is Done with a Death; the others go on.
    """
    waiting: Queue = _InOrder(jobs) if isinstance(jobs, Sequence) else jobs
    running: dict[Child, Job] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while len(waiting) or running:
                while len(running) < at_once and (job := waiting.take()) is not None:
                    fresh = preloaded is None
                    child = Fresh(job.module, threads=job.threads, code=job.code) if fresh else preloaded.child(job)
                    running[child] = job
                    selector.register(child.channel, selectors.EVENT_READ, child)
                    with contextlib.suppress(ChannelClosed):
                        child.channel.send(job.message)
                assert running, "jobs wait, and none runs that they could wait for"
                ready = {key.data for key, _ in selector.select(timeout=0.25)}
                for child, job in list(running.items()):
                    event = _listen(child, job, child in ready)
                    if event is None:
                        continue
                    yield event
                    if isinstance(event, Done):
                        del running[child]
                        selector.unregister(child.channel)
                        child.kill_family()
        finally:
            for child in running:
                child.kill_family()


def _listen(child: Child, job: Job, ready: bool) -> Progress | Done | None:
    seconds = time.monotonic() - child.started
    if ready:
        try:
            message = child.channel.receive(timeout=10)
        except ChannelClosed:
            return Done(job, None, child.death(), seconds)
        except TimeoutError:
            return Done(job, None, Death(Status.FAILED, "it stopped in the middle of a message"), seconds)
        if "progress" not in message:
            return Done(job, message, None, seconds)
        if seconds <= job.timeout_seconds:
            return Progress(job, float(message["progress"]), str(message.get("text", "")))
    if seconds > job.timeout_seconds:
        return Done(job, None, Death(Status.TIMEOUT, f"it ran past its limit of {job.timeout_seconds:g} s"), seconds)
    return None
