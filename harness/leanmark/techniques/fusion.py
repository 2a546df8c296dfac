"""Fusion: several operations become one, with the same answers."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leanmark.errors import NotApplicable, PreparationError
from leanmark.graphs import canonical, difference, import_onnxruntime, op_counts, quiet, reference_ops
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel

if TYPE_CHECKING:
    from torch import fx, nn

    from leanmark.stages import Split


def no_batch_norm(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """No batch norm is left in the final artifact."""
    left = _count_batch_norms(artifact)
    before = None if artifact.reference is None else _count_batch_norms(artifact.reference)
    facts = {"batch_norms": left, "batch_norms_before": before}
    if left:
        return Evidence("fuse.batchnorm", False, facts, f"{left} batch norms are left")
    if before == 0:
        return Evidence("fuse.batchnorm", False, facts, "the unmodified model had no batch norm either")
    return Evidence("fuse.batchnorm", True, facts)


def _count_batch_norms(artifact: Artifact) -> int:
    if artifact.stage is Program:
        return op_counts(artifact.proto()).get("BatchNormalization", 0)
    return sum(name.endswith("running_mean") for name in artifact.tensors())


@step(
    "fuse.batchnorm",
    family="fusion",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=no_batch_norm,
    exact=1e-4,
    splits=("validation",),
)
def batchnorm(stage: TorchModel, ctx: Context) -> TorchModel:
    """Fold each batch norm into the convolution or linear layer before it.

    A batch norm in eval mode scales and shifts every channel by constants, which the
    layer before can do with its own weights. Folding multiplies each channel's weights
    by a number of its own: zeros stay zero, but shared values (clusters) do not stay
    shared, so cluster after it.
    Evidence: no batch norm in the final artifact; ineffective where one is left, as
    after a layer whose result is used twice.
    Source: Jacob et al. 2018, Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference, section 3.2.
    """
    from torch import nn

    module = copy.deepcopy(stage.module).eval()
    if not any(isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) for child in module.modules()):
        raise NotApplicable("this model has no batch norm")
    folded = 0
    with quiet():
        # Again, because a second batch norm in a row follows the layer only now.
        while pairs := _foldable(module, ctx.split("validation").head(2)):
            for layer, norm in pairs:
                _fold(module.get_submodule(layer), module.get_submodule(norm))
                module.set_submodule(norm, nn.Identity())
            folded += len(pairs)
    if not folded:
        raise NotApplicable("no batch norm of this model directly follows a convolution or linear layer of its own")
    return stage.with_module(module)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # _foldable leaves the others
    assert variance is not None
    # Rows of a linear layer's weights are its channels too, and this one, unlike the
    # one for linear layers, takes batch norms without scale and shift.
    layer.weight, layer.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )


def _foldable(module: nn.Module, examples: Split) -> list[tuple[str, str]]:
    """Paths of layer and batch norm, where nothing else reads the layer's result."""
    from torch import fx, nn

    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:
        raise PreparationError(
            f"torch.fx cannot follow this model's forward, so what comes before a batch norm is unknown: {error}",
            do="Keep control flow that depends on values out of forward.",
        ) from error
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    pairs: list[tuple[str, str]] = []
    ranks = _input_ranks(module, examples)
    for node in graph.nodes:
        path = str(node.target)
        if node.op != "call_module" or calls[path] != 1:
            continue
        norm = module.get_submodule(path)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        layer = _layer_before(module, node)
        if layer is None or calls[layer] != 1 or _shares_weights(module, layer):
            continue
        # A batch norm scales the second axis; of more than two, that is not the one
        # that a linear layer's weights scale.
        if isinstance(module.get_submodule(layer), nn.Linear) and ranks.get(path) != 2:
            continue
        pairs.append((layer, path))
    return pairs


def _layer_before(module: nn.Module, node: fx.Node) -> str | None:
    """The path of the layer whose result a batch norm, and nothing else, reads."""
    from torch import fx, nn

    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
        before = module.get_submodule(str(source.target))
        if isinstance(before, nn.Conv1d | nn.Conv2d | nn.Linear):
            return str(source.target)
        if not isinstance(before, nn.Identity | nn.Dropout):
            return None
        source = source.args[0]
    return None


