"""Run an artifact: torch eager and onnxruntime, on the CPU and on CUDA devices.

Importing this module imports neither; a process that runs onnxruntime never imports
torch, so that its memory and start time are those of a deployment.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import PreparationError
from leanmark.graphs import import_onnxruntime
from leanmark.registry import Runtime, get_runtime, register_runtime
from leanmark.results import StepSpec
from leanmark.stages import Artifact, Program, TorchModel

if TYPE_CHECKING:
    from torch import Tensor, nn


class Session(Protocol):
    """A loaded artifact. Only `call` is ever timed."""

    def bind(self, inputs: Mapping[str, Array]) -> Any:
        """Copies of the inputs of one batch, where and as the runtime takes them."""
        ...

    def call(self, bound: Any) -> Any:
        """Exactly one inference, complete when it returns."""
        ...

    def outputs(self, raw: Any) -> list[Array]:
        """What `call` returned as arrays, in the model's order."""
        ...

    def event_seconds(self, bound: Any, /) -> float | None:
        """Seconds between CUDA events around one call; None where there are none."""
        ...

    def peak_device_bytes(self) -> int | None:
        """The most device memory so far; None where it cannot be told."""
        ...


# --- what can run here ----------------------------------------------------------------

# What `supported` is asked about services, and the modules that these need beside a runtime.
SERVICES = "services"
_SERVED_BY = ("mlperf_loadgen", "orjson", "msgpack", "google.protobuf", "pyarrow", "cachetools", "redis", "faiss")
_COMPILERS = ("g++", "clang++", "c++")
# Distributions that bring a CUDA build of a runtime whose plain one has none.
_CUDA_DISTRIBUTION = {"onnxruntime": "onnxruntime-gpu"}


def supported(runtime: str, device: str) -> str | None:
    """Why a runtime cannot run on a device of this machine; None if it can.

    `SERVICES` in place of a runtime asks for what all services need. Neither the runtime nor CUDA is imported or
    started. Raises InvalidInput for a
    runtime that nobody registered.
    """
    if runtime == SERVICES:
        missing = [name for name in _SERVED_BY if not _is_there(name)]
        return f"{missing[0]} is not installed: pip install 'leanmark[serving]'" if missing else None
    entry = get_runtime(runtime)
    if device not in entry.devices:
        return f"{runtime} runs on {' and '.join(entry.devices)}, not on {device}"
    module = entry.libraries[0]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if device == "cuda":
        return _no_cuda(module)
    if runtime == "torch-compile" and not any(map(shutil.which, _COMPILERS)):
        return f"no C++ compiler ({' or '.join(_COMPILERS)}) is installed, which Inductor needs for CPUs"
    return None


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is not there either
        return False


def _no_cuda(module: str) -> str | None:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every CUDA device"
    if not _nvidia_devices():
        return "this machine has no CUDA device"
    wanted = _CUDA_DISTRIBUTION.get(module)
    if wanted is not None and not _installed(wanted):
        return f"the installed {module} is a build for CPUs; {wanted} has CUDA"
    if module == "torch" and importlib.metadata.version("torch").endswith("+cpu"):
        return "the installed torch is a build for CPUs"
    return None


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@cache
def _nvidia_devices() -> bool:
    """Whether the driver knows a device, asked without starting CUDA."""
    known = Path("/proc/driver/nvidia/gpus")
    if known.is_dir() and any(known.iterdir()):
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        answer = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


# --- torch eager ----------------------------------------------------------------------


class _TorchSession:
    """A module in inference mode, called with its inputs by position."""

    def __init__(self, module: nn.Module, device: str) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._module = self.module = module.to(device)
        self._cuda = device != "cpu"

    def bind(self, inputs: Mapping[str, Array]) -> list[Tensor]:
        with self._torch.inference_mode():
            return [self._torch.from_numpy(np.array(array)).to(self._device) for array in inputs.values()]

    def call(self, bound: list[Tensor]) -> Any:
        # Entered anew each time, as a deployment does: kept open, it would hold for
        # everything else that the process does in torch.
        with self._torch.inference_mode():
            raw = self._module(*bound)
        if self._cuda:
            self._torch.cuda.synchronize()
        return raw

    def outputs(self, raw: Any) -> list[Array]:
        return [tensor.cpu().numpy() for tensor in _tensors(raw)]

    def event_seconds(self, bound: list[Tensor], /) -> float | None:
        if not self._cuda:
            return None
        begun, ended = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self._torch.inference_mode():
            begun.record()
            self._module(*bound)
            ended.record()
        self._torch.cuda.synchronize()
        return begun.elapsed_time(ended) * 1e-3

    def peak_device_bytes(self) -> int | None:
        return self._torch.cuda.max_memory_allocated() if self._cuda else None


def _tensors(raw: Any) -> Iterable[Tensor]:
    """The tensors of a module's answer, which may be nested in tuples, lists and dicts."""
    if isinstance(raw, Mapping):
        raw = raw.values()
    elif not isinstance(raw, list | tuple):
        return [raw]
    return [tensor for part in raw for tensor in _tensors(part)]


