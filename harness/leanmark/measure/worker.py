"""One side of a duel: a process that loads one artifact and runs it when told.

It imports nothing that the runtime does not need, so that memory and start time
are the deployment's own. Messages are requests with an ``op``; each gets one answer.

A process that is first asked to be a base imports the runtime and from then on only
makes copies of itself, each of which is a worker that has the import behind it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanmark import modules
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.channel import PROTOCOL_VERSION, Channel, ChannelClosed, end_with_parent, inherited
from leanmark.copies import count_threads, make_copies
from leanmark.host import peak_rss_bytes, rss_and_uss_bytes
from leanmark.measure import energy

Message = dict[str, Any]

# Examples whose inputs a side holds ready; calls walk through them in order.
_EXAMPLES = 256
_REPLICATES = 500
_WARM_CALLS = 2
ALSO = "also_"  # what the names of a further metric's scores begin with


class Side:
    """A loaded artifact and its inputs."""

    def __init__(self, message: Message) -> None:
        from leanmark.stages import Artifact
        from leanmark.workloads.split_store import open_split

        self.batch: int = message["batch"]
        self.metric: str = message["metric"]
        self.also: list[str] = message.get("also", [])
        self.device: str = message["device"]
        artifact = Artifact.open(Path(message["artifact"]))
        self.slowdown = artifact.delivery.slowdown
        self.split = open_split(Path(message["splits"]), "test")
        # By name, not from the registry: knowing every technique is not part of a deployment.
        loader = modules.resolve(message["loader"])
        wanted = max(_EXAMPLES, self.batch)
        examples = {name: np.array(array[:wanted]) for name, array in self.split.inputs.items()}
        # A copy has the import behind it: what its start costs says nothing, and reading it takes time.
        footprint = rss_and_uss_bytes if message["fresh"] else lambda: (0, None)
        memory = [footprint()]
        clock = [time.perf_counter()]

        def lap() -> None:
            clock.append(time.perf_counter())
            memory.append(footprint())

        importlib.import_module(message["library"])
        lap()
        self.session = loader(artifact, message["threads"], message["device"])
        lap()
        self.inputs = [self.session.bind(batch) for batch in _batches(examples, self.batch)]
        started = time.perf_counter()
        self.session.call(self.inputs[0])
        first_call = time.perf_counter() - started
        memory.append(footprint())
        self.cold_start = {
            "import_seconds": clock[1] - clock[0],
            "load_seconds": clock[2] - clock[1],
            "first_call_seconds": first_call,
            **_memory_deltas(memory),
        }
        self._warm_up(message["warm_seconds"])

    def _warm_up(self, seconds: float) -> None:
        """Calls for so long, and a few at least: a new process faults its pages in and fills its caches."""
        until = time.perf_counter() + seconds
        for number in itertools.count(1) if seconds else ():
            self.session.call(self.inputs[number % len(self.inputs)])
            if number >= _WARM_CALLS and time.perf_counter() > until:
                return

    def turn(self, message: Message) -> tuple[Message, dict[str, Array]]:
        """Some untimed calls, then `calls` calls timed as one stretch and, if wanted, one by one."""
        start, calls, untimed = message["start"], message["calls"], message["untimed"]
        sequence = [self.inputs[(start + index) % len(self.inputs)] for index in range(-untimed, calls)]
        call = self.session.call
        for inputs in sequence[:untimed]:
            call(inputs)
        cpu = time.process_time_ns()
        stamps = _stamps(call, sequence[untimed:])
        ended = _wait(stamps[0], (stamps[-1] - stamps[0]) * (1 + self.slowdown)) if self.slowdown else stamps[-1]
        cpu = time.process_time_ns() - cpu
        header = {"wall_ns": ended - stamps[0], "cpu_ns": cpu}
        if not message["each"]:
            return header, {}
        return header, {"calls_ns": np.rint(np.diff(stamps) * (1 + self.slowdown)).astype(np.int64)}

    def loop(self, message: Message) -> tuple[Message, dict[str, Array]]:
        """Calls in a row as anybody would time them: what `tox run -e bench` checks the figures of one side by."""
        sequence = [self.inputs[index % len(self.inputs)] for index in range(message["calls"])]
        call, clock = self.session.call, time.perf_counter_ns
        taken: list[int] = []
        begun = clock()
        for inputs in sequence:
            before = clock()
            call(inputs)
            taken.append(clock() - before)
        return {"wall_ns": clock() - begun}, {"calls_ns": np.array(taken)}

    def energy(self, message: Message) -> tuple[Message, dict[str, Array]]:
        """Joules a call in stretches of so many seconds; nothing where no counter can be read."""
        found = energy.counter(self.device)
        if found is None:
            return {"counter": None}, {}
        name, read = found
        inputs = itertools.cycle(self.inputs)
        stretches = range(message["stretches"])
        joules = [_joules_a_call(read, lambda: self.session.call(next(inputs)), message["seconds"]) for _ in stretches]
        return {"counter": name}, {"joules": np.array([value for value in joules if value is not None])}

    def on_device(self, message: Message) -> tuple[Message, dict[str, Array]]:
        """Times between CUDA events around calls, the peak of device memory, and the device as its driver sees it."""
        from leanmark.jsonable import to_json
        from leanmark.measure.device import read_own_device

        inputs = itertools.cycle(self.inputs)
        seconds = [self.session.event_seconds(next(inputs)) for _ in range(message["calls"])]
        device = read_own_device(frozenset({os.getpid()}))
        found = {
            "device": None if device is None else to_json(device),
            "peak_bytes": self.session.peak_device_bytes(),
        }
        return found, {"event_seconds": np.array([value for value in seconds if value is not None])}

    def answers(self) -> tuple[Message, dict[str, Array]]:
        """The outputs on the whole test split, and the scores of a metric of the user's own."""
        collected: list[list[Array]] = []
        for batch in _batches(dict(self.split.inputs), self.batch):
            collected.append(self.session.outputs(self.session.call(self.session.bind(batch))))
        outputs = [np.concatenate(parts)[: len(self.split)] for parts in zip(*collected, strict=True)]
        arrays = {f"output_{index}": array for index, array in enumerate(outputs)}
        if self.split.targets is not None:
            arrays["targets"] = np.ascontiguousarray(self.split.targets)
        if ":" in self.metric or self.also:
            arrays |= _all_scores(self.metric, self.also, outputs[0], np.array(self.split.targets))
        return {"outputs": len(outputs), "rss_peak_bytes": peak_rss_bytes()}, arrays


