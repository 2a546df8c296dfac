"""Controls: recipes whose verdict is known beforehand, so that a harness can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Ge, Le

from leanmark.arrays import Array
from leanmark.registry import ANY_STAGE, step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel


def nothing_changed(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Every tensor of the final artifact equals the unmodified model's."""
    if artifact.reference is None:
        return Evidence("control.identity", False, {}, "there is no unmodified model to compare with")
    tensors, before = artifact.tensors(), artifact.reference.tensors()
    different = sorted(
        name
        for name in tensors.keys() | before.keys()
        if name not in tensors or name not in before or not _equal(tensors[name], before[name])
    )
    facts = {"tensors": len(tensors), "different": len(different)}
    if different:
        return Evidence("control.identity", False, facts, f"tensor '{different[0]}' is not the unmodified model's")
    if artifact.delivery != artifact.reference.delivery:
        return Evidence("control.identity", False, facts, "it is stored or driven in another way than its reference")
    return Evidence("control.identity", True, facts)


def _equal(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@step(
    "control.identity",
    family="control",
    consumes=ANY_STAGE,
    produces=None,
    evidence=nothing_changed,
    exact=0.0,
    libraries=(),
)
def identity(stage: TorchModel | Program, ctx: Context) -> TorchModel | Program:
    """Change nothing: the negative control (A/A).

    Whatever difference is measured between it and its reference is noise.
    Evidence: every tensor of the final artifact equals the unmodified model's, bit by bit.
    Source: Kohavi et al. 2009, Controlled Experiments on the Web, section 3.4 (A/A tests).
    """
    return stage


def time_added(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """By how much the final artifact makes each of its calls last longer."""
    slowdown, asked = artifact.delivery.slowdown, _fraction(float(params["percent"]))
    facts = {"slowdown": slowdown, "ratio": true_ratio(artifact)}
    if not slowdown:
        return Evidence("control.slowdown", False, facts, "the final artifact makes no call longer")
    if slowdown != asked:
        return Evidence("control.slowdown", False, facts, f"calls last {slowdown:.2%} longer, not {asked:.2%}")
    return Evidence("control.slowdown", True, facts)


@step(
    "control.slowdown",
    family="control",
    consumes=ANY_STAGE,
    produces=None,
    evidence=time_added,
    exact=0.0,
    libraries=(),
)
def slowdown(
    stage: TorchModel | Program, ctx: Context, *, percent: Annotated[float, Ge(0.5), Le(50)] = 3.0
) -> TorchModel | Program:
    """Take `percent` % more time for the same answers: the positive control, which must be caught.

    percent: 0.5 to 50. After the calls of a turn the processor is kept busy for that share
    of the time which they took, whatever they took, so the true latency ratio is
    1 + percent / 100, exactly, in every turn.
    Evidence: the slowdown that the final artifact's manifest states.
    Source: own.
    """
    return replace(stage, delivery=replace(stage.delivery, slowdown=_fraction(percent)))


def true_ratio(artifact: Artifact) -> float | None:
    """The exact latency ratio of an artifact that `control.slowdown` made, else None."""
    return 1 + artifact.delivery.slowdown if artifact.delivery.slowdown else None


def _fraction(percent: float) -> float:
    return round(percent / 100, 9)
