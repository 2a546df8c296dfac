"""A Redis server of leanmark's own, on the loopback, with its own folder and port; gone when nobody needs it any more.

A process of ours stands between, which ends the server with itself: however a run ends, none is left behind.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from leanmark.channel import ChannelClosed, end_with_parent, inherited
from leanmark.host import pin

PROGRAM = "redis-server"
_START_SECONDS = 10.0
_TRIES = 5


def main(descriptor: int) -> None:
    """Start a server, tell its address, and keep it until the parent hangs up."""
    channel = inherited(descriptor)
    end_with_parent(channel)
    try:
        message = channel.receive()
        pin(message["cpus"])
        if shutil.which(PROGRAM) is None:
            channel.send({"missing": f"no {PROGRAM} is installed, which a shared cache needs"})
            return
        with tempfile.TemporaryDirectory(prefix="leanmark-redis-") as folder:
            try:
                process, port = started(Path(folder), message["memory"])
            except OSError as error:
                channel.send({"error": str(error)})
                return
            try:
                channel.send({"url": f"redis://127.0.0.1:{port}/0", "pid": process.pid})
                channel.receive()
            finally:
                process.kill()
                process.wait()
    except ChannelClosed:
        return


def started(folder: Path, memory: str, ports: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], int]:
    """A server that keeps nothing on disk, and evicts what was used longest ago; and its port. Raises OSError.

    ports: those to try first. One that was free may be taken before the server has it, and then another is tried.
    """
    said = "it did not answer"
    for port in (*ports, *(_free_port() for _ in range(_TRIES))):
        command = [
            *(PROGRAM, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""),
            *("--appendonly", "no", "--maxmemory", memory, "--maxmemory-policy", "allkeys-lru"),
            *("--daemonize", "no", "--loglevel", "warning"),
        ]
        log = folder / f"log-{port}"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        until = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < until:
            if _is_redis(port, process.pid):
                return process, port
            time.sleep(0.01)
        process.kill()
        process.wait()
        said = (log.read_text(errors="replace").strip().splitlines() or [said])[-1]
    raise OSError(f"{PROGRAM} could not be started: {said[:200]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_redis(port: int, pid: int) -> bool:
    """Whether the server of this process answers there; another's may, where the port was taken."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as end:
            end.sendall(b"INFO server\r\n")
            return f"process_id:{pid}\r".encode() in end.recv(1 << 16)
    except OSError:
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
