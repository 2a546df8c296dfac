"""About how long preparing takes, before it is begun: training counts by its epochs. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
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


def beginnings(workload: Workload, steps: Sequence[StepSpec]) -> list[tuple[Hashable, float]]:
    """The model and what each step makes of it, by what names it in a suite; with the seconds of each."""
    names = [f"{spec.name} {spec.params}" for spec in steps]
    keys = [(workload.name, *names[:length]) for length in range(len(steps) + 1)]
    return list(zip(keys, seconds_of(workload, steps), strict=True))


def unshared(
    trials: Mapping[Name, Sequence[tuple[Hashable, float]]], there: Iterable[Hashable] = ()
) -> dict[Name, float]:
    """Seconds of each trial for what neither a trial before it makes, nor is `there`.

    trials: what each makes, one after the other, by a key that trials share for what they share.
    """
    seen = set(there)
    found: dict[Name, float] = {}
    for name, parts in trials.items():
        found[name] = sum(seconds for key, seconds in parts if key not in seen)
        seen.update(key for key, _ in parts)
    return found
