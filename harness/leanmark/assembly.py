"""From what was prepared, inspected and measured to the results of a run. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from leanmark import registry, stats
from leanmark.declare.plan import Plan
from leanmark.measure import rounds
from leanmark.measure.launches import Launch, LaunchFacts, compare, timing
from leanmark.measure.rounds import BlockServed
from leanmark.prepare.recipe import Prepared
from leanmark.results import (
    Cell,
    ColdStart,
    Comparison,
    Energy,
    Evidence,
    Interval,
    OnDevice,
    Quality,
    Result,
    Role,
    Status,
)
from leanmark.traffic import Served

# Where the host takes more of the processors' time than this, a run says so.
_MUCH_STEAL = 0.1
# A side against itself: no measurement, so no samples.
ITSELF = Interval(1.0, 1.0, 1.0, stats.LEVEL, 0, "by definition")


@dataclass(frozen=True)
class Inspected:
    """What the fresh process of a cell showed, compared with its reference."""

    quality: Quality | None = None
    cold_start: ColdStart | None = None
    energy: Energy | None = None
    on_device: OnDevice | None = None
    difference: float | None = None  # largest, relative, from the reference's answers
    death: tuple[Status, str] | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that a run has gathered so far."""

    prepared: Mapping[str, tuple[Prepared, ...]] = field(default_factory=dict[str, "tuple[Prepared, ...]"])
    inspected: Mapping[str, Inspected] = field(default_factory=dict[str, Inspected])
    launches: Mapping[str, Sequence[Launch]] = field(default_factory=dict[str, "Sequence[Launch]"])
    services: Mapping[str, BlockServed] = field(default_factory=dict[str, BlockServed])
    # Of a run beside a base: which cells were compared with it, or why they needed not to be.
    compared: Mapping[str, Comparison] = field(default_factory=dict[str, Comparison])


def results(plan: Plan, findings: Findings) -> tuple[Result, ...]:
    """The result of every cell, in the plan's order."""
    return tuple(_result(cell, cells, findings) for cells in plan.blocks().values() for cell in cells)


def runnable(cell: Cell, findings: Findings) -> bool:
    """Whether a cell was prepared for every seed, so that it can be run."""
    prepared = findings.prepared.get(cell.id, ())
    return cell.skip is None and bool(prepared) and all(item.content is not None for item in prepared)


def _result(cell: Cell, block: Sequence[Cell], findings: Findings) -> Result:
    if cell.skip is not None:
        return Result(cell, *cell.skip)
    prepared = findings.prepared.get(cell.id, ())
    if not prepared:
        return Result(cell, Status.SKIPPED, "the run ended before it was prepared")
    inspected = findings.inspected.get(cell.id, Inspected())
    launches = findings.launches.get(cell.block, ())
    first = prepared[0]
    result = Result(
        cell,
        Status.OK,
        artifact=first.content,
        more_artifacts=tuple(item.content for item in prepared[1:] if item.content is not None),
        quality=inspected.quality,
        footprint=first.final.footprint,
        cold_start=inspected.cold_start,
        cost=first.cost,
        energy=inspected.energy,
        on_device=inspected.on_device,
        evidence=first.final.evidence,
        timing=timing(launches, cell.id),
    )
    if cell.target.traffic is not None:
        result = _with_service(result, first, findings.services.get(cell.block, BlockServed()))
    if not findings.compared:  # beside another version nothing is measured beside its reference
        result = _with_ratios(result, block, findings)
    status, reason = _status(result, block, findings)
    return replace(result, status=status, reason=reason)


def _with_service(result: Result, prepared: Prepared, found: BlockServed) -> Result:
    """What a service did, and its steps' evidence by that."""
    cell = result.cell
    assert cell.target.traffic is not None
    facts = {name: value for item in prepared.final.evidence for name, value in item.facts.items()}
    instances, longest = int(facts.get("instances") or 1), int(facts.get("longest") or 0)
    did = rounds.served(found, cell.id, cell.target.traffic, instances, longest)
    evidence = result.evidence
    if did is not None:
        evidence = tuple(_observed(item, did) for item in evidence)
    if facts.get("copies") and facts.get("index") != "exact":
        # What it finds are copies of what was clicked, which no metric counts; its evidence has its recall.
        result = replace(result, quality=None)
    return replace(result, timing=rounds.timing(found, cell.id, cell.target.traffic), served=did, evidence=evidence)


def _observed(evidence: Evidence, did: Served) -> Evidence:
    look = registry.get_step(evidence.step).observed
    return evidence if look is None else look(evidence, did)


