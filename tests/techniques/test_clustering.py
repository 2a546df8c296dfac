"""Clustering leaves as many values as asked, as good as k-means can, in a file of that few bits."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from leanmark import registry
from leanmark.errors import NotApplicable, PreparationError
from leanmark.networks.lenet import build_lenet_5
from leanmark.results import Evidence
from leanmark.stages import Artifact, Context, Program, Split, TorchModel
from leanmark.techniques.clustering import cluster_values, kmeans_sorted
from techniques import applying
from techniques.applying import stored

IMAGES = np.random.default_rng(0).normal(size=(32, 1, 28, 28)).astype(np.float32)
CONTEXT = Context(lambda name: Split({"image": IMAGES}, np.arange(32) % 10), 0)
INITS = ["linear", "density", "kmeans++"]


def model(seed: int = 0) -> TorchModel:
    torch.manual_seed(seed)
    config = {"filters": [6, 10], "units": 30}
    return TorchModel(build_lenet_5((6, 10), 30).eval(), "leanmark.networks.lenet:build_lenet_5", config)


def apply(name: str, stage: TorchModel | Program, ctx: Context = CONTEXT, **params):
    return applying.apply(name, stage, ctx, **params)


def evidence(stage: TorchModel | Program, folder: Path, **params) -> Evidence:
    return applying.evidence("cluster.kmeans", stored(stage, folder), **params)


def weights(stage: TorchModel) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in stage.module.parameters() if p.dim() > 1]


def squared_error(values: np.ndarray, clustered: np.ndarray) -> float:
    return float(((values.astype(np.float64) - clustered) ** 2).sum())


def best_possible(values: np.ndarray, clusters: int) -> float:
    """The smallest squared error of any clustering, by dynamic programming over the sorted values."""
    ordered = np.sort(values.astype(np.float64))
    count = ordered.size
    sums, squares = np.concatenate([[0], np.cumsum(ordered)]), np.concatenate([[0], np.cumsum(ordered**2)])

    def cost(start: int, end: int) -> float:
        return squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)

    best = [0.0] + [math.inf] * count
    for _ in range(clusters):
        best = [0.0] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, count + 1)]
    return max(0.0, best[count])


numbers = arrays.arrays(
    np.float32, st.integers(20, 80), elements=st.floats(-2, 2, width=32, allow_subnormal=False), unique=True
)


@given(values=numbers, clusters=st.integers(2, 15), init=st.sampled_from(INITS), seed=st.integers(0, 9))
def test_clusters_are_intervals_around_their_means_and_none_is_wasted(values, clusters, init, seed):
    clustered = cluster_values(values, clusters, init, np.random.default_rng(seed))
    assert np.unique(clustered).size == clusters
    order = np.argsort(values)
    assert (np.diff(clustered[order]) >= 0).all()
    for center in np.unique(clustered):
        assert center == pytest.approx(values[clustered == center].astype(np.float64).mean(), abs=1e-6)


@given(values=numbers, init=st.sampled_from(INITS))
def test_no_value_is_nearer_to_another_center(values, init):
    clustered = cluster_values(values, 6, init, np.random.default_rng(0))
    distances = abs(values[:, None] - np.unique(clustered)[None])
    assert (abs(values - clustered) <= distances.min(1) + 1e-5).all()


@pytest.mark.parametrize("init", INITS)
def test_the_result_is_close_to_the_best_clustering_there_is(init):
    values = np.random.default_rng(3).normal(size=120).astype(np.float32)
    error = squared_error(values, cluster_values(values, 8, init, np.random.default_rng(0)))
    assert error <= 1.35 * best_possible(values, 8)


def test_as_many_clusters_as_values_less_one_join_the_two_nearest():
    values = np.array([0.0, 1.0, 1.1, 5.0, 9.0], dtype=np.float32)
    for init in INITS:
        clustered = cluster_values(values, 4, init, np.random.default_rng(0))
        assert clustered.tolist() == pytest.approx([0.0, 1.05, 1.05, 5.0, 9.0])


def test_values_far_smaller_than_the_largest_keep_centers_of_their_own():
    values = np.array([-2.0, 1e-30, 2e-30, 3e-30, 1.0, 1.5], dtype=np.float32)
    clustered = cluster_values(values, 5, "density", np.random.default_rng(0))
    assert np.unique(clustered).size == 5
    assert (np.diff(clustered) >= 0).all()
    assert (clustered[1:4] < 1e-29).all()


def test_values_count_as_often_as_they_occur():
    values = np.array([0.0, 1.0, 10.0, 11.0])
    counts = np.array([3, 1, 1, 1])
    edges, centers = kmeans_sorted(values, counts, 2, "linear", np.random.default_rng(0))
    assert edges.tolist() == [0, 2, 4]
    assert centers.tolist() == [0.25, 10.5]


@given(share=st.floats(0.05, 0.9), clusters=st.integers(2, 12), init=st.sampled_from(INITS))
def test_kept_zeros_are_zeros_and_nothing_else_is(share, clusters, init):
    random = np.random.default_rng(0)
    values = random.normal(size=300).astype(np.float32)
    values[random.random(300) < share] = 0
    clustered = cluster_values(values, clusters, init, random, keep_zeros=True)
    assert np.array_equal(clustered == 0, values == 0)
    assert np.unique(clustered).size <= clusters


def test_a_center_between_weights_of_both_signs_does_not_become_a_zero():
    values = np.array([-1.0, 1.0, 0.0, 0.0], dtype=np.float32)
    clustered = cluster_values(values, 2, "linear", np.random.default_rng(0), keep_zeros=True)
    assert np.array_equal(clustered == 0, values == 0)


@pytest.mark.parametrize("init", INITS)
def test_each_tensor_has_values_of_its_own_and_the_file_is_as_small_as_their_indices(tmp_path, init):
    stage = apply("cluster.kmeans", model(), clusters=16, init=init)
    arrays_ = weights(stage)
    assert [np.unique(array).size for array in arrays_] == [16] * 4
    assert len({tuple(np.unique(array)) for array in arrays_}) == 4
    found = evidence(stage, tmp_path / "a", clusters=16)
    assert found.effective
    assert found.facts["distinct_values"] == 16
    assert 4 < found.facts["bits_per_weight"] < 5.5  # biases, codebooks and header included
    loaded = Artifact.open(tmp_path / "a").load()
    assert isinstance(loaded, TorchModel)
    for one, other in zip(weights(loaded), arrays_, strict=True):
        assert np.array_equal(one, other)


def test_the_answers_of_many_clusters_are_close():
    images = torch.from_numpy(IMAGES)
    with torch.inference_mode():
        expected = model().module(images)
        moved = [
            (apply("cluster.kmeans", model(), clusters=count).module(images) - expected).abs().max().item()
            for count in (4, 16, 64)
        ]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.1 * expected.abs().max().item()


def test_the_seed_decides_where_kmeans_plus_plus_starts():
    first, again, other = (
        weights(apply("cluster.kmeans", model(), replace(CONTEXT, seed=seed), clusters=16, init="kmeans++"))
        for seed in (0, 0, 1)
    )
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_pruned_weights_stay_pruned_only_when_sparsity_is_preserved():
    def zeros(stage: TorchModel) -> int:
        return sum(int((array == 0).sum()) for array in weights(stage))

    def pruned() -> TorchModel:
        return apply("prune.magnitude", model(), sparsity=0.7)

    for clusters in (2, 8):
        kept = apply("cluster.kmeans", pruned(), clusters=clusters, preserve=["sparsity"])
        assert zeros(kept) == zeros(pruned())
        assert all(np.unique(array).size == clusters for array in weights(kept))
    assert zeros(apply("cluster.kmeans", pruned(), clusters=2)) == 0


def test_evidence_reads_programs_and_sees_what_later_steps_undo(tmp_path):
    stage = apply("cluster.kmeans", model(), clusters=16)
    program = apply("export.onnx", stage)
    assert program.delivery.packed
    exported = evidence(program, tmp_path / "onnx", clusters=16)
    assert exported.effective
    assert exported.facts["bits_per_weight"] < 5.5
    one_scale = evidence(apply("quantize.static", program, per_channel=False), tmp_path / "one", clusters=16)
    assert one_scale.effective, one_scale.reason
    # A scale for each channel makes of one value as many integers as there are channels.
    many_scales = evidence(apply("quantize.static", program, per_channel=True), tmp_path / "many", clusters=16)
    assert not many_scales.effective
    assert "more than 16" in many_scales.reason
    with torch.no_grad():
        stage.module.fc1.weight.mul_(torch.linspace(0.5, 1.5, 30)[:, None])
    scaled = evidence(stage, tmp_path / "scaled", clusters=16)
    assert not scaled.effective
    assert "fc1.weight" in scaled.reason


def test_a_small_layer_with_few_values_stays_as_it_is():
    before = model()
    expected = before.module.conv1.weight.clone()
    stage = apply("cluster.kmeans", before, clusters=200)  # conv1 has 150 weights
    assert torch.equal(stage.module.conv1.weight, expected)
    assert np.unique(stage.module.fc1.weight.detach().numpy()).size == 200


def test_what_cannot_be_clustered_is_refused_with_its_reason():
    with pytest.raises(PreparationError, match=r"65536 clusters .* 4798 distinct values"):
        apply("cluster.kmeans", model(), clusters=65536)
    with pytest.raises(PreparationError, match="kmeans"):
        apply("cluster.kmeans", model(), clusters=5000, init="kmeans++")
    with pytest.raises(NotApplicable):
        apply("cluster.kmeans", TorchModel(nn.Flatten(), "none:none"), clusters=4)
    broken = model()
    with torch.no_grad():
        broken.module.fc2.weight[0, 0] = float("inf")
    with pytest.raises(PreparationError, match=r"fc2\.weight.*infinite"):
        apply("cluster.kmeans", broken, clusters=4)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"clusters": 1},
        {"clusters": 65537},
        {"clusters": 4.5},
        {"clusters": 4, "init": "x"},
        {"clusters": 4, "k": 1},
    ],
)
def test_parameters_out_of_range_are_refused(params):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        registry.get_step("cluster.kmeans").validate(params)