def _joules_a_call(read: energy.Counter, call: Callable[[], Any], seconds: float) -> float | None:
    """Joules a call over a stretch of calls; None where the counter ended or began anew."""
    before, until, calls = read(), time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        call()
        calls += 1
    after = read()
    return None if before is None or after is None or after <= before else (after - before) / calls


def _stamps(call: Callable[[Any], Any], sequence: Sequence[Any]) -> list[int]:
    """The time before the first call, and after each."""
    clock = time.perf_counter_ns
    stamps = [clock()]
    for inputs in sequence:
        call(inputs)
        stamps.append(clock())
    return stamps


def _wait(begun: int, lasting: float) -> int:
    """Keep the processor busy until so many nanoseconds after `begun`; returns when that was.

    Once a turn, not once a call: what a call leaves in the caches is not touched.
    """
    clock, due = time.perf_counter_ns, begun + lasting
    while (now := clock()) < due:
        pass
    return now


def _scored(message: Message) -> tuple[Message, dict[str, Array]]:
    """The scores of answers that another process gave."""
    try:
        outputs, targets = np.array(message["output_0"]), np.array(message.get("targets"))
        return {}, _all_scores(message["metric"], message.get("also", []), outputs, targets)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}, {}


def _all_scores(metric: str, also: Sequence[str], outputs: Array, targets: Array) -> dict[str, Array]:
    """The scores of a metric of the user's own, and of further ones, each by the name of its function."""
    found = _scores(modules.resolve(metric), outputs, targets) if ":" in metric else {}
    for reference in also:
        scores = np.asarray(modules.resolve(reference)(outputs, targets), dtype=np.float64)
        if scores.shape != (len(outputs),):
            raise ValueError(f"'{reference}' returned shape {scores.shape}; a further metric gives a score an example")
        found[f"{ALSO}{reference.rpartition(':')[2]}"] = scores
    return found


