"""A run as a ranking: rows in the order of a table, Pareto fronts, the best variant.

Pure: nothing here reads, writes or prints. The terminal table, Markdown, CSV and the
pages all show these rows.

A latency ratio is the variant's latency over the reference's, so below 1 is faster.
It is shown in this form everywhere and named by `LATENCY_TITLE`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from leanmark.publish.numbers import plural
from leanmark.results import Footprint, Interval, Quality, Result, Role, Run, Status, StepSpec, Target
from leanmark.traffic import Scenario, Served, Traffic

LATENCY_TITLE: Final = "latency vs fp32, same runtime"
EAGER_TITLE: Final = "latency vs torch eager"

# What may be lost for a variant to be called best: one percentage point, or 0.01 of
# another metric's own unit. A suite's gate has tolerances of its own.
QUALITY_MARGIN: Final = 0.01

# Options of a command that say what is run, each with a value; another choice replaces them.
_SELECTING: Final = ("--only", "--resume")
_ORDER: Final = {Role.REFERENCE: 0, Role.EAGER: 1, Role.CONTROL: 2, Role.VARIANT: 3}
_ITSELF: Final = Interval(1.0, 1.0, 1.0, level=1.0, n=0, method="by definition")


@dataclass(frozen=True)
class Group:
    """One workload on one target: cells that may be compared with each other."""

    key: str
    workload: str
    target: Target

    @property
    def place(self) -> str:
        """The target in words: ``cpu, onnxruntime, 1 thread, batch 1``."""
        target = self.target
        how = f"batch {target.batch}" if target.traffic is None else traffic_words(target.traffic)
        return f"{target.device}, {target.runtime}, {plural(target.threads, 'thread')}, {how}"

    @property
    def title(self) -> str:
        return f"{self.workload} on {self.place}"


@dataclass(frozen=True)
class Row:
    """One cell as a table shows it."""

    group: Group
    result: Result

    @property
    def id(self) -> str:
        return self.result.cell.id

    @property
    def variant(self) -> str:
        return self.result.cell.recipe

    @property
    def role(self) -> Role:
        return self.result.cell.role

    @property
    def status(self) -> Status:
        return self.result.status

    @property
    def ok(self) -> bool:
        return self.result.status is Status.OK

    @property
    def families(self) -> tuple[str, ...]:
        return self.result.cell.families

    @property
    def steps(self) -> tuple[StepSpec, ...]:
        """The recipe's own steps."""
        cell = self.result.cell
        return cell.steps[: len(cell.steps) - cell.lowering]

    @property
    def lowering(self) -> tuple[StepSpec, ...]:
        """The steps that the plan added so that the runtime can execute the result."""
        return self.result.cell.steps[len(self.steps) :]

    @property
    def quality(self) -> Quality | None:
        return self.result.quality

    @property
    def difference(self) -> Interval | None:
        """Quality minus the reference's, on the same examples."""
        return self.result.quality.difference if self.result.quality else None

    @property
    def score(self) -> float | None:
        return self.result.quality.score.value if self.result.quality else None

    @property
    def latency(self) -> Interval | None:
        """Latency over that of fp32 on the same runtime; exactly 1, with n = 0, for that itself."""
        if self.role is Role.REFERENCE and self.result.timing is not None:
            return _ITSELF
        return self.result.against_reference

    @property
    def eager(self) -> Interval | None:
        """Latency over torch eager's; None wherever the fair ratio, `latency`, is missing."""
        if self.latency is None:
            return None
        return _ITSELF if self.role is Role.EAGER else self.result.against_eager

    @property
    def footprint(self) -> Footprint | None:
        return self.result.footprint

    @property
    def cold_start_seconds(self) -> float | None:
        """Import, load and first call of a fresh process."""
        cold = self.result.cold_start
        return cold.import_seconds + cold.load_seconds + cold.first_call_seconds if cold else None

    @property
    def peak_bytes(self) -> int | None:
        return self.result.cold_start.rss_peak_bytes if self.result.cold_start else None

    @property
    def served(self) -> Served | None:
        """What it did as a service under traffic."""
        return self.result.served

    @property
    def artifact(self) -> str:
        """The first 12 characters of the artifact's content hash."""
        return (self.result.artifact or "").rpartition(":")[2][:12]

    @property
    def competes(self) -> bool:
        """Whether the cell may be on a Pareto front: ok, and a model that one could ship here."""
        return self.ok and self.role in (Role.REFERENCE, Role.VARIANT)


