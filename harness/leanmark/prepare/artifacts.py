"""The content-addressed store of artifacts, and the keys that find them.

A key is a hash of everything that decides what a step makes: the key of its input,
its name and parameters, the seed, the source of its module and of every module of
the same package that it imports, and the versions of the libraries that it declares.
What a user's functions make of files that no key knows is in it by content (`Origin`).
The value is a content hash. Recipes with a common beginning share it, and changed
code is never served stale.

Layout: ``keys/KEY.json`` (an `Entry`), ``content/HASH/`` (an artifact),
``splits/KEY/``, ``locks/``, ``tmp/``. Everything is put in place by a rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from leanmark import registry
from leanmark.errors import InvalidInput, StorageFull
from leanmark.jsonable import canonical_json, from_json
from leanmark.prepare.sources import source_hash
from leanmark.registry import Workload
from leanmark.results import StepSpec, Target
from leanmark.stages import MANIFEST, Artifact, TorchModel

STORE_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What the store knows about one key.

    counts: parameters, nonzero_parameters and macs of the fp32 structure, where
    there is one. exact_difference: how far an exact step moved the answers. files: what a step of
    the user's own read, with sha256; while one of them is another, the entry does not count.
    """

    content: str
    seconds: float
    peak_rss_bytes: int
    counts: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])
    exact_difference: float | None = None
    files: tuple[tuple[str, str], ...] = ()


