"""The traffic of a suite, and which workloads and recipes its targets are for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from leanmark.declare.document import Document, Location
from leanmark.declare.schema import NAME_PATTERN, SuiteDeclaration, TargetDeclaration, TrafficDeclaration
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.results import Target
from leanmark.traffic import Scenario, Traffic

RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Scope:
    """What a target is for; an empty set stands for everything."""

    workloads: frozenset[str] = frozenset()
    recipes: frozenset[str] = frozenset()


def make_traffic(declared: SuiteDeclaration, document: Document) -> dict[str, Traffic]:
    """All declared traffic by name. Raises InvalidInput."""
    found: dict[str, Traffic] = {}
    used = {target.traffic for target in declared.targets}
    for index, target in enumerate(declared.targets):
        if target.traffic and target.traffic not in declared.traffic:
            raise InvalidInput(
                f"there is no traffic '{target.traffic}'",
                where=document.position(("targets", index, "traffic")),
                do=did_you_mean(target.traffic, declared.traffic) if declared.traffic else "Declare it: `traffic:`.",
            )
    for name, entry in declared.traffic.items():
        location: Location = ("traffic", name)
        if not re.fullmatch(NAME_PATTERN, name) or re.fullmatch(r"b\d+", name):
            raise InvalidInput(
                f"'{name}' is no name for traffic",
                where=document.position(location, key=True),
                do="Use letters, digits and . _ + - only; b1 is a batch.",
            )
        if name not in used:
            raise InvalidInput(
                f"no target has the traffic '{name}'",
                where=document.position(location, key=True),
                do=f"Write `- {{traffic: {name}}}` among the targets.",
            )
        found[name] = _traffic(name, entry, location, document)
    return found


def _traffic(name: str, entry: TrafficDeclaration, location: Location, document: Document) -> Traffic:
    candidates: tuple[int, int] | None = None
    if isinstance(entry.candidates, int):
        candidates = (entry.candidates, entry.candidates)
    elif entry.candidates != "all":
        if len(entry.candidates) != 2 or entry.candidates[0] > entry.candidates[1]:
            raise InvalidInput(
                f"candidates = {entry.candidates}: two numbers are the fewest and the most",
                where=document.position((*location, "candidates")),
                do="Write `candidates: [1, 32]`, `candidates: 100` or `candidates: all`.",
            )
        candidates = (entry.candidates[0], entry.candidates[1])
    if entry.search and entry.scenario != "server":
        raise InvalidInput(
            f"the highest rate is looked for under server traffic, and '{name}' is {entry.scenario}",
            where=document.position((*location, "search")),
            do="Write `scenario: server`, or leave `search` out.",
        )
    if entry.store.rtt is not None and entry.features != "store":
        raise InvalidInput(
            f"'{name}' says how far the store is, but its features come with the request",
            where=document.position((*location, "store")),
            do="Write `features: store`, too, or leave `store` out.",
        )
    return Traffic(
        name=name,
        scenario=Scenario(entry.scenario),
        rate=entry.rate,
        candidates=candidates,
        top=entry.top,
        zipf=entry.zipf,
        users=entry.users,
        catalogue=entry.catalogue,
        requests=entry.requests,
        seconds=entry.duration,
        limit_seconds=entry.limit,
        search=entry.search,
        warm=entry.cache == "warm",
        features=entry.features,
        store_seconds=entry.store.rtt or 0.0,
        examples=entry.examples,
        bytes_a_second=entry.network.bandwidth,
        rtt_seconds=entry.network.rtt or 0.0,
        price=entry.price_an_hour,
        seed=entry.seed,
    )


def make_target(
    entry: TargetDeclaration, traffic: Mapping[str, Traffic], location: Location, document: Document
) -> Target | None:
    """The target of an entry that has traffic; None for one that has not. Raises InvalidInput."""
    if not entry.traffic:
        return None
    if entry.runtime != RUNTIME or entry.device != "cpu":
        raise InvalidInput(
            f"a service runs its programs on {RUNTIME} on the cpu",
            where=document.position((*location, "runtime" if entry.runtime != RUNTIME else "device")),
        )
    if entry.batch != 1 or not isinstance(entry.threads, int):
        raise InvalidInput(
            "a target with traffic has neither batch nor sweeps",
            where=document.position((*location, "batch" if entry.batch != 1 else "threads")),
            do="Requests say how much they ask for; batches of requests are made by serve.batch.",
        )
    return Target("cpu", entry.runtime, entry.threads, 1, traffic[entry.traffic])


def make_scope(
    entry: TargetDeclaration,
    workloads: Collection[str],
    recipes: Collection[str],
    location: Location,
    document: Document,
) -> Scope:
    """What a target is for. A recipe that is swept is named without its parameters. Raises InvalidInput."""
    known = {name.partition("[")[0]: name for name in recipes}
    for key, names, among in (("workloads", entry.workloads, workloads), ("recipes", entry.recipes, known)):
        for index, name in enumerate(names):
            if name not in among:
                raise InvalidInput(
                    f"a target is for '{name}', which is none of the suite's {key}",
                    where=document.position((*location, key, index)),
                    do=did_you_mean(name, among),
                )
    return Scope(frozenset(entry.workloads), frozenset(entry.recipes))
