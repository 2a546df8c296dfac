"""The child's side of `processes.Base`: a process that has its imports behind it, and from then on only forks.

A copy is a child like any other, with a channel and a log of its own, in a process group of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from leanmark.channel import PROTOCOL_VERSION, Channel, ChannelClosed, end_with_parent, inherited

Serve = Callable[[Channel, dict[str, Any]], None]


def make_copies(channel: Channel, serve: Serve) -> None:
    """Fork whenever asked, until the parent hangs up; each copy serves its first message and what follows.

    The calling process has to have a single thread, so that forking it is safe. Raises ChannelClosed.
    """
    gc.collect()
    gc.freeze()
    channel.send({"protocol": PROTOCOL_VERSION})
    codes: dict[int, int | None] = {}
    while True:
        message = channel.receive()
        for pid in [pid for pid, code in codes.items() if code is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if message["op"] == "ended":
            channel.send({"code": codes[message["pid"]]})
            continue
        own, log = socket.recv_fds(channel.socket, 1, 2)[1]
        sys.stdout.flush()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(own)
            os.close(log)
            channel.send({"error": str(error)})
            continue
        if pid == 0:
            _be_copy(channel, own, log, serve)
        os.setpgid(pid, pid)  # here too, so that it is done whichever of the two runs first
        codes[pid] = None
        os.close(own)
        os.close(log)
        channel.send({"pid": pid})


def count_threads() -> int:
    """How many threads this process has; one, unless something that was imported has started others."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return threading.active_count()


def _be_copy(base: Channel, own: int, log: int, serve: Serve) -> NoReturn:
    """The life of a copy."""
    code = 1
    try:
        os.setpgid(0, 0)
        base.close()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        channel = inherited(own)
        end_with_parent(channel)
        serve(channel, channel.receive())
        code = 0
    except ChannelClosed:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
