"""Binary weights and activations: one bit each, found by training through the sign."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge as AtLeast
from annotated_types import Gt, Le, Lt

from leanmark import codecs, graphs
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import NotApplicable
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel
from leanmark.techniques.training import Loss, fit
from leanmark.weights import count_elements, finite_values, shared_parameters, weight_parameters, weight_tensors

if TYPE_CHECKING:
    from onnx import TensorProto
    from torch import Tensor, nn

Keep = Literal["first", "last"]
_CODEBOOK_BYTES = 8


def one_bit_each(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Weight tensors of the final artifact that hold one number with both signs, and bits a weight in its file."""
    name = "quantize.binary"
    weights = weight_tensors(artifact)
    binary = {key for key, array in weights.items() if _is_binary(array)}
    facts: dict[str, Any] = {
        "binary_weights": count_elements({key: weights[key] for key in binary}),
        "weights": count_elements(weights),
        "bits_per_binary_weight": _bits(artifact, binary),
    }
    if not weights:
        return Evidence(name, False, facts, "the final artifact has no weight tensors")
    left = sorted(weights.keys() - binary)
    if len(left) > len(set(params.get("keep", ()))):
        reason = f"'{left[0]}' holds {len(np.unique(weights[left[0]]))} distinct values: a later step moved them"
        return Evidence(name, False, facts, reason)
    facts["computed"] = "in floating point: bits are for storage only"
    if facts["bits_per_binary_weight"] is None or facts["bits_per_binary_weight"] > 1.1:
        return Evidence(name, False, facts, "the weights do not lie in the file as one bit each")
    if params.get("activations"):
        facts["binary_activations"], others = _activations(artifact)
        if not facts["binary_activations"]:
            return Evidence(name, False, facts, "no activation of the final artifact has one bit")
        if others:
            return Evidence(name, False, facts, f"{others} activations of the final artifact have more than one bit")
    return Evidence(name, True, facts)


def _activations(artifact: Artifact) -> tuple[int, int]:
    """How many activations of the artifact are -1 or 1, and how many are still ReLUs."""
    if artifact.stage is Program:
        proto = artifact.proto()
        values, listed = graphs.constants(proto.graph), list(graphs.nodes(proto.graph))
        below = {
            node.output[0] for node in listed if node.op_type == "Less" and _is_constant(node.input[1], values, 0.0)
        }
        signs = [
            node
            for node in listed
            if node.op_type == "Where"
            and node.input[0] in below
            and _is_constant(node.input[1], values, -1.0)
            and _is_constant(node.input[2], values, 1.0)
        ]
        return len(signs), sum(node.op_type in ("Relu", "FusedConv", "FusedGemm", "Clip") for node in listed)
    from torch import nn

    from leanmark.networks.layers import Sign

    model = artifact.load()
    assert isinstance(model, TorchModel)
    parts = [part for _, part in model.module.named_modules(remove_duplicate=False)]
    return sum(isinstance(part, Sign) for part in parts), sum(isinstance(part, nn.ReLU) for part in parts)


def _is_constant(name: str, values: Mapping[str, TensorProto], number: float) -> bool:
    from onnx import numpy_helper

    found = values.get(name)
    return found is not None and math.prod(found.dims) == 1 and numpy_helper.to_array(found).item() == number


def _is_binary(array: Array) -> bool:
    values = np.unique(array)
    return values.size == 2 and bool(values[0] == -values[1])


def _bits(artifact: Artifact, names: set[str]) -> float | None:
    """Bits that an element of these tensors takes in the packed file; None if there is none."""
    path = artifact.root / "weights.packed"
    if not path.exists():
        return None
    stored = [item for item in codecs.described(path.read_bytes()) if item.name in names]
    elements = sum(item.elements for item in stored)
    taken = sum(item.bytes - _CODEBOOK_BYTES for item in stored)  # the two numbers are no weights
    return round(8 * taken / elements, 4) if elements else None


