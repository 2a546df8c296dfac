"""Run an artifact with OpenVINO, on the CPU; importing this module does not import it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import PreparationError
from leanmark.registry import Runtime, register_runtime
from leanmark.results import StepSpec
from leanmark.runtimes import Session, WithoutEvents
from leanmark.stages import Artifact, Program


class _OpenvinoSession(WithoutEvents):
    """A compiled model and one request to it."""

    def __init__(self, model: Any) -> None:
        self._request = model.create_infer_request()
        self._count = len(model.outputs)

    def bind(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.array(array, order="C") for name, array in inputs.items()}

    def call(self, bound: dict[str, Array]) -> Any:
        return self._request.infer(bound, share_inputs=True, share_outputs=True)

    def outputs(self, raw: Any) -> list[Array]:
        return [np.array(raw[index]) for index in range(self._count)]


def load_openvino(artifact: Artifact, threads: int, device: str) -> Session:
    """Load a program into OpenVINO; see `compile_program`."""
    return _OpenvinoSession(compile_program(artifact, threads, device))


def compile_program(artifact: Artifact, threads: int, device: str) -> Any:
    """A program as OpenVINO compiles it, for one request at a time.

    It computes as the program says, or in the precision that its delivery asks for: by itself it would take bf16 on
    processors that have it, and quantize what layers with compressed weights are given. Denormals are flushed to zero,
    as in every runtime here. Threads are not pinned by it, since leanmark does so. Packed weights are decoded.
    Raises PreparationError if it is no program, or if it cannot be compiled.
    """
    if artifact.stage is not Program:
        raise PreparationError(f"OpenVINO runs programs, and this artifact is a {artifact.stage.stage_name}")
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": artifact.delivery.compiler.get("precision", "f32"),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "CPU_DENORMALS_OPTIMIZATION": True,
    }
    try:
        if artifact.delivery.packed:
            model = core.read_model(artifact.proto().SerializeToString())
        else:
            model = core.read_model((artifact.root / "model.onnx").read_bytes())
        return core.compile_model(model, device.upper(), options)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise PreparationError(f"OpenVINO cannot load the program: {lines[-1] if lines else error}") from error


register_runtime(
    Runtime(
        name="openvino",
        title="OpenVINO",
        executes=Program,
        devices=("cpu",),
        loader="leanmark.openvino_runtime:load_openvino",
        libraries=("openvino",),
        lowering=(StepSpec("export.onnx", {"opset": 20}),),
        start_seconds=1.0,
    )
)
