"""The examples of a workload that is an ONNX file: an .npz whose arrays are named as the model's inputs are."""

from __future__ import annotations

from pathlib import Path

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, LeanmarkError, did_you_mean

TARGETS = "targets"


def read(model: Path, inputs: Path) -> tuple[dict[str, Array], Array | None]:
    """The arrays of `inputs` in the order of the model's inputs, and `targets` if they are there.

    Where the model has an input of its own named `targets`, that is what the array is.

    Raises InvalidInput if a file cannot be read, and if names or types are others
    than the model's.
    """
    arrays = _read_npz(inputs)
    expected = _input_types(model)
    targets = None if TARGETS in expected else arrays.pop(TARGETS, None)
    for name in sorted(arrays.keys() - expected.keys()):
        raise InvalidInput(f"the model has no input '{name}'", where=inputs, do=did_you_mean(name, expected))
    for name, dtype in expected.items():
        if name not in arrays:
            raise InvalidInput(f"there is no array for the model's input '{name}'", where=inputs)
        if arrays[name].dtype.name != dtype:
            raise InvalidInput(
                f"input '{name}' is {arrays[name].dtype.name}, the model takes {dtype}",
                where=inputs,
                do=f"Save it as {dtype}.",
            )
    return {name: arrays[name] for name in expected}, targets


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InvalidInput("it is not an .npz file of named arrays", where=path)
            return {name: archive[name] for name in archive.files}
    except LeanmarkError:
        raise
    except Exception as error:  # a damaged or hostile archive raises a dozen different types
        raise InvalidInput(f"the inputs cannot be read: {type(error).__name__}: {error}", where=path) from error


def _input_types(path: Path) -> dict[str, str]:
    """The name of the numpy type of each of the model's inputs."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load_model_from_string(path.read_bytes()).graph
    except (OSError, DecodeError) as error:
        raise InvalidInput(f"not a readable ONNX model: {error}", where=path) from error
    weights = {tensor.name for tensor in graph.initializer}  # older files list them among the inputs
    found: dict[str, str] = {}
    for value in graph.input:
        if value.name in weights:
            continue
        if not value.type.tensor_type.elem_type:
            raise InvalidInput(f"the model's input '{value.name}' is not a tensor", where=path)
        found[value.name] = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    return found
