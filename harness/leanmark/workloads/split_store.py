"""Splits in a folder: written once, compared with their hashes, mapped into memory.

`check_disjoint` proves that no example is in two splits. `store` writes plain .npy
files, which `open_split` maps into memory: the processes that measure read their
inputs with numpy alone.

A stored folder holds ``splits.json`` and, for each split, ``{split}-{number}.npy``
for every input in the order of ``splits.json``, and ``{split}-targets.npy``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from itertools import combinations
from pathlib import Path
from typing import IO, Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, StorageFull, did_you_mean
from leanmark.stages import Split

SPLITS = ("train", "calibration", "validation", "test")
INDEX = "splits.json"
FORMAT = 1


def check_disjoint(splits: Mapping[str, Split]) -> dict[str, str]:
    """The sha256 of each split's content, targets included.

    An example is known by the bytes of all its inputs. The same example twice in one
    split is allowed. Raises InvalidInput if one is in two splits.
    """
    examples: dict[str, frozenset[bytes]] = {}
    hashes: dict[str, str] = {}
    for name, split in splits.items():
        digests = _example_digests(split)
        examples[name] = frozenset(digests)
        hashes[name] = _digest(split, digests)
    for first, second in combinations(splits, 2):
        shared = len(examples[first] & examples[second])
        if shared:
            raise InvalidInput(
                f"{shared} {'example is' if shared == 1 else 'examples are'} in both '{first}' and '{second}'",
                do=f"Take them out of one: what is seen in '{first}' must not be in '{second}'.",
            )
    return hashes


def _digest(split: Split, examples: list[bytes]) -> str:
    content = hashlib.sha256(b"".join(examples))
    if split.targets is not None:
        content.update(_header(split.targets))
        content.update(split.targets.tobytes())
    return content.hexdigest()


def _example_digests(split: Split) -> list[bytes]:
    prefix = hashlib.sha256()
    columns: list[Array] = []
    for name in sorted(split.inputs):
        array = np.ascontiguousarray(split.inputs[name])
        prefix.update(json.dumps(name).encode() + _header(array[:1]))
        columns.append(array.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8))
    digests: list[bytes] = []
    for index in range(len(split)):
        digest = prefix.copy()
        for column in columns:
            digest.update(column[index])
        digests.append(digest.digest())
    return digests


def _header(array: Array) -> bytes:
    return json.dumps([array.dtype.name, *array.shape]).encode()


# --- On disk -----------------------------------------------------------------------


def store(splits: Mapping[str, Split], root: Path) -> dict[str, str]:
    """Write splits into the folder `root`, replacing those of the same name; returns their sha256.

    `splits.json` is written last, and every file is put in place whole, so that a
    process that has them open keeps what it reads.

    Raises InvalidInput if splits overlap or `root` cannot be written, StorageFull
    if there is no room.
    """
    hashes = check_disjoint(splits)
    index = {
        name: {
            "sha256": hashes[name],
            "count": len(split),
            "inputs": [{"name": key, **_described(array)} for key, array in split.inputs.items()],
            "targets": None if split.targets is None else _described(split.targets),
        }
        for name, split in splits.items()
    }
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / INDEX).unlink(missing_ok=True)
        for name, split in splits.items():
            for number, array in enumerate(split.inputs.values()):
                _put(root / _input_file(name, number), array)
            if split.targets is not None:
                _put(root / _targets_file(name), split.targets)
        text = json.dumps({"format": FORMAT, "splits": index}, indent=1).encode()
        _replace(root / INDEX, lambda file: file.write(text))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the splits: {error}", where=root, do="Free some space.") from error
        raise InvalidInput(f"the splits cannot be written: {error}", where=root) from error
    return hashes


def are_whole(root: Path) -> bool:
    """Whether every stored split can be read and has the hash that it was stored with."""
    try:
        for name in names(root):
            split = open_split(root, name)
            if _digest(split, _example_digests(split)) != _known(root)[name]["sha256"]:
                return False
    except InvalidInput:
        return False
    return True


def names(root: Path) -> frozenset[str]:
    """The splits that are stored. Raises InvalidInput for a folder that `store` did not write to its end."""
    with _reading(root):
        return frozenset(_known(root)) & set(SPLITS)


def digest(root: Path, name: str) -> str:
    """The sha256 of one stored split, as it was when it was stored. Raises InvalidInput."""
    with _reading(root):
        return str(_known(root)[name]["sha256"])


def open_split(root: Path, name: str) -> Split:
    """One stored split, mapped into memory and read-only.

    Raises InvalidInput for a name that is not there, and for a folder that `store`
    did not write to its end.
    """
    with _reading(root):
        known = _known(root)
        if name not in known or name not in SPLITS:
            raise InvalidInput(f"there is no split '{name}'", where=root, do=did_you_mean(name, known))
        entry = known[name]
        inputs = {
            described["name"]: _map(root / _input_file(name, number), described)
            for number, described in enumerate(entry["inputs"])
        }
        targets = None if entry["targets"] is None else _map(root / _targets_file(name), entry["targets"])
        return Split(inputs, targets)


def _known(root: Path) -> dict[str, Any]:
    index = json.loads((root / INDEX).read_bytes())
    if index["format"] != FORMAT:
        raise InvalidInput("the splits have a format that this version does not read", where=root / INDEX)
    return dict(index["splits"])


@contextlib.contextmanager
def _reading(root: Path) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"no readable splits: {type(error).__name__}: {error}", where=root, do="Prepare the workload again."
        ) from error


def _input_file(split: str, number: int) -> str:
    return f"{split}-{number}.npy"


def _targets_file(split: str) -> str:
    return f"{split}-targets.npy"


def _described(array: Array) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def _map(path: Path, described: Mapping[str, Any]) -> Array:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype.name != described["dtype"] or list(array.shape) != described["shape"]:
        raise InvalidInput(
            f"it holds {array.dtype.name} {list(array.shape)}, {INDEX} says {described['dtype']} {described['shape']}",
            where=path,
            do="Prepare the workload again.",
        )
    return array


def _put(path: Path, array: Array) -> None:
    _replace(path, lambda file: np.save(file, array, allow_pickle=False))


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
