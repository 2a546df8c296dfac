"""How the reference model of a workload comes to be: built, and trained from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leanmark import modules
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import Workload
from leanmark.stages import Context, Program, TorchModel, build


def make_base(workload: Workload, context: Context) -> TorchModel | Program:
    """The workload's fp32 model: read from its file, or built and, if it says so, trained."""
    if workload.onnx is not None:
        return Program(_with_weights_inside(Path(workload.onnx)))
    assert workload.model is not None
    seed_generators(context.seed)
    config = dict(workload.config or {})
    model = TorchModel(build(workload.model, config), workload.model, config)
    if workload.initial is not None:
        _begin_with(model, workload.initial)
    if workload.train is not None:
        _train(model, dict(workload.train), context)
    return model.with_module(model.module)


def _begin_with(model: TorchModel, initial: str) -> None:
    """Put what a function gives into the model's state; what it does not name stays as it was built."""
    import numpy as np
    import torch

    found: Mapping[str, Any] = modules.resolve(initial)()
    state = model.module.state_dict()
    for name, array in found.items():
        if name not in state or tuple(state[name].shape) != array.shape:
            raise PreparationError(f"'{initial}' gives {name} {list(array.shape)}, which the model does not have")
        state[name] = torch.from_numpy(np.array(array, order="C"))
    model.module.load_state_dict(state, strict=True)


def seed_generators(seed: int) -> None:
    """Every generator that a user's function may draw from without saying so."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _train(model: TorchModel, settings: dict[str, Any], context: Context) -> None:
    from leanmark.techniques.training import fit

    try:
        fit(
            model.module,
            context.split("train"),
            generator=context.generator("base"),
            progress=context.progress,
            **settings,
        )
    except (TypeError, NotApplicable) as error:  # a workload asks for what its own model has not
        raise PreparationError(f"`train` of the workload: {error}") from error


def _with_weights_inside(path: Path) -> bytes:
    """The model with external data read in, which may only lie beside it."""
    import onnx

    model = onnx.load_model(str(path))
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)
