"""Weight clustering: the weights of a tensor share a few values, and are stored as indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.codecs import MAX_PALETTE
from leanmark.errors import NotApplicable, PreparationError
from leanmark.registry import step
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, TorchModel
from leanmark.weights import distinct_values, finite_values, weight_parameters, weight_tensors

if TYPE_CHECKING:
    from torch import nn

Start = Literal["linear", "density", "kmeans++"]

MAX_ROUNDS = 1000
# Choosing a center by k-means++ looks at every value, so it is for codebooks of usual size.
MAX_PLUS_PLUS = 1024


def few_values(artifact: Artifact, params: Mapping[str, Any]) -> Evidence:
    """Distinct values of each weight tensor of the final artifact, and what a weight takes in its file."""
    clusters = int(params["clusters"])
    distinct = {name: distinct_values(array) for name, array in weight_tensors(artifact).items()}
    facts = {
        "clusters": clusters,
        "distinct_values": max(distinct.values(), default=0),
        "by_tensor": distinct,
        "bits_per_weight": _bits_per_weight(artifact),
    }
    if not distinct:
        return Evidence("cluster.kmeans", False, facts, "the final artifact has no weight tensors")
    worst = max(distinct, key=lambda name: distinct[name])
    if distinct[worst] > clusters:
        reason = f"'{worst}' holds {distinct[worst]} distinct values, more than {clusters}: a later step moved them"
        return Evidence("cluster.kmeans", False, facts, reason)
    return Evidence("cluster.kmeans", True, facts)


def _bits_per_weight(artifact: Artifact) -> float | None:
    """Bits of the packed file, codebooks and header included, over the numbers in it; None if not packed."""
    path = artifact.root / "weights.packed"
    if not path.exists():
        return None
    numbers = sum(array.size for array in artifact.packed_weights().values())
    return round(8 * path.stat().st_size / numbers, 4) if numbers else None


@step(
    "cluster.kmeans",
    family="sharing",
    consumes=TorchModel,
    produces=TorchModel,
    evidence=few_values,
    libraries=("torch", "numpy"),
)
def kmeans(
    model: TorchModel,
    ctx: Context,
    *,
    clusters: Annotated[int, Ge(2), Le(MAX_PALETTE)],
    init: Start = "linear",
    preserve: tuple[Literal["sparsity"], ...] = (),
) -> TorchModel:
    """Let the weights of each tensor share `clusters` values, found by k-means.

    clusters: values a tensor may hold, 2 to 65,536; 16 make indices of 4 bits. A tensor
    that holds no more than that already stays as it is.
    init: where the centers start. `linear` spaces them evenly from the smallest weight
    to the largest, which keeps the few large ones apart (Han et al. found it best);
    `density` gives each as many weights; `kmeans++` draws them far from one another,
    for up to 1,024 clusters.
    preserve: `sparsity` makes zero one of the values, for exactly the weights that are
    zero; otherwise pruned weights are clustered like any other.

    The artifact is stored packed: bit-packed indices and one codebook a tensor, decoded
    when it is loaded. So its file is smaller, its memory and its speed are not. Folding
    batch norms or training afterwards multiplies the values, unless they preserve them.
    Evidence: distinct values of each weight tensor of the final artifact, and bits a
    weight in its file; ineffective where a tensor holds more than `clusters`.
    Source: Han, Mao, Dally 2016, Deep Compression; Arthur, Vassilvitskii 2007,
    k-means++.
    """
    weights = weight_parameters(model.module)
    if not weights:
        raise NotApplicable("this model has no weight tensor to cluster")
    if init == "kmeans++" and clusters > MAX_PLUS_PLUS:
        raise PreparationError(f"kmeans++ is for up to {MAX_PLUS_PLUS} clusters, not {clusters}", do="Use density.")
    random = np.random.default_rng(int(ctx.generator("cluster.kmeans").initial_seed()))
    most = 0
    for number, (name, weight) in enumerate(weights.items()):
        ctx.progress(number / len(weights), name)
        values = finite_values(name, weight)
        distinct = distinct_values(values)
        most = max(most, distinct)
        if distinct > clusters:
            _store(weight, cluster_values(values, clusters, init, random, keep_zeros="sparsity" in preserve))
    if most <= clusters:
        raise PreparationError(
            f"{clusters} clusters are no fewer than the {most} distinct values that any tensor holds",
            do="Ask for fewer clusters.",
        )
    return replace(model.with_module(model.module), delivery=replace(model.delivery, packed=True))


def _store(weight: nn.Parameter, values: Array) -> None:
    import torch

    with torch.no_grad():
        weight.copy_(torch.from_numpy(values).view(weight.shape))


def cluster_values(
    values: Array, clusters: int, init: Start, random: np.random.Generator, *, keep_zeros: bool = False
) -> Array:
    """Each of the float32 `values` (N,) replaced by the center of its cluster.

    keep_zeros: zero is one of the centers, for the zeros alone.
    """
    if not keep_zeros or not (values == 0).any():
        return _replaced(values, clusters, init, random)
    clustered = np.zeros_like(values)
    others = values != 0
    clustered[others] = _replaced(values[others], clusters - 1, init, random, no_zero=True)
    return clustered


def _replaced(
    values: Array, clusters: int, init: Start, random: np.random.Generator, *, no_zero: bool = False
) -> Array:
    distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    if distinct.size <= clusters:
        return values
    edges, centers = kmeans_sorted(distinct.astype(np.float64), counts, clusters, init, random)
    rounded = centers.astype(values.dtype)
    if no_zero:  # a center between weights of both signs can be zero; its nearest weight is not
        for number in np.flatnonzero(rounded == 0):
            members = distinct[edges[number] : edges[number + 1]]
            rounded[number] = members[np.argmin(np.abs(members))]
    return np.repeat(rounded, np.diff(edges))[inverse.reshape(-1)]


def kmeans_sorted(
    values: Array, counts: Array, clusters: int, init: Start, random: np.random.Generator
) -> tuple[Array, Array]:
    """Lloyd's k-means of distinct ascending float64 values, each `counts` times.

    Gives edges (clusters + 1,) and centers (clusters,): cluster j is values[edges[j] :
    edges[j + 1]], and none is empty. Needs more values than clusters. In one dimension
    clusters are intervals, so that a round takes sums over intervals only, whatever the
    number of values.
    """
    weight = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    total = np.concatenate([[0.0], np.cumsum(counts * values)])
    centers = _start(values, counts, clusters, init, random)
    edges = _edges(values, centers)
    for _ in range(MAX_ROUNDS):
        edges = _fill_empty(values, counts, edges, clusters)
        centers = np.diff(total[edges]) / np.diff(weight[edges])
        moved = _edges(values, centers)
        if np.array_equal(moved, edges):
            break
        edges = moved
    edges = _fill_empty(values, counts, edges, clusters)
    # Differences of running sums lose what is small beside the largest; sums of each do not.
    return edges, np.add.reduceat(counts * values, edges[:-1]) / np.add.reduceat(counts, edges[:-1])


def _start(values: Array, counts: Array, clusters: int, init: Start, random: np.random.Generator) -> Array:
    if init == "linear":
        return np.linspace(values[0], values[-1], clusters)
    if init == "density":
        reached = np.cumsum(counts) / counts.sum()
        places = (np.arange(clusters) + 0.5) / clusters
        return values[np.searchsorted(reached, places).clip(0, values.size - 1)]
    chosen = np.empty(clusters)
    chosen[0] = random.choice(values, p=counts / counts.sum())
    distance = (values - chosen[0]) ** 2
    for number in range(1, clusters):
        chances = np.cumsum(counts * distance)
        chosen[number] = values[np.searchsorted(chances, random.random() * chances[-1], side="right")]
        np.minimum(distance, (values - chosen[number]) ** 2, out=distance)
    return np.sort(chosen)


def _edges(values: Array, centers: Array) -> Array:
    inner = np.searchsorted(values, (centers[1:] + centers[:-1]) / 2, side="right")
    return np.concatenate([[0], inner, [values.size]])


def _fill_empty(values: Array, counts: Array, edges: Array, clusters: int) -> Array:
    """Drop empty clusters, and split those with the largest squared error until there are enough."""
    edges = np.unique(edges)
    while edges.size - 1 < clusters:
        widths = np.diff(edges)
        mean = np.add.reduceat(counts * values, edges[:-1]) / np.add.reduceat(counts, edges[:-1])
        error = np.add.reduceat(counts * (values - np.repeat(mean, widths)) ** 2, edges[:-1])
        error[widths == 1] = -1.0  # one value cannot be split
        missing = clusters - (edges.size - 1)
        worst = np.argsort(-error, kind="stable")[: min(missing, int((widths > 1).sum()))]
        split = np.searchsorted(values, mean[worst], side="right").clip(edges[worst] + 1, edges[worst + 1] - 1)
        edges = np.union1d(edges, split)
    return edges
