"""Runs of one cell or a few, as documents hold them, and the verdicts on them."""

from datetime import date

import numpy as np

from leanmark import hits, scoring, stats
from leanmark.judge.gate import judge
from leanmark.judge.opponents import Stored
from leanmark.judgement import Change, Judgement
from leanmark.results import (
    Base,
    Cell,
    Comparison,
    Footprint,
    Interval,
    Quality,
    Result,
    Role,
    Run,
    Status,
    Target,
    Timing,
)
from leanmark.rules import Rules

TODAY = date(2026, 3, 2)
NO_RULES = Rules()
HERE, ELSEWHERE = {"machine_class": "aaa"}, {"machine_class": "bbb"}
NAME = "net/int8/cpu-onnxruntime-t1-b1"


def ratio(percent: float, error_percent: float, launches: int = 24) -> Interval:
    """A latency ratio so many percent above 1, with a standard error in percent."""
    return stats.LogRatio(float(np.log1p(percent / 100)), error_percent / 100, launches).interval()


def cell(name: str = NAME, role: Role = Role.VARIANT) -> Cell:
    workload, recipe, _ = name.split("/")
    return Cell(name, workload, recipe, (), Target(), f"{workload}/cpu-onnxruntime-t1-b1", role)


def quality(right: int, of: int = 1000, *, metric: str = "accuracy", examples: str = "e") -> Quality:
    scores = np.zeros(of)
    scores[:right] = 1
    return Quality(metric, scoring.wilson(right, of), (right / of,), None, None, examples, (hits.pack(scores),))


def timing(median: float) -> Timing:
    return Timing(1000, 8, median, median, None, None, None, 1 / median, 1.0, 0.0)


def result(
    name: str = NAME, *, role: Role = Role.VARIANT, percent: float = 0, right: int = 900, size: int = 1000
) -> Result:
    return Result(
        cell(name, role),
        Status.OK,
        artifact="f" * 64,
        against_reference=ratio(percent, 0.2),
        timing=timing(1e-3),
        quality=quality(right),
        footprint=Footprint(100, 100, 100, size, size),
    )


def run(
    *results: Result, rules: Rules = NO_RULES, environment: dict[str, str] = HERE, bases: tuple[Base, ...] = ()
) -> Run:
    return Run(
        "head", "quick", "", "2026-03-02T09:14:07+00:00", 1.0, "leanmark run", (0,), environment, {}, results,
        rules=rules, bases=bases,
    )  # fmt: skip


def beside(head: Result, comparison: Comparison, *, before: Result | None = None, rules: Rules = NO_RULES) -> Judgement:
    """The verdicts on one cell that was measured beside a revision."""
    known = () if before is None else (before,)
    base = Base("revision", "main", "0123456789abcdef", known, {NAME: comparison}, rules)
    return judge(run(head, rules=rules, bases=(base,)), [], TODAY)


def stored(head: Result, before: Result, *, rules: Rules = NO_RULES, environment: dict[str, str] = HERE) -> Judgement:
    """The verdicts on one cell by a stored baseline."""
    return judge(
        run(head, rules=rules), [Stored("quick-aaa", run(before, rules=rules, environment=environment))], TODAY
    )


def the(judgement: Judgement, metric: str) -> Change:
    return next(change for change in judgement.changes if change.metric == metric)
