"""Child processes: started in a session of their own, watched, and never left behind.

A child is ``python -m MODULE DESCRIPTOR``; it talks over a channel. Its output goes
to a file, whose end becomes the reason when it dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from leanmark.channel import ChannelClosed, pair
from leanmark.results import Status

CAN_FORK = sys.platform == "linux"
_LOG_TAIL_BYTES = 4000
_living: set[Child] = set()


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that gives every numeric library the same number of threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **dict.fromkeys(names, str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


@dataclass(frozen=True)
class Code:
    """What a child runs: an interpreter, and where it finds Python modules.

    paths: looked in before installed packages; a suite's own folder. sources: looked in before
    everything else; another revision's folders in place of those that are installed from the work tree.
    folder: the one that it runs in; None for this process's own.
    """

    python: str = sys.executable
    paths: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()
    folder: Path | None = None

    def environment(self) -> dict[str, str]:
        """What of the environment tells it so."""
        if not self.sources:
            return {}
        before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        return {"PYTHONPATH": os.pathsep.join([*map(str, self.sources), *before])}


@dataclass(frozen=True)
class Death:
    """How a child ended that should not have."""

    status: Status
    reason: str


class Child(ABC):
    """A running child process.

    Either a `Fresh` interpreter or the `Copy` of one that was made a `Base`.
    """

    def __init__(self) -> None:
        self.channel, self._theirs = pair()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self.started = time.monotonic()
        self._oom_kills = _oom_kills()
        try:
            self.pid = self._start(self._theirs.fileno())
        except BaseException:
            self.channel.close()
            self.log.close()
            raise
        finally:
            self._theirs.close()
        _living.add(self)

    @abstractmethod
    def _start(self, descriptor: int) -> int:
        """Start it with this end of its channel; returns its process id."""

    @abstractmethod
    def exit_code(self, timeout: float) -> int | None:
        """How it ended, minus the signal that killed it; None if it still runs after `timeout` seconds."""

    def begin_kill(self) -> None:
        """Send the end of the child, and of everything that it started, on its way."""
        _living.discard(self)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill_family(self) -> None:
        """End the child, and also what it started in sessions of their own."""
        with contextlib.suppress(psutil.Error):
            for descendant in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    descendant.kill()
        self.kill()

    def kill(self) -> None:
        """End the child and everything that it started in its session."""
        self.begin_kill()
        self.exit_code(60)
        self.channel.close()
        self.log.close()

    def death(self) -> Death:
        """Why the child is gone; call after its channel closed."""
        code = self.exit_code(5)
        if code is None:
            return Death(Status.FAILED, f"it closed its channel and went on running; {self.tail()}".rstrip("; "))
        tail = self.tail()
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return Death(Status.OUT_OF_MEMORY, "the operating system killed it for want of memory")
        if code < 0:
            name = signal.Signals(-code).name
            return Death(Status.FAILED, f"it was killed by {name}" + (f"; last output: {tail}" if tail else ""))
        return Death(Status.FAILED, f"it ended with exit code {code}" + (f"; last output: {tail}" if tail else ""))

    def tail(self) -> str:
        """The last line that the child printed."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - _LOG_TAIL_BYTES))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class Fresh(Child):
    """A child that is a fresh interpreter: ``python -m MODULE DESCRIPTOR``."""

    def __init__(self, module: str, *, threads: int = 1, code: Code = Code()) -> None:
        self._command = [code.python, "-P", "-m", module]
        self._paths, self._folder = list(map(str, code.paths)), code.folder
        self._environment = {**os.environ, **code.environment(), **thread_environment(threads)}
        super().__init__()

    def _start(self, descriptor: int) -> int:
        self._process = subprocess.Popen(
            [*self._command, str(descriptor), *self._paths],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._folder,
            start_new_session=True,
        )
        return self._process.pid

    def exit_code(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


class Base(Fresh):
    """A fresh interpreter that imports something once and then only makes copies of itself.

    Raises ChannelClosed or TimeoutError where it does not answer.
    """

    def __init__(
        self,
        module: str,
        message: Mapping[str, Any],
        *,
        threads: int = 1,
        code: Code = Code(),
    ) -> None:
        self._lock, self._ready = threading.Lock(), False
        super().__init__(module, threads=threads, code=code)
        self.channel.send({"op": "base", **message})

    def wait(self, timeout: float) -> None:
        """Until it has imported what it imports."""
        with self._lock:
            if not self._ready:
                self.channel.receive(timeout)
                self._ready = True

    def fork(self, channel: int, log: int) -> int:
        """The process id of a new copy that talks over one descriptor and prints to the other.

        Raises ChannelClosed, OSError where the system makes no more processes.
        """
        with self._answering():
            self.channel.send({"op": "fork"})
            socket.send_fds(self.channel.socket, [b"F"], [channel, log])
            answer = self.channel.receive(30)
        if "error" in answer:
            raise ChildProcessError(answer["error"])
        return int(answer["pid"])

    def ended(self, pid: int) -> int | None:
        """How a copy ended; None if it has not. Raises ChannelClosed."""
        with self._answering():
            self.channel.send({"op": "ended", "pid": pid})
            return self.channel.receive(30)["code"]

    @contextmanager
    def _answering(self) -> Generator[None]:
        """One question and its answer. Where that is broken off, a late answer would be taken for the next one's."""
        with self._lock:
            try:
                yield
            except BaseException as error:
                self.begin_kill()
                self.channel.close()
                if isinstance(error, OSError):
                    raise ChannelClosed(f"it does not answer: {error}") from error
                raise


class Copy(Child):
    """A fork of a base, in a process group of its own."""

    def __init__(self, base: Base) -> None:
        self._base = base
        super().__init__()

    def _start(self, descriptor: int) -> int:
        return self._base.fork(descriptor, self.log.fileno())

    def exit_code(self, timeout: float) -> int | None:
        until = time.monotonic() + timeout
        while True:
            try:
                code = self._base.ended(self.pid)
            except ChannelClosed:  # the base is gone, and what it knew
                code = -signal.SIGKILL if _is_gone(self.pid) else None
            if code is not None or time.monotonic() > until:
                return code
            time.sleep(0.002)


def kill_all() -> None:
    """End every child that is left; called when a run is interrupted or fails."""
    for child in sorted(_living, key=lambda child: isinstance(child, Base)):  # a base knows how its copies ended
        child.kill_family()


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _oom_kills() -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@contextmanager
def child_threads(count: int) -> Generator[ThreadPoolExecutor]:
    """Threads that each wait for a child; when something interrupts, the children are ended at once."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        kill_all()
        raise
    pool.shutdown()
