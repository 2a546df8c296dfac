"""A file by its address: resumed where an earlier try stopped, put in place whole."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanmark import __version__
from leanmark.errors import InvalidInput

Received = Callable[[int, int | None], None]  # bytes so far, bytes of the whole if they are known

SCHEMES = ("https://", "http://", "file://")
TRIES = 4
_TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 18
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # what a server may answer differently in a moment


def download(address: str, path: Path, received: Received, pause: float = 1.0) -> None:
    """Put the content of an address into the file `path`.

    What has arrived lies in ``NAME.part`` beside it until all has, so that a broken or
    interrupted download goes on where it stopped: in this call up to `TRIES` times,
    waiting `pause`, twice and four times as many seconds, and in the next call. It goes on only if the
    server says that the content is still the same one.

    Raises InvalidInput with what the server or the network said.
    """
    if not address.startswith(SCHEMES):
        raise InvalidInput("it is no address that can be fetched", where=address)
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        try:
            if _receive(address, path, received):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                _part(path).unlink(missing_ok=True)
            elif error.code not in _AGAIN:
                break
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            problem = f"no connection: {getattr(error, 'reason', error) or type(error).__name__}"
    raise InvalidInput(problem, where=address)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _receive(address: str, path: Path, received: Received) -> bool:
    """One try; False where the connection ended before all was here."""
    part, about = _part(path), path.with_name(f"{path.name}.part.json")
    there, mark = _kept(part, about, address)
    request = urllib.request.Request(address, headers={"User-Agent": f"leanmark/{__version__}"})  # noqa: S310 - SCHEMES
    if there:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", mark)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - SCHEMES
        if there and response.status != http.client.PARTIAL_CONTENT:
            there = 0
        length = response.headers.get("Content-Length")
        whole = None if length is None else there + int(length)
        mark = _mark(response)
        about.write_text(json.dumps({"address": address, "mark": mark}))
        with part.open("ab" if there else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                there += len(chunk)
                received(there, whole)
    if whole is not None and there < whole:
        return False
    part.replace(path)
    about.unlink(missing_ok=True)
    return True


def _mark(response: Any) -> str:
    """What tells this content from a later one at the same address: a strong ETag or a date; empty if neither."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _kept(part: Path, about: Path, address: str) -> tuple[int, str]:
    """How much of it an earlier try left, if it can be gone on with, and the mark of that content."""
    try:
        known = json.loads(about.read_text())
        if known["address"] == address and known["mark"]:
            return part.stat().st_size, str(known["mark"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""
