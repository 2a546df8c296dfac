"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Suite = Annotated[str, typer.Argument(help="Name of a built-in suite, or path of a suite file.")]
Run = Annotated[str, typer.Argument(help="Id or folder of a run, or 'latest', the last one that was finished.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only cells whose id holds this text; repeatable.")]


def duration(text: str) -> float:
    from leanmark.declare.units import seconds

    try:
        return seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Budget = Annotated[
    float | None,
    typer.Option("--budget", parser=duration, metavar="TIME", help="Turns a cell, as 500ms; default: the suite's."),
]
Launches = Annotated[
    int | None,
    typer.Option("--launches", min=4, max=1000, help="Fresh sets of worker processes; default: the suite's."),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Only this seed, whatever the suite says; repeatable."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Preparations side by side; default: all cores.")]
Runs = Annotated[Path | None, typer.Option("--out", help="Folder of runs; default: $LEANMARK_RUNS or leanmark-runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[
    Path | None, typer.Option("--baselines", help="Folder of baselines; default: $LEANMARK_BASELINES or baselines.")
]
Resume = Annotated[str | None, typer.Option("--resume", help="Go on with an interrupted run.")]
Base = Annotated[
    str | None, typer.Option("--base", metavar="REV", help="Measure beside this revision, built in a git worktree.")
]
BasePython = Annotated[
    Path | None,
    typer.Option("--base-python", help="What runs the base; default: this interpreter, or its lock file's."),
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", metavar="FILE", help="A stored baseline; if it has artifacts, they are measured again."),
]
Dirty = Annotated[bool, typer.Option("--dirty", help="With --base: measure changes that are in no commit, too.")]
MeasureAll = Annotated[
    bool, typer.Option("--measure-all", help="Measure cells whose artifact and code are the base's, too.")
]
