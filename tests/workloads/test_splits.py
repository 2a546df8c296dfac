"""What users return becomes checked splits, or an error that says what is wrong with it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanmark.arrays import Array
from leanmark.errors import InvalidInput
from leanmark.registry import Workload
from leanmark.stages import Split
from leanmark.workloads.split_store import check_disjoint
from leanmark.workloads.splits import load, normalise

NUMBERS = st.one_of(
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
EXAMPLES = NUMBERS.flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES, elements={"allow_nan": False} if is_float(dtype) else None)
)


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f"


def images(count: int, start: int = 0) -> Array:
    """`count` different examples of 6 numbers."""
    return np.arange(start * 6, (start + count) * 6, dtype=np.float32).reshape(count, 2, 3)


def data_function(monkeypatch: pytest.MonkeyPatch, function: Callable[[], object]) -> Workload:
    module = types.ModuleType("users_data")
    module.__dict__["splits"] = function
    monkeypatch.setitem(sys.modules, "users_data", module)
    return Workload(name="mine", model="users_model:build", data="users_data:splits")


# --- Forms ---------------------------------------------------------------------------


@given(EXAMPLES)
def test_an_array_keeps_its_values_and_type_however_it_lies_in_memory(array: Array) -> None:
    for given_array in (array, np.asfortranarray(array), np.repeat(array, 2, axis=0)[::2]):
        made = normalise({"test": given_array}, "here")["test"].inputs["input"]
        assert made.flags.c_contiguous
        assert made.dtype.isnative
        assert made.dtype.name == array.dtype.name
        np.testing.assert_array_equal(made, array)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3), elements={"allow_nan": False}))
def test_every_form_of_a_split_says_the_same(array: Array) -> None:
    targets = np.arange(len(array))
    named = {"input": array}
    tensor = torch.from_numpy(array).requires_grad_()
    forms: list[object] = [
        Split(named, targets),
        (array, targets),
        (tensor, torch.from_numpy(targets)),
        (array, targets.tolist()),
        (named, targets.astype(np.uint8)),
        {"inputs": array, "targets": targets},
        {"inputs": {"input": tensor}, "targets": targets.astype(">i2")},
    ]
    for form in forms:
        split = normalise({"test": form}, "here")["test"]
        assert list(split.inputs) == ["input"]
        np.testing.assert_array_equal(split.inputs["input"], array)
        assert split.targets is not None
        assert split.targets.dtype == np.int64
        np.testing.assert_array_equal(split.targets, targets)


@pytest.mark.parametrize("form", [images(3), (images(3), None), {"inputs": images(3)}, Split({"x": images(3)})])
def test_targets_may_be_unknown(form: object) -> None:
    assert normalise({"test": form}, "here")["test"].targets is None


def test_splits_come_in_one_order_and_may_be_missing() -> None:
    returned = {"test": images(2), "validation": None, "train": images(2, 10)}
    assert list(normalise(returned, "here")) == ["train", "test"]


def test_targets_that_are_no_integers_keep_their_type() -> None:
    ratings = np.array([0.5, 1.0], dtype=np.float32)
    made = normalise({"test": (images(2), ratings)}, "here")["test"].targets
    assert made is not None
    assert made.dtype == np.float32


def test_several_inputs_keep_their_names_and_order() -> None:
    inputs = {"tokens": np.zeros((2, 5), np.int64), "mask": np.ones((2, 5), bool)}
    assert list(normalise({"test": (inputs, [0, 1])}, "here")["test"].inputs) == ["tokens", "mask"]


# --- Errors --------------------------------------------------------------------------

NAN = np.array([[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([images(2)], "gave a list, not a mapping"),
        (None, "gave a NoneType"),
        ({}, "no test split"),
        ({"train": images(2), "test": None}, "no test split"),
        ({"test": images(2), "vaildation": images(2, 10)}, "unknown split 'vaildation'.*Did you mean 'validation'"),
        ({"test": images(2), 3: images(2)}, "unknown split 3"),
        ({"test": (images(2), [0, 1, 2])}, "split 'test'.*examples differ.*input 'input': 2, targets: 3"),
        ({"test": {"inputs": {"a": images(2), "b": images(4)}}}, "input 'a': 2, input 'b': 4"),
        ({"test": images(2), "train": images(0)}, "split 'train': input 'input' has no examples"),
        ({"test": np.zeros((3, 0))}, r"no values.*\(3, 0\)"),
        ({"test": np.float32(1)}, "single number"),
        ({"test": np.array([{}, []], dtype=object)}, "dtype object"),
        ({"test": np.array(["a", "b"])}, "dtype str"),
        ({"test": np.array([1j])}, "dtype complex128"),
        ({"test": [[1, 2], [3]]}, "cannot be made a numpy array"),
        ({"test": torch.zeros(2, 2).to_sparse()}, "cannot be made a numpy array"),
        ({"test": torch.zeros(2, 2, dtype=torch.bfloat16)}, "cannot be made a numpy array"),
        ({"test": (NAN, [0, 1, 0])}, "NaN in 2 of 3 examples, first in example 1"),
        ({"test": (images(2), [0.0, np.nan])}, "targets has NaN in 1 of 2"),
        ({"test": (images(1), np.array([2**63], np.uint64))}, "int64 cannot"),
        ({"test": (images(2), [0, 1], "more")}, "tuple of 3"),
        ({"test": {"input": images(2)}}, "unknown key 'input'.*Did you mean 'inputs'"),
        ({"test": {"targets": [1]}}, "no 'inputs'"),
        ({"test": {"inputs": {}}}, "no inputs"),
        ({"test": {"inputs": {"": images(2)}}}, "named ''"),
        ({"test": {"inputs": {"a": images(2)}}, "train": {"inputs": {"b": images(2)}}}, r"inputs are \['b'\]"),
        ({"test": images(2), "train": images(2).astype(np.float64)}, "'train': input 'input' is float64 .*float32"),
        ({"test": images(2), "train": images(2).reshape(2, 6)}, "with 2 axes, in 'test' float32 with 3"),
    ],
)
def test_what_is_malformed_is_named(returned: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s)here.*{words}"):
        normalise(returned, "here")


def test_load_calls_the_function_that_a_workload_names(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = data_function(monkeypatch, lambda: {"test": (images(3), [0, 1, 2])})
    np.testing.assert_array_equal(load(workload)["test"].inputs["input"], images(3))


def test_errors_name_the_workload_and_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Mapping[str, object]:
        return {"test": {}["missing"]}

    with pytest.raises(InvalidInput, match=r"workload 'mine': data 'users_data:splits' failed: KeyError: 'missing'"):
        load(data_function(monkeypatch, broken))
    with pytest.raises(InvalidInput, match=r"workload 'mine', data 'users_data:splits'.*no test split"):
        load(data_function(monkeypatch, dict))
    with pytest.raises(InvalidInput, match=r"'nowhere_at_all:splits' cannot be imported"):
        load(Workload(name="mine", data="nowhere_at_all:splits"))
    with pytest.raises(InvalidInput, match="workload 'mine': it names no data"):
        load(Workload(name="mine"))


# --- Overlap -------------------------------------------------------------------------

ROWS = hnp.arrays(np.int16, st.tuples(st.integers(1, 6), st.just(2)), elements=st.integers(0, 4))


@given(ROWS, ROWS, ROWS)
def test_a_shared_example_is_found_exactly_if_there_is_one(train: Array, validation: Array, test: Array) -> None:
    arrays = {"train": train, "validation": validation, "test": test}
    contents = {name: {row.tobytes() for row in array} for name, array in arrays.items()}
    splits = {name: Split({"x": array}) for name, array in arrays.items()}
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
    shared = [(first, second, len(contents[first] & contents[second])) for first, second in pairs]
    overlaps = [(first, second, count) for first, second, count in shared if count]
    if not overlaps:
        assert set(check_disjoint(splits)) == set(arrays)
        return
    first, second, count = overlaps[0]
    with pytest.raises(InvalidInput, match=rf"^{count} examples? (is|are) in both '{first}' and '{second}'"):
        check_disjoint(splits)


def test_only_examples_equal_in_all_inputs_are_the_same() -> None:
    left = Split({"a": np.array([[1], [2]]), "b": np.array([[1], [2]])})
    crossed = Split({"a": np.array([[1], [2]]), "b": np.array([[2], [1]])})
    check_disjoint({"train": left, "test": crossed})
    swapped = Split({"b": np.array([[2], [9]]), "a": np.array([[2], [9]])})
    with pytest.raises(InvalidInput, match="1 example is in both"):
        check_disjoint({"train": left, "test": swapped})


def test_other_targets_do_not_make_another_example() -> None:
    with pytest.raises(InvalidInput, match="3 examples are in both 'train' and 'test'"):
        check_disjoint({"train": Split({"x": images(3)}, np.zeros(3)), "test": Split({"x": images(3)}, np.ones(3))})


@given(EXAMPLES, st.data())
def test_the_hash_follows_the_content_alone(array: Array, data: st.DataObject) -> None:
    def digest(values: Array, targets: Array | None = None) -> str:
        return check_disjoint({"test": Split({"x": values}, targets)})["test"]

    assert digest(array) == digest(np.asfortranarray(array.copy()))
    changed = array.copy()
    place = data.draw(st.tuples(*(st.integers(0, side - 1) for side in array.shape)))
    changed[place] = changed[place] == 0  # something else, for numbers and truth values alike
    assert (digest(changed) == digest(array)) == (changed.tobytes() == array.tobytes())
    assert len({digest(array), digest(array, np.zeros(len(array))), digest(array, np.ones(len(array)))}) == 3