@step(
    "quantize.binary",
    family="quantization",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=one_bit_each,
    libraries=("torch", "numpy"),
    splits=("train",),
)
def binary(
    model: TorchModel,
    ctx: Context,
    *,
    epochs: Annotated[float, Gt(0), Le(10_000)] = 5.0,
    learning_rate: Annotated[float, Gt(0), Le(10)] = 2e-3,
    batch_size: Annotated[int, AtLeast(1)] = 64,
    keep: tuple[Keep, ...] = (),
    activations: bool = False,
    loss: Loss = "cross_entropy",
    label_smoothing: Annotated[float, AtLeast(0), Lt(1)] = 0.1,
) -> TorchModel:
    """Give every weight of a tensor the same magnitude and train only the signs.

    epochs: passes over the train split. In each step the model answers with binary weights, and real ones behind them
    take the gradient as if they had answered themselves (the straight-through estimator); they are kept between
    -1 and 1, and their signs are what stays. The magnitude is the mean of theirs.
    learning_rate: the highest, as in train.finetune. batch_size: examples a step.
    keep: `first` and `last` leave that layer as it is; by default every layer is binary.
    activations: every ReLU that is a module becomes a sign, -1 or 1; the gradient passes where its input is between
    these. A ReLU that a model calls as a function stays.
    loss, label_smoothing: as in train.finetune.

    Biases and batch norms stay. The file holds a bit a weight; it is decoded when it is loaded and computed with in
    floating point: this is smaller, not faster.
    Evidence: every weight tensor of the final artifact, but those kept, holds one number with both signs and takes
    1 bit a weight in its file; with `activations`, signs counted in it.
    Source: Courbariaux, Bengio, David 2015, BinaryConnect; Rastegari et al. 2016, XNOR-Net (the magnitude); Hubara et
    al. 2016, Binarized Neural Networks (activations).
    """
    from torch.nn.utils import parametrize

    module = model.module
    for name, first in shared_parameters(module).items():
        raise NotApplicable(f"'{first}' and '{name}' are one tensor, which has no sign of its own in each place")
    layers = _layers(module, keep)
    if activations:
        module = _with_signs(module)
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", _shared_magnitude())
    try:
        fit(
            module,
            ctx.split("train"),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.0,
            generator=ctx.generator("quantize.binary"),
            loss=loss,
            label_smoothing=label_smoothing,
            after_step=lambda _: _clip(layers),
            progress=ctx.progress,
        )
    finally:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return replace(model.with_module(module), delivery=replace(model.delivery, packed=True))


def _layers(module: nn.Module, keep: tuple[Keep, ...]) -> dict[str, nn.Module]:
    """The layers whose weights become binary, by name. Raises NotApplicable without any."""
    found: dict[str, nn.Module] = {}
    for name, weight in weight_parameters(module).items():
        finite_values(name, weight)
        path, _, kind = name.rpartition(".")
        if kind != "weight" or not path:
            raise NotApplicable(f"'{name}' is a weight tensor of no layer")
        found[path] = module.get_submodule(path)
    names = list(found)
    for name in {*(names[:1] if "first" in keep else ()), *(names[-1:] if "last" in keep else ())}:
        del found[name]
    if not found:
        raise NotApplicable("this model has no weight tensor that may become binary")
    return found


def _with_signs(module: nn.Module) -> nn.Module:
    """The module with a sign where it had a ReLU. Raises NotApplicable without one."""
    from torch import nn

    from leanmark.networks.layers import Sign

    names = [name for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, nn.ReLU)]
    if not names or "" in names:
        raise NotApplicable("this model has no ReLU among its modules that could become a sign")
    for name in names:
        module.set_submodule(name, Sign())
    return module


def _clip(layers: Mapping[str, nn.Module]) -> None:
    import torch

    with torch.no_grad():
        for layer in layers.values():
            original = layer.get_parameter("parametrizations.weight.original")
            original.clamp_(-1, 1)


def _shared_magnitude() -> nn.Module:
    """The mean magnitude with each weight's sign; backwards, the identity."""
    import torch
    from torch import nn

    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: Tensor) -> Tensor:  # noqa: ARG004 - torch's own name
            magnitude = weight.abs().mean().clamp_min(torch.finfo(weight.dtype).tiny)
            return torch.where(weight < 0, -magnitude, magnitude)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004 - torch's own name
            return grads[0]

    class SharedMagnitude(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return StraightThrough.apply(weight)

    return SharedMagnitude()
