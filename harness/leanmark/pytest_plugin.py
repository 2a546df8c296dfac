"""Suites as pytest items: ``pytest suites/quick.yaml``; a cell an item, results in pytest-benchmark's own session.

The cells of one file that are selected are measured as one run, when the first of them is due. A suite is collected
where it, or a folder that holds it, is named on the command line; never by the way.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from leanmark.judgement import Change, Judgement
    from leanmark.progress import Advance
    from leanmark.results import Cell, Result, Run

_HEAD_BYTES = 2**20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of suites."""
    group = parser.getgroup("leanmark", "suites of inference optimizations")
    group.addoption(
        "--leanmark-baseline",
        metavar="FILE",
        help="Stored baseline of the suite; what got worse since then fails. Artifacts that it has are measured again.",
    )
    group.addoption("--leanmark-runs", metavar="FOLDER", type=Path, help="Folder of runs; default: leanmark-runs.")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A suite that was asked for."""
    if file_path.suffix in (".yaml", ".yml") and _is_asked_for(file_path, parent.config) and _is_suite(file_path):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


def _is_asked_for(path: Path, config: pytest.Config) -> bool:
    invocation = config.invocation_params
    given = [str(argument) for argument in invocation.args]
    named = [(invocation.dir / item.split("::")[0]).resolve() for item in config.args if item in given]
    place = path.resolve()
    return any(item == place or (item in place.parents and item != invocation.dir.resolve()) for item in named)


def _is_suite(path: Path) -> bool:
    """Whether it has the keys that every suite has: other programs have YAML files too."""
    with path.open("rb") as file:
        lines = file.read(_HEAD_BYTES).splitlines()
    return all(any(line.startswith(key) for line in lines) for key in (b"suite:", b"workloads:"))


class SuiteFile(pytest.File):
    """A suite, measured once for all of its items that are selected."""

    _measured: tuple[Run, Judgement | None] | None = None
    _failure: Exception | None = None
    _cells = 0
    _suite = ""

    def collect(self) -> Iterator[pytest.Item]:
        """An item a cell, and one for what a baseline has and the suite lacks."""
        from leanmark.errors import LeanmarkError
        from leanmark.planned import Options, plan_suite

        try:
            planned = plan_suite(str(self.path), Options())
        except LeanmarkError as error:
            raise self.CollectError(error.message) from None
        self._cells, self._suite = len(planned.plan.cells), planned.plan.suite.name
        for cell in planned.plan.cells:
            yield CellItem.from_parent(self, name=cell.id, cell=cell)
        if self._baseline() is not None:
            yield BaselineItem.from_parent(self, name="baseline")

    def _baseline(self) -> str | None:
        """The baseline that was named, where it is this suite's."""
        from leanmark.errors import LeanmarkError
        from leanmark.judge.baselines import default_folder, find

        named = self.config.getoption("--leanmark-baseline")
        try:
            return named if named and find(named, default_folder()).run.suite == self._suite else None
        except LeanmarkError:
            return named  # measuring says what is wrong with it

    def measured(self) -> tuple[Run, Judgement | None]:
        """The run of all selected cells, and the verdicts on it where there is a baseline."""
        if self._failure is not None:
            raise self._failure
        if self._measured is None:
            try:
                self._measured = self._measure()
            except Exception as error:
                self._failure = error  # of every cell: nobody measures again
                raise
        return self._measured

    def _measure(self) -> tuple[Run, Judgement | None]:
        from leanmark.gating import judge_run, options
        from leanmark.judge.baselines import default_folder
        from leanmark.runner import RunStopped, run_suite, stretches_of

        if hasattr(self.config, "workerinput"):
            pytest.skip("cells are measured one after the other; run suites without pytest-xdist")
        items = [item for item in self.session.items if isinstance(item, CellItem) and item.parent is self]
        baseline = self._baseline()
        if baseline is None and self.config.getoption("--leanmark-baseline"):
            other = f"{self._suite} is not judged: the baseline is of another suite"
            warnings.warn(pytest.PytestWarning(other), stacklevel=1)
        asked = options(
            out=self.config.getoption("--leanmark-runs"),
            only=None if len(items) == self._cells else [item.cell.id for item in items],
            baseline=baseline,
            command=shlex.join(["leanmark", "run", str(self.path)]),
        )
        try:
            run, folder = run_suite(str(self.path), asked, self._tell())
        except RunStopped as stopped:
            if isinstance(stopped.cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise stopped.cause from None
        stretches = stretches_of(run, folder)
        for item in items:
            item.stretches = stretches.get(item.cell.id, [])
        judgement = None if baseline is None else judge_run(run, baseline, default_folder())
        for warning in run.warnings if judgement is None else judgement.notes:
            warnings.warn(pytest.PytestWarning(f"{run.suite}: {warning}"), stacklevel=1)
        return run, judgement

    def _tell(self) -> Advance:
        """A line now and then, past pytest's capture."""
        from leanmark.publish.console import lines, make_console

        tell = lines(make_console(stderr=True))
        capture: Any = self.config.pluginmanager.getplugin("capturemanager")

        def advance(share: float, text: str) -> None:
            with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
                tell(share, text)

        return advance


class CellFailed(Exception):
    """A cell that failed, or got worse: shown without a traceback, for there is no code to look at."""


class _Item(pytest.Item):
    """What all items of a suite have in common."""

    fixturenames = ("benchmark",)  # by which pytest-benchmark knows what --benchmark-only and --benchmark-skip mean

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.name  # a line, for pytest asserts that what is skipped has one

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """One message for a user's mistakes and a cell's failures; a traceback for faults."""
        from leanmark.errors import LeanmarkError

        if isinstance(excinfo.value, CellFailed):
            return str(excinfo.value)
        if isinstance(excinfo.value, LeanmarkError):
            return excinfo.value.message
        return super().repr_failure(excinfo, style)

    def suite(self) -> SuiteFile:
        assert isinstance(self.parent, SuiteFile)
        return self.parent

    def fail_for(self, changes: list[Change]) -> None:
        """Raises CellFailed with what fails the gate; warns of what could not be decided."""
        from leanmark.publish import verdicts
        from leanmark.results import Verdict

        said = [f"{change.verdict.value} {verdicts.metric(change)}: {verdicts.what(change)}" for change in changes]
        failed = [text for text, change in zip(said, changes, strict=True) if change.fails]
        for text, change in zip(said, changes, strict=True):
            if change.verdict is Verdict.INCONCLUSIVE and not change.allowed:
                warnings.warn(pytest.PytestWarning(f"{self.name}: {text}"), stacklevel=1)
        if failed:
            raise CellFailed("\n".join(failed))


class CellItem(_Item):
    """One cell."""

    def __init__(self, *, cell: Cell, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.cell = cell
        self.stretches: list[float] = []

    def runtest(self) -> None:
        """Measure what is selected, if nobody did yet, and say what became of this cell."""
        from leanmark.judgement import Basis
        from leanmark.results import Status

        run, judgement = self.suite().measured()
        result = next((result for result in run.results if result.cell.id == self.cell.id), None)
        if result is None:
            pytest.skip("beside a baseline neither controls nor torch eager are measured")
        self._add_benchmark(result)
        if judgement is not None:
            changes = [change for change in judgement.changes if change.cell == self.cell.id]
            self.fail_for(changes)
            if any(change.basis is Basis.SAME for change in changes):
                return  # nothing needed to be measured
        if result.status.is_failure and result.status is not result.cell.must_be:
            raise CellFailed(f"{result.status.value}: {result.reason}")
        if result.status in (Status.SKIPPED, Status.NOT_APPLICABLE):
            pytest.skip(f"{result.status.value}: {result.reason}")
        if result.status is not Status.OK:
            warnings.warn(pytest.PytestWarning(f"{self.name}: {result.status.value}: {result.reason}"), stacklevel=1)

    def _add_benchmark(self, result: Result) -> None:
        """Put the stretches that this cell had to itself into pytest-benchmark's session, if it has one."""
        session = getattr(self.config, "_benchmarksession", None)
        if session is None or session.disabled or not self.stretches:
            return
        from pytest_benchmark.stats import Metadata

        from leanmark.jsonable import to_json

        cell = result.cell
        fixture = SimpleNamespace(
            name=cell.recipe,
            fullname=cell.id,
            group=cell.block,
            param=cell.id,
            params={"workload": cell.workload, "recipe": cell.recipe, "target": cell.target.id},
            extra_info={"leanmark": to_json(result)},
            cprofile_stats=None,
            has_error=False,
        )
        options = {**session.options, "disable_gc": True, "warmup": True}
        benchmark = Metadata(fixture, 1, options)
        for seconds in self.stretches:
            benchmark.update(seconds)
        session.benchmarks.append(benchmark)


class BaselineItem(_Item):
    """What a baseline has and the suite lacks."""

    def runtest(self) -> None:
        """Fail for cells that are missing."""
        run, judgement = self.suite().measured()
        assert judgement is not None
        if run.only:
            pytest.skip("what is missing is known only where every cell is selected")
        known = {result.cell.id for result in run.results}
        self.fail_for([change for change in judgement.changes if change.cell not in known])


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Leave no child process behind, whatever ended the session."""
    if "leanmark.processes" in sys.modules:
        from leanmark.processes import kill_all

        with contextlib.suppress(Exception):
            kill_all()