def traffic_words(traffic: Traffic) -> str:
    """Traffic in words: ``300 requests/s, 1 to 32 candidates, Zipf 1``."""
    words = [f"{traffic.rate:g} requests/s" if traffic.scenario is Scenario.SERVER else str(traffic.scenario)]
    if traffic.candidates is None:
        words.append("the whole catalogue")
    elif traffic.candidates != (1, 1):
        least, most = traffic.candidates
        words.append(f"{least} to {most} candidates" if least < most else f"{most} candidates")
    if traffic.catalogue:
        words.append(f"{traffic.catalogue:,} items")
    if traffic.zipf:
        words.append(f"Zipf {traffic.zipf:g}")
    if traffic.features == "store":
        away = f", {traffic.store_seconds * 1e3:g} ms away" if traffic.store_seconds else ""
        words.append(f"features from a store{away}")
    if traffic.bytes_a_second is not None:
        words.append(f"{traffic.bytes_a_second * 8 / 1e6:g} Mbit/s")
    if traffic.rtt_seconds:
        words.append(f"{traffic.rtt_seconds * 1e3:g} ms there and back")
    if not traffic.warm:
        words.append("cold caches")
    return ", ".join(words)


Measure = Callable[[Row], float | None]


@dataclass(frozen=True)
class Axis:
    """Something to rank by that is better the smaller it is."""

    key: str
    title: str
    unit: str  # ratio, bytes, count
    bounds: Callable[[Row], Interval | float | None]

    def value(self, row: Row) -> float | None:
        """The point estimate, or None."""
        found = self.bounds(row)
        return found.value if isinstance(found, Interval) else found


AXES: Final = (
    Axis("latency", f"{LATENCY_TITLE} (lower is better)", "ratio", lambda row: row.latency),
    Axis("size", "size (lower is better)", "bytes", lambda row: row.footprint and row.footprint.size_bytes),
    Axis(
        "compressed",
        "size compressed with zstd 19 (lower is better)",
        "bytes",
        lambda row: row.footprint and row.footprint.compressed_bytes,
    ),
    Axis(
        "macs",
        "MACs of the fp32 structure (lower is better)",
        "count",
        lambda row: row.footprint and row.footprint.macs,
    ),
)


def rows(run: Run) -> list[Row]:
    """Every cell of a run, by workload and target in the run's order.

    In a group: fp32 on the same runtime, torch eager, the controls, then the variants
    that are ok by latency ratio, then the others.
    """
    groups: dict[str, Group] = {}
    for result in run.results:
        cell = result.cell
        # The eager reference belongs to a block whose target it does not run on.
        if cell.block not in groups or (groups[cell.block].target.runtime == "torch" and cell.role is not Role.EAGER):
            groups[cell.block] = Group(cell.block, cell.workload, cell.target)
    place = {key: index for index, key in enumerate(groups)}
    table = [Row(groups[result.cell.block], result) for result in run.results]
    return sorted(table, key=lambda row: (place[row.group.key], *_rank(row)))


def _rank(row: Row) -> tuple[int, bool, float, str]:
    ratio = row.latency.value if row.latency is not None else math.inf
    late = row.role is Role.VARIANT and row.status not in (Status.OK, Status.NOISY)
    return (_ORDER[row.role], late, ratio if not math.isnan(ratio) else math.inf, row.variant)


def groups(table: Iterable[Row]) -> dict[Group, list[Row]]:
    """The rows of each workload and target, in order."""
    found: dict[Group, list[Row]] = {}
    for row in table:
        found.setdefault(row.group, []).append(row)
    return found


def pareto(table: Iterable[Row], x: Measure, y: Measure = lambda row: row.score) -> frozenset[str]:
    """Ids of the cells that no other cell of the same workload and target beats.

    A cell is beaten by one that is no worse in both and better in one, `x` being
    better when smaller and `y` when larger. Point estimates decide. Only cells that
    are ok take part, and of those neither controls nor torch eager, which are there
    for comparison.
    """
    return frozenset(cell for members in groups(table).values() for cell in _front(members, x, y))


