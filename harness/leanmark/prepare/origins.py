"""What a user's own code makes and is, by content: splits, models as they are built, modules, files that were read.

A user's functions import what they like and read files that no key of the store can know of.
So before anything is looked up they are called, in a child process, and what is seen goes
into the keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import leanmark
from leanmark import registry
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.jsonable import canonical_json
from leanmark.prepare.artifacts import Origin, Store, own_path
from leanmark.prepare.base import seed_generators
from leanmark.prepare.sources import file_digest
from leanmark.registry import Workload
from leanmark.stages import Split, build
from leanmark.workloads import split_store, splits

if TYPE_CHECKING:
    from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NESTED = 4  # so deep are containers looked into
_PARTS = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class Seen:
    """What a look at a user's code showed.

    origins: of a workload, by seed. steps: a hash of the plug-ins' code. imported: files of modules that are
    not installed; read: other files.
    """

    origins: Mapping[int, Origin] = field(default_factory=dict[int, Origin])
    steps: str = ""
    imported: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()


def has_own_code(workload: Workload) -> bool:
    """Whether its model or data come from functions that leanmark does not ship. (An ONNX file is hashed itself.)"""
    named = [name for name in (workload.model, workload.data) if name is not None]
    return workload.onnx is None and any(not name.startswith("leanmark.") for name in named)


def look_at_workload(workload: Workload, seeds: Sequence[int], project: Path) -> tuple[Seen, dict[str, Split]]:
    """What its functions make now, and the splits themselves. Raises whatever they raise.

    project: what paths are told from, so that they are the same in every checkout.
    """
    importlib.import_module("torch")  # what the keys hold anyway is imported before the look begins

    assert workload.model is not None
    known = frozenset(sys.modules)
    built: dict[int, tuple[str, str]] = {}
    with files_read() as files:
        for seed in seeds:
            seed_generators(seed)
            built[seed] = hashes_of(build(workload.model, dict(workload.config or {})), str(project))
        read = data_read(files, project)
        seed_generators(0)
        made = splits.load(workload)
    data = _hash(sorted(split_store.check_disjoint(made).items()))
    code, imported = own_modules(known)
    found = {seed: Origin(data, weights, _hash([rest, read, code])) for seed, (weights, rest) in built.items()}
    return Seen(found, "", tuple(imported), tuple(filter(_is_own, files))), made


def look_at_plugins(plugins: Sequence[str], project: Path) -> Seen:
    """What their modules are and import, and the files that they read meanwhile. Raises whatever they raise."""
    known = frozenset(sys.modules)
    with files_read() as files:
        for plugin in plugins:
            registry.load_plugin(plugin)
    code, imported = own_modules(known)
    return Seen({}, _hash([code, data_read(files, project)]), tuple(imported), tuple(filter(_is_own, files)))


def keep_splits(store: Store, key: str, workload: Workload, made: Mapping[str, Split] | None = None) -> None:
    """Write a workload's splits into the store, unless they are there and whole; made: if they are at hand."""
    root = store.splits(key)
    with store.lock(f"splits-{key}"):
        if split_store.are_whole(root):
            return
        shutil.rmtree(root, ignore_errors=True)
        with store.scratch() as folder:
            split_store.store(splits.load(workload) if made is None else made, folder / "splits")
            (folder / "splits").rename(root)


# --- code and files ---------------------------------------------------------------


def own_modules(known: frozenset[str] = frozenset()) -> tuple[list[list[str]], list[Path]]:
    """Every imported module that is not installed with a hash of its source, and the files of these; and installed
    packages that are not `known` with their versions. Not leanmark's own, wherever it lies: keys hold its sources."""
    facts: list[list[str]] = []
    files: list[Path] = []
    shipped = Path(leanmark.__file__).parent
    for name, module in sorted(sys.modules.items()):
        where = getattr(module, "__file__", None)
        if name == "__main__" or name.partition(".")[0] == shipped.name or not isinstance(where, str):
            continue
        path = Path(where).absolute()
        if _is_installed(path):
            if "." not in name and name not in known:
                facts.append([name, _version(name, module)])
        elif _is_readable(path):
            facts.append([name, file_digest(path)])
            files.append(path)
    return facts, files