class Store:
    """Artifacts on disk, shared by every run of a user."""

    def __init__(self, root: Path, project: Path | None = None) -> None:
        """project: what the paths of files that steps read are told from; the current folder by default."""
        self.root, self.project = root, project or Path.cwd()
        self.checked: set[str] = set()  # what was compared with its hashes
        for name in ("keys", "content", "splits", "locks", "tmp"):
            with writing_to(root):
                (root / name).mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Entry | None:
        """What `key` led to, if its artifact is there."""
        try:
            entry = from_json(Entry, json.loads((self.root / "keys" / f"{key}.json").read_text()))
            there = (self._place(entry.content) / MANIFEST).exists()
            return (
                entry
                if there and all(_file_hash(str(self.project / path)) == digest for path, digest in entry.files)
                else None
            )
        except (OSError, ValueError, RecursionError, InvalidInput):
            return None

    def get_checked(self, key: str) -> Entry | None:
        """The same, where every file of the artifact has its hash; a damaged artifact is made again."""
        entry = self.get(key)
        if entry is None or entry.content in self.checked:
            return entry
        if not self._is_whole(entry.content):
            shutil.rmtree(self._place(entry.content), ignore_errors=True)
            return None
        self.checked.add(entry.content)
        return entry

    def _is_whole(self, content: str) -> bool:
        try:
            self.open(content).check()
        except (OSError, InvalidInput):
            return False
        return True

    def holds(self, contents: Iterable[str]) -> bool:
        """Whether all these artifacts are here, and whole. Raises InvalidInput for what is no content hash."""
        return all(self._place(content).is_dir() and self._is_whole(content) for content in contents)

    def open(self, content: str) -> Artifact:
        """The artifact of a content hash. Raises InvalidInput."""
        return Artifact.open(self._place(content))

    def _place(self, content: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", content):
            raise InvalidInput("a content hash has 64 hexadecimal digits", where=self.root)
        return self.root / "content" / content

    def put(self, key: str, write: Callable[[Path], Artifact], entry: Callable[[str], Entry]) -> Entry:
        """Write an artifact into a fresh folder, then move it and its entry into place."""
        with writing_to(self.root), self.scratch() as folder:
            artifact = write(folder)
            content = artifact.content_hash
            place = self._place(content)
            if place.exists() and not self._is_whole(content):
                shutil.rmtree(place, ignore_errors=True)
            if not place.exists():
                with contextlib.suppress(FileExistsError, OSError):
                    os.rename(folder, place)
            if not place.exists():
                shutil.copytree(folder, place)
            made = entry(content)
            self.write_json(self.root / "keys" / f"{key}.json", asdict(made))
            return made

    def adopt(self, content: str, read: Callable[[str], bytes]) -> Artifact:
        """Take an artifact in that was made elsewhere; `read` gives its files by name.

        Raises InvalidInput unless every file has its hash. Whether it may be run is another question.
        """
        place = self._place(content)
        if place.exists() and self._is_whole(content):
            return self.open(content)
        shutil.rmtree(place, ignore_errors=True)
        with writing_to(self.root), self.scratch() as folder:
            root = folder / content
            root.mkdir()
            (root / MANIFEST).write_bytes(read(MANIFEST))
            for name in Artifact.open(root).manifest["files"]:
                (root / name).write_bytes(read(name))
            Artifact.open(root).check()
            with contextlib.suppress(FileExistsError, OSError):
                os.rename(root, place)
        return self.open(content)

    @contextlib.contextmanager
    def scratch(self) -> Generator[Path]:
        """A folder for work in progress that is gone afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.root / "tmp"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, key: str) -> Generator[None]:
        """One process at a time makes what `key` names; freed when the process ends."""
        with (self.root / "locks" / key).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write_json(self, path: Path, value: object) -> None:
        """Replace a file in one step."""
        with writing_to(path):
            handle, name = tempfile.mkstemp(dir=self.root / "tmp")
            with os.fdopen(handle, "w") as file:
                json.dump(value, file)
            os.replace(name, path)

    def splits(self, key: str) -> Path:
        """Where the splits of a workload lie."""
        return self.root / "splits" / key

    def recall(self, key: str) -> dict[str, Any]:
        """What was remembered under a key: how something was when it was last looked at."""
        try:
            found: object = json.loads((self.root / "keys" / f"{key}.seen.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, key: str, facts: Mapping[str, Any]) -> None:
        """Put facts down that `recall` gives back."""
        self.write_json(self.root / "keys" / f"{key}.seen.json", facts)

    def final(self, key: str) -> dict[str, Any] | None:
        """What was read off the artifact of `key` when it ended a recipe."""
        try:
            found: object = json.loads((self.root / "keys" / f"{key}.final.json").read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def put_final(self, key: str, facts: Mapping[str, Any]) -> None:
        """Store what was read off the last artifact of a recipe under its key."""
        self.write_json(self.root / "keys" / f"{key}.final.json", facts)


@contextlib.contextmanager
def writing_to(path: Path) -> Generator[None]:
    """Turn what the operating system says into an error that tells what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                "the disk is full", where=path, do="Free some space; what was measured is kept."
            ) from error
        raise InvalidInput(
            f"cannot be written: {error.strerror}", where=path, do="Choose another folder or its permissions."
        ) from error


