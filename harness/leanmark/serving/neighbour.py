"""Another model on the same cores: a service's own program, run again and again while it is told to."""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path

from leanmark import modules
from leanmark.arrays import numpy as np
from leanmark.channel import Channel, ChannelClosed, end_with_parent, inherited
from leanmark.host import pin
from leanmark.serving.config import ServiceConfig
from leanmark.serving.making import program_of
from leanmark.stages import Artifact


def main(descriptor: int, *paths: str) -> None:
    """Load the program, then run it between `go` and `stop`, which tells how long it computed."""
    modules.look_in(map(Path, paths))
    channel = inherited(descriptor)
    end_with_parent(channel)
    try:
        message = channel.receive()
        pin(message["cpus"])
        artifact = Artifact.open(Path(message["artifact"]))
        config = ServiceConfig.read(artifact.manifest["service"])
        name = artifact.programs[0]
        program = program_of(modules.resolve(message["loader"])(artifact.part(name), 1, "cpu"))
        fields = config.query if name == "query" else config.items if name == "item" else (*config.query, *config.items)
        arrays = {item.name: np.ones((16, *item.shape), item.dtype) for item in fields}
        channel.send({"ready": True})
        while True:
            channel.receive()  # go
            began = time.process_time()
            while not _is_told(channel):
                program(arrays)
            channel.receive()  # stop
            channel.send({"busy": time.process_time() - began})
    except ChannelClosed:
        return


def _is_told(channel: Channel) -> bool:
    return bool(select.select([channel], [], [], 0)[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
