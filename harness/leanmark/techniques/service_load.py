"""What a service does with its load: it keeps answers, puts requests together, and shares its machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from leanmark.errors import NotApplicable
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.serving.config import Batching, Caching, ServiceConfig
from leanmark.stages import Artifact, Context, Service
from leanmark.techniques.services import changed, config_of, no_service
from leanmark.traffic import Served


def has_cache(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The service has the cache that was asked for."""
    config = config_of(artifact)
    if config is None or config.caching is None:
        return replace(no_service("serve.cache"), reason="the final artifact has no cache")
    kept = config.caching
    facts = {"tier": kept.tier, "what": kept.what, "policy": kept.policy, "entries": kept.entries}
    return Evidence("serve.cache", True, facts)


def hits_observed(evidence: Evidence, served: Served) -> Evidence:
    """With hits, ages and evictions of each tier; without a hit it is no cache."""
    facts = {
        f"{name}_{what}": value
        for name, use in served.tiers.items()
        for what, value in (
            ("hit_rate", use.hit_rate),
            ("evicted", use.evicted),
            ("failed", use.failed),
            ("mean_age_seconds", use.mean_age_seconds),
            ("oldest_seconds", use.oldest_seconds),
        )
    }
    found = replace(evidence, facts={**evidence.facts, **facts})
    if evidence.effective and not any(use.hits for use in served.tiers.values()):
        return replace(found, effective=False, reason="nothing that was asked for was in a cache")
    return found


@step(
    "serve.cache",
    family="caching",
    consumes=Service,
    produces=Service,
    evidence=has_cache,
    exact=1e-4,
    libraries=("cachetools", "redis"),
    observed=hits_observed,
)
def cache(
    stage: Service,
    ctx: Context,
    *,
    what: Literal["features", "embeddings"] = "embeddings",
    tier: Literal["instance", "shared", "both"] = "instance",
    policy: Literal["lru", "lfu", "ttl"] = "lru",
    share: Annotated[float, Gt(0), Le(1)] = 0.1,
    entries: Annotated[int, Ge(0), Le(10_000_000)] = 0,
    ttl_seconds: Annotated[float, Gt(0), Le(86400)] | None = None,
    redis_url: str = "",
) -> Service:
    """Keep what was computed or fetched, and answer from it when it is asked for again.

    what: features, in front of the store that holds them; or embeddings, which is what a program gave for a row, in
    front of the program. tier: in the instance's own memory, in a server that instances share, or in both, one before
    the other. policy: which entry goes when the instance's tier is full: the one used longest ago, the one used least
    often, or the oldest (ttl). share: of the catalogue's items, how many it has room for; entries: how many, where that
    is not 0. ttl_seconds: after which an entry is not served any more; None for never (of the policy ttl, an hour).
    redis_url: of a Redis server that is there; empty for one of leanmark's own, on the loopback.

    Where the shared tier does not answer within 50 ms, the service does without it for a second.
    Evidence: the cache of the final artifact; under traffic, hit rates, ages and evictions by tier: at least one hit.
    Source: Nishtala et al. 2013, Scaling Memcache at Facebook; Breslau et al. 1999, Web Caching and Zipf-like
    Distributions.
    """
    config = ServiceConfig.read(stage.config)
    if what == "features" and not config.ranks:
        raise NotApplicable("its requests bring their examples: there are no features to fetch")
    if what == "embeddings" and config.precomputed:
        raise NotApplicable("its embeddings are computed before: there is nothing left to keep")
    items = len(stage.tables["item"]) if "item" in stage.tables else 0
    if not entries and not items:
        raise NotApplicable("it has no catalogue of which a share could be kept", do="Say `entries`.")
    caching = Caching(tier, what, policy, entries or max(1, round(share * items)), ttl_seconds, redis_url)
    return changed(stage, caching=caching)


