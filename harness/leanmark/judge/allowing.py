"""What a run's rules allow, and how they differ from its base's: a change may loosen its own gate. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import date

from leanmark.judgement import Change
from leanmark.results import Verdict
from leanmark.rules import Limits, Rules


def allowed(change: Change, rules: Rules, today: date) -> Change:
    """The change with the reason why it does not fail, where there is one today."""
    if not (change.verdict.is_finding or change.verdict is Verdict.INCONCLUSIVE):
        return change
    for item in rules.allow:
        if item.covers(change.cell, change.metric) and today <= item.until:
            return replace(change, allowed=f"{item.reason} (until {item.until})")
    return change


def notes(rules: Rules, changes: Sequence[Change], today: date) -> Iterator[str]:
    """Allowances that have ended, and those that nothing needs."""
    for item in rules.allow:
        shown = f"the allowance for {item.cell}" + (f", {item.metric}" if item.metric else "")
        if today > item.until:
            yield f"{shown} ended on {item.until}"
        elif not any(change.allowed and item.covers(change.cell, change.metric) for change in changes):
            yield f"{shown} is not needed by anything here"


def changed_rules(here: Rules, there: Rules, name: str) -> Iterator[str]:
    """What this run tolerates otherwise than its base did: a change may loosen its own gate."""
    for field in fields(Limits):
        before, after = (getattr(rules.limits, field.name) for rules in (there, here))
        if before != after:
            after, before = _share(field.name, after), _share(field.name, before)
            yield f"the tolerance of {field.name} is {after} here and {before} in {name}"
    if here.decide_seconds != there.decide_seconds:
        yield f"the gate's budget is {here.decide_seconds:g} s a side here and {there.decide_seconds:g} s in {name}"
    for pattern in dict.fromkeys((*here.cells, *there.cells)):
        if here.cells.get(pattern) != there.cells.get(pattern):
            yield f"the limits of the cells {pattern} are others than in {name}"
    for item in here.allow:
        if item not in there.allow:
            yield f"an allowance for {item.cell} that {name} does not have: {item.reason}, until {item.until}"


def _share(name: str, value: float | None) -> str:
    return "off" if value is None else f"{100 * value:g} {'points' if name == 'quality' else '%'}"