def _with_ratios(result: Result, block: Sequence[Cell], findings: Findings) -> Result:
    cell = result.cell
    if result.timing is None:
        return result
    reference = next(item for item in block if item.role is Role.REFERENCE)
    eager = next((item for item in block if item.role is Role.EAGER), reference)
    to_reference = _compare(findings, cell, reference)
    reference_to_eager = _compare(findings, reference, eager)
    to_eager = _compare(findings, cell, eager)
    if to_reference is not None and reference_to_eager is not None and cell.role is not Role.EAGER:
        to_eager = to_reference.times(reference_to_eager) if cell is not reference else reference_to_eager
    return replace(
        result,
        against_reference=ITSELF if cell is reference else _interval(to_reference),
        against_eager=None if cell.target.traffic else ITSELF if cell is eager else _interval(to_eager),
        minimum_detectable_effect=None if to_reference is None else to_reference.minimum_detectable_effect(),
        truth=_truth(result),
        break_even_calls=_break_even(result, findings, reference, to_reference),
    )


def _break_even(result: Result, findings: Findings, reference: Cell, ratio: stats.LogRatio | None) -> Interval | None:
    """Calls after which preparing a variant has paid off, against the reference on the same runtime."""
    before = timing(findings.launches.get(reference.block, ()), reference.id)
    if result.cell.role is not Role.VARIANT or result.cost is None or ratio is None or before is None:
        return None
    return stats.break_even(result.cost.seconds, before.median, ratio.interval())


def _compare(findings: Findings, side: Cell, reference: Cell) -> stats.LogRatio | None:
    """None for a side with itself, and where too few launches or rounds have both."""
    if side.id == reference.id:
        return None
    try:
        if side.target.traffic is not None:
            found = findings.services.get(side.block, BlockServed())
            return rounds.compare(found, side.id, reference.id, side.target.traffic)
        return compare(findings.launches.get(side.block, ()), side.id, reference.id)
    except ValueError:
        return None


def _is_slowed(cell: Cell) -> bool:
    """Whether it is the positive control."""
    return any(spec.name == "control.slowdown" for spec in cell.steps)


def _known(result: Result) -> str:
    return "slower" if result.truth is None else f"{result.truth:.3f}x"


def _interval(ratio: stats.LogRatio | None) -> Interval | None:
    return None if ratio is None else ratio.interval()


def _truth(result: Result) -> float | None:
    """The exact latency ratio of a control; of a service that is slowed down, only that it is slower."""
    if result.cell.target.traffic is not None and _is_slowed(result.cell):
        return None
    if result.cell.role is not Role.CONTROL or result.cell.must_be is not None:
        return None
    for evidence in result.evidence:
        ratio = evidence.facts.get("ratio")
        if isinstance(ratio, float):
            return ratio
    return 1.0


def _status(result: Result, block: Sequence[Cell], findings: Findings) -> tuple[Status, str]:
    """The first status that holds, in the order of `Status`, with its reason."""
    cell = result.cell
    prepared = findings.prepared[cell.id]
    inspected = findings.inspected.get(cell.id, Inspected())
    launches = findings.launches.get(cell.block, ())
    found: list[tuple[Status, str]] = [
        (item.status, _for_seed(item.reason, index, prepared)) for index, item in enumerate(prepared)
    ]
    if inspected.death is not None:
        found.append(inspected.death)
    service = findings.services.get(cell.block, BlockServed())
    death = next((launch.deaths[cell.id] for launch in launches if cell.id in launch.deaths), service.death(cell.id))
    if death is not None:
        found.append((death.status, f"while it was measured: {death.reason}"))
    found.append(_wrong(cell, inspected))
    found += _of_service(result, service)
    if result.timing is not None and result.timing.noisy:
        found.append(
            (Status.NOISY, f"{result.timing.disturbed_turns:.0%} of its turns were disturbed by other programs")
        )
    comparison = findings.compared.get(cell.id)
    if comparison is not None and comparison.same:
        found.append((Status.SKIPPED, f"nothing was measured: {comparison.same}"))
    elif comparison is None and _lacks_explanation(result, found):
        found.append(_unmeasured(block, findings))
    order = list(Status)
    return min(found, key=lambda item: order.index(item[0]))


def _of_service(result: Result, service: BlockServed) -> Iterator[tuple[Status, str]]:
    """What traffic showed: tests that do not count, answers that are wrong, steps without effect."""
    if result.served is None:
        return
    if problem := service.problem(result.cell.id):
        yield Status.FAILED, problem
    if result.served.wrong:
        limit = exact_limit(result.cell)
        yield (
            Status.WRONG,
            f"{result.served.wrong} of {result.served.compared} answers under traffic differ from the plain service's "
            f"by more than {limit:g}, one by {result.served.moved:.3g}",
        )
    for item in result.evidence:
        if not item.effective:
            yield Status.INEFFECTIVE, f"{item.step}: {item.reason}"


def _lacks_explanation(result: Result, found: Sequence[tuple[Status, str]]) -> bool:
    """Whether nothing explains yet why a cell has no latency ratio."""
    failed = any(status.is_failure or status is Status.NOT_APPLICABLE for status, _ in found)
    return result.against_reference is None and not failed


