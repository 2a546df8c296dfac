"""A workload's data as checked splits.

`load` takes what a workload's own function returns, or the arrays beside an ONNX
file, and makes `Split`s of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, LeanmarkError, did_you_mean
from leanmark.stages import Split
from leanmark.workloads import onnx_inputs
from leanmark.workloads.split_store import SPLITS

if TYPE_CHECKING:
    from leanmark.registry import Workload

# The name of an input that has none: a workload gave one array for it.
SINGLE_INPUT = "input"
# Fewer examples than this cannot be divided into calibration, validation and test.
MINIMUM_EXAMPLES = 8
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"] + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


# --- From a workload ---------------------------------------------------------------


def load(workload: Workload, folder: Path | None = None) -> dict[str, Split]:
    """The splits of a workload, checked, in the order train, calibration, validation, test.

    folder: what relative paths of an ONNX workload start from; None for the
    current folder.

    `workload.data` names a function; `normalise` says what it may return. For a
    workload that is an ONNX file, the arrays of the .npz `workload.inputs` are named
    as the model's inputs are, with `targets` beside them if there are any; they are
    divided in their order: the first quarter is calibration, the second quarter
    validation, the rest test, quarters rounded down.

    Raises InvalidInput, naming the workload or the file, for anything malformed.
    """
    where = f"workload '{workload.name}'"
    if workload.onnx is not None:
        if workload.inputs is None:
            raise InvalidInput("it names an ONNX file but no inputs", where=where, do="Add inputs: inputs.npz.")
        base = folder or Path()
        return _divided(onnx_inputs.read(base / workload.onnx, base / workload.inputs), base / workload.inputs)
    if workload.data is None:
        raise InvalidInput("it names no data", where=where, do="Add data: 'package.module:function'.")
    return normalise(_call(workload.data, where), f"{where}, data '{workload.data}'")


def _call(reference: str, where: str) -> object:
    from leanmark.modules import resolve

    try:
        return resolve(reference)()
    except (LeanmarkError, MemoryError):
        raise
    except Exception as error:  # a user's code: it may raise anything
        raise InvalidInput(f"data '{reference}' failed: {type(error).__name__}: {error}", where=where) from error


def _divided(examples: tuple[dict[str, Array], Array | None], path: Path) -> dict[str, Split]:
    whole = _split(examples, str(path))
    count = len(whole)
    if count < MINIMUM_EXAMPLES:
        raise InvalidInput(
            f"{count} examples are too few to divide", where=path, do=f"Give at least {MINIMUM_EXAMPLES}."
        )
    quarter = count // 4
    return {
        "calibration": _part(whole, 0, quarter),
        "validation": _part(whole, quarter, 2 * quarter),
        "test": _part(whole, 2 * quarter, count),
    }


def _part(split: Split, start: int, stop: int) -> Split:
    targets = None if split.targets is None else split.targets[start:stop]
    return Split({name: array[start:stop] for name, array in split.inputs.items()}, targets)


def normalise(returned: object, where: str) -> dict[str, Split]:
    """What a data function returned, as splits of contiguous numpy arrays.

    returned: a mapping of train, calibration, validation and test (the only one that
    is required; None is as good as missing) to one of
    - a `Split`,
    - a tuple (inputs, targets), where targets may be None,
    - a mapping with `inputs` and, if known, `targets`,
    - the inputs alone.
    Inputs are an array, or a mapping of input names to arrays; an array is anything
    that numpy takes, or a torch tensor. One array without a name becomes the input
    `input`. Targets that are integers become int64; no other value changes its type.
    where: names the source in messages.

    Raises InvalidInput if it is something else, if lengths, names or types do not
    agree, and for NaN.
    """
    given = _mapping(returned)
    if given is None:
        raise InvalidInput(
            f"it gave a {type(returned).__name__}, not a mapping of split names to splits",
            where=where,
            do=f"Return a dict with {', '.join(SPLITS)}; only test is required.",
        )
    for name in given:
        if name not in SPLITS:
            raise InvalidInput(f"unknown split {name!r}", where=where, do=did_you_mean(str(name), SPLITS))
    if given.get("test") is None:
        raise InvalidInput("there is no test split", where=where, do="Quality is measured on it: add 'test'.")
    splits = {name: _split(given[name], f"{where}, split '{name}'") for name in SPLITS if given.get(name) is not None}
    for name, split in splits.items():
        _check_alike(splits["test"], split, f"{where}, split '{name}'")
    return splits


def _mapping(value: object) -> Mapping[Any, Any] | None:
    return cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else None


def _split(value: Any, where: str) -> Split:
    inputs, targets = _inputs_and_targets(value, where)
    named = _mapping(inputs)
    if named is None:
        named = {SINGLE_INPUT: inputs}
    if not named:
        raise InvalidInput("it has no inputs", where=where)
    for name in named:
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"an input is named {name!r}, which is not a name", where=where)
    arrays = {str(name): _array(array, f"input '{name}'", where) for name, array in named.items()}
    labels = None if targets is None else _targets(_array(targets, "targets", where), where)
    counts = {f"input '{name}'": len(array) for name, array in arrays.items()}
    if labels is not None:
        counts["targets"] = len(labels)
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{what}: {count}" for what, count in counts.items())
        raise InvalidInput(f"the numbers of examples differ: {listed}", where=where)
    return Split(arrays, labels)


def _inputs_and_targets(value: Any, where: str) -> tuple[Any, Any]:
    if isinstance(value, Split):
        return value.inputs, value.targets
    keyed = _mapping(value)
    if keyed is not None:
        for key in keyed:
            if key not in ("inputs", "targets"):
                advice = did_you_mean(str(key), ("inputs", "targets"))
                raise InvalidInput(f"unknown key {key!r}", where=where, do=advice)
        if "inputs" not in keyed:
            raise InvalidInput("it has no 'inputs'", where=where)
        return keyed["inputs"], keyed.get("targets")
    if isinstance(value, tuple):
        pair = cast("tuple[Any, ...]", value)
        if len(pair) != 2:
            raise InvalidInput(f"it is a tuple of {len(pair)}, not (inputs, targets)", where=where)
        return pair
    return value, None


def _array(value: Any, what: str, where: str) -> Array:
    try:
        # A torch tensor, told by its method: this module must not import torch.
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InvalidInput(f"{what} cannot be made a numpy array: {error}", where=where) from error
    if array.dtype.name not in _DTYPES:
        raise InvalidInput(
            f"{what} has dtype {array.dtype.name}",
            where=where,
            do=f"Use numbers of one of these types: {', '.join(sorted(_DTYPES))}.",
        )
    if array.ndim == 0:
        raise InvalidInput(f"{what} is a single number; its first axis must count the examples", where=where)
    if array.size == 0:
        missing = "examples" if len(array) == 0 else "values"
        raise InvalidInput(f"{what} has no {missing}: its shape is {array.shape}", where=where)
    if array.dtype.kind == "f" and np.isnan(array).any():
        bad = np.isnan(array).reshape(len(array), -1).any(axis=1)
        raise InvalidInput(
            f"{what} has NaN in {np.count_nonzero(bad)} of {len(array)} examples, first in example {bad.argmax()}",
            where=where,
            do="Leave those examples out, or fill in what is missing.",
        )
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _targets(array: Array, where: str) -> Array:
    if array.dtype.kind not in "biu":
        return array
    if array.dtype.kind == "u" and int(array.max()) > np.iinfo(np.int64).max:
        raise InvalidInput("targets hold a number that int64 cannot", where=where)
    return array.astype(np.int64, copy=False)


def _check_alike(test: Split, split: Split, where: str) -> None:
    if set(split.inputs) != set(test.inputs):
        raise InvalidInput(f"its inputs are {sorted(split.inputs)}, those of 'test' {sorted(test.inputs)}", where=where)
    for name, array in split.inputs.items():
        other = test.inputs[name]
        if array.dtype != other.dtype or array.ndim != other.ndim:
            raise InvalidInput(
                f"input '{name}' is {array.dtype.name} with {array.ndim} axes, "
                f"in 'test' {other.dtype.name} with {other.ndim}",
                where=where,
            )


# --- Overlap -----------------------------------------------------------------------
