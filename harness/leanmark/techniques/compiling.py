"""Compiling: a compiler makes code for this model, these shapes and this processor.

What is stored stays the model: the runtime compiles it when it loads it, as a deployment does, so the cost lies in the
cold start. Evidence compiles the final artifact once more, without any cache, and looks at what came out.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.runtimes import compiled
from leanmark.stages import Artifact, Context, Program, TorchModel

_FUSED = re.compile(r"^(\w+) = async_compile", re.MULTILINE)
_LIBRARY = re.compile(r"((?:extern_kernels|torch\.ops)[\w.]+)\(")
# What OpenVINO calls the layers that do nearly all of the work.
_HEAVY = ("Convolution", "FullyConnected", "MatMul", "GroupConvolution")


def was_compiled(artifact: Artifact, _params: Mapping[str, Any]) -> Evidence:
    """The final artifact, compiled once more: one graph without breaks, and kernels made for it."""
    how = artifact.delivery.compiler
    if how.get("name") != "inductor":
        return Evidence("compile.inductor", False, {}, "the final artifact is not compiled when it is loaded")
    import torch
    from torch._dynamo import reset
    from torch._dynamo.utils import counters
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    stage = artifact.load()
    assert isinstance(stage, TorchModel)
    inputs = [torch.zeros(shape, dtype=getattr(torch, kind)) for kind, shape in how["inputs"]]
    reset()
    counters.clear()
    begun = time.perf_counter()
    with torch.inference_mode(), config.patch(force_disable_caches=True):
        _, code = run_and_get_code(compiled(stage.module, tune=how["tune"]), *inputs)
    seconds = time.perf_counter() - begun
    text = "\n".join(code)
    breaks = sum(counters["graph_break"].values())
    graphs = counters["stats"]["unique_graphs"]
    fused = _FUSED.findall(text)
    facts = {
        "graphs": graphs,
        "graph_breaks": breaks,
        "fused_kernels": len(fused),
        "library_calls": dict(Counter(_LIBRARY.findall(text))),
        "first_call_seconds": round(seconds, 2),
        "seen_on": "cpu, a batch of 1",
        "tuned": how["tune"],
    }
    reset()
    if breaks or graphs != 1:
        return Evidence("compile.inductor", False, facts, f"the model was cut into {graphs} graphs, {breaks} breaks")
    if not fused:
        return Evidence("compile.inductor", False, facts, "not a single kernel was made for it")
    return Evidence("compile.inductor", True, facts)


@step(
    "compile.inductor",
    family="compiling",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=was_compiled,
    exact=1e-4,
    splits=("validation",),
    runtimes=("torch",),
    needs=("torch-compile",),
)
def inductor(model: TorchModel, ctx: Context, *, tune: bool = False) -> TorchModel:
    """Compile the model with torch.compile and Inductor when it is loaded.

    tune: freeze the weights into the code, and measure several kernels for each product to take the fastest
    (max-autotune); loading then takes longer.
    Evidence: the final artifact is compiled once more, without caches, on the CPU and for one example, whatever the
    target: one graph without breaks, how many kernels were made and what libraries are called, and how long the first
    call took.
    Source: Ansel et al. 2024, PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and
    Graph Compilation.
    """
    example = ctx.split("validation").head(1)
    inputs = [[_kind(array.dtype.name), list(array.shape)] for array in example.inputs.values()]
    how = {"name": "inductor", "tune": tune, "inputs": inputs}
    return replace(model, delivery=replace(model.delivery, compiler=how))


def _kind(name: str) -> str:
    return "float32" if name == "float64" else name


def precision_is(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The precision that each heavy layer of the compiled model is executed in, as OpenVINO reports it."""
    asked = params["precision"]
    if artifact.stage is not Program or artifact.delivery.compiler.get("name") != "openvino":
        return Evidence("compile.openvino", False, {}, "the final artifact is no program for OpenVINO")
    from leanmark.openvino_runtime import compile_program

    begun = time.perf_counter()
    model = compile_program(artifact, 1, "cpu")
    seconds = time.perf_counter() - begun
    layers: dict[str, Counter[str]] = {}
    for node in model.get_runtime_model().get_ops():
        about = node.get_rt_info()
        kind, precision = (about[key].astype(str) for key in ("layerType", "runtimePrecision"))
        if kind in _HEAVY:
            layers.setdefault(kind, Counter())[precision] += 1
    facts = {
        "precision": asked,
        "layers": {kind: dict(found) for kind, found in layers.items()},
        "compile_seconds": round(seconds, 2),
    }
    if not layers:
        return Evidence("compile.openvino", False, facts, "no product or convolution is executed by OpenVINO")
    seen = {precision for found in layers.values() for precision in found}
    others = seen - {asked, "i8", "u8"}
    if others or (asked != "f32" and asked not in seen):
        why = f"layers are executed in {', '.join(sorted(others or seen))}: this processor may not have {asked}"
        return Evidence("compile.openvino", False, facts, why)
    return Evidence("compile.openvino", True, facts)


@step(
    "compile.openvino",
    family="compiling",
    consumes=Program,
    produces=Program,
    evidence=precision_is,
    libraries=("openvino",),
    runtimes=("openvino",),
)
def openvino(program: Program, _ctx: Context, *, precision: Literal["f32", "bf16", "f16"] = "f32") -> Program:
    """Compile the program with OpenVINO when it is loaded, for one precision.

    precision: what products and convolutions compute in. OpenVINO itself takes bf16 on processors that have it, and
    says so nowhere; here it is f32 unless this asks for another. Layers with integer weights and activations stay so.
    Evidence: what each heavy layer of the compiled model is executed in, as OpenVINO reports it.
    Source: OpenVINO's documentation, "Precision Control" (`inference_precision`).
    """
    return replace(program, delivery=replace(program.delivery, compiler={"name": "openvino", "precision": precision}))