def _unmeasured(block: Sequence[Cell], findings: Findings) -> tuple[Status, str]:
    reference = next(cell for cell in block if cell.role is Role.REFERENCE)
    inspected = findings.inspected.get(reference.id, Inspected())
    if not runnable(reference, findings):
        return Status.SKIPPED, "no latency: its reference could not be prepared"
    if inspected.death is not None:
        return Status.SKIPPED, f"no latency: its reference does not run ({inspected.death[1]})"
    service = findings.services.get(reference.block)
    if service is not None:
        death = service.death(reference.id)
        why = (
            death.reason
            if death is not None
            else service.problem(reference.id) or "fewer rounds than an interval needs"
        )
        return Status.SKIPPED, f"no ratio to the plain service: {why}"
    for launch in findings.launches.get(reference.block, ()):
        if reference.id in launch.deaths:
            return Status.SKIPPED, f"no latency: its reference ended ({launch.deaths[reference.id].reason})"
    return Status.SKIPPED, "no latency: fewer launches than an interval needs"


def _for_seed(reason: str, index: int, prepared: Sequence[Prepared]) -> str:
    return f"trial {index + 1} of {len(prepared)}: {reason}" if reason and len(prepared) > 1 else reason


def _wrong(cell: Cell, inspected: Inspected) -> tuple[Status, str]:
    """A recipe of exact steps only must answer as its reference does."""
    limit = exact_limit(cell)
    if limit is not None and inspected.difference is not None and not inspected.difference <= limit:
        what = f"every step says that it is exact (to {limit:g}), but an answer moved by {inspected.difference:.3g}"
        return Status.WRONG, what
    return Status.OK, ""


def exact_limit(cell: Cell) -> float | None:
    """By how much a recipe may move answers, relative to the largest, as its steps say; None where one is not exact."""
    own = cell.steps[: len(cell.steps) - cell.lowering]
    limits = [registry.get_step(spec.name).exact for spec in own]
    exact = [limit for limit in limits if limit is not None]
    return sum(exact) if own and len(exact) == len(limits) else None


def machine_warnings(launches: Sequence[LaunchFacts]) -> tuple[str, ...]:
    """What of the machine made measuring harder: workers that were not pinned, time that the host gave to others."""
    warnings: list[str] = []
    if not all(facts.pinned for facts in launches):
        warnings.append("workers could not be pinned to processors; intervals are wider for it")
    shares = [facts.steal_share for facts in launches if facts.steal_share is not None]
    if shares and statistics.mean(shares) > _MUCH_STEAL:
        warnings.append(
            f"the host gave {statistics.mean(shares):.0%} of the processors' time to others while cells were measured "
            "(steal); intervals are wider for it"
        )
    return tuple(warnings)


def device_warnings(found: Sequence[Result]) -> tuple[str, ...]:
    """What slows the run's CUDA devices down, or computes on them beside it."""
    warnings: dict[str, None] = {}
    for result in found:
        device = None if result.on_device is None else result.on_device.device
        if device is not None and device.throttled:
            why = ", ".join(device.throttled)
            warnings[f"{device.name} is slowed down by {why}; times and ratios on it hold for that state"] = None
        if device is not None and device.strangers:
            who = ", ".join(map(str, device.strangers))
            warnings[f"other processes compute on {device.name}: {who}; they disturb what is measured"] = None
    return tuple(warnings)


def control_warnings(found: Sequence[Result], findings: Findings, tolerance: float) -> tuple[str, ...]:
    """What the run's own controls say against it, at the level corrected for their number."""
    asked = (Status.SKIPPED, Status.NOT_APPLICABLE)
    controls = [result for result in found if result.cell.role is Role.CONTROL and result.status not in asked]
    warnings = [
        f"control failed: {result.cell.id} is a lie that must be shown as {result.cell.must_be.value}, and is "
        f"{result.status.value}: {result.reason or 'evidence does not show what others do'}"
        for result in controls
        if result.cell.must_be not in (None, result.status)
    ]
    controls = [result for result in controls if result.cell.must_be is None]
    for result in controls:
        level = 1 - (1 - stats.LEVEL) / len(controls)
        reference = f"{result.cell.workload}/fp32/{result.cell.target.id}"
        ratio = _compare(findings, result.cell, replace(result.cell, id=reference))
        if ratio is None:
            why = result.reason or "too few launches have both"
            warnings.append(f"control missing: {result.cell.id} has no ratio to its reference: {why}")
            continue
        interval = ratio.interval(level)
        shown = f"{interval.value:.3f}x [{interval.low:.3f}, {interval.high:.3f}]"
        if len(controls) > 1:
            shown += f" at {100 * level:.4g} %, the level for {len(controls)} controls together"
        if result.truth == 1.0 and (interval.low > 1 + tolerance or interval.high < 1 / (1 + tolerance)):
            warnings.append(
                f"control failed: {result.cell.id} is the same model as its reference but reads {shown}; "
                "do not trust differences of this size"
            )
        slower = _is_slowed(result.cell) or result.truth not in (None, 1.0)
        if slower and not interval.excludes(1.0):
            busy = result.timing is not None and result.timing.noisy
            cause = "while other programs disturb this machine" if busy else "with this budget"
            warnings.append(
                f"control failed: {result.cell.id} is {_known(result)} by construction but reads {shown}; "
                f"such a slowdown cannot be seen {cause}"
            )
    return tuple(warnings)
