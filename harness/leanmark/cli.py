"""The command line: one command a function; no logic."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional

import typer

from leanmark import __version__
from leanmark.errors import EXIT_CELLS_FAILED, EXIT_INTERNAL, EXIT_INTERRUPTED, InvalidInput, LeanmarkError

if TYPE_CHECKING:
    from leanmark.planned import Options

app = typer.Typer(
    name="leanmark",
    help="Benchmark inference optimizations: paired, with evidence, on the artifact that would be deployed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Suite = Annotated[str, typer.Argument(help="Name of a built-in suite, or path of a suite file.")]
Run = Annotated[str, typer.Argument(help="Id or folder of a run, or 'latest', the last one that was finished.")]
Only = Annotated[Optional[list[str]], typer.Option("--only", help="Only cells whose id holds this text; repeatable.")]


def _duration(text: str) -> float:
    from leanmark.declare.units import seconds

    try:
        return seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Budget = Annotated[
    Optional[float],
    typer.Option("--budget", parser=_duration, metavar="TIME", help="Turns a cell, as 500ms; default: the suite's."),
]
Launches = Annotated[
    Optional[int],
    typer.Option("--launches", min=4, max=1000, help="Fresh sets of worker processes; default: the suite's."),
]
Jobs = Annotated[Optional[int], typer.Option("--jobs", min=1, help="Preparations side by side; default: all cores.")]
Runs = Annotated[
    Optional[Path], typer.Option("--out", help="Folder of runs; default: $LEANMARK_RUNS or leanmark-runs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"leanmark {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Benchmark inference optimizations: paired, with evidence, on the artifact that would be deployed."""


