import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from leanmark.errors import InvalidInput
from leanmark.workloads.downloads import download

CONTENT = Random(0).randbytes(3_000_000)


@dataclass
class Site:
    """A server on loopback that may break off, change what it serves, or refuse."""

    content: bytes = CONTENT
    tag: str = '"one"'
    breaks: int = 0  # so many answers end after a third of what they promised
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)
    address: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.ranges.append(asked)
        if self.status != 200:
            handler.send_error(self.status)
            return
        start = 0
        if asked and self.tag and handler.headers.get("If-Range") == self.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        rest = self.content[start:]
        handler.send_response(206 if start else 200)
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if self.breaks:
            self.breaks -= 1
            rest = rest[: len(rest) // 3]
        handler.wfile.write(rest)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.address = f"http://127.0.0.1:{server.server_port}/file"
    yield site
    server.shutdown()
    server.server_close()


def fetch(site: Site, path: Path) -> list[tuple[int, int | None]]:
    told: list[tuple[int, int | None]] = []
    download(site.address, path, lambda there, whole: told.append((there, whole)), pause=0.01)
    return told


def test_a_file_arrives_whole_and_says_how_far_it_is(site: Site, tmp_path: Path):
    told = fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path):
    site.breaks = 2
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    starts = [0 if asked is None else int(asked[6:-1]) for asked in site.ranges]
    assert starts == sorted(starts)
    assert 0 < starts[1] < starts[2]


def test_so_does_one_that_an_earlier_call_gave_up(site: Site, tmp_path: Path):
    site.breaks = 4
    with pytest.raises(InvalidInput, match="ended early"):
        fetch(site, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    site.ranges.clear()
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(site.ranges) == 1
    assert site.ranges[0] is not None


@pytest.mark.parametrize("tag", ['"two"', ""])
def test_what_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path, tag: str):
    site.breaks, site.tag = 4, '"one"' if tag else ""
    with pytest.raises(InvalidInput):
        fetch(site, tmp_path / "file")
    site.content, site.tag = CONTENT[::-1], tag
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_a_refusal_is_not_asked_again(site: Site, tmp_path: Path):
    site.status = 404
    with pytest.raises(InvalidInput, match="404 Not Found"):
        fetch(site, tmp_path / "file")
    assert len(site.ranges) == 1


def test_a_busy_server_is(site: Site, tmp_path: Path):
    site.status = 503
    with pytest.raises(InvalidInput, match="503"):
        fetch(site, tmp_path / "file")
    assert len(site.ranges) == 4


def test_no_connection_is_said(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"no connection: .*refused"):
        download("http://127.0.0.1:9/file", tmp_path / "file", lambda *_: None, pause=0.01)


def test_only_addresses_are_fetched(tmp_path: Path):
    for address in ("ftp://example.org/file", "/etc/hostname", ""):
        with pytest.raises(InvalidInput, match="no address"):
            download(address, tmp_path / "file", lambda *_: None)
