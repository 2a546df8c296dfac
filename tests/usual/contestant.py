"""One side of a comparison in the hands of another tool: the same artifact, runtime and inputs.

Run as a program, it times its own calls one by one, for so many seconds:
python contestant.py SECONDS FILE.npy
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from leanmark.measure.worker import Side

VARIABLE = "LEANMARK_CONTESTANT"
_WARM_SECONDS = 0.2


def load() -> Callable[[], None]:
    """A function that runs the model once, on the next of its inputs."""
    side = Side(json.loads(os.environ[VARIABLE]))
    inputs, call = itertools.cycle(side.inputs), side.session.call
    return lambda: call(next(inputs))


def time_calls(call: Callable[[], None], seconds: float) -> np.ndarray:
    """Nanoseconds of each call, one after the other."""
    clock, stamps = time.perf_counter_ns, [time.perf_counter_ns()]
    until = stamps[0] + seconds * 1e9
    while stamps[-1] < until:
        call()
        stamps.append(clock())
    return np.diff(stamps)


if __name__ == "__main__":
    run = load()
    time_calls(run, _WARM_SECONDS)
    np.save(sys.argv[2], time_calls(run, float(sys.argv[1])))
