"""What `leanmark list` shows, as JSON values."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from leanmark import registry
from leanmark.errors import InvalidInput, did_you_mean
from leanmark.judge import store
from leanmark.planned import builtin_suites
from leanmark.runtimes import supported
from leanmark.workloads.data_sets import DATA_SETS

Entry = dict[str, Any]


def entries(what: str, name: str | None = None, runs: Path | None = None) -> list[Entry]:
    """All steps, workloads, suites, runtimes or runs, or the one of this name. Raises InvalidInput."""
    kinds = {
        "steps": _steps,
        "workloads": _workloads,
        "data": _data,
        "suites": _suites,
        "runtimes": _runtimes,
        "runs": lambda: _runs(runs or store.default_runs()),
    }
    if what not in kinds:
        raise InvalidInput(f"nothing is called '{what}' here", do=did_you_mean(what, kinds))
    found = kinds[what]()
    if name is None:
        return found
    chosen = [entry for entry in found if name == entry.get("name", entry.get("id"))]
    if not chosen:
        known = [str(entry.get("name", entry.get("id"))) for entry in found]
        raise InvalidInput(f"there is no {what.removesuffix('s')} '{name}'", do=did_you_mean(name, known))
    return chosen


def _steps() -> list[Entry]:
    return [
        {
            "name": step.name,
            "family": step.family,
            "consumes": [stage.__name__ for stage in step.consumes],
            "produces": step.produces.__name__ if step.produces else "the same",
            "parameters": step.parameters.model_json_schema().get("properties", {}),
            "exact": step.exact,
            "summary": step.summary,
            "documentation": step.doc,
            "evidence": _paragraph(inspect.getdoc(step.evidence) or step.evidence.__name__),
            "source": _paragraph(step.doc.partition("\nSource:")[2]),
        }
        for step in registry.steps()
    ]


def _paragraph(text: str) -> str:
    """The first one, on one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def _workloads() -> list[Entry]:
    return [
        {
            "name": item.name,
            "title": item.title,
            "metric": item.metric,
            "model": item.model,
            "data": item.data,
            "needs": list(item.needs),
        }
        for item in registry.workloads()
    ]


def _data() -> list[Entry]:
    return [
        {
            "name": item.name,
            "title": item.title,
            "here": item.is_here(),
            "megabytes": round(sum(part.size for part in item.parts.values()) / 1e6, 1),
            "licence": item.licence,
            "origin": item.origin,
            "folder": str(item.folder),
        }
        for item in DATA_SETS.values()
    ]


def _suites() -> list[Entry]:
    from leanmark.declare.suite import load

    found: list[Entry] = []
    for path in builtin_suites():
        suite = load(path)
        workloads = [workload.name for workload in suite.workloads]
        found.append(
            {
                "name": suite.name,
                "title": suite.title,
                "workloads": workloads,
                "recipes": len(suite.recipes),
                "file": str(path),
            }
        )
    return found


def _runtimes() -> list[Entry]:
    return [
        {
            "name": item.name,
            "title": item.title,
            "executes": item.executes.__name__,
            "devices": {device: supported(item.name, device) or "available" for device in item.devices},
        }
        for item in registry.runtimes()
    ]


def _runs(root: Path) -> list[Entry]:
    return [
        {
            "id": item.id,
            "suite": item.suite,
            "started": item.started,
            "cells": item.cells,
            "complete": item.complete,
            "path": str(item.path),
        }
        for item in store.list_runs(root)
    ]
