"""What duels can see on this machine: comparisons whose truth is known, counted.

A recording is a duel of a network with itself in many launches, each of many copies. It is
cut into comparisons: each takes a few copies of every launch of its own, so that no two
share a turn. An exact slowdown multiplies every turn of one side, so recordings of a
network against itself also tell what a slowdown of any size would have looked like;
real slowdowns are recorded to check just that.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from leanmark import scoring, stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput
from leanmark.host import available_cpus
from leanmark.measure import paired
from leanmark.measure.launches import Launch
from leanmark.measure.paired import COPY_SECONDS, LAUNCHES
from leanmark.measure.sides import Side
from leanmark.processes import Code, Fresh, kill_all
from leanmark.progress import Advance
from leanmark.results import Interval, Target, Verdict
from leanmark.stages import Delivery, Program, Split, TorchModel, save
from leanmark.workloads import split_store

SIDE = 28  # pixels
# Channels and depth of a plain convolutional network whose call takes about so many
# milliseconds with one thread on a server core; the real time is in the recording.
_SIZES: dict[tuple[str, float], tuple[int, int]] = {
    ("onnxruntime", 0.1): (8, 3),
    ("torch", 0.1): (4, 1),
    ("onnxruntime", 1): (16, 15),
    ("onnxruntime", 10): (48, 22),
    ("torch", 1): (16, 4),
    ("torch", 10): (32, 21),
}
RUNTIMES = ("onnxruntime", "torch")
# What an untimed call takes of a timed one, at 1 ms: the other side has just emptied the caches (docs/methodology.md).
_UNTIMED = {"onnxruntime": 1.07, "torch": 1.28}
MILLISECONDS = (1, 10)


@dataclass(frozen=True)
class Setting:
    """What is compared, and in whose company."""

    runtime: str
    milliseconds: float
    busy: bool
    slowdown: float = 0.0

    @property
    def name(self) -> str:
        company = "busy" if self.busy else "quiet"
        return f"{self.runtime}-{self.milliseconds:g}ms-{company}-{1 + self.slowdown:g}x"


@dataclass(frozen=True)
class Shape:
    """How a comparison is spread: so many launches, so many copies of each."""

    launches: int
    copies: int

    @property
    def seconds(self) -> float:
        """Of turns, both sides together."""
        return 2 * self.launches * self.copies * COPY_SECONDS


def shape_for(seconds: float) -> Shape:
    """The comparison that takes at most `seconds`: up to 24 launches of one copy each, then more of each."""
    copies = seconds / (2 * COPY_SECONDS)
    least = 2 * stats.MINIMUM_LAUNCHES  # a copy takes up to twice its time where turns are disturbed
    if copies < least:
        raise InvalidInput(f"a comparison takes at least {2 * COPY_SECONDS * least:g} s")
    launches = int(min(LAUNCHES, copies))
    return Shape(launches, int(copies // launches))


def record(
    setting: Setting,
    shape: Shape,
    comparisons: int,
    folder: Path,
    seed: int,
    progress: Callable[[float], None],
    *,
    apart: bool = False,
) -> list[Launch]:
    """Launches that hold so many comparisons of a shape. Raises InvalidInput if a side does not run.

    apart: the second side is forked off an interpreter of its own, as another version's code is.
    """
    reference, other = both_sides(setting, folder)
    sides = [reference, replace(other, code=Code(folder=Path.cwd())) if apart else other]
    with neighbour() if setting.busy else contextlib.nullcontext():
        measured = paired.measure(
            sides,
            launches=shape.launches,
            seconds=comparisons * shape.copies * COPY_SECONDS,
            cpus=available_cpus(),
            seed=seed,
            solo=False,
            alike=True,
            progress=lambda share, number: progress((number + share) / shape.launches),
        )
        with contextlib.closing(measured):
            found = list(measured)
    for launch in found:
        for death in launch.deaths.values():
            raise InvalidInput(f"{setting.runtime} cannot run here: {death.reason}")
    return found


def call_seconds(launch: Launch, runtime: str) -> float:
    """What all calls of both sides took: those of turns that were disturbed, and the untimed ones, included."""
    facts = launch.facts
    return float(launch.seconds.sum()) * (facts.calls_a_turn + _UNTIMED[runtime] * facts.untimed)


def comparisons(launches: Sequence[Launch], copies: int, seconds: float, runtime: str) -> Iterator[list[Array]]:
    """The close pairs of each comparison, one array a launch; none shares a turn with another.

    A comparison has so many copies of each of the first launches, as many of these as take at most `seconds` of calls.
    """
    recorded = [
        (items, call_seconds(launch, runtime) * copies / len(np.unique(launch.copies)))
        for launch in launches
        if (items := units(launch, copies))
    ]
    for number in range(max((len(items) for items, _ in recorded), default=0)):
        found: list[Array] = []
        left = seconds
        for items, taken in recorded:
            left -= taken
            if number < len(items) and left >= 0:
                found.append(items[number])
        if len(found) >= stats.MINIMUM_LAUNCHES:
            yield found


def units(launch: Launch, copies: int) -> list[Array]:
    """What one launch has for each comparison of so many copies: the close pairs of its two sides."""
    whole = len(np.unique(launch.copies)) // copies
    found = (_part(launch, launch.copies // copies == number) for number in range(whole))
    return [pairs for part in found if (pairs := part.pairs(*reversed(launch.facts.sides))) is not None]


def _part(launch: Launch, chosen: Array) -> Launch:
    """Some rounds of a launch."""
    return replace(
        launch,
        seconds=launch.seconds[chosen],
        cpu_share=launch.cpu_share[chosen],
        copies=launch.copies[chosen],
    )


def resample(recorded: Sequence[Sequence[Array]], launches: int, count: int, seed: int) -> Iterator[list[Array]]:
    """Comparisons drawn from recorded launches, each with the pairs of every comparison that it took part in.

    No launch twice in a comparison; which of its parts is random.
    """
    random = np.random.default_rng(seed)
    for _ in range(count):
        chosen = random.choice(len(recorded), launches, replace=False)
        yield [recorded[index][random.integers(len(recorded[index]))] for index in chosen]


@dataclass(frozen=True)
class Tally:
    """What became of comparisons of the same truth."""

    count: int
    false_alarms: int  # verdicts that the truth forbids, in either direction
    detections: int
    covered: int  # intervals at 95 % that hold the truth
    mean_error: float  # root of the mean squared standard error, in log ratio
    bias: float  # mean of estimate minus truth, in log ratio

    def share(self, count: int) -> Interval:
        """A part of the comparisons with its Wilson interval."""
        return scoring.wilson(count, self.count)


def tally(samples: Iterator[list[Array]], slowdown: float, tolerance: float, shift: float = 0.0) -> Tally:
    """Judge comparisons whose true ratio is known; `shift` adds a slowdown to a recording without one.

    A slowdown lies beyond the tolerance; without one, only unchanged and inconclusive are right.
    """
    truth = math.log1p(slowdown)
    count = alarms = detections = covered = 0
    squares = bias = 0.0
    for launches in samples:
        ratio = stats.paired_log_ratio(launches)
        ratio = replace(ratio, mean=ratio.mean + shift)
        verdict = stats.judge(ratio, tolerance)
        count += 1
        right = Verdict.REGRESSED if slowdown else Verdict.UNCHANGED
        alarms += verdict not in (right, Verdict.INCONCLUSIVE)
        detections += verdict is Verdict.REGRESSED and slowdown > 0
        covered += not ratio.interval().excludes(math.exp(truth))
        squares += ratio.error**2
        bias += ratio.mean - truth
    return Tally(count, alarms, detections, covered, math.sqrt(squares / max(count, 1)), bias / max(count, 1))


@contextmanager
def neighbour() -> Generator[None]:
    """Another program that keeps a processor busy, wherever the system puts it."""
    child = Fresh("leanmark.measure.neighbour")
    try:
        child.channel.receive(30)
        yield
    finally:
        child.kill()


# --- what can be seen here ---------------------------------------------------------------

SLOWDOWN = 0.03
TOLERANCE = 0.005
# Of the wall time of a recording, about this share is turns.
_TURN_SHARE = 0.5


@dataclass(frozen=True)
class Sight:
    """What comparisons of one kind saw."""

    setting: Setting
    same: Tally
    slower: Tally
    false_alarms: Interval
    detections: Interval
    minimum_detectable_effect: float


@dataclass(frozen=True)
class Power:
    """What duels of a given time can see on this machine."""

    seconds: float
    tolerance: float
    slowdown: float
    sights: tuple[Sight, ...] = field(default=())


def measure_power(total_seconds: float, budget_seconds: float, advance: Advance) -> Power:
    """Duels whose truth is known, alone and beside a busy neighbour, for about `total_seconds`.

    Raises InvalidInput where that is too short for one comparison of each kind.
    """
    shape = shape_for(budget_seconds)
    settings = [Setting("onnxruntime", 1, busy) for busy in (False, True)]
    needed = 2 * len(settings) * shape.seconds / _TURN_SHARE
    count = int(total_seconds / needed)
    if count < 1:
        raise InvalidInput(
            f"{total_seconds:g} s are too short: comparisons of {budget_seconds:g} s each, alone and beside a "
            f"neighbour, take about {needed:.0f} s",
            do="Give more time, or a smaller --budget.",
        )
    sights: list[Sight] = []
    done = 0
    try:
        with tempfile.TemporaryDirectory(prefix="leanmark-doctor-") as scratch:
            for setting in settings:
                kinds: list[list[list[Array]]] = []
                for slowdown in (0.0, SLOWDOWN):
                    label = f"{'busy' if setting.busy else 'quiet'}, {'slower' if slowdown else 'the same'}"
                    at = done / (2 * len(settings))
                    launches = record(
                        replace(setting, slowdown=slowdown),
                        shape,
                        count,
                        Path(scratch),
                        done,
                        lambda share, at=at, label=label: advance(at + share / (2 * len(settings)), label),
                    )
                    kinds.append(list(comparisons(launches, shape.copies, budget_seconds, setting.runtime)))
                    done += 1
                sights.append(_sight(setting, kinds[0], kinds[1]))
    finally:
        kill_all()
    return Power(budget_seconds, TOLERANCE, SLOWDOWN, tuple(sights))


def _sight(setting: Setting, same: list[list[Array]], slower: list[list[Array]]) -> Sight:
    if not same or not slower:
        raise InvalidInput(
            f"{setting.name}: too few launches were whole, or fit into the time of a comparison", do="Raise --budget."
        )
    a, b = tally(iter(same), 0.0, TOLERANCE), tally(iter(slower), SLOWDOWN, TOLERANCE)
    error = stats.LogRatio(0.0, a.mean_error, min(map(len, same)))
    effect = error.minimum_detectable_effect(stats.VERDICT_LEVEL, TOLERANCE)
    return Sight(setting, a, b, a.share(a.false_alarms), b.share(b.detections), effect)


# --- the two sides -----------------------------------------------------------------------


def both_sides(setting: Setting, folder: Path) -> tuple[Side, Side]:
    """The network and its double, slowed down if asked, as artifacts in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = folder / "splits"
    if not splits.exists():
        images = np.random.default_rng(0).normal(size=(64, 1, SIDE, SIDE)).astype(np.float32)
        split_store.store({"test": Split({"image": images})}, splits)
    target = Target(runtime=setting.runtime)
    channels, depth = _SIZES[setting.runtime, setting.milliseconds]
    found: list[Side] = []
    for name, slowdown in (("reference", 0.0), ("other", setting.slowdown)):
        root = folder / f"{setting.runtime}-{channels}-{depth}-{slowdown:g}"
        if not (root / "manifest.json").exists():
            root.mkdir(exist_ok=True)
            save(_network(setting.runtime, channels, depth, Delivery(slowdown=slowdown)), root)
        found.append(Side(name, root, target, splits))
    return found[0], found[1]


def _network(runtime: str, channels: int, depth: int, delivery: Delivery) -> TorchModel | Program:
    config = {"channels": channels, "depth": depth}
    if runtime == "torch":
        import torch

        from leanmark.networks.plain import build_plain_cnn

        torch.manual_seed(0)
        return TorchModel(build_plain_cnn(**config).eval(), "leanmark.networks.plain:build_plain_cnn", config, delivery)
    return Program(_onnx_cnn(channels, depth), delivery)


def _onnx_cnn(channels: int, depth: int) -> bytes:
    """`networks.plain` as a program, without torch."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "image"
    for number, inputs in enumerate(itertools.chain([1], itertools.repeat(channels, depth))):
        kernel = random.normal(0, math.sqrt(2 / (9 * inputs)), (channels, inputs, 3, 3)).astype(np.float32)
        weights += [numpy_helper.from_array(kernel, f"w{number}")]
        nodes += [
            helper.make_node("Conv", [last, f"w{number}"], [f"c{number}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{number}"], [f"r{number}"]),
        ]
        last = f"r{number}"
    head = random.normal(0, 0.1, (channels, 10)).astype(np.float32)
    weights += [numpy_helper.from_array(head, "head")]
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "plain-cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()
