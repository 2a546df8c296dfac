"""Published figures stand beside the run's own, and are called reached only where the whole interval says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from judge.documents import NAME, result
from judge.documents import run as made
from leanmark import hits, scoring
from leanmark.claims import FIGURES, beside
from leanmark.declare.schema import ClaimDeclaration
from leanmark.declare.suite import load
from leanmark.errors import InvalidInput
from leanmark.publish.numbers import claimed
from leanmark.results import Claim, Footprint, Interval, Quality, Role, Run, Status

REFERENCE = "net/fp32/cpu-onnxruntime-t1-b1"


def between(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 0.95, 8, "")


def run(claim: dict[str, float], *, loss: Interval | None = None, status: Status = Status.OK) -> Run:
    quality = Quality("accuracy", between(0.98, 0.97, 0.985), (0.98,), loss)
    variant = replace(
        result(NAME),
        quality=quality,
        footprint=Footprint(1000, 100, 50, 400, 300),
        against_reference=between(0.5, 0.4, 0.6),
        status=status,
        reason="why" if status is not Status.OK else "",
    )
    reference = replace(result(REFERENCE, role=Role.REFERENCE), footprint=Footprint(1000, 1000, 100, 4000, 3000))
    return replace(made(reference, variant), claims=(Claim("net/int8/*", "A. Author 2015", claim),))


@pytest.mark.parametrize(
    ("figure", "value", "here", "finding"),
    [
        ("fewer_weights", 10, 10, "reached"),
        ("fewer_weights", 12, 10, "missed"),
        ("smaller", 9, 10, "reached"),
        ("fewer_macs", 3, 2, "missed"),
        ("faster", 1.5, 2, "reached"),
        ("faster", 2, 2, "undecided"),
        ("faster", 3, 2, "missed"),
        ("error", 0.04, 0.02, "reached"),
        ("error", 0.02, 0.02, "undecided"),
        ("error", 0.01, 0.02, "missed"),
    ],
)
def test_a_figure_is_compared(figure: str, value: float, here: float, finding: str):
    (found,) = beside(run({figure: value}))
    assert found.here is not None
    assert found.here.value == pytest.approx(here)
    assert (found.cell, found.paper, found.finding) == (NAME, value, finding)


@pytest.mark.parametrize(
    ("difference", "finding"),
    [
        (between(0.0, -0.0009, 0.001), "reached"),
        (between(0.0, -0.002, 0.001), "undecided"),
        (between(-0.01, -0.02, -0.005), "missed"),
    ],
)
def test_no_loss_is_a_test_with_a_margin(difference: Interval, finding: str):
    (found,) = beside(run({"no_loss": 0.001}, loss=difference))
    assert found.finding == finding
    assert found.here is not None
    assert found.here.low == -difference.high


def test_what_failed_or_was_not_measured_has_no_figure():
    (found,) = beside(run({"smaller": 2}, status=Status.INEFFECTIVE))
    assert (found.here, found.finding, found.reason) == (None, "no figure", "ineffective: why")
    (found,) = beside(run({"no_loss": 0.001}))
    assert found.finding == "no figure"


@pytest.mark.parametrize(("share", "finding"), [(0.7, "reached"), (0.9, "undecided"), (1.3, "missed")])
def test_speed_is_compared_with_the_cut_of_macs(share: float, finding: str):
    (found,) = beside(run({"follows_macs": share}))
    assert found.here is not None
    assert (found.here.value, found.here.low) == pytest.approx((2 / 2, 1 / 0.6 / 2))
    assert found.finding == finding


def beside_another(claim: dict[str, float], own: np.ndarray, theirs: np.ndarray) -> Run:
    """A run with a second variant, `other`, which the claim names; and which answers were right."""
    one = run(claim, loss=between(0.0, -0.1, 0.1))
    reference, variant = one.results
    assert variant.quality is not None
    cell = replace(variant.cell, id="net/other/cpu-onnxruntime-t1-b1", recipe="other")
    other = replace(
        variant, cell=cell, footprint=Footprint(1000, 200, 50, 800, 600), against_reference=between(0.8, 0.7, 0.9)
    )
    scored = [replace(variant.quality, hits=(hits.pack(right),), by_seed=(right.mean(),)) for right in (own, theirs)]
    results = (reference, replace(variant, quality=scored[0]), replace(other, quality=scored[1]))
    return replace(one, results=results, claims=(Claim("net/int8/*", "A. Author 2015", claim, "other"),))


def test_a_recipe_may_be_compared_with_another():
    own, theirs = np.ones(500), np.ones(500)
    theirs[:60] = 0
    found = beside(
        beside_another({"smaller": 2, "fewer_weights": 2, "faster": 1.2, "better": 0.05, "no_loss": 0}, own, theirs)
    )
    by_figure = {item.figure: item for item in found}
    assert {item.finding for item in found} == {"reached"}
    assert {item.than for item in found} == {"other"}
    expected = scoring.paired_difference(own[None], theirs[None])
    assert by_figure["better"].here == expected
    faster = by_figure["faster"].here
    assert faster is not None
    assert faster.value == pytest.approx(0.8 / 0.5)
    assert faster.low < faster.value < faster.high
    (worse,) = beside(beside_another({"better": 0.0}, theirs, own))
    assert worse.finding == "missed"


def of_seeds(*losses: float) -> Run:
    """A run of several seeds which lose so much, each of a reference that scores differently."""
    made = run({"no_loss": 0.001}, loss=between(-0.0004, -0.002, 0.0012))
    reference, variant = made.results
    assert variant.quality is not None
    before = tuple(0.98 + 0.001 * seed for seed in range(len(losses)))
    own = tuple(one - loss for one, loss in zip(before, losses, strict=True))
    results = (
        replace(reference, quality=replace(variant.quality, by_seed=before, difference=None)),
        replace(variant, quality=replace(variant.quality, by_seed=own)),
    )
    return replace(made, results=results)


def test_no_loss_is_over_seeds_on_fixed_examples():
    (found,) = beside(of_seeds(0.0003, 0.0005, 0.0002, 0.0006))
    assert found.here is not None
    assert (found.here.value, found.here.n, found.finding) == (pytest.approx(0.0004), 4, "reached")
    # Student's interval of four losses: their mean and 3.18 standard errors.
    assert found.here.high == pytest.approx(0.0004 + 3.182 * 0.0001826 / 2, rel=1e-3)
    (found,) = beside(of_seeds(0.0003, 0.0005, 0.0002, 0.0036))
    assert found.finding == "undecided"


@pytest.mark.parametrize("losses", [(0.0004,), (0.0004, 0.0004, 0.0004)])
def test_seeds_that_tell_nothing_leave_the_interval_over_examples(losses: tuple[float, ...]):
    (found,) = beside(of_seeds(*losses))
    assert found.here is not None
    assert (found.here.high, found.finding) == (0.002, "undecided")


def test_a_loss_is_one_though_the_reference_has_no_scores():
    made = of_seeds(0.0003, 0.0005)
    (found,) = beside(replace(made, results=(replace(made.results[0], quality=None), made.results[1])))
    assert found.here is not None
    assert (found.here.low, found.here.high) == (-0.0012, 0.002)


def test_what_is_compared_with_may_be_ineffective():
    made = beside_another({"smaller": 2}, np.ones(10), np.ones(10))
    lost = replace(made.results[2], status=Status.INEFFECTIVE, reason="a later step moved them")
    (found,) = beside(replace(made, results=(*made.results[:2], lost)))
    assert found.finding == "reached"


def test_weights_are_compared_with_what_is_left_of_the_other():
    (found,) = beside(beside_another({"fewer_weights": 4}, np.ones(10), np.ones(10)))
    assert found.here is not None
    assert (found.here.value, found.finding) == (200 / 100, "missed")  # not 1000 / 100


def test_without_the_other_recipe_there_is_no_figure():
    made = beside_another({"better": 0.0}, np.ones(10), np.ones(10))
    (found,) = beside(replace(made, results=made.results[:2]))
    assert found.finding == "no figure"
    broken = replace(made.results[2], status=Status.FAILED, reason="it broke")
    (found,) = beside(replace(made, results=(*made.results[:2], broken)))
    assert (found.finding, found.reason) == ("no figure", "other: failed: it broke")
    scored = made.results[2].quality
    assert scored is not None
    damaged = replace(made.results[2], quality=replace(scored, hits=("10:!",)))
    (found,) = beside(replace(made, results=(*made.results[:2], damaged)))
    assert found.finding == "no figure"


def test_a_figure_that_is_not_known_has_none_here():
    (found,) = beside(run({"colour\x1b[1m": 2}))
    assert (found.here, found.finding) == (None, "no figure")


def test_error_and_loss_are_of_fractions_only():
    made = run({"error": 0.02, "no_loss": 0.001}, loss=between(0.0, -0.0009, 0.001))
    scored = made.results[1].quality
    assert scored is not None
    other = replace(made.results[1], quality=replace(scored, metric="rmse"))
    assert [found.finding for found in beside(replace(made, results=(made.results[0], other)))] == ["no figure"] * 2


@pytest.mark.parametrize(
    ("figure", "here", "paper", "shown"),
    [
        ("fewer_weights", 11.96, 12, "11.96x"),
        ("fewer_weights", 12, 12, "12.0x"),
        ("fewer_weights", 25.123, 12, "25.1x"),
        ("error", 0.01589, 0.0159, "1.589 %"),
        ("no_loss", -0.00001, 0.001, "0.00 pp"),
    ],
)
def test_a_figure_has_the_digits_that_tell_it_from_the_papers(figure: str, here: float, paper: float, shown: str):
    assert claimed(figure, Interval(here, here, here, 1.0, 0, "counted"), paper).value == shown


def test_every_figure_can_be_declared():
    assert set(FIGURES) == set(ClaimDeclaration.model_fields) - {"cell", "source", "than"}


SUITE = """\
suite: s
workloads: [lenet-5]
recipes: {half: [{prune.magnitude: {sparsity: 0.5}}]}
targets: [{runtime: torch}]
claims: [CLAIM]
"""


def test_a_suite_declares_them(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(
        SUITE.replace("CLAIM", "{cell: '*/half/*', source: B 1990, smaller: 4, no_loss: 0.1pp, error: 1.5%}")
    )
    (claim,) = load(path).claims
    assert claim.figures == {"smaller": 4, "error": 0.015, "no_loss": 0.001}
    path.write_text(SUITE.replace("CLAIM", "{cell: '*/half/*', source: B 1990}"))
    with pytest.raises(InvalidInput, match="no figure"):
        load(path)
    from leanmark.planned import Options, plan_suite

    path.write_text(SUITE.replace("CLAIM", "{cell: '*/hlaf/*', source: B 1990, smaller: 4}"))
    with pytest.raises(InvalidInput, match="fit no cell") as caught:
        plan_suite(str(path), Options())
    assert str(caught.value.where).rpartition("/")[2].startswith(f"s.yaml:{path.read_text().count(chr(10))}:")
    path.write_text(SUITE.replace("CLAIM", "{cell: '*/half/*', source: B 1990, than: fp23, smaller: 4}"))
    with pytest.raises(InvalidInput, match=r"'fp23', which is no recipe(.|\n)*Did you mean 'fp32'"):
        plan_suite(str(path), Options())
    path.write_text(SUITE.replace("CLAIM", "{cell: '*/half/*', source: B 1990, than: fp32, error: 1%}"))
    with pytest.raises(InvalidInput, match="no comparison"):
        load(path)
    path.write_text(SUITE.replace("CLAIM", "{cell: '*/half/*', source: B 1990, than: fp32, better: 0pp}"))
    assert plan_suite(str(path), Options()).plan.suite.claims[0].than == "fp32"
