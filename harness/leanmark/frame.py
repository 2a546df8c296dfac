"""A run as a tidy table."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from leanmark.jsonable import Json
from leanmark.results import Interval, Result, Run
from leanmark.traffic import Served

COLUMNS = [
    *["run", "suite", "cell", "workload", "recipe", "target", "role", "status"],
    *["metric", "value", "low", "high", "n", "unit"],
]


def frame(run: Run) -> pd.DataFrame:
    """One row a metric of a cell; see `Run.to_frame`."""
    rows = [
        {
            "run": run.id,
            "suite": run.suite,
            "cell": result.cell.id,
            "workload": result.cell.workload,
            "recipe": result.cell.recipe,
            "target": result.cell.target.id,
            "role": result.cell.role.value,
            "status": result.status.value,
            **row,
        }
        for result in run.results
        for row in _metric_rows(result)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _metric_rows(result: Result) -> list[dict[str, Json]]:
    rows: list[dict[str, Json]] = []

    def add(metric: str, unit: str, value: float | Interval | None, n: int | None = None) -> None:
        if isinstance(value, Interval):
            rows.append(
                {
                    "metric": metric,
                    "unit": unit,
                    "value": value.value,
                    "low": value.low,
                    "high": value.high,
                    "n": value.n,
                }
            )
        elif value is not None:
            rows.append({"metric": metric, "unit": unit, "value": value, "low": None, "high": None, "n": n})

    add("latency_ratio_reference", "ratio", result.against_reference)
    add("latency_ratio_eager", "ratio", result.against_eager)
    if result.quality is not None:
        add(result.quality.metric, "fraction", result.quality.score)
        add(f"{result.quality.metric}_difference", "fraction", result.quality.difference)
        for name, found in result.quality.also.items():
            add(name, "fraction", found.score)
            add(f"{name}_difference", "fraction", found.difference)
    if result.served is not None:
        for name, unit, value in _of_service(result.served):
            add(name, unit, value, result.served.queries)
    if result.timing is not None:
        timing = result.timing
        add("latency_median", "seconds", timing.median, timing.calls)
        add("latency_p90", "seconds", timing.p90, timing.calls)
        add("latency_p99", "seconds", timing.p99, timing.calls)
        add("throughput", "calls/second", timing.calls_per_second, timing.calls)
    if result.footprint is not None:
        footprint = result.footprint
        add("size", "bytes", footprint.size_bytes)
        add("compressed_size", "bytes", footprint.compressed_bytes)
        add("parameters", "count", footprint.parameters)
        add("nonzero_parameters", "count", footprint.nonzero_parameters)
        add("macs", "count", footprint.macs)
    if result.cold_start is not None:
        cold = result.cold_start
        add("cold_start", "seconds", cold.import_seconds + cold.load_seconds + cold.first_call_seconds, 1)
        for phase in ("import", "load", "first_call"):
            for kind in ("rss", "uss"):
                add(f"{kind}_{phase}", "bytes", getattr(cold, f"{kind}_{phase}_bytes"), 1)
        add("rss_peak", "bytes", cold.rss_peak_bytes, 1)
    if result.cost is not None:
        add("preparation", "seconds", result.cost.seconds, 1)
    add("break_even", "calls", result.break_even_calls)
    if result.energy is not None:
        add("energy", "joules/call", result.energy.joules)
    return rows


def _of_service(served: Served) -> Iterator[tuple[str, str, float | None]]:
    """What a service did, as names, units and values."""
    yield "request_size", "bytes", served.bytes_in
    yield "answer_size", "bytes", served.bytes_out
    for name, spread in (("waiting", served.waiting), ("computing", served.computing)):
        yield f"{name}_median", "seconds", None if spread is None else spread.median
        yield f"{name}_p99", "seconds", None if spread is None else spread.p99
    yield "rows_computed", "rows/request", served.computed
    yield "padding", "fraction", served.padding
    for name, use in served.tiers.items():
        yield f"hit_rate_{name}", "fraction", use.hit_rate
        yield f"evicted_{name}", "count", use.evicted
        yield f"mean_age_{name}", "seconds", use.mean_age_seconds
    if served.highest is not None:
        yield "highest_rate", "requests/second", served.highest[0]
        yield "lowest_rate_too_high", "requests/second", served.highest[1]
    yield "cost_per_million", "price", served.cost_per_million
    yield "rejected", "count", served.rejected
    yield "wrong_answers", "count", served.wrong
