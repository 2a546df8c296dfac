"""The command line: one command a function; no logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

import typer

from leanmark import __version__, cli_gate
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
    Seeds,
    Suite,
    duration,
)
from leanmark.errors import EXIT_CELLS_FAILED, EXIT_INTERNAL, EXIT_INTERRUPTED, InvalidInput, LeanmarkError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="leanmark",
    help="Benchmark inference optimizations: paired, with evidence, on the artifact that would be deployed.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
    seeds: Seeds = None,
    jobs: Jobs = None,
    base: Base = None,
    base_python: BasePython = None,
    baseline: Baseline = None,
    dirty: Dirty = False,
    measure_all: MeasureAll = False,
    baselines: Folder = None,
    out: Runs = None,
    resume: Resume = None,
    as_json: AsJson = False,
) -> None:
    """Prepare, measure and publish every cell of a suite.

    With --base or --baseline cells are measured beside their other version; `leanmark gate RUN` then judges.
    Exit code 0: all cells done. 5: some failed, timed out, ran out of memory or were wrong.
    """
    from leanmark import gating
    from leanmark.cli_gate import measured, page_of
    from leanmark.publish.console import make_console

    console = make_console(stderr=as_json)
    finished, folder = measured(
        console,
        suite,
        gating.options(
            out, only, budget, launches, jobs, resume, base, base_python, baseline, baselines, dirty, measure_all, seeds
        ),
    )
    if as_json:
        typer.echo((folder / "run.json").read_text(), nl=False)
    elif finished.bases:
        from leanmark.publish.verdicts import print_measured

        print_measured(finished, folder, console)
    else:
        from leanmark.publish.summary import print_run

        print_run(finished, console)
    page = page_of(folder)
    if not as_json:
        console.print(f"Leaderboard: {page}", soft_wrap=True, highlight=False)
    if any(result.status.is_failure and result.status is not result.cell.must_be for result in finished.results):
        raise typer.Exit(EXIT_CELLS_FAILED)


@app.command()
def plan(
    suite: Suite,
    only: Only = None,
    budget: Budget = None,
    launches: Launches = None,
    seeds: Seeds = None,
    as_json: AsJson = False,
) -> None:
    """Print the cells of a suite and the time that a run should take; runs nothing."""
    from leanmark.planned import Options, plan_suite
    from leanmark.publish import listing

    options = Options(only=tuple(only or ()), budget_seconds=budget, launches=launches, seeds=tuple(seeds or ()))
    planned = plan_suite(suite, options)
    expected = planned.estimate()
    facts = (planned.plan.suite.name, planned.plan.cells, expected.prepare_seconds, expected.measure_seconds)
    if as_json:
        typer.echo(json.dumps(listing.plan_json(*facts), indent=1))
    else:
        listing.print_plan(*facts)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="steps, workloads, data, suites, runtimes or runs.")],
    name: Annotated[Optional[str], typer.Argument(help="One of them, with all that is known of it.")] = None,
    out: Runs = None,
    as_json: AsJson = False,
) -> None:
    """List what there is: steps, workloads, data sets, suites, runtimes or runs."""
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
def fetch(
    names: Annotated[list[str], typer.Argument(help="Data sets, or suites: all that they need.")],
    given: Annotated[
        Optional[Path], typer.Option("--from", metavar="FOLDER", help="Look here first: files or packages.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring data sets here, checked by sha256; a broken download goes on where it stopped."""
    from leanmark import fetching
    from leanmark.jsonable import to_json
    from leanmark.publish.console import make_console, running
    from leanmark.publish.numbers import visible

    console = make_console(stderr=as_json)
    with running(console) as advance:
        found = fetching.fetch(names, given, advance)
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=1))
        return
    for item in found:
        came = f"from {visible(item.source)}" if item.source else "was here"
        console.print(f"{item.name}: {came}; {visible(item.folder)}", soft_wrap=True, markup=False)
    if not found:
        console.print("nothing needs to be fetched")


@app.command()
def report(
    run: Run,
    out: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of a stored run and write its page again."""
    from leanmark.cli_gate import page_of
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
        console.print(f"Leaderboard: {page_of(folder)}", soft_wrap=True, highlight=False)


@app.command()
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or folders of runs, each of other seeds.")],
    out: Runs = None,
    as_json: AsJson = False,
) -> None:
    """Join runs of one suite that have different seeds to one run, with its page."""
    from leanmark.cli_gate import page_of
    from leanmark.judge import store
    from leanmark.publish.console import make_console
    from leanmark.publish.summary import print_run
    from leanmark.runner import merge_runs

    merged, folder = merge_runs(runs, out or store.default_runs())
    page = page_of(folder)
    if as_json:
        typer.echo((folder / store.DOCUMENT).read_text(), nl=False)
        return
    console = make_console()
    print_run(merged, console)
    console.print(f"Leaderboard: {page}", soft_wrap=True, highlight=False)


@app.command()
def duel(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The one that is asked about.")],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="The one it is compared with.")],
    data: Annotated[Path, typer.Option("--data", help="Inputs: an .npz with an array for each of the models' inputs.")],
    budget: Annotated[
        Optional[float],
        typer.Option("--budget", parser=duration, metavar="TIME", help="Turns a side, as 500ms; default: 5s."),
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
        typer.Option("--power", parser=duration, metavar="TIME", help="Also measure what duels see, for so long."),
    ] = None,
    budget: Annotated[
        Optional[float],
        typer.Option("--budget", parser=duration, metavar="TIME", help="With --power: a comparison; default: 5s."),
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


app.command()(cli_gate.gate)
app.command()(cli_gate.compare)
app.add_typer(cli_gate.baselines_app, name="baseline")
app.command()(cli_gate.init)


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
    from leanmark.publish.numbers import visible

    for number, line in enumerate(message.split("\n")):  # what a file or a child said may drive a terminal
        typer.echo(("" if number else "leanmark: ") + visible(line, 4000), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
