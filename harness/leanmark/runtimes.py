"""Run an artifact: torch eager and onnxruntime. (First version by the lead; extend or replace.)"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from leanmark.registry import Runtime, register_runtime
from leanmark.results import StepSpec
from leanmark.stages import Artifact, Program, TorchModel

Array = NDArray[Any]


class Session(Protocol):
    def bind(self, inputs: Mapping[str, Array]) -> Any: ...
    def call(self, bound: Any) -> Any: ...
    def outputs(self, raw: Any) -> list[Array]: ...


def supported(runtime: str, device: str) -> str | None:
    if device == "cuda":
        return "no CUDA device here"
    return None


class _Torch:
    def __init__(self, module: Any) -> None:
        import torch

        self.module, self.torch = module, torch
        self._guard = torch.inference_mode()
        self._guard.__enter__()

    def bind(self, inputs: Mapping[str, Array]) -> Any:
        return [self.torch.from_numpy(array.copy()) for array in inputs.values()]

    def call(self, bound: Any) -> Any:
        return self.module(*bound)

    def outputs(self, raw: Any) -> list[Array]:
        return [raw.numpy()]


def load_torch(artifact: Artifact, threads: int, device: str) -> Session:
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return _Torch(artifact.load().module)


class _Onnx:
    def __init__(self, session: Any) -> None:
        self.session = session

    def bind(self, inputs: Mapping[str, Array]) -> Any:
        return dict(inputs)

    def call(self, bound: Any) -> Any:
        return self.session.run(None, bound)

    def outputs(self, raw: Any) -> list[Array]:
        return list(raw)


def load_onnxruntime(artifact: Artifact, threads: int, device: str) -> Session:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.log_severity_level = 3
    if artifact.delivery.packed:
        return _Onnx(ort.InferenceSession(artifact.load().onnx, options))
    return _Onnx(ort.InferenceSession(str(artifact.root / "model.onnx"), options))


register_runtime(
    Runtime("torch", "torch eager", TorchModel, ("cpu", "cuda"), "leanmark.runtimes:load_torch", ("torch",))
)
register_runtime(
    Runtime(
        "onnxruntime",
        "onnxruntime",
        Program,
        ("cpu", "cuda"),
        "leanmark.runtimes:load_onnxruntime",
        ("onnxruntime",),
        (StepSpec("export.onnx", {"opset": 20}),),
    )
)
