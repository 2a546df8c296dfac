"""Quality of an artifact: its answers on the test split, scored, with intervals.

The test split is read here and in the worker, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leanmark import hits, scoring, stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.host import available_cpus
from leanmark.jsonable import from_json
from leanmark.measure import energy
from leanmark.measure.running import Cores, Running, traffic_of
from leanmark.measure.sides import Side, SideError, Worker
from leanmark.measure.worker import ALSO
from leanmark.processes import Death
from leanmark.results import ColdStart, Device, Energy, Interval, OnDevice, Quality, Score, Status

ANSWER_TIMEOUT_SECONDS = 600.0
# Counters move about once a millisecond, so a stretch is many of those long.
_STRETCHES = 6
_EVENT_CALLS = 100
# A service is asked for its answers alone: where it shares a cache, nobody is there to share it.
NOWHERE = "redis://127.0.0.1:1/0"
_STRETCH_SECONDS = 0.25
_CLOSE = 1e-4  # outputs that are no class scores count as changed beyond this, relatively


@dataclass(frozen=True)
class Answers:
    """What one artifact answers on the test split.

    outputs: one array an output, first axis examples. scores: one an example, or
    None with `score` and its paired bootstrap `replicates`. also: of further metrics, one score an example.
    """

    outputs: tuple[Array, ...]
    targets: Array | None
    scores: Array | None = None
    score: float | None = None
    replicates: Array | None = None
    also: Mapping[str, Array] = field(default_factory=dict[str, Array])


@dataclass(frozen=True)
class Inspection:
    """What a fresh process that runs one artifact shows."""

    answers: Answers
    cold_start: ColdStart
    energy: Energy | None = None
    on_device: OnDevice | None = None


def inspect(side: Side, *, answers_only: bool = False) -> Inspection:
    """Start a fresh process, note what the start costs, and collect its answers.

    answers_only: neither energy nor what happens on a device. Raises SideError.
    """
    if side.target.traffic is not None:
        return _inspect_service(side)
    worker = Worker(side)
    try:
        cold_start = worker.open()
        answers, peak = _ask_answers(worker)
        cold_start = replace(cold_start, rss_peak_bytes=peak)
        if answers_only:
            return Inspection(answers, cold_start)
        return Inspection(answers, cold_start, energy_a_call(worker), on_device(worker))
    finally:
        worker.close()


def _inspect_service(side: Side) -> Inspection:
    """The same of a service, whose answers another process scores. Raises SideError."""
    # What it answers does not depend on how far away its features are.
    near = replace(side.target, traffic=replace(traffic_of(side), store_seconds=0.0))
    running = Running(replace(side, target=near), Cores.of(available_cpus(), side.target.threads), NOWHERE)
    try:
        cold_start = running.open()
        message = running.answers()
    finally:
        running.close()
    answers = Answers((message["output_0"],), message.get("targets"))
    scored = rescore(side, answers) if ":" in side.metric or side.also else answers
    return Inspection(scored, replace(cold_start, rss_peak_bytes=message["rss_peak_bytes"]))


def reads_the_whole_machine(side: Side) -> bool:
    """Whether its inspection also counts what runs beside it, as a package's energy or a device's processes do."""
    return side.target.device != "cpu" or energy.counter(side.target.device) is not None


def _ask_answers(worker: Worker) -> tuple[Answers, int]:
    """What a worker answers on the test split, and its peak resident size in bytes. Raises SideError."""
    message = worker.ask(ANSWER_TIMEOUT_SECONDS, op="answers")
    outputs = tuple(message[f"output_{index}"] for index in range(message["outputs"]))
    return _with_scores(Answers(outputs, message.get("targets")), message), message["rss_peak_bytes"]


def rescore(side: Side, answers: Answers) -> Answers:
    """The answers that another side gave, scored by this one's metric: what it made of them itself does not count.

    Raises SideError.
    """
    if not answers.outputs:
        raise SideError(Death(Status.FAILED, "there are no outputs to score"))
    worker = Worker(side)
    try:
        arrays = {"output_0": answers.outputs[0]}
        if answers.targets is not None:
            arrays["targets"] = answers.targets
        asked = {"op": "score", "metric": side.metric, "also": list(side.also)}
        return _with_scores(answers, worker.ask(ANSWER_TIMEOUT_SECONDS, arrays, **asked))
    finally:
        worker.close()


def _with_scores(answers: Answers, message: Mapping[str, Any]) -> Answers:
    """With what a metric of the user's own said of them; other metrics need no process."""
    score = message.get("score")
    return replace(
        answers,
        scores=message.get("scores"),
        score=None if score is None else float(score[0]),
        replicates=message.get("replicates"),
        also={name.removeprefix(ALSO): array for name, array in message.items() if name.startswith(ALSO)},
    )


