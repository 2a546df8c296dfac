"""Requests for a service: those of a trace, and those of a split whose answers are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.serving.config import ITEM_ID, QUERY_ID, ServiceConfig, carried
from leanmark.serving.handlers import Handler, Parsed, entries
from leanmark.serving.payloads import Field, codec
from leanmark.stages import Split
from leanmark.traffic import Trace, Traffic, draw_trace

# What was not found in an index lies behind everything that was.
_NOT_FOUND = np.float32(-1e30)
# Of an approximate index so many are looked at: more than any metric of a ranking does.
_LOOKED_AT = 200
_ASKED_AT_ONCE = 64


def payloads(config: ServiceConfig, traffic: Traffic, tables: Mapping[str, Array], pool: Split | None) -> list[bytes]:
    """The requests of some traffic, as bytes; pool: the examples that are asked about where nothing is ranked."""
    brings = carried(config, traffic)
    trace = trace_of(config, traffic, tables, pool)
    encode = codec(config.payload, brings.request).encode
    found: list[bytes] = []
    for number in range(len(trace)):
        query = _taken(brings.query, QUERY_ID, tables.get("query"), trace.query[number : number + 1])
        if not brings.items:
            items: dict[str, Array] = {}
        elif pool is not None and not config.ranks:
            items = {item.name: pool.inputs[item.name][trace.candidates(number)] for item in brings.items}
        else:
            items = _taken(brings.items, ITEM_ID, tables.get("item"), trace.candidates(number))
        found.append(encode({**query, **items}))
    return found


def trace_of(config: ServiceConfig, traffic: Traffic, tables: Mapping[str, Array], pool: Split | None) -> Trace:
    """Who asks for what."""
    if config.ranks:
        return draw_trace(traffic, entries(tables, "query"), entries(tables, "item"))
    assert pool is not None
    return draw_trace(traffic, 0, len(pool))


def _taken(fields: Sequence[Field], key: Field, table: Array | None, ids: Array) -> dict[str, Array]:
    """Rows of a table by their ids, or the ids themselves."""
    if not fields:
        return {}
    if fields[0].name == key.name:
        return {key.name: ids}
    assert table is not None
    return {fields[0].name: table[ids]}


def answers(handler: Handler, split: Split, at_once: int = _ASKED_AT_ONCE) -> Array:
    """What a service answers to each example of a split, as its model would; so many of what ranks nothing at once.

    Of a ranking, logits of all candidates, shape (N, C); what an approximate index did not find is behind all others.
    """
    if not handler.config.ranks:
        parts = [
            _scores(handler, split, range(start, min(start + at_once, len(split))))
            for start in range(0, len(split), at_once)
        ]
        return np.concatenate(parts)
    index = handler.config.index
    found = [
        _found(handler, user, items)
        if index is not None and index.kind != "exact"
        else handler.scores([_asked(handler, user, items)])[0]
        for user, items in zip(*split.inputs.values(), strict=True)
    ]
    return np.stack(found)


def _scores(handler: Handler, split: Split, rows: Sequence[int]) -> Array:
    arrays = {item.name: np.ascontiguousarray(split.inputs[item.name][list(rows)]) for item in handler.config.items}
    return handler.scores([Parsed({}, arrays, len(rows))])[0]


def _asked(handler: Handler, user: int, items: Array) -> Parsed:
    """A request about one query's candidates, by what such a service is told of them."""
    tables, brings, config = handler.parts.tables, handler.carried, handler.config
    by_id = handler.parts.read is not None or config.precomputed
    query = _taken(brings.query, QUERY_ID, tables["query"], np.array([user]))
    return Parsed(query, _taken((ITEM_ID,) if by_id else config.items, ITEM_ID, tables.get("item"), items), len(items))


def _found(handler: Handler, user: int, items: Array) -> Array:
    query = _asked(handler, user, items[:1]).query
    ids, scores = handler.ranked([Parsed(query, {}, 1)], min(_LOOKED_AT, len(items)))[0]
    answers = np.full(int(items.max()) + 1, _NOT_FOUND, np.float32)
    known = ids < len(answers)
    answers[ids[known]] = scores[known]
    return answers[items]
