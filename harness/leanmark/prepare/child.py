"""The process that prepares one trial, or looks where trials start from: a message in, progress and one answer out.

A process that is first asked to be a base imports what every trial needs and only makes copies of itself.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import sys
from pathlib import Path
from typing import Any

from leanmark import modules, registry
from leanmark.channel import Channel, ChannelClosed, end_with_parent, inherited
from leanmark.copies import count_threads, make_copies
from leanmark.errors import LeanmarkError, NotApplicable, StorageFull
from leanmark.jsonable import from_json, to_json
from leanmark.prepare import origins
from leanmark.prepare.artifacts import Origin, Store, make_keys
from leanmark.prepare.origins import Seen
from leanmark.prepare.recipe import Prepared, Trial, prepare
from leanmark.registry import Workload
from leanmark.results import Status, StepSpec
from leanmark.stages import Program, TorchModel

_IMPORTED = ("torch", "onnx", "leanmark.techniques.training")
# What the ONNX exporter imports by itself takes longer than an export.
_IMPORTED_TO_EXPORT = (
    "onnxscript",
    "torch._dynamo",
    "torch._inductor.decomposition",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
)


def exports(spec: StepSpec) -> bool:
    """Whether a step makes a program of a torch model."""
    step = registry.get_step(spec.name)
    return TorchModel in step.consumes and step.produces is Program


def main(descriptor: int, *paths: str) -> None:
    """Answer one message, then wait to be ended: what steps started is found while this process lives."""
    modules.look_in(map(Path, paths))
    channel = inherited(descriptor)
    with contextlib.suppress(ChannelClosed):
        message = channel.receive()
        if message.get("op") == "base":
            _import(exporting=message["exports"])
            if count_threads() == 1:  # a thread that is forked away may hold a lock for ever
                make_copies(channel, _serve)
            return
        end_with_parent(channel)
        _serve(channel, message)


def _import(*, exporting: bool) -> None:
    """What trials need of others' code, before their time is taken; a fault in it is met again where it is needed."""
    for name in (*_IMPORTED, *(_IMPORTED_TO_EXPORT if exporting else ())):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _serve(channel: Channel, message: dict[str, Any]) -> None:
    _answer(message, channel)
    channel.receive()  # the parent hangs up, or ends this process


def _answer(message: dict[str, Any], channel: Channel) -> None:
    _one_thread()
    store = Store(Path(message["store"]), Path(message["project"]))

    def progress(fraction: float, text: str) -> None:
        channel.send({"progress": fraction, "text": text})

    try:
        if "seeds" in message:
            channel.send({"seen": to_json(_look(message, store))})
            return
        for plugin in message["plugins"]:
            registry.load_plugin(plugin)
        trial = _trial(message)
        _import(exporting=any(map(exports, trial.steps)))
        prepared = prepare(trial, store, progress)
    except StorageFull as error:
        channel.send({"full": str(error.where)})
        return
    except NotApplicable as error:
        prepared = Prepared(Status.NOT_APPLICABLE, error.sentence)
    except LeanmarkError as error:
        prepared = Prepared(Status.FAILED, error.sentence)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            channel.send({"full": str(error.filename or message["store"])})
            return
        if _is_out_of_memory(error):
            prepared = Prepared(Status.OUT_OF_MEMORY, "preparing needs more memory than there is")
        else:
            prepared = Prepared(Status.FAILED, f"{type(error).__name__}: {_first_line(error)}")
    channel.send({"prepared": to_json(prepared)})


def _trial(message: dict[str, Any]) -> Trial:
    return Trial(
        Workload(**message["workload"]),
        tuple(StepSpec(name, params) for name, params in message["steps"]),
        message["seed"],
        tuple(StepSpec(name, params) for name, params in message["reference"]),
        None if message["origin"] is None else from_json(Origin, message["origin"]),
        message["steps_hash"],
    )


def _look(message: dict[str, Any], store: Store) -> Seen:
    """What a user's code makes; a workload's splits are stored at once, so that no trial asks for them again."""
    if message["workload"] is None:
        return origins.look_at_plugins(message["plugins"], store.project)
    workload = Workload(**message["workload"])
    seen, made = origins.look_at_workload(workload, message["seeds"], store.project)
    for key in {make_keys(workload, (), seed, origin).splits for seed, origin in seen.origins.items()}:
        origins.keep_splits(store, key, workload, made)
    return seen


def _one_thread() -> None:
    """Preparing uses one thread, so that the same seed makes the same bytes."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else "no message"


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
