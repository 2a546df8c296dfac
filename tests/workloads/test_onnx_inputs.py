"""A workload that is an ONNX file: its inputs are divided in order, and must fit the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from leanmark.errors import InvalidInput
from leanmark.registry import Workload
from leanmark.stages import Split
from leanmark.workloads.split_store import check_disjoint
from leanmark.workloads.splits import load


def write_model(path: Path, inputs: Mapping[str, int]) -> None:
    """A model that only passes its inputs on, and lists a weight among them as older files do."""
    values = [helper.make_tensor_value_info(name, kind, ["n", 2]) for name, kind in inputs.items()]
    results = [helper.make_tensor_value_info(f"{name}_out", kind, ["n", 2]) for name, kind in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0])
    listed = helper.make_tensor_value_info("weight", TensorProto.FLOAT, [1])
    onnx.save_model(helper.make_model(helper.make_graph(nodes, "g", [*values, listed], results, [weight])), path)


def workload(folder: Path, arrays: dict[str, Any], inputs: Mapping[str, int] | None = None) -> Workload:
    write_model(folder / "model.onnx", {"x": TensorProto.FLOAT} if inputs is None else inputs)
    np.savez_compressed(folder / "inputs.npz", **arrays)
    return Workload(name="mine", onnx="model.onnx", inputs="inputs.npz")


def examples(count: int) -> np.ndarray[Any, Any]:
    return np.arange(count * 2, dtype=np.float32).reshape(count, 2)


@given(st.integers(8, 60))
def test_examples_are_divided_in_order(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    folder = tmp_path_factory.mktemp("onnx")
    splits = load(workload(folder, {"x": examples(count), "targets": np.arange(count)}), folder)
    assert list(splits) == ["calibration", "validation", "test"]
    assert len(splits["calibration"]) == len(splits["validation"]) == count // 4
    np.testing.assert_array_equal(np.concatenate([split.inputs["x"] for split in splits.values()]), examples(count))
    targets = [split.targets for split in splits.values() if split.targets is not None]
    np.testing.assert_array_equal(np.concatenate(targets), np.arange(count))
    check_disjoint(splits)


def test_paths_are_relative_to_the_folder_or_to_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = workload(tmp_path, {"x": examples(8)})
    monkeypatch.chdir(tmp_path)
    assert load(mine)["test"].targets is None
    os.chdir("/")
    assert len(load(mine, tmp_path)["test"]) == 4
    with pytest.raises(InvalidInput, match="cannot be read"):
        load(mine)


def test_inputs_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    kinds = {"second": TensorProto.INT64, "first": TensorProto.FLOAT}
    arrays = {"first": examples(8), "second": examples(8).astype(np.int64)}
    assert list(load(workload(tmp_path, arrays, kinds), tmp_path)["test"].inputs) == ["second", "first"]


def test_an_input_may_be_called_targets(tmp_path: Path) -> None:
    test: Split = load(workload(tmp_path, {"targets": examples(8)}, {"targets": TensorProto.FLOAT}), tmp_path)["test"]
    assert list(test.inputs) == ["targets"]
    assert test.targets is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": examples(7)}, "7 examples are too few.*at least 8"),
        ({"y": examples(8)}, "no input 'y'.*Known here: x"),
        ({"x": examples(8), "target": np.arange(8)}, "no input 'target'"),
        ({"targets": np.arange(8)}, "no array for the model's input 'x'"),
        ({"x": examples(8).astype(np.float64)}, "'x' is float64, the model takes float32.*Save it as float32"),
        ({"x": examples(8), "targets": np.arange(9)}, "input 'x': 8, targets: 9"),
        ({"x": np.full((8, 2), np.nan, np.float32)}, "NaN in 8 of 8"),
        ({"x": np.array([{}] * 8, dtype=object)}, "cannot be read.*allow_pickle"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=rf"(?s)inputs\.npz: .*{words}"):
        load(workload(tmp_path, arrays), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY\x01\x00"])
def test_damaged_inputs_are_refused(content: bytes, tmp_path: Path) -> None:
    mine = workload(tmp_path, {"x": examples(8)})
    (tmp_path / "inputs.npz").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"inputs\.npz: the inputs cannot be read"):
        load(mine, tmp_path)


def test_a_cut_off_archive_is_refused(tmp_path: Path) -> None:
    mine = workload(tmp_path, {"x": examples(8)})
    whole = (tmp_path / "inputs.npz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "inputs.npz").write_bytes(whole[:length])
        with pytest.raises(InvalidInput):
            load(mine, tmp_path)


def test_one_array_without_a_name_is_refused(tmp_path: Path) -> None:
    mine = workload(tmp_path, {"x": examples(8)})
    with (tmp_path / "inputs.npz").open("wb") as file:
        np.save(file, examples(8))
    with pytest.raises(InvalidInput, match=r"not an \.npz file of named arrays"):
        load(mine, tmp_path)


@pytest.mark.parametrize("content", [None, b"not a model \xff\xff"])
def test_a_model_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    mine = workload(tmp_path, {"x": examples(8)})
    (tmp_path / "model.onnx").unlink()
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"model\.onnx: not a readable ONNX model"):
        load(mine, tmp_path)


def test_a_workload_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"workload 'mine': .*no inputs.*\n.*inputs: inputs.npz"):
        load(Workload(name="mine", onnx="model.onnx"), tmp_path)
