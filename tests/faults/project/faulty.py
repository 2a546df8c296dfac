"""Steps that go wrong in every way that a step can."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel


def nothing(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    return Evidence("faulty", True, {})


def missing(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    return Evidence("faulty.lazy", False, {"changed": 0}, "not one weight changed")


options: dict[str, Any] = {"family": "faults", "consumes": TorchModel, "produces": TorchModel}


@step("faulty.raise", evidence=nothing, **options)
def raises(model: TorchModel, ctx: Context) -> TorchModel:
    """Raise an error."""
    raise RuntimeError("the moon is in the wrong house")


@step("faulty.hang", evidence=nothing, **options)
def hangs(model: TorchModel, ctx: Context, *, marker: str = "") -> TorchModel:
    """Never come back; leave a process behind if nobody cleans up."""
    child = subprocess.Popen(["sleep", "600"])
    if marker:
        Path(marker).write_text(f"{os.getpid()} {child.pid}")
    while True:
        time.sleep(60)


@step("faulty.detach", evidence=nothing, **options)
def detaches(model: TorchModel, ctx: Context, *, marker: str) -> TorchModel:
    """Leave a process in a session of its own behind."""
    Path(marker).write_text(str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid))
    return model


@step("faulty.kill", evidence=nothing, **options)
def kills(model: TorchModel, ctx: Context) -> TorchModel:
    """Kill the own process."""
    print("about to go", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@step("faulty.memory", evidence=nothing, **options)
def memory(model: TorchModel, ctx: Context) -> TorchModel:
    """Ask for more memory than there is."""
    import torch

    torch.empty(2**46, dtype=torch.uint8)
    return model


@step("faulty.leave", evidence=nothing, **options)
def leaves(model: TorchModel, ctx: Context) -> TorchModel:
    """End the process as if all were well."""
    os._exit(0)


@step("faulty.peek", evidence=nothing, **options)
def peeks(model: TorchModel, ctx: Context) -> TorchModel:
    """Ask for the test split."""
    ctx.split("test")
    return model


@step("faulty.lazy", evidence=missing, **options)
def lazy(model: TorchModel, ctx: Context) -> TorchModel:
    """Do nothing at all, and have no evidence for it."""
    return model


@step("faulty.exact", evidence=nothing, exact=1e-5, **options)
def inexact(model: TorchModel, ctx: Context) -> TorchModel:
    """Change one weight, and claim that no answer changes."""
    import torch

    with torch.no_grad():
        next(model.module.parameters())[0, 0] += 0.5
    return model


@step("faulty.shape", evidence=nothing, **options)
def unknown_module(model: TorchModel, ctx: Context) -> TorchModel:
    """Leave a module that cannot be built again."""
    import torch

    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return model.with_module(torch.nn.Sequential(model.module, Odd()))


@step("faulty.noise", evidence=nothing, **options)
def noisy(model: TorchModel, ctx: Context) -> TorchModel:
    """Print a great deal, also to the standard output's descriptor."""
    os.write(1, b"\xff garbage \x00" * 100_000)
    return model


@step("faulty.absent", evidence=nothing, **options)
def absent(model: TorchModel, ctx: Context) -> TorchModel:
    """Find no layer to work on."""
    from leanmark.errors import NotApplicable

    raise NotApplicable("the model has no convolution")
