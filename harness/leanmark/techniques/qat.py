"""Quantization-aware training: the model learns with the rounding that int8 will do to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import canonical_program, quiet
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel
from leanmark.techniques import cleanup, export, quantization
from leanmark.techniques.finetuning import Preserve, keeping
from leanmark.techniques.training import Loss, fit
from leanmark.weights import finite_values, shared_parameters, weight_parameters

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn


_EPS = 1e-5  # torchao knows batch norms with this one only
_ALIKE = 0.1


def trained_integers(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """Most weights are 8-bit integers, and operators compute with them."""
    return quantization.integers_reached("quantize.qat", artifact)


@step(
    "quantize.qat",
    family="quantization",
    consumes=TorchModel,
    produces=Program,
    evidence=trained_integers,
    libraries=("torch", "torchao", "onnx", "onnxscript", "onnx-ir"),
    splits=("train", "validation"),
)
def qat(
    model: TorchModel,
    ctx: Context,
    *,
    epochs: Annotated[float, Gt(0), Le(10_000)] = 1.0,
    learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-3,
    batch_size: Annotated[int, Ge(1)] = 64,
    reduce_range: bool = True,
    preserve: tuple[Preserve, ...] = (),
    loss: Loss = "cross_entropy",
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1,
) -> Program:
    """Train the model further while its weights and activations are rounded to 8 bits, and write it with integers.

    epochs: passes over the train split. Batch norms are folded into the convolutions before them, ranges of activations
    are a moving average of what was seen; gradients pass the rounding as if it were not there.
    Dropout is left out.
    learning_rate: the highest, as in train.finetune. batch_size: examples a step.
    reduce_range: use 7 of the weights' 8 bits, as in quantize.static, for x86 processors without VNNI.
    preserve: `sparsity` keeps zeros zero, and `clusters` what shares a value sharing one, as in train.finetune; with
    clusters a tensor has one scale, since a scale for each channel would part them.
    loss, label_smoothing: as in train.finetune.

    Weights are int8 with a scale for each output channel, activations uint8. QuantizeLinear and DequantizeLinear stand
    around what onnxruntime computes with integers: convolutions and linear layers with what follows them, additions,
    pooling and reshaping between.
    Evidence: as for quantize.static: at least half of the final program's weights are 8-bit integers, and operators
    compute with them.
    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference; torchao, PT2E quantization-aware training.
    """
    weights = weight_parameters(model.module)
    if not weights:
        raise NotApplicable("this model has no weight tensor to quantize")
    for name, parameter in model.module.named_parameters():  # small ones, too: they are given a range
        finite_values(name, parameter)
    _check_norms(model.module, preserve)
    with quiet():
        prepared = _prepared(model.module, ctx, reduce_range, per_channel="clusters" not in preserve)
    after_backward, after_step = keeping(prepared, preserve)
    fit(
        prepared,
        ctx.split("train"),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        generator=ctx.generator("quantize.qat"),
        loss=loss,
        label_smoothing=label_smoothing,
        after_backward=after_backward,
        after_step=after_step,
        progress=ctx.progress,
    )
    with quiet():
        from torchao.quantization import pt2e
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = convert_pt2e(prepared)
        converted = pt2e.allow_exported_model_train_eval(graph)  # pyright: ignore[reportPrivateUsage]
    _check_alike(prepared, converted, ctx)
    plain = export.to_onnx(TorchModel(converted, model.builder, model.config, model.delivery), ctx)
    program = cleanup.clean(plain, ctx)
    proto = program.proto()
    _transpose_integers(proto)
    _quantize_biases(proto)
    return canonical_program(program, proto)


def _check_norms(module: nn.Module, preserve: tuple[Preserve, ...]) -> None:
    """Raises NotApplicable for batch norms that would be folded into something else than what the model computes."""
    from torch import nn

    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    first = "Put fuse.batchnorm before it."
    if norms and "clusters" in preserve:
        raise NotApplicable("folding a batch norm into a layer parts weights that share a value", do=first)
    if any(part.eps != _EPS for part in norms):
        raise NotApplicable(f"torchao trains batch norms with an epsilon of {_EPS:g} only", do=first)
    if norms and shared_parameters(module):
        raise NotApplicable("layers share weights, and a batch norm folded into one would change the other", do=first)


def _check_alike(prepared: Any, converted: nn.Module, ctx: Context) -> None:
    """Raises PreparationError where the integers do not answer as the model did that was trained to."""
    import torch

    split = ctx.split("validation").head(export.EXAMPLES)
    inputs = tuple(torch.from_numpy(array.copy()) for array in split.inputs.values())
    prepared.eval()
    with torch.no_grad():
        trained, written = (part(*inputs) for part in (prepared, converted))
    trained, written = (item[0] if isinstance(item, tuple | list) else item for item in (trained, written))
    moved = float((trained - written).abs().max() / trained.abs().max().clamp_min(1e-12))
    if not moved <= _ALIKE:
        raise PreparationError(
            f"written with integers, the model's answers move by {moved:.1%} of the largest",
            do="A layer with a batch norm that is called more than once is a reason: put fuse.batchnorm before.",
        )


def _without_dropout(module: nn.Module) -> nn.Module:
    """A copy in which nothing is dropped: torchao would drop halves, whatever the model says."""
    import copy

    from torch import nn
    from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

    copied = copy.deepcopy(module)
    for name, part in list(copied.named_modules()):
        if isinstance(part, _DropoutNd) and name:
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, nn.Identity())
    return copied


def _prepared(module: nn.Module, ctx: Context, reduce_range: bool, per_channel: bool) -> Any:
    """The module as a graph that rounds as int8 will, batch norms folded into what it rounds."""
    import torch
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    examples = ctx.split("validation").head(export.EXAMPLES)
    arguments = tuple(torch.from_numpy(array.copy()) for array in examples.inputs.values())
    batch = torch.export.Dim("batch")
    try:
        with torch.inference_mode(False), torch.enable_grad():
            traced = _without_dropout(module).train()
            graph = torch.export.export(traced, arguments, dynamic_shapes=tuple({0: batch} for _ in arguments)).module()
            prepared = prepare_qat_pt2e(graph, _quantizer(reduce_range, per_channel))
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "no message")
        raise PreparationError(
            f"torch cannot trace this model for training: {type(error).__name__}: {first}",
            do="The model must be traceable by torch.export in train mode and take any batch size.",
        ) from error
    return pt2e.allow_exported_model_train_eval(prepared)  # pyright: ignore[reportPrivateUsage]


def _quantizer(reduce_range: bool, per_channel: bool) -> Any:
    """Says where values are rounded, so that onnxruntime finds integers on every side of what it computes with them."""
    import torch
    from torch.fx import GraphModule, Node
    from torchao.quantization.pt2e import (
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
    )
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

    aten = torch.ops.aten
    products = {aten.conv1d.default, aten.conv2d.default, aten.linear.default}
    norms = {aten.batch_norm.default, aten._native_batch_norm_legit.default}
    rectifiers = {aten.relu.default, aten.relu_.default}
    sums = {aten.add.Tensor, aten.add_.Tensor}
    passing = {
        aten.max_pool2d.default, aten.flatten.using_ints, aten.view.default, aten.reshape.default,
        aten.adaptive_avg_pool2d.default,
    }  # fmt: skip
    activation = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAverageMinMaxObserver, eps=2**-12
        ),
    )
    top = 63 if reduce_range else 127
    weight = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-top,
        quant_max=top,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if per_channel else None,
        observer_or_fake_quant_ctr=FusedMovingAvgObsFakeQuantize.with_args(
            observer=MovingAveragePerChannelMinMaxObserver if per_channel else MovingAverageMinMaxObserver,
            eps=2**-12,
        ),
    )

    def annotate(node: Node, inputs: Mapping[Node, Any], output: Any = None) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(dict(inputs), output, _annotated=True)

    def follows(node: Node, kinds: set[Any]) -> Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0].target in kinds else None

    def is_plain(graph: GraphModule, source: Any) -> bool:
        """Whether it is a tensor of finite floats: neither counts nor masks are rounded."""
        value = source.meta.get("val") if isinstance(source, Node) else None
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return False
        if source.op != "get_attr":
            return True
        constant: Any = graph
        for part in str(source.target).split("."):
            constant = getattr(constant, part)
        return bool(constant.isfinite().all())

    def leaves(node: Node) -> bool:
        return any(user.op == "output" for user in node.users)

    def ends(node: Node, norm: bool) -> None:
        """Round what comes out of `node` and of what is computed together with it."""
        last = node
        for kinds in ((norms,) if norm else ()) + (rectifiers,):
            last = follows(last, kinds) or last
        known = node.meta["quantization_annotation"]
        if leaves(last):
            return
        if last is node:
            known.output_qspec = activation
        else:
            annotate(last, {}, activation)

    class ForOnnxruntime(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in model.graph.nodes:
                if node.target in products and isinstance(node.args[1], Node):
                    annotate(node, {node.args[0]: activation, node.args[1]: weight})
                    ends(node, norm=True)
                elif node.target in sums and all(is_plain(model, source) for source in node.args[:2]):
                    annotate(node, dict.fromkeys(node.args[:2], activation))
                    ends(node, norm=False)
                elif node.target in passing and not leaves(node):
                    source = node.args[0]
                    annotate(node, {source: activation}, SharedQuantizationSpec((source, node)))
            return model

        def validate(self, model: GraphModule) -> None:
            pass

    return ForOnnxruntime()


def _transpose_integers(proto: ModelProto) -> None:
    """Transpose stored integers instead of what they stand for at every call: runtimes join no product otherwise."""
    from onnx import numpy_helper

    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    for node in list(graph.node):
        source = maker.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in stored:
            continue
        tensor = stored[source.input[0]]
        plain = len(tensor.dims) == 2 and all(readers.count(name) == 1 for name in (node.input[0], source.input[0]))
        if not plain:
            continue
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(tensor).T), tensor.name))
        for attribute in source.attribute:
            if attribute.name == "axis":
                attribute.i = 1 - attribute.i % 2
        source.output[0] = node.output[0]
        graph.node.remove(node)


def _quantize_biases(proto: ModelProto) -> None:
    """Store biases beside integers as int32 at the scale of the products: onnxruntime joins nothing otherwise."""
    from onnx import helper, numpy_helper

    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    done: dict[tuple[str, ...], str] = {}
    for node in list(graph.node):
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[2] not in stored:
            continue
        scales = [source.input[1] for name in node.input[:2] if (source := maker.get(name)) is not None
                  and source.op_type == "DequantizeLinear"]  # fmt: skip
        if len(scales) < 2:
            continue
        key = (node.input[2], *scales)
        if key not in done:
            bias, own, other = (numpy_helper.to_array(stored[name]).reshape(-1).astype(np.float64) for name in key)
            scale = np.broadcast_to(own * other, bias.shape)
            limit = np.iinfo(np.int32)
            integers = np.clip(np.rint(bias / scale), limit.min, limit.max).astype(np.int32)
            names = [f"{key[0]}_{what}_{len(done)}" for what in ("integers", "scale", "dequantized")]
            arrays: list[Array] = [integers, scale.astype(np.float32)]
            graph.initializer.extend(numpy_helper.from_array(*pair) for pair in zip(arrays, names, strict=False))
            graph.node.append(helper.make_node("DequantizeLinear", names[:2], names[2:], axis=0))
            done[key] = names[2]
        node.input[2] = done[key]