@app.command()
def run(
    suite: Suite,
    only: Only = None,
    budget: Budget = None,
    launches: Launches = None,
    jobs: Jobs = None,
    out: Runs = None,
    resume: Annotated[Optional[str], typer.Option("--resume", help="Go on with an interrupted run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prepare, measure and publish every cell of a suite.

    Exit code 0: all cells done. 5: some failed, timed out, ran out of memory or were wrong.
    """
    from leanmark.planned import Options
    from leanmark.publish.console import make_console, running

    options = Options(out, tuple(only or ()), budget, launches, jobs, resume, shlex.join(["leanmark", *sys.argv[1:]]))
    console = make_console(stderr=as_json)
    with running(console) as advance:
        finished, folder = _run(suite, options, advance)
    if as_json:
        typer.echo((folder / "run.json").read_text(), nl=False)
    else:
        from leanmark.publish.summary import print_run

        print_run(finished, console)
    page = _page(folder)
    if not as_json:
        console.print(f"Leaderboard: {page}", soft_wrap=True, highlight=False)
    if any(result.status.is_failure for result in finished.results):
        raise typer.Exit(EXIT_CELLS_FAILED)


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


def _page(folder: Path) -> Path:
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


@app.command()
def plan(
    suite: Suite, only: Only = None, budget: Budget = None, launches: Launches = None, as_json: AsJson = False
) -> None:
    """Print the cells of a suite and the time that a run should take; runs nothing."""
    from leanmark.planned import Options, plan_suite
    from leanmark.publish import listing

    planned = plan_suite(suite, Options(only=tuple(only or ()), budget_seconds=budget, launches=launches))
    expected = planned.estimate()
    facts = (planned.plan.suite.name, planned.plan.cells, expected.prepare_seconds, expected.measure_seconds)
    if as_json:
        typer.echo(json.dumps(listing.plan_json(*facts), indent=1))
    else:
        listing.print_plan(*facts)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="steps, workloads, suites, runtimes or runs.")],
    name: Annotated[Optional[str], typer.Argument(help="One of them, with all that is known of it.")] = None,
    out: Runs = None,
    as_json: AsJson = False,
) -> None:
    """List what there is: steps, workloads, suites, runtimes or runs."""
    from leanmark.catalogue import entries
    from leanmark.publish import listing

    found = entries(what, name, out)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif name is not None:
        listing.print_entry(found[0])
    else:
        listing.print_entries(what, found)


@app.command()
def report(
    run: Run,
    out: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of a stored run and write its page again."""
    from leanmark.judge import store
    from leanmark.publish.console import make_console
    from leanmark.publish.summary import print_run

    folder = store.find_run(run, out or store.default_runs(), finished=True)
    if as_json:
        store.read_run(folder)
        typer.echo((folder / store.DOCUMENT if folder.is_dir() else folder).read_text(), nl=False)
        return
    console = make_console()
    print_run(store.read_run(folder), console)
    if folder.is_dir():
        console.print(f"Leaderboard: {_page(folder)}", soft_wrap=True, highlight=False)


@app.command()
def duel(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The one that is asked about.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The one it is compared with.")],
    data: Annotated[Path, typer.Option("--data", help="Inputs: an .npz with an array for each of the models' inputs.")],
    budget: Annotated[
        Optional[float],
        typer.Option("--budget", parser=_duration, metavar="TIME", help="Turns a side, as 500ms; default: 5s."),
    ] = None,
    launches: Annotated[int, typer.Option("--launches", min=4, max=1000, help="Fresh interpreters a runtime.")] = 24,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads a side.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Examples a call.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare the latency of two ONNX models, paired; no suite needed."""
    from leanmark.duel import fight
    from leanmark.jsonable import to_json
    from leanmark.publish.console import make_console, running
    from leanmark.publish.listing import print_duel

    console = make_console(stderr=as_json)
    with running(console) as advance:
        outcome = fight(first, second, data, budget or 5.0, launches, threads, batch, advance)
    if as_json:
        typer.echo(json.dumps(to_json(outcome), indent=1))
    else:
        print_duel(outcome, console)


@app.command()
def export(
    run: Run,
    cell: Annotated[str, typer.Argument(help="Id of a cell, or as much of it as is unique.")],
    to: Annotated[Optional[Path], typer.Option("--to", help="Folder to write; default: named after the cell.")] = None,
    out: Runs = None,
) -> None:
    """Copy the artifact of a cell, with a script that loads it."""
    from leanmark.delivery import export_cell
    from leanmark.judge import store

    folder, needs = export_cell(store.find_run(run, out or store.default_runs(), finished=True), cell, to)
    typer.echo(f"Wrote {folder}; try: python {folder / 'load.py'}")
    if needs is not None:
        typer.echo(f"It imports {needs}: put the folder that holds it into PYTHONPATH.")


@app.command()
def doctor(
    power: Annotated[
        Optional[float],
        typer.Option("--power", parser=_duration, metavar="TIME", help="Also measure what duels see, for so long."),
    ] = None,
    budget: Annotated[
        Optional[float],
        typer.Option("--budget", parser=_duration, metavar="TIME", help="With --power: a comparison; default: 5s."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what this machine is, what disturbs a measurement on it, and what to change."""
    from leanmark import doctor as doctors
    from leanmark.power import measure_power
    from leanmark.publish import examination
    from leanmark.publish.console import make_console, running

    console = make_console(stderr=as_json)
    machine = doctors.read_machine()
    findings = doctors.diagnose(machine)
    sight = None
    if power is not None:
        with running(console) as advance:
            sight = measure_power(power, budget or 5.0, advance)
    if as_json:
        typer.echo(json.dumps(examination.as_json(machine, findings, sight), indent=1))
        return
    examination.print_findings(findings, console)
    if sight is not None:
        examination.print_power(sight, console)


@app.command()
def schema() -> None:
    """Print the JSON Schema of suites, for editors."""
    from leanmark.declare.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))


def main() -> None:
    """The entry point: every error of a user's becomes one message and an exit code."""
    try:
        app(standalone_mode=True)
    except LeanmarkError as error:
        _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # Typer took a Ctrl-C that came early, and said nothing
            _fail("interrupted before anything was begun", EXIT_INTERRUPTED)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail(InvalidInput(f"{error.strerror or error}", where=error.filename).message, InvalidInput.exit_code)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _fail(f"this is a fault of leanmark's own: {error!r}. Please report it with the lines above.", EXIT_INTERNAL)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"leanmark: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
