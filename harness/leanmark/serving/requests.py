"""Frames on the socket between a client and a service, and what a service answers with.

A frame is a little-endian header, then a payload: length of the payload (4 bytes), number of the request (8), and of an
answer its outcome (1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

REQUEST = struct.Struct("<IQ")
ANSWER = struct.Struct("<IQB")
MOST_BYTES = 2**28


class Outcome(IntEnum):
    """What became of a request."""

    ANSWERED = 0
    FAILED = 1  # what its own request did; the payload is the reason
    REJECTED = 2  # the queue was full
    LATE = 3  # the service was told to end before its turn came


class BadFrame(ValueError):
    """A client that does not keep to the frames."""


@dataclass(frozen=True)
class Request:
    """A request as it came in: its number, its payload, and when it was there, in seconds of a monotonic clock."""

    number: int
    payload: bytes
    arrived: float


def request_frame(number: int, payload: bytes) -> bytes:
    return REQUEST.pack(len(payload), number) + payload


def answer_frame(number: int, outcome: Outcome, payload: bytes = b"") -> bytes:
    return ANSWER.pack(len(payload), number, outcome) + payload


class Frames:
    """Frames out of a stream of bytes, which may be cut anywhere."""

    def __init__(self, header: struct.Struct) -> None:
        self._header, self._buffer = header, bytearray()

    def feed(self, content: bytes) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Every frame that is whole now: what its header says after the length, and the payload. Raises BadFrame."""
        buffer, header, at = self._buffer, self._header, 0
        buffer += content
        while len(buffer) - at >= header.size:
            length, *rest = header.unpack_from(buffer, at)
            if length > MOST_BYTES:
                raise BadFrame(f"a frame of {length} bytes")
            end = at + header.size + length
            if end > len(buffer):
                break
            yield tuple(rest), bytes(buffer[at + header.size : end])
            at = end
        del buffer[:at]