def on_device(worker: Worker) -> OnDevice | None:
    """What calls do on a CUDA device; None for other targets."""
    if worker.side.target.device == "cpu":
        return None
    message = worker.ask(ANSWER_TIMEOUT_SECONDS, op="on_device", calls=_EVENT_CALLS)
    events = message["event_seconds"]
    return OnDevice(
        None if message["device"] is None else from_json(Device, message["device"]),
        stats.student_mean(events) if len(events) > 1 else None,
        message["peak_bytes"],
    )


def energy_a_call(worker: Worker) -> Energy | None:
    """Joules a call, over stretches of calls; None where no counter can be read."""
    message = worker.ask(ANSWER_TIMEOUT_SECONDS, op="energy", stretches=_STRETCHES, seconds=_STRETCH_SECONDS)
    joules = message.get("joules")
    if joules is None or len(joules) < 2:
        return None
    return Energy(stats.student_mean(joules), message["counter"])


def accuracy(answers: Answers) -> Array:
    """1 where the largest output is the target's, else 0; shape (examples,)."""
    if answers.targets is None:
        raise ValueError("accuracy needs targets")
    if answers.targets.ndim != 1:
        raise ValueError(f"accuracy needs one class an example, but targets have shape {list(answers.targets.shape)}")
    return (_choices(answers) == answers.targets).astype(np.float64)


def agreement(answers: Answers, reference: Answers) -> Array:
    """1 where the answer is the reference's, else 0; shape (examples,)."""
    return 1.0 - changed(answers, reference)


def changed(answers: Answers, reference: Answers) -> Array:
    """1 where the answer differs: another class, or another output beyond 1e-4 relatively.

    Outputs are scores of classes where each example has one target, or one for each of them; else they are values, as
    embeddings are.
    """
    a, b = answers.outputs[0], reference.outputs[0]
    if a.shape != b.shape:
        return np.ones(len(a))
    of_classes = answers.targets is None or answers.targets.ndim == 1 or answers.targets.shape == a.shape
    if of_classes and a.ndim == 2 and a.shape[1] > 1:
        return (_choices(answers) != _choices(reference)).astype(np.float64)
    rows = len(a)
    distance = np.abs(a.reshape(rows, -1).astype(np.float64) - b.reshape(rows, -1).astype(np.float64)).max(axis=1)
    scale = np.maximum(1.0, np.abs(b.reshape(rows, -1).astype(np.float64)).max(axis=1))
    return (~(distance <= _CLOSE * scale)).astype(np.float64)


