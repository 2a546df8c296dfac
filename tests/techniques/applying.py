"""A step applied, its stage stored, and its evidence asked: what tests of techniques do all the time."""

from dataclasses import replace
from pathlib import Path

from leanmark import registry
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, TorchModel, save


def apply(name: str, stage: TorchModel | Program, ctx: Context, **params):
    step = registry.get_step(name)
    return step.function(stage, ctx, **step.parameters(**params).model_dump())


def stored(stage: TorchModel | Program, folder: Path, reference: Artifact | None = None) -> Artifact:
    folder.mkdir(parents=True)
    return replace(save(stage, folder), reference=reference)


def evidence(name: str, artifact: Artifact, **params) -> Evidence:
    step = registry.get_step(name)
    return step.evidence(artifact, step.validate(params).params)
