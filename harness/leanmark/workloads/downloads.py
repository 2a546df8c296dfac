"""A file by its address: resumed where an earlier try stopped, put in place whole.

Who answers need not be trusted: what arrives is checked by its sha256 afterwards, so plain http and redirects are
followed, and no more is read than the content can have.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanmark import __version__
from leanmark.errors import InvalidInput, telling

Received = Callable[[int, int | None], None]  # bytes so far, bytes of the whole if they are known

SCHEMES = ("https://", "http://", "file://")
TRIES = 4
_TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 18
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # what a server may answer differently in a moment


def download(address: str, path: Path, received: Received, limit: int, pause: float = 1.0) -> None:
    """Put the content of an address into the file `path`.

    limit: bytes; what is larger is refused. What has arrived lies in ``NAME.part`` beside it until all has, so that a
    broken or interrupted download goes on where it stopped: in this call up to `TRIES` times, waiting `pause`, twice
    and four times as many seconds, and in the next call. It goes on only if the server says that the content is still
    the same one.

    Raises InvalidInput with what the server or the network said, NotWritable where the file cannot be written.
    """
    if not address.startswith(SCHEMES):
        raise InvalidInput("it is no address that can be fetched", where=address)
    problem = ""
    for number in range(TRIES):
        if number:
            time.sleep(pause * 2 ** (number - 1))
        try:
            if _receive(address, path, received, limit):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"the server answered {error.code} {error.reason}"
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                _part(path).unlink(missing_ok=True)
            elif error.code not in _AGAIN:
                break
        except (OSError, http.client.HTTPException) as error:  # writing raises NotWritable
            problem = f"no connection: {getattr(error, 'reason', error) or type(error).__name__}"
            if address.startswith("file://"):
                break
    raise InvalidInput(problem, where=_without_password(address))


def _without_password(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _receive(address: str, path: Path, received: Received, limit: int) -> bool:
    """One try; False where the connection ended before all was here, or answered with another part."""
    part, about = _part(path), path.with_name(f"{path.name}.part.json")
    there, mark = _kept(part, about, address)
    request = urllib.request.Request(address, headers={"User-Agent": f"leanmark/{__version__}"})  # noqa: S310 - SCHEMES
    if there:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", mark)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - SCHEMES
        if there and response.status == http.client.PARTIAL_CONTENT:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                part.unlink()
                return False
        else:
            there = 0
            with telling(path):
                part.unlink(missing_ok=True)  # before its mark changes, or it would be taken for what comes now
                about.write_text(json.dumps({"address": address, "mark": _mark(response)}))
        length = response.headers.get("Content-Length", "")
        whole = there + int(length) if length.isdecimal() else None
        with telling(path):
            file = part.open("ab")
        with file:
            while chunk := response.read(_CHUNK):
                there += len(chunk)
                if max(there, whole or 0) > limit:
                    part.unlink()
                    raise InvalidInput(
                        f"it has more than the {limit / 1e6:.1f} MB that were published",
                        where=_without_password(address),
                    )
                with telling(path):
                    file.write(chunk)
                    file.flush()
                received(there, whole)
    if whole is not None and there < whole:
        return False
    with telling(path):
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