def has_batches(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The service puts requests together as asked."""
    config = config_of(artifact)
    if config is None:
        return no_service("serve.batch")
    own = config.batching
    facts = {"rows": own.rows, "wait_seconds": own.wait_seconds, "static": own.static}
    facts |= {"instances": own.instances, "split": own.split}
    there = own != Batching()
    return Evidence("serve.batch", there, facts, "" if there else "the final artifact makes no batches")


def batches_observed(evidence: Evidence, served: Served) -> Evidence:
    """With requests a batch, rows a batch, calls a request; without any effect on calls it is none."""
    batches = sum(served.batches.values())
    rows = sum(int(rows) * number for rows, number in served.batches.items())
    answered = served.queries - served.rejected - served.failed - served.late
    together = answered / batches if batches else 0.0
    calls = float(served.facts.get("calls", 0.0))
    facts = {
        "requests_a_batch": together,
        "rows_a_batch": rows / batches if batches else 0.0,
        "calls_a_request": calls,
        "filled_up": served.padding,
    }
    found = replace(evidence, facts={**evidence.facts, **facts})
    divided = evidence.facts.get("split") and calls > 1
    elsewhere = int(evidence.facts.get("instances") or 1) > 1 and served.facts.get("instances_used", 1) > 1
    if evidence.effective and not (together > 1.005 or divided or elsewhere or evidence.facts.get("static")):
        return replace(found, effective=False, reason="no two requests were ever answered together")
    return found


@step(
    "serve.batch",
    family="batching",
    consumes=Service,
    produces=Service,
    evidence=has_batches,
    exact=1e-4,
    observed=batches_observed,
)
def batch(
    stage: Service,
    ctx: Context,
    *,
    rows: Annotated[int, Ge(1), Le(65536)] = 64,
    wait_ms: Annotated[float, Ge(0), Le(1000)] = 2.0,
    static: bool = False,
    split: Annotated[int, Ge(0), Le(65536)] = 0,
    instances: Annotated[int, Ge(1), Le(16)] = 1,
) -> Service:
    """Answer requests that come close together with one call, or divide a large one over several.

    rows: how many at most a call takes together; a request that is larger goes alone. wait_ms: for how many
    milliseconds the first request of a batch waits for others. static: calls always have that many rows, filled up, as
    programs of fixed shape need. split: rows a call, into which requests are divided; 0 for never. instances: processes
    that share the traffic in turn; where there are not as many cores, they share these, too.

    Evidence: under traffic, requests and rows a batch, calls a request: some requests were answered together, or
    divided.
    Source: Crankshaw et al. 2017, Clipper (adaptive batching); Gujarati et al. 2020, Clockwork.
    """
    return changed(stage, batching=Batching(rows, wait_ms / 1000, static, instances, split))


def has_buckets(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The service cuts sequences to its buckets."""
    config = config_of(artifact)
    if config is None:
        return no_service("serve.bucket")
    there = bool(config.buckets) and bool(config.sequence)
    return Evidence("serve.bucket", there, {"buckets": list(config.buckets)}, "" if there else "it has no buckets")


def padding_observed(evidence: Evidence, served: Served) -> Evidence:
    """With the share of positions that were there only to fill up, and positions a row."""
    positions, whole = served.facts.get("positions_a_row", 0.0), served.facts.get("longest", 0)
    facts = {**evidence.facts, "padding": served.padding, "positions_a_row": positions}
    if evidence.effective and positions >= whole:
        return replace(evidence, effective=False, facts=facts, reason="no sequence was cut")
    return replace(evidence, facts=facts)


@step(
    "serve.bucket",
    family="batching",
    consumes=Service,
    produces=Service,
    evidence=has_buckets,
    exact=1e-4,
    observed=padding_observed,
)
def bucket(stage: Service, ctx: Context, *, buckets: tuple[Annotated[int, Ge(1)], ...] = (8, 16, 32)) -> Service:
    """Compute sequences of about the same length together, cut to the shortest bucket that holds them.

    buckets: their lengths; the program's own is always the last.
    Evidence: the buckets of the final artifact; under traffic, the share of positions that were padding, and positions
    a row, which must be fewer than without.
    Source: Abadi et al. 2016, TensorFlow (bucketing by length); Fang et al. 2021, TurboTransformers.
    """
    config = ServiceConfig.read(stage.config)
    if not config.sequence:
        raise NotApplicable("its inputs are no sequences of any length")
    return changed(stage, buckets=tuple(sorted(set(buckets))))


def has_neighbours(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """The service shares its cores with others."""
    config = config_of(artifact)
    if config is None:
        return no_service("serve.colocate")
    there = config.neighbours > 0
    return Evidence("serve.colocate", there, {"neighbours": config.neighbours}, "" if there else "it has none")


def neighbours_observed(evidence: Evidence, served: Served) -> Evidence:
    """With the share of the time that neighbours computed."""
    busy = float(served.facts.get("neighbours_busy", 0.0))
    found = replace(evidence, facts={**evidence.facts, "neighbours_busy": busy})
    return found if busy > 0 else replace(found, effective=False, reason="its neighbours did not compute")


@step(
    "serve.colocate",
    family="co-location",
    consumes=Service,
    produces=Service,
    evidence=has_neighbours,
    exact=1e-6,
    observed=neighbours_observed,
)
def colocate(stage: Service, ctx: Context, *, neighbours: Annotated[int, Ge(1), Le(16)] = 1) -> Service:
    """Let other models compute on the same cores: what a machine that is shared costs.

    neighbours: processes that run this service's own program again and again while it is measured.
    Evidence: the neighbours of the final artifact; under traffic, the share of the time that they computed.
    Source: Delimitrou, Kozyrakis 2013, Paragon: QoS-Aware Scheduling for Heterogeneous Datacenters.
    """
    return changed(stage, neighbours=neighbours)
