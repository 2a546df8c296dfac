"""A service as its process runs it: programs loaded, tables in memory or in a store, caches, a search."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.serving.caches import Instance, Shared, Tier, Tiers
from leanmark.serving.config import Caching, Index, ServiceConfig, carried
from leanmark.serving.handlers import Handler, Parts, Program, Search
from leanmark.stages import Artifact
from leanmark.traffic import Traffic

Loader = Callable[[Artifact, int, str], Any]


def make_handler(
    artifact: Artifact, traffic: Traffic, loader: Loader, threads: int, redis_url: str = "", cache_name: str = ""
) -> Handler:
    """The handler of a service's artifact. Raises PreparationError where a program cannot be loaded.

    redis_url: of the shared tier, where the service does not name its own. cache_name: what its keys there begin with.
    """
    config = ServiceConfig.read(artifact.manifest["service"])
    tables = artifact.tables()
    programs = {name: program_of(loader(artifact.part(name), threads, "cpu")) for name in artifact.programs}
    stored = traffic.features == "store" and config.ranks
    caching = config.caching
    tiers = None if caching is None else Tiers(_tiers(caching, redis_url, cache_name))
    of = None if caching is None else caching.what
    return Handler(
        config,
        carried(config, traffic),
        Parts(
            programs,
            tables,
            _store(tables, traffic).read if stored else None,
            tiers if of == "features" else None,
            tiers if of == "embeddings" else None,
            None if config.index is None else make_search(config.index, tables, threads),
        ),
    )


def program_of(session: Any) -> Program:
    """A runtime's session as a function of arrays."""
    bind, call, outputs = session.bind, session.call, session.outputs

    def program(arrays: Mapping[str, Array]) -> Array:
        return outputs(call(bind(arrays)))[0]

    return program


def _tiers(caching: Caching, redis_url: str, name: str) -> list[Tier]:
    found: list[Tier] = []
    if caching.tier != "shared":
        found.append(Instance(caching.policy, caching.entries, caching.ttl_seconds))
    if caching.tier != "instance":
        found.append(Shared(caching.redis_url or redis_url, f"leanmark:{name}:".encode(), caching.ttl_seconds))
    return found


_ROWS_A_QUESTION = 30_000  # SQLite takes 32,766 values at once


def _store(tables: Mapping[str, Array], traffic: Traffic) -> Store:
    return Store({name: tables[name] for name in ("query", "item") if name in tables}, traffic.store_seconds)


class Store:
    """Features on disk, as a service reads them that does not hold them itself: SQLite, a table a kind, a row an id.

    A store that is elsewhere is one whose every reading takes `seconds` longer.
    """

    def __init__(self, tables: Mapping[str, Array], seconds: float = 0.0) -> None:
        self._seconds = seconds
        with tempfile.TemporaryDirectory(prefix="leanmark-store-") as folder:
            self._database = sqlite3.connect(Path(folder) / "features.db", isolation_level=None)
            for name, table in tables.items():
                self._fill(name, table)
            # The file stays for as long as this process has it open, and goes with it, however that ends.

    def _fill(self, name: str, table: Array) -> None:
        self._database.execute(f"create table {name} (id integer primary key, content blob)")
        self._database.execute("begin")
        rows = ((number, row.tobytes()) for number, row in enumerate(table))
        self._database.executemany(f"insert into {name} values (?, ?)", rows)  # noqa: S608 - the names are ours
        self._database.execute("commit")

    def read(self, name: str, ids: Sequence[int]) -> Sequence[bytes]:
        """The rows of these ids, which are there, each once, the lowest first."""
        if self._seconds:
            time.sleep(self._seconds)
        found: list[bytes] = []
        for start in range(0, len(ids), _ROWS_A_QUESTION):
            part = ids[start : start + _ROWS_A_QUESTION]
            marks = ",".join("?" * len(part))
            asked = f"select content from {name} where id in ({marks}) order by id"  # noqa: S608 - the names are ours
            found += [content for (content,) in self._database.execute(asked, part)]
        return found


def make_search(index: Index, tables: Mapping[str, Array], threads: int) -> Search:
    """How the items with the largest products are found: by faiss, over all of them or over some."""
    import faiss

    faiss.omp_set_num_threads(threads)
    built = built_index(index, np.ascontiguousarray(tables["embedding"]), tables.get("centroids"))

    def search(queries: Array, top: int) -> list[tuple[Array, Array]]:
        scores, ids = built.search(np.ascontiguousarray(queries), min(top, built.ntotal))
        # Lists that are looked into may hold fewer; what is missing has no id.
        return [(own[own >= 0], found[own >= 0]) for own, found in zip(ids, scores, strict=True)]

    return search


def built_index(index: Index, items: Array, centroids: Array | None) -> Any:
    """A faiss index over rows of items (Johnson, Douze, Jégou 2017). `ivf`: its lists' centres were trained before."""
    import faiss

    width = items.shape[1]
    built: Any
    if index.kind == "hnsw":
        built = faiss.IndexHNSWFlat(width, index.links, faiss.METRIC_INNER_PRODUCT)
        built.hnsw.efSearch = index.effort
    elif index.kind == "ivf":
        assert centroids is not None
        coarse = faiss.IndexFlatIP(width)
        coarse.add(np.ascontiguousarray(centroids))
        built = faiss.IndexIVFFlat(coarse, width, len(centroids), faiss.METRIC_INNER_PRODUCT)
        built.is_trained, built.nprobe = True, index.probes
    else:
        built = faiss.IndexFlatIP(width)
    built.add(items)
    return built
