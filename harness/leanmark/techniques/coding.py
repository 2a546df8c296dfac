"""Coding: what pruning and clustering left is written in fewer bits, and decoded when it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from leanmark import codecs, entropy
from leanmark.arrays import numpy as np
from leanmark.codecs import Coding
from leanmark.errors import NotApplicable
from leanmark.registry import ANY_STAGE, step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel
from leanmark.weights import shared_parameters, sparse_layers

if TYPE_CHECKING:
    from torch import nn


def _coded(artifact: Artifact, name: str, coding: Coding) -> Evidence:
    """Which tensors of the final artifact's file are coded so, and how many bits they take."""
    path = artifact.root / "weights.packed"
    if not path.exists():
        return Evidence(name, False, {}, "the final artifact's weights lie in no packed file")
    packed = path.read_bytes()
    stored, tensors = codecs.described(packed), codecs.unpack(packed)
    by_codec = {item.codec: 0 for item in stored}
    for item in stored:
        by_codec[item.codec] += item.elements
    own = [item for item in stored if item.codec == coding]
    whole = sum(item.elements for item in stored)
    elements, taken = sum(item.elements for item in own), sum(item.bytes for item in own)
    ideal = sum(_entropy_bits(tensors[item.name]) for item in own)
    facts: dict[str, Any] = {
        "elements_by_codec": by_codec,
        "bits_per_element": round(8 * taken / elements, 4) if elements else None,
        "entropy_bits_per_element": round(ideal / elements, 4) if elements else None,
        "file_bytes": len(packed),
    }
    if not own:
        reason = f"no tensor of the file is smaller as {coding}: {', '.join(sorted(by_codec)) or 'there is none'}"
        return Evidence(name, False, facts, reason)
    if 2 * elements < whole:
        reason = f"only {elements:,} of {whole:,} numbers of the file are smaller as {coding}"
        return Evidence(name, False, facts, reason)
    return Evidence(name, True, facts)


def _entropy_bits(array: Any) -> float:
    _, counts = np.unique(array, return_counts=True)
    return entropy.entropy_bits(counts)


