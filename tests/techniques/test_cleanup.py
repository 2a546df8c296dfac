"""Cleaning takes away what does no work, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leanmark.arrays import Array
from leanmark.graphs import leftovers, op_counts
from leanmark.stages import Artifact, Context, Delivery, Program, Split, save
from leanmark.techniques.cleanup import clean, nothing_left

ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
CONTEXT = Context(lambda name: Split({}), seed=0)


def program(nodes: list[helper.NodeProto], last: str, **initializers: Array) -> Program:
    """A program from (N, 4) `rows` to the value `last`."""
    stored = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 4])
    output = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "test", [rows], [output], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Program(model.SerializeToString())


def node(op: str, inputs: str, output: str, **attributes: object) -> helper.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def dirty() -> Program:
    """relu(rows @ weights) + relu(rows @ weights), with every kind of dirt."""
    return program(
        [
            node("Identity", "rows", "same"),
            node("Dropout", "same", "kept"),
            node("MatMul", "kept weights", "product"),
            node("MatMul", "kept weights", "product_again"),
            node("Relu", "product", "left"),
            node("Relu", "product_again", "right"),
            node("Sigmoid", "left", "nobody_reads_this"),
            node("Constant", "", "one", value=numpy_helper.from_array(np.array(1.0, np.float32))),
            node("Add", "one zero", "still_one"),
            node("Mul", "right still_one", "scaled"),
            node("Add", "left scaled", "sum"),
        ],
        "sum",
        weights=WEIGHTS,
        zero=np.array(0.0, np.float32),
        unread=np.ones(7, np.float32),
    )


def run(program: Program) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program.onnx, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"rows": ROWS})[0])


def artifact_of(program: Program, folder: Path, reference: Program | None = None) -> Artifact:
    folder.mkdir(parents=True)
    artifact = save(program, folder)
    if reference is None:
        return artifact
    return replace(artifact, reference=artifact_of(reference, folder.parent / "reference"))


def test_only_the_work_is_left() -> None:
    cleaned = clean(dirty(), CONTEXT)
    assert op_counts(cleaned.proto()) == {"Add": 1, "MatMul": 1, "Relu": 1}
    assert [tensor.name for tensor in cleaned.proto().graph.initializer] == ["weights"]
    assert np.array_equal(run(cleaned), run(dirty()))


def test_names_of_inputs_and_outputs_stay() -> None:
    model = clean(dirty(), CONTEXT).proto()
    assert [value.name for value in model.graph.input] == ["rows"]
    assert [value.name for value in model.graph.output] == ["sum"]


def test_a_second_time_finds_nothing() -> None:
    once = clean(dirty(), CONTEXT)
    assert clean(once, CONTEXT).onnx == once.onnx


def test_packed_delivery_and_few_distinct_weights_survive() -> None:
    clustered = np.sign(WEIGHTS).astype(np.float32)
    before = program(
        [node("Identity", "rows", "same"), node("MatMul", "same weights", "out")], "out", weights=clustered
    )
    after = clean(replace(before, delivery=Delivery(packed=True)), CONTEXT)
    assert after.delivery.packed
    (weights,) = after.proto().graph.initializer
    assert set(np.unique(numpy_helper.to_array(weights))) == {-1.0, 1.0}


def test_batch_norm_is_not_folded_and_integers_stay_integers() -> None:
    ones = np.ones(4, np.float32)
    stored = {"gamma": 2 * ones, "beta": ones, "mean": ones, "variance": ones}
    integers = np.arange(16, dtype=np.int8).reshape(4, 4)
    before = program(
        [
            node("DequantizeLinear", "integers scale", "weights"),
            node("MatMul", "rows weights", "product"),
            node("BatchNormalization", "product gamma beta mean variance", "out"),
        ],
        "out",
        integers=integers,
        scale=np.float32(0.5),
        **stored,
    )
    after = clean(before, CONTEXT).proto()
    assert op_counts(after) == {"BatchNormalization": 1, "DequantizeLinear": 1, "MatMul": 1}
    assert any(np.array_equal(numpy_helper.to_array(tensor), integers) for tensor in after.graph.initializer)


def test_evidence_compares_with_the_unmodified_program(tmp_path: Path) -> None:
    evidence = nothing_left(artifact_of(clean(dirty(), CONTEXT), tmp_path / "a" / "cleaned", dirty()), {})
    assert evidence.effective
    assert evidence.facts["nodes_before"] == 11
    assert evidence.facts["nodes"] == 3
    assert evidence.facts["removable_before"] == {"no_op": 2, "constant": 1, "unused": 1, "duplicate": 1}


def test_nothing_to_clean_is_ineffective(tmp_path: Path) -> None:
    tidy = clean(dirty(), CONTEXT)
    evidence = nothing_left(artifact_of(clean(tidy, CONTEXT), tmp_path / "cleaned", tidy), {})
    assert not evidence.effective
    assert evidence.reason == "nothing to clean: 3 nodes before, 3 after"


def test_dirt_that_came_back_is_ineffective(tmp_path: Path) -> None:
    evidence = nothing_left(artifact_of(dirty(), tmp_path / "final", dirty()), {})
    assert not evidence.effective
    assert "came back" in evidence.reason


@pytest.mark.parametrize(
    ("kind", "nodes"),
    [
        ("no_op", [node("Relu", "rows", "a"), node("Identity", "a", "b"), node("Abs", "b", "out")]),
        ("no_op", [node("Dropout", "rows", "a"), node("Abs", "a", "out")]),
        ("unused", [node("Relu", "rows", "a"), node("Neg", "a", "b"), node("Abs", "rows", "out")]),
        ("duplicate", [node("Relu", "rows", "a"), node("Relu", "rows", "b"), node("Add", "a b", "out")]),
        ("constant", [node("Constant", "", "a", value_float=2.0), node("Mul", "rows a", "out")]),
    ],
)
def test_each_kind_of_leftover_is_seen(kind: str, nodes: list[helper.NodeProto]) -> None:
    counts = leftovers(program(nodes, "out").proto())
    assert counts.pop(kind) == (2 if kind == "unused" else 1)
    assert not any(counts.values())


def test_what_only_a_branch_reads_is_in_use() -> None:
    outside = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["batch", 4])
    branches = {
        "then_branch": helper.make_graph([node("Neg", "hidden", "chosen")], "then", [], [outside]),
        "else_branch": helper.make_graph([node("Abs", "hidden", "chosen")], "else", [], [outside]),
    }
    before = program([node("Relu", "rows", "hidden"), node("If", "yes", "out", **branches)], "out", yes=np.array(True))
    assert leftovers(before.proto())["unused"] == 0
    assert np.array_equal(run(clean(before, CONTEXT)), run(before))


DIRT = st.sampled_from(["Identity", "Dropout", "Times one", "Plus zero", "Transposed twice", "Relu", "Neg", "Unused"])


@settings(max_examples=25)
@given(st.lists(DIRT, min_size=1, max_size=8))
def test_answers_never_change(kinds: list[str]) -> None:
    nodes: list[helper.NodeProto] = []
    value = "rows"
    for index, kind in enumerate(kinds):
        new = f"v{index}"
        if kind == "Times one":
            nodes.append(node("Mul", f"{value} one", new))
        elif kind == "Plus zero":
            nodes.append(node("Add", f"{value} zero", new))
        elif kind == "Transposed twice":
            nodes += [node("Transpose", value, f"{new}t", perm=[1, 0]), node("Transpose", f"{new}t", new, perm=[1, 0])]
        elif kind == "Unused":
            nodes.append(node("Exp", value, new))
            continue
        else:
            nodes.append(node(kind, value, new))
        value = new
    nodes.append(node("MatMul", f"{value} weights", "out"))
    before = program(nodes, "out", one=np.array(1.0, np.float32), zero=np.array(0.0, np.float32), weights=WEIGHTS)
    after = clean(before, CONTEXT)
    assert np.array_equal(run(after), run(before))
    assert not any(leftovers(after.proto()).values())
    assert set(op_counts(after.proto())) <= {"MatMul", "Relu", "Neg"}
