"""What a workload's own code makes, by content: its splits, and its model as it is built.

A user's functions may read files that no key of the store can know of, so before anything
is looked up they are called, and what they give goes into the keys.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.jsonable import canonical_json
from leanmark.prepare.artifacts import Origin, Store
from leanmark.registry import Workload
from leanmark.stages import Split, build
from leanmark.workloads import split_store, splits

if TYPE_CHECKING:
    from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_NESTED = 4  # so deep are containers looked into
_PARTS = ("_parameters", "_buffers", "_modules")


def has_own_code(workload: Workload) -> bool:
    """Whether its model or data come from functions that leanmark does not ship. (An ONNX file is hashed itself.)"""
    named = [name for name in (workload.model, workload.data) if name is not None]
    return workload.onnx is None and any(not name.startswith("leanmark.") for name in named)


def look(workload: Workload, seeds: Sequence[int]) -> tuple[dict[int, Origin], dict[str, Split]]:
    """What its functions make now: the origin of each seed, and the splits. Raises whatever they raise."""
    import torch

    assert workload.model is not None
    built: dict[int, tuple[str, str]] = {}
    with files_read() as files:
        for seed in seeds:
            torch.manual_seed(seed)
            built[seed] = hashes_of(build(workload.model, dict(workload.config or {})))
    read = [sha256(path.read_bytes()).hexdigest() for path in files]
    made = splits.load(workload)
    data = _hash(sorted(split_store.check_disjoint(made).items()))
    return {seed: Origin(data, weights, _hash([rest, read])) for seed, (weights, rest) in built.items()}, made


@contextlib.contextmanager
def files_read() -> Generator[list[Path]]:
    """The files that Python code opens to read meanwhile, each once: what may be in a module's globals then.

    Not those of installed packages, of Python and of the system; nor what a library maps by itself, such as
    safetensors, which is seen by the weights that it makes.
    """
    opened: dict[Path, None] = {}
    found: list[Path] = []
    done = False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not done and isinstance(arguments[0], (str, bytes, os.PathLike)):
            reads = "r" in arguments[1] if arguments[1] else not arguments[2] & os.O_WRONLY
            if reads:
                opened[Path(os.fsdecode(arguments[0])).absolute()] = None

    sys.addaudithook(note)  # for good, so it minds whether it is still wanted
    try:
        yield found
    finally:
        done = True
        found += [path for path in opened if _is_data(path)]


def _is_data(path: Path) -> bool:
    places = {Path(sys.prefix), Path(sys.base_prefix), *map(Path, ("/proc", "/sys", "/dev", "/etc", "/usr"))}
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    is_code = path.suffix in (".py", ".pyc", ".so", ".pth")
    return path.is_file() and not is_code and not installed and not any(map(path.is_relative_to, places))


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


def hashes_of(module: nn.Module) -> tuple[str, str]:
    """Of a module's weights, and of everything else in it that is data: what an artifact does not hold."""
    state = module.state_dict()
    weights = _hash([[name, described(state[name])] for name in sorted(state)])
    rest: list[Any] = [[name, str(value.dtype), list(value.shape)] for name, value in sorted(state.items())]
    for name, part in module.named_modules():
        buffers = dict(part.named_buffers(recurse=False))
        passing = {key: value for key, value in buffers.items() if f"{name}.{key}".lstrip(".") not in state}
        held = {key: value for key, value in vars(part).items() if key not in _PARTS} | passing
        rest.append([name, type(part).__qualname__, [[key, described(held[key])] for key in sorted(held)]])
    return weights, _hash(rest)


def described(value: Any, depth: int = _NESTED) -> Any:
    """A value as JSON that is another where the value is; of what is no data, its type."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if hasattr(value, "detach"):
        import torch

        flat = value.detach().cpu().contiguous().flatten()
        return [str(value.dtype), list(value.shape), _digest(flat.view(torch.uint8).numpy())]
    if isinstance(value, np.ndarray):
        return [value.dtype.name, list(value.shape), _digest(value)]
    if depth and isinstance(value, Mapping):
        return sorted([repr(key), described(item, depth - 1)] for key, item in value.items())
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        items: Iterable[Any] = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [described(item, depth - 1) for item in items]
    return type(value).__qualname__


def _digest(array: Array) -> str:
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _hash(facts: Any) -> str:
    return sha256(canonical_json(facts).encode()).hexdigest()
