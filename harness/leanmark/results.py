"""The vocabulary of a run as frozen dataclasses.

A stored run is one JSON document that is also a valid pytest-benchmark document.
Everything that is leanmark's own stands under ``extra_info.leanmark`` of each
benchmark and under ``leanmark`` at the top; both carry `SCHEMA_VERSION`.

Units are in the names: seconds, bytes. A ratio is variant over reference, so a
latency ratio below 1 is faster than the reference.

Format history
1  first version
2  the gate's rules, what a run was measured against, and which test examples were answered rightly
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from leanmark.jsonable import Json
from leanmark.reported import Claim
from leanmark.rules import Rules
from leanmark.traffic import Served, Traffic

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
# Metrics that are fractions of test examples; others are shown in their own unit.
FRACTIONS = frozenset({"accuracy", "agreement", "top1", "top5"})


class Status(StrEnum):
    """What became of a cell, in order of precedence: the first that holds."""

    NOT_APPLICABLE = "not-applicable"
    SKIPPED = "skipped"
    FAILED = "failed"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out-of-memory"
    WRONG = "wrong"
    INEFFECTIVE = "ineffective"
    NOISY = "noisy"
    OK = "ok"

    @property
    def is_failure(self) -> bool:
        """Whether a run with such a cell ends with exit code 5."""
        return self in (Status.FAILED, Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.WRONG)


class Verdict(StrEnum):
    """What a comparison says about a metric, given a tolerance, or about a cell as a whole."""

    UNCHANGED = "unchanged"
    IMPROVED = "improved"
    REGRESSED = "regressed"
    INCONCLUSIVE = "inconclusive"
    NEW = "new"
    MISSING = "missing"
    BROKEN = "broken"  # was ok; now failed, timeout, out-of-memory, wrong or ineffective

    @property
    def is_finding(self) -> bool:
        """Whether it fails the gate."""
        return self in (Verdict.REGRESSED, Verdict.MISSING, Verdict.BROKEN)


class Role(StrEnum):
    """Why a cell is in the plan."""

    VARIANT = "variant"
    REFERENCE = "reference"  # the fp32 model on the target's own runtime
    EAGER = "eager"  # the fp32 model in torch eager on the target's device
    CONTROL = "control"


@dataclass(frozen=True)
class StepSpec:
    """One step of a recipe: a registered name and its complete parameters."""

    name: str
    params: Mapping[str, Json] = field(default_factory=dict[str, Json])


@dataclass(frozen=True)
class Target:
    """Where and how a variant runs: in a loop of calls with so many examples, or as a service under traffic."""

    device: str = "cpu"
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    traffic: Traffic | None = None

    @property
    def id(self) -> str:
        """A short stable name, e.g. ``cpu-onnxruntime-t1-b1``."""
        how = f"b{self.batch}" if self.traffic is None else self.traffic.name
        return f"{self.device}-{self.runtime}-t{self.threads}-{how}"


# Steps that are not what they say, and what the harness must make of them.
LIES = {
    "control.wrong": Status.WRONG,
    "control.cached": Status.INEFFECTIVE,
    "control.masked": Status.INEFFECTIVE,
    "control.fakequant": Status.INEFFECTIVE,
}


@dataclass(frozen=True)
class Cell:
    """Workload x recipe x target: the unit that is planned, measured and judged.

    `steps` is the whole recipe, the lowering that `plan` added included;
    `lowering` counts how many of its last steps were added. Cells of one `block`
    share launches with their reference. `skip` holds a status and its reason
    where the plan already knows that the cell cannot run.
    """

    id: str
    workload: str
    recipe: str
    steps: tuple[StepSpec, ...]
    target: Target
    block: str
    role: Role
    families: tuple[str, ...] = ()
    lowering: int = 0
    skip: tuple[Status, str] | None = None

    @property
    def must_be(self) -> Status | None:
        """What a control that lies must be shown as; None for what does not lie."""
        return next((LIES[step.name] for step in self.steps if step.name in LIES), None)


def is_selected(cell: str, words: Collection[str], known: Collection[str]) -> bool:
    """Whether a cell's id is one of these words, or holds one that is no `known` cell's whole id."""
    return cell in words or any(word in cell for word in words if word not in known)


def short_id(cell: str) -> str:
    """A cell's id without its target."""
    return cell.rpartition("/")[0]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval and what it rests on."""

    value: float
    low: float
    high: float
    level: float
    n: int  # independent units: launches for a duel, test examples for quality
    method: str

    @property
    def is_finite(self) -> bool:
        """Whether it has numbers only."""
        return all(map(math.isfinite, (self.value, self.low, self.high)))

    def excludes(self, truth: float) -> bool:
        """Whether `truth` lies outside the interval."""
        return not self.low <= truth <= self.high


@dataclass(frozen=True)
class Evidence:
    """Facts read off the final artifact which prove that a step took effect."""

    step: str
    effective: bool
    facts: Mapping[str, Json]
    reason: str = ""


@dataclass(frozen=True)
class Score:
    """What a further metric says of the same answers; as `Quality` has it of the workload's own."""

    score: Interval
    by_seed: tuple[float, ...]
    difference: Interval | None = None


@dataclass(frozen=True)
class Quality:
    """A workload's metric on the test split, over the seeds that were prepared.

    `difference` is variant minus reference on the same test examples, paired;
    None for the reference itself. Both are in the metric's own unit, as a
    fraction for accuracies.
    """

    metric: str
    score: Interval
    by_seed: tuple[float, ...]
    difference: Interval | None = None
    answers_changed: float | None = None  # fraction of test examples whose answer differs
    examples: str = ""  # hash of the test examples, in order
    hits: tuple[str, ...] = ()  # of each seed, which examples scored 1, where scores are 0 or 1; see `hits.pack`
    scored_by: str = ""  # hash of the source of a metric of the user's own
    also: Mapping[str, Score] = field(default_factory=dict[str, Score])  # further metrics