def _scores(metric: Any, outputs: Array, targets: Array) -> dict[str, Array]:
    """A score an example, or one score with its bootstrap replicates.

    Every side resamples the same examples, so replicates of two sides are paired.
    """
    scored = np.asarray(metric(outputs, targets), dtype=np.float64)
    if scored.ndim == 1 and len(scored) == len(outputs):
        return {"scores": scored}
    if scored.ndim != 0:
        raise ValueError(f"the metric returned shape {scored.shape}; it must be one score, or one an example")
    draw = np.random.default_rng(0)
    rows = (draw.integers(0, len(outputs), len(outputs)) for _ in range(_REPLICATES))
    replicates = [float(metric(outputs[row], targets[row])) for row in rows]
    return {"score": scored.reshape(1), "replicates": np.array(replicates)}


def _batches(examples: Mapping[str, Array], size: int) -> list[dict[str, Array]]:
    """Whole batches in order; the last one is filled up from the beginning."""
    count = len(next(iter(examples.values())))
    found: list[dict[str, Array]] = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        found.append({name: np.ascontiguousarray(array[rows]) for name, array in examples.items()})
    return found


def _memory_deltas(memory: list[tuple[int, int | None]]) -> dict[str, int | None]:
    deltas: dict[str, int | None] = {}
    for name, before, after in zip(("import", "load", "first_call"), memory, memory[1:], strict=False):
        deltas[f"rss_{name}_bytes"] = after[0] - before[0]
        deltas[f"uss_{name}_bytes"] = None if after[1] is None or before[1] is None else after[1] - before[1]
    return deltas


def _has_moved(cpus: set[int] | None) -> bool:
    """Whether something, most likely the model, put this process on other processors than it was put on."""
    return cpus is not None and os.sched_getaffinity(0) != cpus


def _pin(cpus: list[int]) -> bool:
    """Put every thread of this process on these processors; False where that is not permitted."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    try:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cpus)
    except OSError:
        return False
    return os.sched_getaffinity(0) == set(cpus)


def main(descriptor: int, *paths: str) -> None:
    """Answer requests until the parent hangs up."""
    modules.look_in(map(Path, paths))
    channel = inherited(descriptor)
    try:
        message = channel.receive()
        if message["op"] == "base":
            _import(message)
            # A thread that is forked away may hold a lock for ever. numpy's own pool, of so many, begins anew in forks.
            if count_threads() <= message["threads"]:
                make_copies(channel, _serve)
        else:
            end_with_parent(channel)
            _serve(channel, message)
    except ChannelClosed:
        return


def _import(message: Message) -> None:
    """What a base has behind it; each copy meets a fault in it again, and reports it."""
    with contextlib.suppress(Exception):
        importlib.import_module(message["library"])
        modules.resolve(message["loader"])
        for module in ("leanmark.stages", "leanmark.workloads.split_store"):
            importlib.import_module(module)


def _serve(channel: Channel, message: Message) -> None:
    side: Side | None = None
    pinned: set[int] | None = None
    while True:
        if message["op"] == "score":
            channel.send(*_scored(message))
        elif message["op"] == "open":
            try:
                side = Side(message)
            except Exception as error:
                channel.send({"error": f"{type(error).__name__}: {error}"})
                return
            gc.collect()
            gc.freeze()
            gc.disable()
            channel.send({"protocol": PROTOCOL_VERSION, "cold_start": side.cold_start, "peak": peak_rss_bytes()})
        else:
            assert side is not None, "a worker is opened first"
            try:
                if message["op"] == "pin":
                    pinned = set(message["cpus"]) if _pin(message["cpus"]) else None
                    channel.send({"pinned": pinned is not None})
                elif message["op"] == "turn":
                    answer = side.turn(message)
                    if _has_moved(pinned):
                        raise RuntimeError("it moved to other processors than it was put on")
                    channel.send(*answer)
                elif message["op"] == "on_device":
                    channel.send(*side.on_device(message))
                elif message["op"] == "loop":
                    channel.send(*side.loop(message))
                elif message["op"] == "energy":
                    channel.send(*side.energy(message))
                else:
                    channel.send(*side.answers())
            except ChannelClosed:
                raise
            except Exception as error:
                channel.send({"error": f"{type(error).__name__}: {error}"})
        message = channel.receive()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
