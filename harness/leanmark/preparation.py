"""A suite prepared and nothing else: what another revision's own code makes of it, for the one that measures both.

As a child process it takes one message, tells how far it is, and answers with a `Preparation`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanmark import modules
from leanmark.channel import PROTOCOL_VERSION, ChannelClosed, end_with_parent, inherited
from leanmark.errors import LeanmarkError
from leanmark.jsonable import to_json
from leanmark.planned import Options, Planned, plan_suite
from leanmark.prepare.recipe import Prepared
from leanmark.preparing import look, prepare_all
from leanmark.progress import Meter
from leanmark.results import SCHEMA_VERSION, Cell
from leanmark.rules import Rules
from leanmark.workloads import split_store


@dataclass(frozen=True)
class Preparation:
    """A suite's cells, what became of each with every seed, and by a hash the code that runs it.

    scoring: by workload, hashes of a metric of the user's own and of the test examples. broken: by workload, why
    its own functions gave nothing. imported, read: files of modules that are not installed, and other files.
    """

    suite: str
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    prepared: Mapping[str, tuple[Prepared, ...]]
    code: Mapping[str, str]
    paths: tuple[Path, ...]
    rules: Rules
    scoring: Mapping[str, tuple[str, str]]
    broken: Mapping[str, str]
    imported: tuple[Path, ...]
    read: tuple[Path, ...]
    protocol: int = PROTOCOL_VERSION
    schema_version: int = SCHEMA_VERSION

    def contents(self) -> dict[str, tuple[str, ...]]:
        """The artifacts of the cells that can be run, one a seed, by their content hashes."""
        found: dict[str, tuple[str, ...]] = {}
        for cell, prepared in self.prepared.items():
            hashes = [item.content for item in prepared if item.content is not None]
            if hashes and len(hashes) == len(prepared):
                found[cell] = tuple(hashes)
        return found


def describe(planned: Planned, prepared: Mapping[str, tuple[Prepared, ...]]) -> Preparation:
    """What was prepared, as another process can be told."""
    plan = planned.plan
    code = {cell.id: planned.code_of(cell) for cell in plan.cells}
    scoring: dict[str, tuple[str, str]] = {}
    for cell in plan.cells:
        splits = prepared[cell.id][0].splits if cell.id in prepared else None
        if splits is not None and cell.workload not in scoring:
            examples = split_store.digest(planned.store.splits(splits), "test")
            scoring[cell.workload] = (planned.metric_code(cell.workload), examples)
    return Preparation(
        plan.suite.name,
        plan.suite.seeds,
        plan.cells,
        prepared,
        code,
        planned.paths,
        plan.suite.rules,
        scoring,
        {name: outcome.reason for name, outcome in planned.broken.items()},
        tuple(path for seen in planned.seen.values() for path in seen.imported),
        tuple(path for seen in planned.seen.values() for path in seen.read),
    )


def main(descriptor: int) -> None:
    """Answer one message, then wait to be ended."""
    channel = inherited(descriptor)
    message: dict[str, Any] = channel.receive()
    end_with_parent(channel)

    def advance(share: float, text: str) -> None:
        channel.send({"progress": share, "text": text})

    os.environ["LEANMARK_CACHE"] = message["store"]
    try:
        planned = plan_suite(message["suite"], Options(jobs=message["jobs"]))
        if message["only"]:  # a word that fits no cell here is one of cells that are new
            words = tuple(word for word in message["only"] if any(word in cell.id for cell in planned.plan.cells))
            planned = replace(planned, plan=planned.plan.select(words) if words else replace(planned.plan, cells=()))
        planned = replace(planned, plan=planned.plan.beside())
        meter = Meter(advance, {"prepare": 1.0})
        with modules.import_path(*planned.paths):
            planned = look(planned, meter)
            prepared = prepare_all(planned, {}, lambda *_: None, meter)
        channel.send({"preparation": to_json(describe(planned, prepared))})
    except LeanmarkError as error:
        channel.send({"error": error.sentence, "where": None if error.where is None else str(error.where)})
    with contextlib.suppress(ChannelClosed):
        channel.receive()


if __name__ == "__main__":
    main(int(sys.argv[1]))
