"""A busy neighbour: a process that computes and moves memory until its parent hangs up."""

from __future__ import annotations

import sys

from leanmark.arrays import numpy as np
from leanmark.channel import end_with_parent, inherited


def main(descriptor: int) -> None:
    channel = inherited(descriptor)
    end_with_parent(channel)
    values = np.ones(1_000_000, dtype=np.float32)
    channel.send({"busy": True})
    while True:
        values *= np.float32(1.0000001)
        sum(range(10_000))


if __name__ == "__main__":
    main(int(sys.argv[1]))
