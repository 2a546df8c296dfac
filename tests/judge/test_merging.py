"""Runs with seeds of their own are joined to what one run with all seeds would say."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.documents import NAME, cell, result
from judge.documents import run as made
from leanmark.errors import InvalidInput
from leanmark.judge.merging import merge
from leanmark.measure.quality import Answers, assess
from leanmark.results import Base, Claim, Footprint, Interval, Result, Role, Run, Status, StepSpec

REFERENCE = "net/fp32/cpu-onnxruntime-t1-b1"
EXAMPLES = 50


def answers(right: np.ndarray) -> Answers:
    """Answers to examples of class 1 that are right where they should be."""
    return Answers((np.stack([1.0 - right, right], axis=1),), np.ones(len(right), np.int64))


def of_seed(seed: int, own: np.ndarray, reference: np.ndarray, status: Status = Status.OK) -> Run:
    qualities = (
        assess("accuracy", [answers(reference)], None, "e"),
        assess("accuracy", [answers(own)], [answers(reference)], "e"),
    )
    results = (
        replace(result(REFERENCE, role=Role.REFERENCE), quality=qualities[0], artifact=f"r{seed}"),
        replace(result(NAME), quality=qualities[1], artifact=f"v{seed}", status=status, reason="it broke"),
    )
    return replace(made(*results), id=f"run-{seed}", seeds=(seed,))


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    own, reference = np.random.default_rng(seed).integers(0, 2, (2, EXAMPLES)).astype(np.float64)
    return own, reference


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6, unique=True))
def test_quality_is_that_of_one_run_with_all_seeds(seeds: list[int]):
    merged = merge([of_seed(seed, *drawn(seed)) for seed in seeds])
    order = sorted(seeds)
    own, reference = zip(*(map(answers, drawn(seed)) for seed in order), strict=True)
    assert merged.seeds == tuple(order)
    assert merged.results[1].quality == assess("accuracy", own, reference, "e")
    assert merged.results[0].quality == assess("accuracy", reference, None, "e")
    assert merged.results[1].artifact == f"v{order[0]}"
    assert merged.results[1].more_artifacts == tuple(f"v{seed}" for seed in order[1:])


def test_a_cell_that_failed_with_one_seed_has_failed():
    broken = of_seed(1, *drawn(1), status=Status.FAILED)
    broken = replace(broken, results=(broken.results[0], replace(broken.results[1], quality=None)))
    found = merge([of_seed(0, *drawn(0)), broken]).results[1]
    assert (found.status, found.reason) == (Status.FAILED, "in run-1: it broke")
    assert found.quality is None


def bounds(interval: Interval | None) -> tuple[float, ...]:
    return () if interval is None else (interval.value, interval.low, interval.high)


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=6, unique=True), st.data())
def test_it_does_not_matter_how_seeds_were_spread_over_runs(seeds: list[int], data: st.DataObject):
    alone = [of_seed(seed, *drawn(seed)) for seed in seeds]
    cut = data.draw(st.integers(2, len(seeds) - 1))
    parts = [merge(alone[:cut]), *alone[cut:]]
    whole, joined = merge(alone), merge(data.draw(st.permutations(parts)))
    assert sorted(joined.seeds) == sorted(whole.seeds)
    for one, other in zip(joined.results, whole.results, strict=True):
        assert one.quality is not None
        assert other.quality is not None
        for ours, theirs in (
            (one.quality.score, other.quality.score),
            (one.quality.difference, other.quality.difference),
        ):
            assert bounds(ours) == pytest.approx(bounds(theirs))
        assert one.quality.answers_changed == pytest.approx(other.quality.answers_changed)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6, unique=True))
def test_without_knowing_which_answers_were_right_intervals_are_no_narrower_than_one_runs_by_root_of_seeds(
    seeds: list[int],
):
    runs = [without_hits(of_seed(seed, *drawn(seed))) for seed in seeds]
    for index, item in enumerate(merge(runs).results):
        parts = [run.results[index].quality for run in runs]
        assert item.quality is not None
        assert item.quality.score.value == pytest.approx(np.mean([part.score.value for part in parts if part]))
        assert item.quality.score.n == EXAMPLES
        narrowest = min(part.score.high - part.score.low for part in parts if part)
        assert item.quality.score.high - item.quality.score.low >= narrowest / np.sqrt(len(seeds))
        assert (item.quality.difference is not None) is (item.cell.role is not Role.REFERENCE)


def without_hits(run: Run) -> Run:
    """As a metric that is no mean of hits leaves a document."""
    results = [replace(item, quality=replace(item.quality, hits=())) for item in run.results if item.quality]
    return replace(run, results=tuple(results))


def test_a_difference_of_none_has_an_interval():
    """Twice the same answers are no proof that none would ever differ."""
    right = np.ones(EXAMPLES)
    found = merge([of_seed(seed, right, right) for seed in (0, 1)]).results[1].quality
    assert found is not None
    assert found.difference is not None
    assert found.difference.low < 0 == found.difference.value < found.difference.high


def test_sizes_are_the_largest_of_any_seed():
    runs = [of_seed(seed, *drawn(seed)) for seed in (0, 1)]
    sizes = [Footprint(1000, 100, 50, 400, 300), Footprint(1000, 90, 50, 410, 290)]
    runs = [
        replace(run, results=(run.results[0], replace(run.results[1], footprint=size)))
        for run, size in zip(runs, sizes, strict=True)
    ]
    assert merge(runs).results[1].footprint == Footprint(1000, 100, 50, 410, 300)


def test_noise_while_another_seed_was_measured_does_not_count():
    found = merge([of_seed(0, *drawn(0)), of_seed(1, *drawn(1), status=Status.NOISY)])
    assert found.results[1].status is Status.OK


def test_the_document_says_what_it_is_made_of():
    other = replace(of_seed(1, *drawn(1)), environment={"machine_class": "bbb"}, warnings=("steal",))
    warnings = merge([of_seed(0, *drawn(0)), other]).warnings
    assert "merged from run-0 (seed 0), run-1 (seed 1)" in warnings[0]
    assert "the merged runs were made with other machine classes" in warnings
    assert "steal" in warnings


def _other_suite(run: Run) -> Run:
    return replace(run, suite="other")


def _same_seed(run: Run) -> Run:
    return replace(run, seeds=(0,))


def _cell_missing(run: Run) -> Run:
    return replace(run, results=run.results[:1])


def _other_examples(run: Run) -> Run:
    def changed(item: Result) -> Result:
        assert item.quality is not None
        return replace(item, quality=replace(item.quality, examples="f"))

    return replace(run, results=tuple(map(changed, run.results)))


def _other_parameters(run: Run) -> Run:
    changed = replace(cell(), steps=(StepSpec("prune.magnitude"),))
    return replace(run, results=(run.results[0], replace(run.results[1], cell=changed)))


def _beside_a_base(run: Run) -> Run:
    return replace(run, bases=(Base("revision", "abc", "abc", (), {}),))


def _other_claims(run: Run) -> Run:
    return replace(run, claims=(Claim("*", "A 2015", {"smaller": 2}),))


def _no_scores(run: Run) -> Run:
    def changed(item: Result) -> Result:
        assert item.quality is not None
        return replace(item, quality=replace(item.quality, by_seed=()))

    return replace(run, results=tuple(map(changed, run.results)))


def _damaged_hits(run: Run) -> Run:
    def changed(item: Result) -> Result:
        assert item.quality is not None
        return replace(item, quality=replace(item.quality, hits=("!",)))

    return replace(run, results=tuple(map(changed, run.results)))


def _not_finite(run: Run) -> Run:
    def changed(item: Result) -> Result:
        assert item.quality is not None
        score = replace(item.quality.score, value=math.inf, high=math.inf)
        return replace(item, quality=replace(item.quality, hits=(), score=score, by_seed=(math.inf,)))

    return replace(run, results=tuple(map(changed, run.results)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_beside_a_base, "run-1 was measured beside another version"),
        (_other_claims, "other published figures"),
        (_no_scores, "0 scores of"),
        (_damaged_hits, "numbers that nothing measures"),
        (_not_finite, "numbers that nothing measures|no finite interval"),
        (_other_suite, "are of other suites: quick and other"),
        (_same_seed, "both have seed 0"),
        (_cell_missing, f"only one of .* has the cell {NAME}"),
        (_other_examples, "other test examples"),
        (_other_parameters, f"the cell {NAME} has other steps"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: Callable[[Run], Run], says: str):
    with pytest.raises(InvalidInput, match=says):
        merge([of_seed(0, *drawn(0)), change(of_seed(1, *drawn(1)))])


def test_one_run_is_none_to_merge():
    with pytest.raises(InvalidInput, match="only one run"):
        merge([of_seed(0, *drawn(0))])
