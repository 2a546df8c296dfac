"""Messages between a parent and a worker over a socket: a JSON header and raw arrays.

A frame is an unsigned 32-bit big-endian header length, the header as JSON, and the
bytes of the arrays that the header's ``_arrays`` lists. Nothing is pickled. Standard
output stays free: whatever a model prints cannot reach the protocol.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np

PROTOCOL_VERSION = 2
MAX_HEADER_BYTES = 64 * 2**20
MAX_ARRAY_BYTES = 2**33


class ChannelClosed(Exception):
    """The other side is gone, or sent something that is not a message."""


class Channel:
    """One end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        """Send one message. Raises ChannelClosed."""
        described: list[list[Any]] = []
        chunks: list[bytes] = []
        for name, array in (arrays or {}).items():
            described.append([name, array.dtype.str, list(array.shape)])
            chunks.append(np.ascontiguousarray(array).tobytes())
        head = json.dumps({**header, "_arrays": described}).encode()
        try:
            self.socket.sendall(b"".join([struct.pack(">I", len(head)), head, *chunks]))
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """The next message, arrays under their names. Raises ChannelClosed or TimeoutError."""
        self.socket.settimeout(timeout)
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > MAX_HEADER_BYTES:
            raise ChannelClosed("the other side sent something that is not a message")
        try:
            message: dict[str, Any] = json.loads(self._exactly(length))
            described = message.pop("_arrays")
        except (ValueError, KeyError, AttributeError) as error:
            raise ChannelClosed("the other side sent something that is not a message") from error
        for name, dtype, shape in described:
            kind = np.dtype(dtype)
            size = math.prod(shape) * kind.itemsize
            if kind.hasobject or not 0 <= size <= MAX_ARRAY_BYTES:
                raise ChannelClosed("the other side sent an array that cannot be read")
            message[name] = np.frombuffer(self._exactly(size), dtype=kind).reshape(shape)
        return message

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        left = size
        while left:
            try:
                part = self.socket.recv(min(left, 2**20))
            except TimeoutError:
                raise
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not part:
                raise ChannelClosed("the other side closed the connection")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def end_with_parent(channel: Channel) -> None:
    """End this process and all that it started once the other side is gone, however busy it is."""

    def watch() -> None:
        poll = select.poll()
        poll.register(channel, 0)  # a hang-up is reported always
        poll.poll()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def pair() -> tuple[Channel, socket.socket]:
    """A parent's end, and the end that a worker inherits."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def inherited(descriptor: int) -> Channel:
    """The worker's end, from the descriptor that it was started with."""
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    return Channel(end)