def _front(members: Sequence[Row], x: Measure, y: Measure) -> list[str]:
    points: list[tuple[float, float, str]] = []
    for row in members:
        cost, worth = x(row), y(row)
        if row.competes and cost is not None and worth is not None and math.isfinite(cost) and math.isfinite(worth):
            points.append((cost, -worth, row.id))
    points.sort()
    front: list[str] = []
    lowest = (math.inf, math.inf)  # of the front so far: cost, negated worth
    for cost, loss, cell in points:
        if loss < lowest[1] or (cost, loss) == lowest:
            front.append(cell)
            lowest = (cost, loss)
    return front


def best(members: Sequence[Row], margin: float = QUALITY_MARGIN) -> Row | None:
    """The variant of one workload and target to look at first, or None.

    Of the variants on the front of latency and quality, the fastest whose latency
    interval lies wholly below 1 and whose quality is not worse than the reference's by
    more than `margin`, judged by the lower end of its paired interval.
    """
    front = pareto(members, AXES[0].value)
    able = [row for row in members if row.id in front and row.role is Role.VARIANT and _is_safe_gain(row, margin)]
    return min(able, key=lambda row: row.latency.value if row.latency else math.inf, default=None)


def _is_safe_gain(row: Row, margin: float) -> bool:
    faster = row.latency is not None and row.latency.high < 1
    return faster and row.difference is not None and row.difference.low >= -margin


def reference(members: Iterable[Row]) -> Row | None:
    """The fp32 model on the same runtime."""
    return next((row for row in members if row.role is Role.REFERENCE), None)


def controls(members: Iterable[Row]) -> list[Row]:
    """Controls whose exact latency ratio is known."""
    return [row for row in members if row.role is Role.CONTROL and row.result.truth is not None]


@dataclass(frozen=True)
class Sensitivity:
    """What a run can see: its minimum detectable effects, as relative changes of latency."""

    smallest: float
    median: float
    largest: float
    launches: int  # the fewest that an interval rests on
    level: float  # the lowest of the intervals


def sensitivity(table: Iterable[Row]) -> Sensitivity | None:
    """The minimum detectable effects of the given rows; None where there are none."""
    measured = [row.result for row in table if row.result.minimum_detectable_effect is not None]
    effects = [found.minimum_detectable_effect for found in measured if found.minimum_detectable_effect is not None]
    ratios = [found.against_reference for found in measured if found.against_reference is not None]
    if not effects or not ratios:
        return None
    fewest, lowest = min(ratio.n for ratio in ratios), min(ratio.level for ratio in ratios)
    return Sensitivity(min(effects), median(effects), max(effects), fewest, lowest)


def statuses(table: Iterable[Row]) -> dict[Status, int]:
    """How many cells have each status; ok first, statuses without a cell left out."""
    counted = dict.fromkeys(reversed(Status), 0)
    for row in table:
        counted[row.status] += 1
    return {status: number for status, number in counted.items() if number}


def machine(environment: Mapping[str, Any]) -> str:
    """Where a run was measured: processor, cores, system."""
    cores = environment.get("cores")
    known = (
        environment.get("cpu"),
        plural(cores, "core") if isinstance(cores, int) else None,
        environment.get("release") or environment.get("system"),
    )
    return ", ".join(str(part) for part in known if part) or "an unknown machine"


def versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Version by distribution, Python included."""
    found = environment.get("versions")
    libraries = {str(name): str(version) for name, version in found.items()} if isinstance(found, Mapping) else {}
    python = environment.get("python")
    return ({"python": str(python)} if python else {}) | libraries


def commit(run: Run) -> str:
    """The measured commit in short, with a note when files had been changed; empty when unknown."""
    identity = run.commit.get("id")
    if not isinstance(identity, str) or identity in ("", "unversioned"):
        return ""
    return identity[:12] + (" with local changes" if run.commit.get("dirty") is True else "")


def reproduce(run: Run, row: Row) -> str:
    """The command that measures this cell again, with its references."""
    try:
        words = shlex.split(run.command)
    except ValueError:
        words = [run.command]
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        option = word.partition("=")[0]
        if option not in _SELECTING and before not in _SELECTING:
            kept.append(word)
    return shlex.join([*kept, "--only", row.id])
