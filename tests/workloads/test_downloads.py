import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from leanmark.errors import InvalidInput, NotWritable
from leanmark.workloads.downloads import download

CONTENT = Random(0).randbytes(3_000_000)
LIMIT = 4_000_000


@dataclass
class Site:
    """A server on loopback that may break off, change what it serves, or refuse."""

    content: bytes = CONTENT
    tag: str = '"one"'
    breaks: int = 0  # so many answers end after a third of what they promised
    status: int = 200
    says: str = ""  # of the range that it sends, if it does not tell the truth
    length: bool = True  # whether it says how much there is
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
        if start:
            handler.send_header("Content-Range", self.says or f"bytes {start}-{len(self.content) - 1}/*")
        if self.tag:
            handler.send_header("ETag", self.tag)
        if self.length:
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

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.address = f"http://127.0.0.1:{server.server_port}/file"
    yield site
    server.shutdown()
    server.server_close()


def fetch(site: Site, path: Path) -> list[tuple[int, int | None]]:
    told: list[tuple[int, int | None]] = []
    download(site.address, path, lambda there, whole: told.append((there, whole)), LIMIT, pause=0.01)
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


@pytest.mark.parametrize(
    ("before", "after"), [('"one"', '"two"'), ("", ""), ('"one"', ""), ("", '"two"'), ("W/1", "W/1")]
)
def test_what_may_have_changed_meanwhile_is_fetched_anew(site: Site, tmp_path: Path, before: str, after: str):
    site.breaks, site.tag = 4, before
    with pytest.raises(InvalidInput):
        fetch(site, tmp_path / "file")
    assert (tmp_path / "file.part").stat().st_size > 0
    site.content, site.tag = CONTENT[::-1], after
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]


def test_another_part_than_was_asked_for_is_not_put_behind_the_first(site: Site, tmp_path: Path):
    site.breaks, site.says = 1, "bytes 5-2999999/*"
    fetch(site, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_no_more_is_read_than_there_can_be(site: Site, tmp_path: Path, length: bool):
    site.content, site.length = CONTENT * 2, length
    with pytest.raises(InvalidInput, match=r"more than the 4\.0 MB"):
        fetch(site, tmp_path / "file")
    assert not (tmp_path / "file.part").exists()
    assert len(site.ranges) == 1


def test_the_end_of_what_has_no_length_is_the_end(site: Site, tmp_path: Path):
    site.length = False
    assert fetch(site, tmp_path / "file")[-1] == (len(CONTENT), None)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_network(site: Site, tmp_path: Path):
    (tmp_path / "file.part").mkdir()
    with pytest.raises(NotWritable, match="cannot be written"):
        fetch(site, tmp_path / "file")
    assert len(site.ranges) == 1


def test_a_password_in_an_address_is_not_told(tmp_path: Path):
    with pytest.raises(InvalidInput, match="no connection") as caught:
        download("file://user:secret@nowhere/file", tmp_path / "file", lambda *_: None, LIMIT, pause=0.01)
    assert "secret" not in caught.value.message


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
        download("http://127.0.0.1:9/file", tmp_path / "file", lambda *_: None, LIMIT, pause=0.01)


def test_only_addresses_are_fetched(tmp_path: Path):
    for address in ("ftp://example.org/file", "/etc/hostname", ""):
        with pytest.raises(InvalidInput, match="no address"):
            download(address, tmp_path / "file", lambda *_: None, LIMIT)