def largest_difference(answers: Answers, reference: Answers) -> float:
    """The largest difference of any output, relative to the largest output; inf if shapes differ."""
    worst = 0.0
    if len(answers.outputs) != len(reference.outputs):
        return float("inf")
    for a, b in zip(answers.outputs, reference.outputs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        scale = max(1.0, float(np.abs(b.astype(np.float64)).max(initial=0.0)))
        distance = np.abs(a.astype(np.float64) - b.astype(np.float64)) / scale
        worst = max(worst, float(np.nan_to_num(distance, nan=np.inf).max(initial=0.0)))
    return worst


def assess(metric: str, own: Sequence[Answers], reference: Sequence[Answers] | None, examples: str = "") -> Quality:
    """Score one variant over its seeds; `reference` holds the same seeds' reference.

    None as reference means that it is the reference itself. examples: a hash of the test examples.
    """
    against = reference if reference is not None else own
    difference: Interval | None = None
    packed: tuple[str, ...] = ()
    if own[0].score is not None:
        score, by_seed, difference = _bootstrapped(own, reference)
    else:
        scores = np.stack([_scores(metric, a, b) for a, b in zip(own, against, strict=True)])
        score, by_seed = scoring.mean_score(scores), tuple(float(row.mean()) for row in scores)
        if np.isin(scores, (0, 1)).all():
            packed = tuple(hits.pack(row) for row in scores)
        if reference is not None:
            theirs = np.stack([_scores(metric, b, b) for b in reference])
            difference = scoring.paired_difference(scores, theirs)
    moved = None
    if reference is not None:
        moved = float(np.mean([changed(a, b).mean() for a, b in zip(own, reference, strict=True)]))
    return Quality(
        metric.rpartition(":")[2], score, by_seed, difference, moved, examples, packed, also=_also(own, reference)
    )


def _also(own: Sequence[Answers], reference: Sequence[Answers] | None) -> dict[str, Score]:
    """What further metrics say, by name; those that every seed's answers have a score of."""
    found: dict[str, Score] = {}
    for name in own[0].also:
        scores = np.stack([answers.also[name] for answers in own])
        by_seed = tuple(float(row.mean()) for row in scores)
        difference: Interval | None = None
        if reference is not None and all(name in answers.also for answers in reference):
            difference = scoring.paired_difference(scores, np.stack([answers.also[name] for answers in reference]))
        found[name] = Score(scoring.mean_score(scores), by_seed, difference)
    return found


def compare(
    metric: str, head: Sequence[Answers], base: Sequence[Answers], anchor: Sequence[Answers] | None
) -> tuple[Interval, float]:
    """Head's quality minus base's on the same examples, over the same seeds, and the share of answers that changed.

    anchor: the answers that `agreement` is with, the same for both.
    """
    moved = float(np.mean([changed(a, b).mean() for a, b in zip(head, base, strict=True)]))
    if head[0].score is not None and base[0].score is not None:
        return _change(head, base), moved
    against = anchor if anchor is not None else base
    own, other = (
        np.stack([_scores(metric, a, b) for a, b in zip(side, against, strict=True)]) for side in (head, base)
    )
    return scoring.paired_difference(own, other), moved


def _scores(metric: str, answers: Answers, reference: Answers) -> Array:
    if answers.scores is not None:
        return answers.scores
    table: Mapping[str, Any] = {"accuracy": accuracy, "agreement": lambda own: agreement(own, reference)}
    return table[metric](answers)


def _bootstrapped(
    own: Sequence[Answers], reference: Sequence[Answers] | None
) -> tuple[Interval, tuple[float, ...], Interval | None]:
    by_seed = tuple(float(answers.score or 0.0) for answers in own)
    mine = _mean_replicates(own)
    count = len(own[0].outputs[0])
    score = _percentiles(float(np.mean(by_seed)), mine, count, "bootstrap over examples")
    return score, by_seed, None if reference is None else _change(own, reference)


def _change(own: Sequence[Answers], other: Sequence[Answers]) -> Interval:
    """The difference of bootstrapped scores: every side drew the same examples."""
    value = float(np.mean([answers.score or 0.0 for answers in own]) - np.mean([a.score or 0.0 for a in other]))
    replicates = _mean_replicates(own) - _mean_replicates(other)
    return _percentiles(value, replicates, len(own[0].outputs[0]), "paired bootstrap")


def _mean_replicates(answers: Sequence[Answers]) -> Array:
    found = [item.replicates for item in answers if item.replicates is not None]
    return np.mean(np.stack(found), axis=0)


def _percentiles(value: float, replicates: Array, count: int, method: str) -> Interval:
    tail = (1 - stats.LEVEL) / 2
    low, high = (float(np.quantile(replicates, q)) for q in (tail, 1 - tail))
    return Interval(value, min(low, value), max(high, value), stats.LEVEL, count, method)


def _choices(answers: Answers) -> Array:
    if not answers.outputs or answers.outputs[0].ndim < 2:
        raise ValueError("the model gives no scores, one a class")
    return answers.outputs[0].reshape(len(answers.outputs[0]), -1).argmax(axis=1)
