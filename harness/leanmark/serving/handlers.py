"""From requests to answers: payloads read, features found, programs run, answers written.

A program is called with arrays by name, a row each for everything that is asked about, and gives one array with as
many rows. What a request has once, its query, is repeated for each of its candidates only where a program takes both
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.serving.caches import Tiers
from leanmark.serving.config import ITEM_ID, QUERY_ID, Carried, ServiceConfig
from leanmark.serving.payloads import BadPayload, Codec, Field, codec

Program = Callable[[Mapping[str, Array]], Array]
# Rows of a table by their ids, each once and the lowest first.
Read = Callable[[str, Sequence[int]], Sequence[bytes]]
# What finds the items that fit queries best: queries (n, width), how many -> of each query, ids and products.
Search = Callable[[Array, int], list[tuple[Array, Array]]]
_MOST_ROWS = 16384  # of one call: a whole catalogue is ranked in pieces that fit into memory

MASK = "mask"  # the field that says which positions of a sequence are there


@dataclass(frozen=True)
class Parsed:
    """A request that was read. query: one row an array, or none; items: a row each for everything asked about.

    rows: how many; 1 for the whole catalogue.
    """

    query: Mapping[str, Array]
    items: Mapping[str, Array]
    rows: int


@dataclass
class Work:
    """What a handler did: calls of programs, rows and positions in them, those that were there only to fill up."""

    calls: int = 0
    rows: int = 0
    positions: int = 0
    padded: int = 0
    lookups: int = 0  # of what was computed before


@dataclass(frozen=True)
class Parts:
    """What a handler is made of: programs and tables by name, a store of features if there is one, caches, a search."""

    programs: Mapping[str, Program]
    tables: Mapping[str, Array] = field(default_factory=dict[str, Array])
    read: Read | None = None
    features: Tiers | None = None
    embeddings: Tiers | None = None
    search: Search | None = None


class Handler:
    """Answers requests as a service's configuration says."""

    def __init__(self, config: ServiceConfig, carried: Carried, parts: Parts) -> None:
        self.config, self.carried, self.parts = config, carried, parts
        self.work = Work()
        self._requests: Codec = codec(config.payload, carried.request)
        self._answers: Codec = codec(config.payload, carried.answer)

    # --- payloads ---

    def decode(self, payload: bytes) -> Parsed:
        """Raises BadPayload."""
        arrays = self._requests.decode(payload)
        query = {item.name: arrays[item.name] for item in self.carried.query}
        items = {item.name: arrays[item.name] for item in self.carried.items}
        if any(len(array) != 1 for array in query.values()):
            raise BadPayload("it has more than one query, or none")
        counts = {len(array) for array in items.values()} if items else {1}
        if len(counts) != 1 or not (rows := counts.pop()):
            raise BadPayload("its candidates are none, or not as many in each field")
        self._check(query.get(QUERY_ID.name), "query")
        self._check(items.get(ITEM_ID.name), "item")
        return Parsed(query, items, rows)

    def _check(self, ids: Array | None, table: str) -> None:
        if ids is not None and (ids.min() < 0 or ids.max() >= entries(self.parts.tables, table)):
            raise BadPayload(f"there is no such {table}")

    def answer(self, requests: Sequence[Parsed]) -> list[bytes]:
        """The answers to a batch, in order."""
        if self.carried.top:
            found = self.ranked(requests, self.carried.top)
            return [self._answers.encode({"item": ids, "answer": self._shown(scores)}) for ids, scores in found]
        return [self._answers.encode({"answer": self._shown(part)}) for part in self.scores(requests)]

    def _shown(self, answers: Array) -> Array:
        return sigmoid(answers) if self.config.ranks else answers

    # --- what is computed ---

    def scores(self, requests: Sequence[Parsed]) -> list[Array]:
        """What the service makes of each request's rows: answers, or logits of candidates."""
        rows = [request.rows for request in requests]
        items = _joined([request.items for request in requests])
        query = _joined([request.query for request in requests])
        if self.config.kind == "towers":
            queries, found = self._queries(query), self._items(items)
            ends = np.cumsum(rows)
            bias = self._bias()
            return [found[end - count : end] @ own + bias for own, count, end in zip(queries, rows, ends, strict=True)]
        arrays = self._features(ITEM_ID, "item", items)
        if query:
            repeated = {name: np.repeat(array, rows, axis=0) for name, array in self._query_features(query).items()}
            arrays = {**repeated, **arrays}
        answers = self._called("rows", arrays)
        return np.split(answers.reshape(len(answers)) if self.config.ranks else answers, np.cumsum(rows)[:-1])

    def ranked(self, requests: Sequence[Parsed], top: int) -> list[tuple[Array, Array]]:
        """Of each request, the items of the whole catalogue that fit best, best first: ids and logits."""
        query = _joined([request.query for request in requests])
        if self.config.kind == "towers":
            queries, bias = self._queries(query), self._bias()
            if self.parts.search is not None:
                return [(ids, products + bias) for ids, products in self.parts.search(queries, top)]
            items = self._all_items()
            return [best(items @ own + bias, top) for own in queries]
        features = self._query_features(query)
        table = self._table("item")
        found: list[tuple[Array, Array]] = []
        for number in range(len(requests)):
            logits = [
                self._called("rows", self._beside(features, number, table[start : start + _MOST_ROWS]))
                for start in range(0, len(table), _MOST_ROWS)
            ]
            found.append(best(np.concatenate(logits).reshape(-1), top))
        return found

    def _beside(self, features: Mapping[str, Array], number: int, items: Array) -> dict[str, Array]:
        """One query's features beside those of many items."""
        own = {name: np.repeat(array[number : number + 1], len(items), axis=0) for name, array in features.items()}
        return own | {self.config.items[0].name: items}

    def _table(self, name: str) -> Array:
        return self.parts.tables[name]

    def _bias(self) -> np.float32:
        return np.float32(self.parts.tables["bias"][0])

    def _query_features(self, query: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._features(QUERY_ID, "query", query)

    def _features(self, key: Field, table: str, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        """The features themselves, where only ids came: from the store, through caches."""
        if key.name not in arrays:
            return arrays
        kind = (self.config.query if table == "query" else self.config.items)[0]
        ids = arrays[key.name]
        if self.parts.read is None:
            return {kind.name: self._table(table)[ids]}
        read, tiers = self.parts.read, self.parts.features
        wanted, places = np.unique(ids, return_inverse=True)
        numbers = wanted.tolist()
        if tiers is None:
            content = read(table, numbers)
        else:
            keys = [f"{table}:{number}".encode() for number in numbers]
            content = tiers.look_up(keys, lambda missing: read(table, [int(key.split(b":")[1]) for key in missing]))
        rows = np.frombuffer(b"".join(content), kind.dtype).reshape(-1, *kind.shape)
        return {kind.name: rows[places]}

    def _queries(self, query: Mapping[str, Array]) -> Array:
        return self._called("query", self._query_features(query), cached=False)

    def _items(self, items: Mapping[str, Array]) -> Array:
        if self.config.precomputed:
            ids = items[ITEM_ID.name]
            self.work.lookups += len(ids)
            return self._table("embedding")[ids]
        tiers = self.parts.embeddings
        if tiers is None or ITEM_ID.name not in items:
            return self._called("item", self._features(ITEM_ID, "item", items))
        keys = [number.to_bytes(8, "little") for number in items[ITEM_ID.name].tolist()]

        def compute(missing: Sequence[bytes]) -> Sequence[bytes]:
            ids = np.array([int.from_bytes(key, "little") for key in missing], np.int64)
            found = self._called("item", self._features(ITEM_ID, "item", {ITEM_ID.name: ids}), cached=False)
            return [row.tobytes() for row in found]

        return np.frombuffer(b"".join(tiers.look_up(keys, compute)), np.float32).reshape(len(keys), -1)

    def _all_items(self) -> Array:
        if self.config.precomputed:
            self.work.lookups += len(self._table("embedding"))
            return self._table("embedding")
        table, name = self._table("item"), self.config.items[0].name
        pieces = range(0, len(table), _MOST_ROWS)
        return np.concatenate([self._called("item", {name: table[at : at + _MOST_ROWS]}) for at in pieces])

    # --- programs ---

    def _called(self, program: str, arrays: Mapping[str, Array], *, cached: bool = True) -> Array:
        """What a program gives for each row, from caches where they have it; equal rows are computed once."""
        tiers = self.parts.embeddings
        if tiers is None or not cached:
            return self._in_buckets(program, arrays)
        columns = [np.ascontiguousarray(array).reshape(len(array), -1) for array in arrays.values()]
        whole = np.concatenate([column.view(np.uint8).reshape(len(column), -1) for column in columns], axis=1)
        keys = [row.tobytes() for row in whole]
        at = {key: index for index, key in enumerate(keys)}

        def compute(missing: Sequence[bytes]) -> Sequence[bytes]:
            rows = np.array([at[key] for key in missing])
            answers = self._in_buckets(program, {name: array[rows] for name, array in arrays.items()})
            return [answer.tobytes() for answer in np.ascontiguousarray(answers, np.float32)]

        return np.frombuffer(b"".join(tiers.look_up(keys, compute)), np.float32).reshape(len(keys), -1)

    def _in_buckets(self, program: str, arrays: Mapping[str, Array]) -> Array:
        """Rows of about the same length together, cut to the shortest bucket that holds them."""
        if not self.config.sequence:
            return self._in_pieces(program, arrays)
        lengths = arrays[MASK].sum(axis=1)
        whole = arrays[MASK].shape[1]
        self.work.padded -= int(lengths.sum())  # what is left of the positions is padding
        if not self.config.buckets:
            self.work.padded += len(lengths) * whole
            self.work.positions += len(lengths) * whole
            return self._in_pieces(program, arrays)
        sizes = np.array([*(size for size in self.config.buckets if size < whole), whole])
        chosen = np.searchsorted(sizes, lengths)
        answers: Array | None = None
        for bucket in np.unique(chosen):
            rows, size = np.flatnonzero(chosen == bucket), int(sizes[bucket])
            self.work.padded += len(rows) * size
            self.work.positions += len(rows) * size
            cut = {
                name: np.ascontiguousarray(array[rows, :size] if name in self.config.sequence else array[rows])
                for name, array in arrays.items()
            }
            part = self._in_pieces(program, cut)
            if answers is None:
                answers = np.empty((len(lengths), *part.shape[1:]), part.dtype)
            answers[rows] = part
        assert answers is not None
        return answers

    def _in_pieces(self, program: str, arrays: Mapping[str, Array]) -> Array:
        """Calls with as many rows as a static batch has, or at most as many as a call may take."""
        batching, count = self.config.batching, len(next(iter(arrays.values())))
        size = batching.rows if batching.static else batching.split or count
        answers = [self._call(program, piece, size) for piece in _pieces(arrays, count, size)]
        return (answers[0] if len(answers) == 1 else np.concatenate(answers))[:count]

    def _call(self, program: str, arrays: Mapping[str, Array], size: int) -> Array:
        count = len(next(iter(arrays.values())))
        if self.config.batching.static and count < size:
            filling = np.r_[np.arange(count), np.zeros(size - count, np.int64)]
            arrays = {name: array[filling] for name, array in arrays.items()}
        self.work.calls += 1
        self.work.rows += len(next(iter(arrays.values())))
        if not self.config.sequence:
            self.work.positions += len(next(iter(arrays.values())))
            self.work.padded += len(next(iter(arrays.values()))) - count
        return self.parts.programs[program](arrays)


def entries(tables: Mapping[str, Array], table: str) -> int:
    """How many queries or items there are; items that were computed before need no features."""
    return len(tables[table if table in tables else "embedding"])


def best(logits: Array, top: int) -> tuple[Array, Array]:
    """The items with the largest logits, largest first; of equal ones the lower number comes first."""
    top = min(top, len(logits))
    chosen = np.argpartition(-logits, top - 1)[:top] if top < len(logits) else np.arange(len(logits))
    chosen = chosen[np.lexsort((chosen, -logits[chosen]))].astype(np.int64)
    return chosen, logits[chosen]


def sigmoid(logits: Array) -> Array:
    """Of a logit, in float32, without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * logits))).astype(np.float32)


def _pieces(arrays: Mapping[str, Array], count: int, size: int) -> Iterator[Mapping[str, Array]]:
    if count <= size:
        yield arrays
        return
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in arrays.items()}


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
