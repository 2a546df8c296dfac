"""Quantities as people write them: times and shares, each with its unit."""

from __future__ import annotations

import re

TIME_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|min|h)\s*$"
SHARE_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*(%|pp)\s*$"
RATE_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*/\s*s\s*$"
BANDWIDTH_PATTERN = r"^\s*(\d+(?:\.\d+)?)\s*([kMG])bit/s\s*$"
MAX_SECONDS = 7 * 86400.0
_BITS = {"k": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def seconds(value: object) -> float:
    """Seconds from a text such as 500ms. Raises ValueError."""
    match = re.fullmatch(TIME_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a time needs a number and a unit: 500ms, 1s, 2min, 1h")
    found = float(match[1]) * _SECONDS[match[2]]
    if not 0 < found <= MAX_SECONDS:
        raise ValueError("a time must be longer than nothing and at most a week")
    return found


def share(value: object) -> float:
    """A fraction from a text such as 2% or 0.5pp. Raises ValueError."""
    match = re.fullmatch(SHARE_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a tolerance needs a number and a unit: 2% or 0.5pp")
    return float(match[1]) / 100


def rate(value: object) -> float:
    """Requests a second from a text such as 300/s. Raises ValueError."""
    match = re.fullmatch(RATE_PATTERN, value) if isinstance(value, str) else None
    if match is None or not 0 < float(match[1]) <= 1e6:
        raise ValueError("a rate needs a number and a unit: 300/s")
    return float(match[1])


def bandwidth(value: object) -> float:
    """Bytes a second from a text such as 100Mbit/s. Raises ValueError."""
    match = re.fullmatch(BANDWIDTH_PATTERN, value) if isinstance(value, str) else None
    if match is None or not float(match[1]) > 0:
        raise ValueError("a bandwidth needs a number and a unit: 100Mbit/s, 1Gbit/s")
    return float(match[1]) * _BITS[match[2]] / 8
