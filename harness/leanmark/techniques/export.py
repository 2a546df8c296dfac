"""From a torch module to an ONNX program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import op_counts, quiet
from leanmark.onnx_files import strip_provenance
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, Split, TorchModel

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

# Two examples: torch specializes a dimension of size 1 for good.
EXAMPLES = 2


def is_program(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The artifact is a program that ONNX's checker accepts."""
    if artifact.stage is not Program:
        return Evidence("export.onnx", False, {}, "the final artifact is no ONNX program")
    from onnx import checker

    proto = artifact.proto()
    ops = op_counts(proto)
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    facts = {"opset": versions.get("ai.onnx"), "nodes": sum(ops.values()), "ops": ops}
    try:
        checker.check_model(proto)
    except checker.ValidationError as error:
        # Operators of a runtime's own are unknown to the checker; they are no defect.
        if set(versions) <= {"ai.onnx", "ai.onnx.ml"}:
            return Evidence("export.onnx", False, facts, f"ONNX's checker refuses it: {error}")
    return Evidence("export.onnx", True, facts)


@step(
    "export.onnx",
    family="export",
    consumes=TorchModel,
    produces=Program,
    evidence=is_program,
    exact=1e-4,
    libraries=("torch", "onnx", "onnxscript", "onnx-ir"),
    splits=("validation",),
)
def to_onnx(stage: TorchModel, ctx: Context, *, opset: Annotated[int, Ge(18), Le(23)] = 20) -> Program:
    """Write the model as an ONNX program with a dynamic batch dimension.

    opset: version of ONNX's operator set.

    The module is called with the workload's inputs by position, in the order of its
    splits. Inputs keep the split's names; outputs are called `output`, or `output_0`,
    `output_1`, … where there are several. The program is a plain one: nothing is
    fused, and batch norms stay. But what depends on weights and on the batch size alone is
    computed now, as every exporter does: shapes computed anew at every call cost 6 % of
    LeNet-300-100's time, and where torch writes the bias that a convolution has not as a
    computation of zeros, onnxruntime folds no batch norm into it, so that ResNet-8 took
    more than twice the time, and any technique looked that much better.
    Evidence: the final artifact is a program that ONNX's checker accepts.
    Source: ONNX, the Open Neural Network Exchange format (Bai, Lu, Zhang et al. 2017).
    """
    if any(type(part).__name__ == "SparseLinear" for part in stage.module.modules()):
        raise NotApplicable("ONNX has no products with sparse weights", do="Run this recipe on torch.")
    return Program(program_of(stage.module, ctx.split("validation").head(EXAMPLES), opset), stage.delivery)


def program_of(module: nn.Module, examples: Split, opset: int = 20, lengths: Mapping[str, int] | None = None) -> bytes:
    """A module as a serialized ONNX model. Raises PreparationError.

    examples: `EXAMPLES` of what it takes, by position. lengths: by input, the axis along which it may be shorter.
    """
    with quiet():
        model = _export(module, examples, opset, lengths or {})
        _name_outputs(model)
        _settle(model)
        return _serialize(model)


def _export(module: nn.Module, examples: Split, opset: int, lengths: Mapping[str, int]) -> ir.Model:
    import torch

    module.eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    free = [{0: batch, **({lengths[name]: length} if name in lengths else {})} for name in examples.inputs]
    arguments = tuple(torch.from_numpy(array.copy()) for array in examples.inputs.values())
    try:
        exported = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            external_data=False,
            optimize=False,
            verbose=False,
            opset_version=opset,
            input_names=list(examples.inputs),
            dynamic_shapes=tuple(free),
        )
    except Exception as error:
        raise PreparationError(
            f"torch cannot export this model: {_last_line(error)}",
            do="The model must be traceable by torch.export and take any batch size.",
        ) from error
    assert exported is not None  # None is for the older exporter
    for value in exported.model.graph.inputs:
        if value.shape is None or isinstance(value.shape[0], int):
            raise PreparationError(
                f"the model works for a batch of {EXAMPLES} only: it fixed the first dimension of '{value.name}'",
                do="Let the model take any batch size: take it from its input's shape, or use -1.",
            )
    return exported.model


def _last_line(error: BaseException) -> str:
    """What the exporter's innermost error says; its own message is a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _name_outputs(model: ir.Model) -> None:
    outputs = model.graph.outputs
    names = ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]
    for value, name in zip(outputs, names, strict=True):
        value.name = name


def _settle(model: ir.Model) -> None:
    """Compute what depends on constants alone, and a Reshape's target shape where only the batch size is unknown."""
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule

    rewriter.rewrite(model, [materialize_reshape_shape_rule])
    optimizer.fold_constants(model, should_fold=_may_be_computed)


def _may_be_computed(node: ir.Node) -> bool | None:
    """Weights the other way round are as large as before, if nothing else takes them as they are.

    Products of weights are not computed. None: only what is small, or a mask would become a file.
    """
    if node.op_type == "MatMul":  # what a file holds as factors stays so; runtimes multiply them when they load it
        return False
    source = node.inputs[0] if node.inputs else None
    alone = source is not None and len(source.uses()) == 1 and not source.is_graph_output()
    return True if node.op_type == "Transpose" and alone else None


def _serialize(model: ir.Model) -> bytes:
    import onnx_ir as ir
    from onnx import checker

    # The producer's version names the build ("+cpu"), which must not change the artifact.
    model.producer_version = None
    proto = ir.to_proto(model)
    strip_provenance(proto)
    try:
        checker.check_model(proto, full_check=True)
    except Exception as error:
        raise PreparationError(f"the exported program is not valid ONNX: {error}") from error
    return proto.SerializeToString(deterministic=True)