def load_torch(artifact: Artifact, threads: int, device: str) -> Session:
    """Load an artifact into torch: eager, or compiled where its delivery says so.

    Process-wide: the number of threads, denormals flushed to zero, TF32 off, and what `compiled` sets.
    Raises PreparationError if there is no such device.
    """
    import torch

    torch.set_num_threads(threads)
    # More than one thread between operators would add to those inside them; torch
    # takes the setting once, before it first runs something.
    if torch.get_num_interop_threads() != 1:
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
    torch.set_flush_denormal(True)
    if device != "cpu":
        if not torch.cuda.is_available():
            raise PreparationError("torch finds no CUDA device", do="Use device cpu, or a build of torch with CUDA.")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    if artifact.stage is not TorchModel:
        raise PreparationError(f"torch eager runs torch models, and this artifact is a {artifact.stage.stage_name}")
    # Weights and inputs that were made in inference mode cost less to use in it: a small
    # MLP's call takes 10 % longer without.
    with torch.inference_mode():
        stage = artifact.load()
        assert isinstance(stage, TorchModel)
        how = artifact.delivery.compiler
        return _TorchSession(compiled(stage.module.to(device), tune=how["tune"]) if how else stage.module, device)


def compiled(module: nn.Module, *, tune: bool) -> nn.Module:
    """The module as Inductor compiles it at its first call, for exactly the shapes that it is called with.

    tune: weights are constants of the code, and products take the fastest of several kernels. Process-wide: the last
    call's `tune`, and that compiling starts no processes of its own, which would run beside what is measured.
    """
    import torch
    from torch._inductor import config

    config.compile_threads = 1
    config.freezing = tune  # Inductor reads it before it sees the options of torch.compile
    options: dict[str, Any] = {"max_autotune": True, "autotune_num_choices_displayed": 0} if tune else {}
    return cast("nn.Module", torch.compile(module, dynamic=False, options=options))


def load_torch_compile(artifact: Artifact, threads: int, device: str) -> Session:
    """Load an artifact into torch and compile it, whatever its delivery says.

    The first call compiles; what was compiled once is found again in Inductor's own
    cache. Process-wide as `load_torch`.
    Raises PreparationError if there is no such device.
    """
    import torch

    session = load_torch(artifact, threads, device)
    assert isinstance(session, _TorchSession)
    if artifact.delivery.compiler:
        return session
    with torch.inference_mode():
        return _TorchSession(compiled(session.module, tune=False), device)


# --- onnxruntime ----------------------------------------------------------------------


class WithoutEvents:
    """What a runtime that shows nothing of a device answers."""

    def event_seconds(self, _bound: Any, /) -> float | None:
        return None

    def peak_device_bytes(self) -> int | None:
        return None


class _OnnxSession(WithoutEvents):
    """An onnxruntime session on the CPU."""

    def __init__(self, session: Any) -> None:
        self._run = session.run

    def bind(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.array(array, order="C") for name, array in inputs.items()}

    def call(self, bound: dict[str, Array]) -> Any:
        return self._run(None, bound)

    def outputs(self, raw: Any) -> list[Array]:
        return [np.asarray(array) for array in raw]


class _OnnxCudaSession(WithoutEvents):
    """An onnxruntime session on a CUDA device; inputs and outputs stay there."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [value.name for value in session.get_outputs()]

    def bind(self, inputs: Mapping[str, Array]) -> Any:
        ort = import_onnxruntime()
        binding = self._session.io_binding()
        for name, array in inputs.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), "cuda", 0)
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, "cuda")
        return binding

    def call(self, bound: Any) -> Any:
        self._session.run_with_iobinding(bound)
        bound.synchronize_outputs()
        return bound

    def outputs(self, raw: Any) -> list[Array]:
        return list(raw.copy_outputs_to_cpu())


def load_onnxruntime(artifact: Artifact, threads: int, device: str) -> Session:
    """Load an artifact into onnxruntime, with all of its graph optimizations.

    Threads wait without spinning, denormals are flushed to zero, and TF32 is off. What is multiplied with integer
    weights keeps the program's type: by itself onnxruntime would quantize it, too. Packed weights are decoded and
    handed over in memory.
    Raises PreparationError if there is no such device, or if it cannot be loaded.
    """
    if artifact.stage is not Program:
        raise PreparationError(f"onnxruntime runs programs, and this artifact is a {artifact.stage.stage_name}")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # fp32
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise PreparationError(
                "the installed onnxruntime has no CUDA", do="Use device cpu, or install onnxruntime-gpu in its place."
            )
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    path = artifact.root / f"{artifact.program}.onnx"
    program: str | bytes = str(path)
    if artifact.delivery.packed:
        # As bytes, so that a program that names other files beside it finds none.
        program = path.read_bytes()
        weights = artifact.packed_weights()
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    try:
        session = ort.InferenceSession(program, options, providers=providers)
    except Exception as error:
        raise PreparationError(f"onnxruntime cannot load the program: {error}") from error
    # Without its libraries, onnxruntime leaves CUDA out with no more than a warning.
    if device != "cpu":
        if "CUDAExecutionProvider" not in session.get_providers():
            raise PreparationError("onnxruntime could not start CUDA", do="Are the CUDA and cuDNN that it needs there?")
        return _OnnxCudaSession(session)
    return _OnnxSession(session)


register_runtime(
    Runtime(
        name="torch",
        title="torch eager",
        executes=TorchModel,
        devices=("cpu", "cuda"),
        loader="leanmark.runtimes:load_torch",
        libraries=("torch",),
        start_seconds=2.2,
    )
)
register_runtime(
    Runtime(
        name="torch-compile",
        title="torch.compile",
        executes=TorchModel,
        devices=("cpu", "cuda"),
        loader="leanmark.runtimes:load_torch_compile",
        libraries=("torch",),
        start_seconds=8.0,
        load_seconds=3.0,
    )
)
register_runtime(
    Runtime(
        name="onnxruntime",
        title="onnxruntime",
        executes=Program,
        devices=("cpu", "cuda"),
        loader="leanmark.runtimes:load_onnxruntime",
        libraries=("onnxruntime",),
        lowering=(StepSpec("export.onnx", {"opset": 20}),),
        start_seconds=0.4,
    )
)
