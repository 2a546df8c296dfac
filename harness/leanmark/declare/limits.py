"""The gate's part of a suite: tolerances and allowances, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leanmark.declare.document import Document, Location
from leanmark.declare.schema import AllowDeclaration, GateDeclaration, LatencyDeclaration, LimitsDeclaration
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.rules import CELL, Allowance, Limits, Rules

METRICS = (*LimitsDeclaration.model_fields, CELL)
_LATENCIES = {"tolerance": "latency", "must_see": "latency_seen", "ratios": "latency_ratios", "times": "latency_times"}


def make_rules(declared: GateDeclaration, document: Document) -> Rules:
    """The rules that a suite declares. Raises InvalidInput with the place of what contradicts itself."""
    limits = _limits(declared, Limits(), ("gate",), document)
    cells = {
        pattern: _limits(own, limits, ("gate", "cells", pattern), document) for pattern, own in declared.cells.items()
    }
    allowed = tuple(_allowance(entry, ("gate", "allow", index), document) for index, entry in enumerate(declared.allow))
    return Rules(limits, declared.budget, cells, allowed)


def _limits(declared: LimitsDeclaration, base: Limits, location: Location, document: Document) -> Limits:
    """The base's limits with those that are declared in their place."""
    changes: dict[str, Any] = {}
    for metric in declared.model_fields_set & set(LimitsDeclaration.model_fields):
        value = getattr(declared, metric)
        if isinstance(value, LatencyDeclaration):
            changes |= {_LATENCIES[key]: getattr(value, key) for key in value.model_fields_set}
            if "tolerance" in value.model_fields_set:  # what must be seen of another tolerance is another change
                changes.setdefault("latency_seen", None)
        elif metric == "latency":
            changes |= dict.fromkeys(_LATENCIES.values())
        else:
            changes[metric] = None if value is None else value.tolerance
    limits = replace(base, **changes)
    if limits.latency is not None and limits.latency_seen is not None and limits.latency_seen <= limits.latency:
        raise InvalidInput(
            f"must_see is {limits.latency_seen:.4g} and the tolerance {limits.latency:.4g}, as fractions; "
            "a change within the tolerance is never one",
            where=document.position((*location, "latency")),
            do="Let must_see be larger than the tolerance.",
        )
    return limits


def _allowance(entry: AllowDeclaration, location: Location, document: Document) -> Allowance:
    if entry.metric not in (None, *METRICS):
        where = document.position((*location, "metric"))
        raise InvalidInput(f"unknown metric '{entry.metric}'", where=where, do=did_you_mean(entry.metric, METRICS))
    return Allowance(entry.cell, entry.reason, entry.until, entry.metric)