# --- keys ------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What a user's own functions made, as hashes: where a trial starts from.

    splits: of all splits. weights: of the parameters and buffers of the model as it is built, before
    any training. structure: of everything else that it holds (classes, shapes, plain attributes), of the
    files that were read to build it, and of the code that was imported.
    """

    splits: str
    weights: str
    structure: str


@dataclass(frozen=True)
class Keys:
    """The keys along one recipe: its splits, its base model, and after each step."""

    splits: str
    base: str
    steps: tuple[str, ...]

    @property
    def final(self) -> str:
        return self.steps[-1] if self.steps else self.base


def make_keys(
    workload: Workload, steps: tuple[StepSpec, ...], seed: int, origin: Origin | None = None, plugins: str = ""
) -> Keys:
    """All keys of a trial; imports neither torch nor the user's modules.

    origin: what the workload's own functions make. plugins: a hash of the code of steps that leanmark does not ship.
    """
    own = () if origin is None else (origin.splits,)
    splits = _hash("splits", workload.data or _file_hash(workload.inputs), _source_of(workload.data), *own)
    base = _hash(
        "workload",
        STORE_FORMAT,
        splits,
        workload.model or _onnx_hash(workload.onnx),
        dict(workload.config or {}),
        None if workload.train is None else dict(workload.train),
        seed,
        _source_of(workload.model),
        source_hash("leanmark.prepare.base"),
        _versions(("torch", "numpy", "safetensors")),
        _machine(),
        *(() if origin is None else (origin.weights, origin.structure)),
        *(() if workload.initial is None else (workload.initial, _source_of(workload.initial))),
    )
    found: list[str] = []
    for spec in steps:
        step = registry.get_step(spec.name)
        found.append(
            _hash(
                "step",
                found[-1] if found else base,
                spec.name,
                dict(spec.params),
                seed,
                source_hash(step.function.__module__),
                _versions(step.libraries),
                *(() if is_shipped(step.function) else (plugins,)),
            )
        )
    return Keys(splits, base, tuple(found))


def is_shipped(function: Callable[..., Any]) -> bool:
    """Whether leanmark brings it."""
    return function.__module__.partition(".")[0] == "leanmark"


def own_path(path: Path, project: Path) -> str:
    """A path that is the same in every checkout of a project, for a file that lies in it."""
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)


def project_of(folder: Path) -> Path:
    """The top of the work tree that holds a folder, or the folder itself where there is none."""
    here = folder.resolve()
    return next((place for place in (here, *here.parents) if (place / ".git").exists()), here)


def code_hash(workload: Workload, target: Target, structure: str | None = None) -> str:
    """Two hashes of what runs an artifact, with a dot between them.

    The first is of the model's own code, and of the structure that this builds, where the artifact does not hold
    them; the second of the rest: leanmark's code, the metric's, and versions.
    """
    runtime = registry.get_runtime(target.runtime)
    metric = workload.metric if ":" in workload.metric else None
    model = _hash("model", *((_source_of(workload.model), structure) if runtime.executes is TorchModel else ()))
    rest = _hash(
        "code",
        platform.python_version(),
        source_hash("leanmark.measure.worker" if target.traffic is None else "leanmark.serving.process"),
        source_hash(runtime.loader.partition(":")[0]),
        [workload.metric, _source_of(metric)],
        _versions((*runtime.libraries, "numpy")),
    )
    return f"{model[:16]}.{rest[:16]}"


# Distributions that bring the same module.
_ALSO_CALLED = {"onnxruntime": ("onnxruntime-gpu",)}


@functools.cache
def _version(library: str) -> str:
    for name in (library, *_ALSO_CALLED.get(library, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "absent"


def _source_of(reference: str | None) -> str | None:
    return None if reference is None else source_hash(reference.partition(":")[0])


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    return {library: _version(library) for library in libraries}


@functools.cache
def _machine() -> str:
    """What decides which kernels are used, and so the last bits of trained weights."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return _hash(platform.machine(), platform.system(), features or platform.processor())


def _onnx_hash(path: str | None) -> str | None:
    """The hash of an ONNX file and of the files beside it that hold its weights."""
    if path is None:
        return None
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise InvalidInput(f"is no ONNX model that can be read: {error}", where=Path(path)) from error
    stored = (tensor for tensor in model.graph.initializer if uses_external_data(tensor))
    beside = sorted({str(ExternalDataInfo(tensor).location) for tensor in stored})
    folder = Path(path).resolve().parent
    for name in beside:
        file = folder / name.replace("\0", "")
        if "\0" in name or folder not in file.resolve().parents or not file.is_file():
            raise InvalidInput(
                f"its weights lie in {name[:100]!r}, which is no file beside it",
                where=Path(path),
                do="Put the file there, or save the model with its weights inside.",
            )
    return _hash(_file_hash(path), [_file_hash(str(folder / name)) for name in beside])


def _file_hash(path: str | None) -> str | None:
    if path is None:
        return None
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()
