"""Graph clean-up: remove what does no work, change no answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from leanmark.graphs import is_quantized, leftovers, op_counts, quiet
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRule

# A pass can make work for another; a third round found nothing in any graph tried.
ROUNDS = 3


def nothing_left(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The final program has no removable node, and the unmodified one had some."""
    if artifact.stage is not Program:
        return Evidence("graph.clean", False, {}, "the final artifact is no ONNX program")
    proto = artifact.proto()
    ops = op_counts(proto)
    nodes, left = sum(ops.values()), leftovers(proto)
    facts: dict[str, Any] = {"nodes": nodes, "removable": left}
    remaining = sum(left.values())
    reference = artifact.reference
    if remaining:
        return Evidence("graph.clean", False, facts, f"{remaining} removable nodes are left or came back")
    if reference is None or reference.stage is not Program:
        return Evidence("graph.clean", True, facts)
    before = reference.proto()
    nodes_before, left_before = sum(op_counts(before).values()), leftovers(before)
    facts |= {"nodes_before": nodes_before, "removable_before": left_before}
    if nodes > nodes_before and not is_quantized(ops):
        return Evidence("graph.clean", False, facts, f"more nodes than before: {nodes_before} before, {nodes} after")
    if nodes >= nodes_before and not sum(left_before.values()):
        return Evidence("graph.clean", False, facts, f"nothing to clean: {nodes_before} nodes before, {nodes} after")
    return Evidence("graph.clean", True, facts)


@step(
    "graph.clean",
    family="clean-up",
    consumes=Program,
    produces=Program,
    evidence=nothing_left,
    exact=1e-5,
    libraries=("onnx", "onnxscript", "onnx-ir"),
)
def clean(stage: Program, _ctx: Context) -> Program:
    """Remove unused, duplicate and training-only nodes, and fold constants.

    Identity and Dropout nodes go, as do casts, transposes, reshapes and arithmetic
    that change nothing, nodes whose results nobody reads, and repeated computations;
    what depends on constants alone is computed now. Nothing is fused: batch norms stay
    (`fuse.batchnorm` is a step of its own), and so do the values of weights, so that
    clusters and zeros survive.
    Evidence: the final program has no Identity, Dropout, Constant, unused or duplicate
    node; ineffective where the unmodified program had none either.
    Source: onnxscript's optimizer; Aho, Lam, Sethi, Ullman 2006, Compilers, chapter 9 (folding constants, dead code).
    """
    import onnx_ir as ir

    with quiet():
        model = ir.from_proto(stage.proto())
        _clean(model)
        proto = ir.to_proto(model)
    return replace(stage, onnx=proto.SerializeToString(deterministic=True))


def _clean(model: ir.Model) -> None:
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter

    rules = _rules()
    optimizer.inline(model)
    for _ in range(ROUNDS):
        optimizer.fold_constants(model, should_fold=_may_be_computed)
        rewriter.rewrite(model, rules)
        passes.IdentityEliminationPass()(model)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        passes.DeduplicateInitializersPass()(model)
        passes.CommonSubexpressionEliminationPass()(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _may_be_computed(node: ir.Node) -> bool | None:
    """Integers stay integers: computing what they stand for would undo quantization. None: as its size says."""
    return False if node.op_type == "DequantizeLinear" else None


def _rules() -> list[RewriteRule]:
    """Rules that only take nodes away; the optimizer's own default also folds batch norms."""
    from onnxscript.rewriter.rules import common

    return [
        common.mul_by_1_rule,
        common.div_by_1_rule,
        common.add_0_rule,
        common.sub_0_rule,
        common.dropout_inference_rule,
        common.dropout_zero_rule,
        common.cast_cast_rule,
        common.no_op_cast_rule,
        common.no_op_expand_rule,
        common.no_op_transpose_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.reshape_reshape_rule,
        common.squeeze_reshape_1d_rule,
        common.collapse_slice_rule,
        common.collapse_slice2_rule,
        common.successive_relu_rule,
        common.materialize_reshape_shape_rule,
    ]