def _shares_weights(module: nn.Module, path: str) -> bool:
    own = {parameter.data_ptr() for parameter in module.get_submodule(path).parameters()}
    return any(
        parameter.data_ptr() in own
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name.rpartition(".")[0] != path
    )


def _input_ranks(module: nn.Module, examples: Split) -> dict[str, int]:
    """How many axes the input of each batch norm has."""
    import torch
    from torch import nn

    ranks: dict[str, int] = {}

    def watch(name: str, norm: nn.Module) -> Any:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            ranks[name] = inputs[0].dim()

        return norm.register_forward_pre_hook(note)

    norms = [(name, child) for name, child in module.named_modules() if isinstance(child, nn.BatchNorm1d)]
    hooks = [watch(name, norm) for name, norm in norms]
    if hooks:
        with torch.inference_mode():
            module(*(torch.from_numpy(array.copy()) for array in examples.inputs.values()))
    for hook in hooks:
        hook.remove()
    return ranks


# --- the graph ----------------------------------------------------------------------

# Operators of onnxruntime's own that stand for several of ONNX's.
_OWN_DOMAINS = ("com.microsoft.",)


def fused_operators(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """Operators of the final program that the unmodified one does not have."""
    if artifact.stage is not Program:
        return Evidence("fuse.graph", False, {}, "the final artifact is no ONNX program")
    ops, before = op_counts(artifact.proto()), reference_ops(artifact)
    fused = {name: count for name, count in ops.items() if name.startswith(_OWN_DOMAINS)}
    facts: dict[str, Any] = {"fused": fused, "nodes": sum(ops.values())}
    if before is not None:
        changed = difference(before, ops)
        facts |= {"nodes_before": sum(before.values()), "changed": changed}
        if not set(changed) - {"Constant", "Identity"}:  # these vanish without any fusion
            return Evidence("fuse.graph", False, facts, "the operators are the same as before")
    elif not fused:
        return Evidence("fuse.graph", False, facts, "no fused operator in the program")
    return Evidence("fuse.graph", True, facts)


@step(
    "fuse.graph",
    family="fusion",
    consumes=Program,
    produces=Program,
    evidence=fused_operators,
    exact=1e-4,
    libraries=("onnx", "onnxruntime"),
)
def graph(stage: Program, _ctx: Context, *, level: Literal["basic", "extended", "all"] = "extended") -> Program:
    """Apply onnxruntime's fusion rules now and keep what they made.

    level: `basic` removes and folds what ONNX's own operators can express (a batch norm
    into its convolution, constants); `extended` adds onnxruntime's fused operators
    (convolution and activation, matrix product and activation, attention, GELU); `all`
    adds the memory layout of this machine's vector units.

    onnxruntime applies `all` whenever it loads a program, so that the gain to expect is
    in the time to load, not in latency. A program of level `all` holds weights
    reordered for this machine's vector width and must not be run on another kind.
    Evidence: names and counts of the fused operators in the final program; ineffective
    where its operators are those of the unmodified one.
    Source: onnxruntime's documentation, "Graph Optimizations in ONNX Runtime".
    """
    from onnx import load_model

    before = {tensor.name for tensor in stage.proto().graph.initializer}
    with quiet(), tempfile.TemporaryDirectory(prefix="leanmark-") as folder:
        path = Path(folder) / "fused.onnx"
        _optimize(stage.onnx, path, level)
        proto = load_model(path)
    canonical(proto, before)
    return replace(stage, onnx=proto.SerializeToString(deterministic=True))


def _optimize(serialized: bytes, path: Path, level: str) -> None:
    ort = import_onnxruntime()
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = {
        "basic": levels.ORT_ENABLE_BASIC,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "all": levels.ORT_ENABLE_ALL,
    }[level]
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that `all` is meant for this machine only; so does the docstring
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PreparationError(f"onnxruntime cannot load the program: {error}") from error
