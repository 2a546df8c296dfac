"""Runs with seeds of their own are joined to what one run with all seeds would say."""

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
from leanmark.results import Result, Role, Run, Status

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
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(0, 2, EXAMPLES).astype(np.float64) for _ in range(2))  # type: ignore[return-value]


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
    from leanmark.results import StepSpec

    changed = replace(cell(), steps=(StepSpec("prune.magnitude"),))
    return replace(run, results=(run.results[0], replace(run.results[1], cell=changed)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
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