def sparse_coded(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Tensors that lie in the final file as a bit mask and what is not zero; or layers that compute without zeros."""
    if params.get("execute", "decode") == "decode":
        return _coded(artifact, "encode.sparse", "bitmask")
    layers = sparse_layers(artifact)
    facts = {
        "layers": len(layers),
        "nonzero": sum(int(spec["args"]["nonzero"]) for spec in layers.values()),
        "file_bytes": sum(path.stat().st_size for path in artifact.files()),
    }
    if not layers:
        return Evidence("encode.sparse", False, facts, "no layer of the final artifact computes with sparse weights")
    return Evidence("encode.sparse", True, facts)


def huffman_coded(artifact: Artifact, _: Mapping[str, Any]) -> Evidence:
    """Tensors that lie in the final file in Huffman's code."""
    return _coded(artifact, "encode.huffman", "huffman")


def ans_coded(artifact: Artifact, _: Mapping[str, Any]) -> Evidence:
    """Tensors that lie in the final file by asymmetric numeral systems."""
    return _coded(artifact, "encode.ans", "ans")


def _with(stage: TorchModel | Program, coding: Coding) -> TorchModel | Program:
    return replace(stage, delivery=replace(stage.delivery, packed=True, coding=coding))


@step(
    "encode.sparse",
    family="coding",
    consumes=ANY_STAGE,
    produces=None,
    evidence=sparse_coded,
    exact=1e-5,
    libraries=("numpy", "torch"),
)
def sparse(
    stage: TorchModel | Program, ctx: Context, *, execute: Literal["decode", "compressed"] = "decode"
) -> TorchModel | Program:
    """Store each weight tensor as one bit an element that says whether it is zero, and what is not zero.

    What is not zero lies there as it is, or, where it has few distinct values, as indices into a
    codebook. Tensors that are smaller otherwise are stored otherwise. The file is decoded whenever it is
    loaded: it is smaller, memory and speed are as before.
    execute: `decode` is that. `compressed` keeps the weights of linear layers as compressed sparse rows (CSR), in the
    file and in memory, and multiplies with them: on torch only, and faster than dense ones only where nearly all
    weights are zero.
    Evidence: tensors of the final file that are stored so, and bits an element; or the layers that compute so.
    Source: Han et al. 2015, Learning both Weights and Connections (sparse storage).
    """
    if execute == "decode":
        return _with(stage, "bitmask")
    if not isinstance(stage, TorchModel):
        raise NotApplicable("onnxruntime has no products with sparse weights", do="Run it on torch, before any export.")
    return stage.with_module(_with_sparse_layers(stage.module))


def _is_smaller(layer: nn.Linear) -> bool:
    """Whether compressed sparse rows take fewer bytes: a value and a column for each weight that is not zero."""
    nonzero = int(layer.weight.count_nonzero())
    return 8 * nonzero + 4 * (layer.out_features + 1) < 4 * layer.weight.numel()


def _with_sparse_layers(module: nn.Module) -> nn.Module:
    """The module with every linear layer that has zeros computing without them."""
    import torch
    from torch import nn

    from leanmark.networks.layers import SparseLinear

    every = [(name, part) for name, part in module.named_modules(remove_duplicate=False) if type(part) is nn.Linear]
    found = {name: part for name, part in every if _is_smaller(part)}
    shared = shared_parameters(module)
    if any(f"{name}.weight" in (*shared, *shared.values()) for name in found):
        raise NotApplicable("two layers of this model share their weights, and sparse ones would part them")
    if not found:
        raise NotApplicable("no linear layer of this model has zeros enough to be smaller so", do="Prune it before.")
    for name, part in found.items():
        matrix = part.weight.detach().to_sparse_csr()
        bias: Any = part.bias  # None where there is none, which torch's types do not say
        layer = SparseLinear(part.in_features, part.out_features, matrix.values().numel(), bias is not None)
        with torch.no_grad():
            layer.values.copy_(matrix.values())
            layer.rows.copy_(matrix.crow_indices())
            layer.columns.copy_(matrix.col_indices())
            if layer.bias is not None:
                layer.bias.copy_(bias)
        if not name:
            return layer
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, layer)
    return module


@step(
    "encode.huffman",
    family="coding",
    consumes=ANY_STAGE,
    produces=None,
    evidence=huffman_coded,
    exact=0.0,
    libraries=("numpy", "constriction"),
)
def huffman(stage: TorchModel | Program, ctx: Context) -> TorchModel | Program:
    """Store each weight tensor as its values that are not zero and the gaps of zeros before them, in Huffman's code.

    Gaps have 8 bits; longer ones are written as several. Codebook and how often each symbol occurs are
    part of the file. Tensors that are smaller otherwise are stored otherwise. Decoded whenever it is loaded.
    Evidence: tensors of the final file that are coded so, bits an element, and the entropy of its values.
    Source: Han, Mao, Dally 2016, Deep Compression; Huffman 1952.
    """
    return _with(stage, "huffman")


@step(
    "encode.ans",
    family="coding",
    consumes=ANY_STAGE,
    produces=None,
    evidence=ans_coded,
    exact=0.0,
    libraries=("numpy", "constriction"),
)
def ans(stage: TorchModel | Program, ctx: Context) -> TorchModel | Program:
    """Store each weight tensor as indices into its codebook, zeros among them, by asymmetric numeral systems.

    A value takes as many bits as it holds information, less than one where most weights are zero. Codebook
    and how often each value occurs are part of the file. Tensors that are smaller otherwise are stored
    otherwise. Decoded whenever it is loaded.
    Evidence: tensors of the final file that are coded so, bits an element, and the entropy of its values.
    Source: Duda 2013, Asymmetric Numeral Systems.
    """
    return _with(stage, "ans")
