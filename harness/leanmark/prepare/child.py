"""The process that prepares one trial, or looks where trials start from: a message in, progress and one answer out."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path
from typing import Any

from leanmark import modules, registry
from leanmark.channel import Channel, ChannelClosed, end_with_parent, inherited
from leanmark.errors import LeanmarkError, NotApplicable, StorageFull
from leanmark.jsonable import from_json, to_json
from leanmark.prepare import origins
from leanmark.prepare.artifacts import Origin, Store, make_keys
from leanmark.prepare.origins import Seen
from leanmark.prepare.recipe import Prepared, Trial, prepare
from leanmark.registry import Workload
from leanmark.results import Status, StepSpec


def main(descriptor: int, *paths: str) -> None:
    """Answer one message, then wait to be ended: what steps started is found while this process lives."""
    modules.look_in(map(Path, paths))
    channel = inherited(descriptor)
    message = channel.receive()
    end_with_parent(channel)
    _answer(message, channel)
    with contextlib.suppress(ChannelClosed):
        channel.receive()


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
        prepared = prepare(_trial(message), store, progress)
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
