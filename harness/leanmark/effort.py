"""About how long preparing takes, before it is begun: training counts by its epochs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from leanmark.registry import Workload
from leanmark.results import StepSpec

Name = TypeVar("Name")

_STEP_SECONDS = 3.0  # of a step, or of a model, without training


def seconds_of(workload: Workload, steps: Sequence[StepSpec]) -> list[float]:
    """Of the model, and of each step after it."""
    return [_seconds(workload, workload.train or {}), *(_seconds(workload, spec.params) for spec in steps)]


def _seconds(workload: Workload, params: Mapping[str, Any]) -> float:
    return _STEP_SECONDS + workload.epoch_seconds * _epochs(params)


def _epochs(params: Mapping[str, Any]) -> float:
    """Passes over the train split that parameters speak of, by the names that steps share."""
    each = _number(params.get("epochs"))
    last = params.get("last_epochs")
    rounds = max(1.0, _number(params.get("rounds", 1)))
    return (rounds - 1) * each + (each if last is None else _number(last))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def unshared(
    trials: Iterable[tuple[Name, Workload, int, Sequence[StepSpec]]],
    there: Iterable[tuple[Workload, int, Sequence[StepSpec]]] = (),
) -> dict[Name, float]:
    """Seconds of each trial, of a workload, a seed and steps, that no trial before it has, nor one that is `there`.

    Trials that begin alike share what they begin with, the model to start with: it is made once.
    """
    seen: set[tuple[Any, ...]] = set()
    for workload, seed, steps in there:
        seen.update(_beginnings(workload, seed, steps))
    found: dict[Name, float] = {}
    for name, workload, seed, steps in trials:
        beginnings = _beginnings(workload, seed, steps)
        seconds = seconds_of(workload, steps)
        found[name] = sum(own for key, own in zip(beginnings, seconds, strict=True) if key not in seen)
        seen.update(beginnings)
    return found


def _beginnings(workload: Workload, seed: int, steps: Sequence[StepSpec]) -> list[tuple[Any, ...]]:
    keys = [f"{spec.name} {spec.params}" for spec in steps]
    return [(workload.name, seed, *keys[:length]) for length in range(len(steps) + 1)]