def _version(name: str, module: object) -> str:
    """Never by asking the module: some warn, and import more."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        return importlib.metadata.version(name)
    return str(vars(module).get("__version__", ""))


@contextlib.contextmanager
def files_read() -> Generator[list[Path]]:
    """The files that Python code opens to read meanwhile, and libraries that it loads, each once.

    Not what a library maps by itself, such as safetensors: that is seen by the weights that it makes.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    done = False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if done or event not in ("open", "ctypes.dlopen") or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not _reads(arguments[1], arguments[2]):
            return
        path = Path(os.fsdecode(arguments[0])).absolute()
        if path not in seen:
            seen.add(path)
            found.append(path)

    sys.addaudithook(note)  # for good, so it minds whether it is still wanted
    try:
        yield found
    finally:
        done = True


def _reads(mode: str | None, flags: int) -> bool:
    """Whether a file is opened for what is in it: a lock that is made where it is missing is not."""
    return "r" in mode if mode else not flags & (os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def data_read(files: Iterable[Path], project: Path) -> list[tuple[str, str]]:
    """Those of the files that are data, and code that was not imported but read, with hashes; by paths that are the
    same in every checkout of the project."""
    modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found: dict[str, str] = {}
    for path in files:
        source = _source_of(path)
        if _is_own(source) and str(source) not in modules and _is_data(source, project):
            found[own_path(source, project)] = _file(source)
    return sorted(found.items())


def code_read(project: Path) -> list[tuple[str, str]]:
    """The files of all imported modules that are not installed, in the same form."""
    return [(own_path(path, project), _file(path)) for path in own_modules()[1]]


def _source_of(path: Path) -> Path:
    """The file that compiled code was made from."""
    if path.suffix == ".pyc" and path.parent.name == "__pycache__":
        with contextlib.suppress(ValueError):
            return Path(importlib.util.source_from_cache(str(path)))
    return path


def _is_own(path: Path) -> bool:
    """Whether a file may be a user's: it is there, in no package, and no part of git's own."""
    return _is_readable(path) and not _is_installed(path) and ".git" not in path.parts


def _is_data(path: Path, project: Path) -> bool:
    """Whether it is not the system's, and not what a process wrote for itself."""
    system = ("/proc", "/sys", "/dev", "/etc", "/usr", tempfile.gettempdir(), sys.prefix)
    shipped = path.is_relative_to(Path(leanmark.__file__).parent)
    return not shipped and (path.is_relative_to(project) or not any(map(path.is_relative_to, system)))


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def _is_installed(path: Path) -> bool:
    """Whether a file is Python's own or lies in an installed package."""
    libraries = {Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")}
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, libraries))


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- values -----------------------------------------------------------------------


def hashes_of(module: nn.Module, project: str = "") -> tuple[str, str]:
    """Of a module's weights, and of everything else in it that is data: what an artifact does not hold.

    project: a folder that is left out of texts, which is another in every checkout.
    """
    state = module.state_dict()
    weights = _hash([[name, described(state[name])] for name in sorted(state)])
    rest: list[Any] = [[name, *_shape(value)] for name, value in sorted(state.items())]
    for name, part in module.named_modules():
        buffers = dict(part.named_buffers(recurse=False))
        passing = {key: value for key, value in buffers.items() if f"{name}.{key}".lstrip(".") not in state}
        held = {key: value for key, value in vars(part).items() if key not in _PARTS} | passing
        rest.append([name, type(part).__qualname__, [[key, described(held[key], project)] for key in sorted(held)]])
    return weights, _hash(rest)


def described(value: Any, project: str = "", depth: int = _NESTED) -> Any:
    """A value as JSON that is another where the value is; of what is no data, its type."""
    import torch

    if isinstance(value, _PLAIN):
        return repr(value).replace(project, "") if project else repr(value)
    if isinstance(value, PurePath):
        return described(str(value), project)
    if isinstance(value, torch.Tensor):
        try:
            flat = value.detach().cpu().contiguous().flatten()
            return [*_shape(value), _digest(flat.view(torch.uint8).numpy())]
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantized, without data
            return [*_shape(value), str(value.layout)]
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return [value.dtype.name, list(value.shape), _digest(value)]
    if depth and isinstance(value, Mapping):
        named = [[described(key, project, 1), described(item, project, depth - 1)] for key, item in value.items()]
        return sorted(named, key=canonical_json)
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        items = [described(item, project, depth - 1) for item in value]
        return sorted(items, key=canonical_json) if isinstance(value, (set, frozenset)) else items
    return type(value).__qualname__


def _shape(value: Any) -> list[Any]:
    return [str(getattr(value, "dtype", "")), list(getattr(value, "shape", ()))]


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _hash(facts: Any) -> str:
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()