# A side is noisy when more than this share of its turns was disturbed.
NOISY_SHARE = 0.3


@dataclass(frozen=True)
class Timing:
    """Latency of one side alone, in seconds a call; tails only with enough samples."""

    calls: int
    launches: int
    minimum: float
    median: float
    p90: float | None
    p95: float | None
    p99: float | None
    calls_per_second: float
    cpu_per_wall: float
    disturbed_turns: float  # fraction

    @property
    def noisy(self) -> bool:
        """Whether other programs disturbed too many turns."""
        return self.disturbed_turns > NOISY_SHARE


@dataclass(frozen=True)
class ColdStart:
    """What a fresh process pays before its first answer, in seconds and bytes."""

    import_seconds: float
    load_seconds: float
    first_call_seconds: float
    rss_import_bytes: int
    rss_load_bytes: int
    rss_first_call_bytes: int
    rss_peak_bytes: int
    uss_import_bytes: int | None
    uss_load_bytes: int | None
    uss_first_call_bytes: int | None


@dataclass(frozen=True)
class Footprint:
    """Size of a variant. Parameters and MACs are of its fp32 structure.

    Sizes are of every file of the artifact; `compressed_bytes` is zstd level 19
    of those files. A None comes with its reason in `notes`.
    """

    parameters: int | None
    nonzero_parameters: int | None
    macs: int | None
    size_bytes: int
    compressed_bytes: int
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Cost:
    """The one-off cost of preparing, summed over the recipe's own steps."""

    seconds: float
    peak_rss_bytes: int
    cached: bool


@dataclass(frozen=True)
class Device:
    """A CUDA device as its driver sees it."""

    name: str
    strangers: tuple[int, ...]  # process ids of others that compute on it
    clock_mhz: int | None = None
    clock_limit_mhz: int | None = None
    throttled: tuple[str, ...] = ()  # by what, now


@dataclass(frozen=True)
class OnDevice:
    """What a call does on a CUDA device, beside the wall time from submitting to synchronizing."""

    device: Device | None  # None where NVML cannot be asked
    event_seconds: Interval | None  # between CUDA events around a call; None where the runtime has none
    peak_bytes: int | None


@dataclass(frozen=True)
class Energy:
    """What a call costs in joules, by a counter of the whole package or device; never an estimate."""

    joules: Interval
    counter: str


@dataclass(frozen=True)
class Result:
    """All that a run knows about one cell."""

    cell: Cell
    status: Status
    reason: str = ""
    artifact: str | None = None  # content hash of the first seed's artifact
    more_artifacts: tuple[str, ...] = ()  # of the other seeds', in order
    code: str = ""  # of what runs them; see `prepare.artifacts.code_hash`
    against_reference: Interval | None = None  # latency ratio, same runtime
    against_eager: Interval | None = None  # latency ratio, torch eager, same device
    truth: float | None = None  # the exact latency ratio of a control that has one
    minimum_detectable_effect: float | None = None  # relative, at the interval's level, power .8
    timing: Timing | None = None
    quality: Quality | None = None
    footprint: Footprint | None = None
    cold_start: ColdStart | None = None
    cost: Cost | None = None
    break_even_calls: Interval | None = None  # after which preparing has paid off; None where that was not shown
    energy: Energy | None = None  # None where no counter can be read
    on_device: OnDevice | None = None  # of CUDA targets
    served: Served | None = None  # of targets with traffic
    evidence: tuple[Evidence, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two versions of one cell, measured side by side: ratios are head over base, the difference is head minus base.

    same: why nothing had to be measured, where head and base are one thing.
    problem: why nothing could be measured. lost: the base failed for want of something that is not its own.
    """

    same: str = ""
    problem: str = ""
    lost: bool = False
    screened: Interval | None = None  # latency ratio
    decided: Interval | None = None  # latency ratio of a suspect, on fresh launches
    seconds: float = 0.0  # of turns a side a launch, in the last of the two
    quality: Interval | None = None
    answers_changed: float | None = None  # fraction of test examples
    cold_start: Interval | None = None  # ratio
    memory: Interval | None = None  # ratio of peak resident sizes


@dataclass(frozen=True)
class Base:
    """The other version that a run was measured against: a revision, or a baseline with its artifacts."""

    kind: Literal["revision", "baseline"]
    name: str  # as it was asked for
    id: str  # the commit, or the run that the baseline is
    results: tuple[Result, ...]
    comparisons: Mapping[str, Comparison]  # by cell
    rules: Rules = field(default_factory=Rules)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """All results of one execution of a suite on one machine."""

    id: str
    suite: str
    title: str
    started: str  # ISO 8601, UTC
    seconds: float
    command: str
    seeds: tuple[int, ...]
    environment: Mapping[str, Json]
    commit: Mapping[str, Json]
    results: tuple[Result, ...]
    warnings: tuple[str, ...] = ()
    complete: bool = True
    only: tuple[str, ...] = ()  # the texts by which cells were selected, where not all were
    rules: Rules = field(default_factory=Rules)
    bases: tuple[Base, ...] = ()
    claims: tuple[Claim, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_frame(self) -> pd.DataFrame:
        """A tidy table, one row a metric of a cell.

        Columns: run, suite, workload, recipe, target, role, status, metric,
        value, low, high, n, unit. Missing bounds are NaN.
        """
        from leanmark.frame import frame

        return frame(self)
