"""`leanmark duel`: two ONNX files against each other, without a suite."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leanmark import stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, LeanmarkError
from leanmark.host import available_cpus
from leanmark.measure import paired
from leanmark.measure.launches import Launch, compare, timing
from leanmark.measure.sides import Side
from leanmark.processes import kill_all
from leanmark.progress import Advance
from leanmark.results import Interval, Target, Timing
from leanmark.stages import Artifact, Program, Split, save
from leanmark.workloads import split_store


@dataclass(frozen=True)
class Duel:
    """The latency of `first` over that of `second`, with each side's own figures."""

    first: str
    second: str
    ratio: Interval
    minimum_detectable_effect: float
    first_timing: Timing
    second_timing: Timing
    target: Target
    pinned: bool


class DuelError(LeanmarkError):
    """A side of a duel could not be run."""

    exit_code = InvalidInput.exit_code


def fight(
    first: Path,
    second: Path,
    data: Path,
    budget_seconds: float,
    launches: int,
    threads: int,
    batch: int,
    advance: Advance,
) -> Duel:
    """Measure two ONNX models as a duel. Raises LeanmarkError."""
    with tempfile.TemporaryDirectory(prefix="leanmark-duel-") as scratch:
        root = Path(scratch)
        target = Target(threads=threads, batch=batch)
        if threads > len(available_cpus()):
            raise InvalidInput(f"{threads} threads are more than the {len(available_cpus())} processors there are")
        arrays = _read_inputs(data)
        sides = [_side(path, name, root, target) for name, path in (("second", second), ("first", first))]
        taken = [_check_inputs(side, path, arrays, data) for side, path in zip(sides, (second, first), strict=True)]
        if taken[0] != taken[1]:
            raise InvalidInput(f"takes {', '.join(taken[1])}, but {second} takes {', '.join(taken[0])}", where=first)
        split_store.store({"test": Split({name: arrays[name] for name in taken[0]})}, root / "splits")
        done: list[Launch] = []
        try:
            measured = paired.measure(
                sides,
                launches=launches,
                seconds=budget_seconds / launches,
                cpus=available_cpus(),
                seed=0,
                progress=lambda share, number: advance(
                    (number + share) / launches, f"launch {number + 1} of {launches}"
                ),
            )
            with contextlib.closing(measured):
                for launch in measured:
                    for name, death in launch.deaths.items():
                        raise DuelError(f"cannot be run: {death.reason}", where=first if name == "first" else second)
                    done.append(launch)
        finally:
            kill_all()
    ratio = compare(done, "first", "second")
    one, two = timing(done, "first"), timing(done, "second")
    assert one is not None
    assert two is not None
    pinned = all(launch.facts.pinned for launch in done)
    return Duel(
        str(first),
        str(second),
        ratio.interval(stats.LEVEL),
        ratio.minimum_detectable_effect(),
        one,
        two,
        target,
        pinned,
    )


def _side(path: Path, name: str, root: Path, target: Target) -> Side:
    import onnx

    try:
        model = onnx.load_model(str(path))
        onnx.checker.check_model(model)
    except Exception as error:
        what = (str(error).strip() or "it is empty").splitlines()[0][:300]
        raise InvalidInput(f"is no ONNX model that can be read: {what}", where=path) from error
    folder = root / name
    folder.mkdir()
    save(Program(model.SerializeToString(deterministic=True)), folder)
    return Side(name, folder, target, root / "splits")


def _check_inputs(side: Side, model: Path, arrays: Mapping[str, Array], data: Path) -> list[str]:
    """The names of the model's inputs. Raises InvalidInput where the examples do not fit them."""
    from onnx import helper

    graph = Artifact.open(side.artifact).proto().graph
    weights = {tensor.name for tensor in graph.initializer}
    wanted = {value.name: value.type.tensor_type for value in graph.input if value.name not in weights}
    for name in sorted(wanted.keys() - arrays.keys()):
        advice = f"{model} takes {', '.join(sorted(wanted))}."
        raise InvalidInput(f"holds no array '{name}', only {', '.join(sorted(arrays))}", where=data, do=advice)
    for name, tensor in wanted.items():
        kind, array = helper.tensor_dtype_to_np_dtype(tensor.elem_type), arrays[name]
        if array.dtype != kind:
            raise InvalidInput(f"'{name}' is {array.dtype}, but {model} takes {kind}", where=data)
        shape = [axis.dim_value or axis.dim_param or "?" for axis in tensor.shape.dim]
        first = shape[0] if shape else None
        if isinstance(first, int) and first != side.target.batch:
            what = f"takes {first} examples a call, not {side.target.batch}"
            raise InvalidInput(what, where=model, do=f"Use --batch {first}.")
        fixed = [(own, given) for own, given in zip(shape[1:], array.shape[1:], strict=False) if isinstance(own, int)]
        if tensor.HasField("shape") and (len(shape) != array.ndim or any(own != given for own, given in fixed)):
            raise InvalidInput(f"'{name}' has shape {list(array.shape)}, but {model} takes {shape}", where=data)
    return sorted(wanted)


def _read_inputs(data: Path) -> dict[str, Array]:
    try:
        stored = np.load(data, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with stored:
            found = set(stored.zip.namelist()) if stored.zip is not None else set[str]()
            arrays = {name: np.asarray(stored[name]) for name in stored.files if f"{name}.npy" in found}
    except Exception as error:  # a damaged archive raises whatever its parts do
        raise InvalidInput(f"is no .npz of inputs that can be read: {error}", where=data) from error
    if not arrays or any(array.ndim == 0 or not len(array) for array in arrays.values()):
        raise InvalidInput("holds no examples", where=data, do="Every array needs examples along its first axis.")
    if len({len(array) for array in arrays.values()}) > 1:
        raise InvalidInput("its arrays have different numbers of examples", where=data)
    return arrays
