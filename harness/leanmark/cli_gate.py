"""The commands that measure beside another version, judge, and store baselines; one a function, no logic."""

from __future__ import annotations

import json
import secrets
import shlex
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from leanmark.cli_options import (
    AsJson,
    Base,
    Baseline,
    BasePython,
    Budget,
    Dirty,
    Folder,
    Jobs,
    Launches,
    MeasureAll,
    Only,
    Resume,
    Run,
    Runs,
)
from leanmark.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import Console

    from leanmark.planned import Options
    from leanmark.results import Run as FinishedRun

Name = Annotated[str, typer.Argument(help="Name or path of a baseline.")]
Output = Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write a comment; - prints it.")]


def gate(
    target: Annotated[str, typer.Argument(metavar="SUITE|RUN", help="What to measure and judge, or a run to judge.")],
    base: Base = None,
    base_python: BasePython = None,
    baseline: Baseline = None,
    dirty: Dirty = False,
    measure_all: MeasureAll = False,
    only: Only = None,
    budget: Budget = None,
    launches: Launches = None,
    jobs: Jobs = None,
    out: Runs = None,
    folder: Folder = None,
    resume: Resume = None,
    markdown: Output = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations and write the step's summary.")] = False,
    pages: Annotated[str | None, typer.Option("--pages", metavar="URL", help="The run's page, for links.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print what is unchanged, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge whether anything got worse; of a suite, after measuring it.

    Exit code 0: nothing got worse. 1: something regressed, is missing or broken. 3: undecided.
    4: there is no comparable baseline.
    """
    from leanmark import gating
    from leanmark.judge import baselines, store
    from leanmark.publish import comment, verdicts
    from leanmark.publish.console import make_console
    from leanmark.publish.numbers import visible

    printed = as_json or str(markdown) == "-"  # then nothing else goes to standard output
    if as_json and str(markdown) == "-":
        raise InvalidInput("--json and --markdown - both print a document", do="Give --markdown a file.")
    console = make_console(stderr=printed)
    resume_commands = _stop_commands(err=printed) if github else ""
    where: Path | None = None
    if baselines.is_baseline(Path(target)):
        raise InvalidInput("is a baseline, which others are judged by", where=target, do="Name it with --baseline.")
    if store.is_run(target, out or store.default_runs()):
        measuring = (base, base_python, only, budget, launches, jobs, resume, dirty or None, measure_all or None)
        if any(value is not None for value in measuring):
            raise InvalidInput("a stored run is only judged", do="Name its suite to measure it with such options.")
        run = store.read_run(store.find_run(target, out or store.default_runs(), finished=True))
    else:
        gating.check_target(target, out or store.default_runs())
        places = folder or baselines.default_folder()
        if base is None and baseline is None:
            baseline = gating.default_baseline(target, places)
        run, where = measured(
            console,
            target,
            gating.options(
                out, only, budget, launches, jobs, resume, base, base_python, baseline, places, dirty, measure_all
            ),
        )
        console.print(f"Measured: {where}", soft_wrap=True, highlight=False, markup=False)
    judgement = gating.judge_run(run, baseline, folder or baselines.default_folder())
    if as_json:
        typer.echo(json.dumps(verdicts.as_json(judgement), indent=1))
    else:
        verdicts.print_judgement(judgement, console, everything=everything)
    text = comment.markdown(judgement, pages)
    if str(markdown) == "-":
        typer.echo(text, nl=False)
    elif markdown is not None:
        gating.write_outputs([(markdown, text)])
    if junit is not None:
        gating.write_outputs([(junit, verdicts.junit(judgement))])
    if github:
        for line in (resume_commands, *verdicts.workflow_commands(judgement)):
            typer.echo(line, err=printed)
        gating.append_summary(text)
    if where is not None:
        try:
            page_of(where)
        except InvalidInput as error:  # a page that cannot be written costs no verdict
            console.print(visible(error.message, 600), soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(judgement.exit_code)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run or a baseline: the one that is asked about.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The one it is compared with.")],
    out: Runs = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two runs, for reading; the gate is for deciding."""
    from leanmark import gating
    from leanmark.judge import baselines, store
    from leanmark.publish import verdicts
    from leanmark.publish.console import make_console

    judgement = gating.compare_runs(first, second, out or store.default_runs(), folder or baselines.default_folder())
    if as_json:
        found = verdicts.as_json(judgement)
        del found["exit_code"]  # it is for reading
        typer.echo(json.dumps(found, indent=1))
    else:
        verdicts.print_comparison(judgement, make_console())


baselines_app = typer.Typer(
    help="Store runs as baselines, and look at those that are stored.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@baselines_app.command("save")
def save_baseline(
    run: Run,
    with_artifacts: Annotated[
        bool,
        typer.Option("--with-artifacts", help="Pack its artifacts too, so that they can be measured again."),
    ] = False,
    out: Runs = None,
    folder: Folder = None,
) -> None:
    """Store a run as the baseline of its suite and machine class."""
    from leanmark import gating
    from leanmark.judge import baselines, store

    finished = store.read_run(store.find_run(run, out or store.default_runs(), finished=True))
    saved = gating.save_baseline(finished, folder or baselines.default_folder(), with_artifacts=with_artifacts)
    typer.echo(f"Wrote {saved.path}" + (f" and {saved.artifacts.file}" if saved.artifacts else ""))
    for remark in gating.remarks(finished):
        typer.echo(f"! {remark}", err=True)


@baselines_app.command("list")
def list_baselines(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the stored baselines."""
    from leanmark.judge import baselines
    from leanmark.publish import listing

    found = [
        {"name": path.stem, "path": str(path), "damaged": True} if item is None else baselines.describe(item)
        for path, item in baselines.stored_in(folder or baselines.default_folder())
    ]
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        listing.print_baselines(found)


@baselines_app.command("show")
def show_baseline(name: Name, folder: Folder = None, as_json: AsJson = False) -> None:
    """Print the table of a stored baseline."""
    from leanmark.judge import baselines
    from leanmark.publish.console import make_console
    from leanmark.publish.summary import print_run

    found = baselines.find(name, folder or baselines.default_folder())
    if as_json:
        typer.echo(found.path.read_text(), nl=False)
    else:
        print_run(found.run, make_console())


@baselines_app.command("pin")
def pin_baseline(name: Name, folder: Folder = None) -> None:
    """Keep a copy of a baseline as the anchor that every later run is compared with, against slow drift."""
    from leanmark.judge import baselines

    pinned = baselines.pin(baselines.find(name, folder or baselines.default_folder()))
    typer.echo(f"Wrote {pinned.path}")


def init(
    folder: Annotated[Path, typer.Argument(help="The repository to put them into.")] = Path(),
    gitlab: Annotated[bool, typer.Option("--gitlab", help="A GitLab job in place of GitHub workflows.")] = False,
) -> None:
    """Put a suite, a workflow and a folder of baselines into a repository; nothing that is there is replaced."""
    from leanmark.starting import start

    for path, written in start(folder, gitlab=gitlab):
        typer.echo(f"{'Wrote' if written else 'Left as it is:'} {path}")
    typer.echo(
        "Next: name your model in leanmark.yaml, try it with `leanmark run leanmark.yaml`, keep leanmark-runs/ and "
        ".leanmark-cache/ out of version control, and commit."
    )
    if gitlab:
        typer.echo("Include the job in .gitlab-ci.yml: include: {local: .gitlab/leanmark.yml}")


def _stop_commands(*, err: bool) -> str:
    """Keep GitHub from obeying what a run's own texts may hold; returns the line that ends this."""
    token = secrets.token_hex(16)
    typer.echo(f"::stop-commands::{token}", err=err)
    return f"::{token}::"


# --- measuring --------------------------------------------------------------------


def measured(console: Console, suite: str, options: Options) -> tuple[FinishedRun, Path]:
    """Measure a suite; returns the run and its folder."""
    from leanmark.publish.console import running

    with running(console) as advance:
        return _run(suite, options, advance)


def _run(suite: str, options: Options, advance: Any) -> Any:
    from leanmark.errors import Interrupted, StorageFull
    from leanmark.judge.store import resuming
    from leanmark.runner import RunStopped, run_suite

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run_suite(suite, options, advance)
    except RunStopped as stopped:
        advice = f"What was measured is kept. Go on with: {resuming(stopped.folder)}"
        if isinstance(stopped.cause, StorageFull):
            raise StorageFull(stopped.cause.what, where=stopped.cause.where, do=advice) from None
        raise Interrupted("interrupted", do=advice) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def page_of(folder: Path) -> Path:
    """Write the page of a finished run; returns where it is."""
    from leanmark.judge import store
    from leanmark.prepare.sources import default_store
    from leanmark.publish import site

    page = folder / store.PAGE
    try:
        site.write_page(store.read_run(folder), page, cache=default_store().parent / "pages")
    except InvalidInput as error:
        again = shlex.join(["leanmark", "report", str(folder)])
        raise InvalidInput(error.what, where=error.where, do=f"The run is complete; for its page: {again}") from error
    return page.resolve()
