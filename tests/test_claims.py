"""Published figures stand beside the run's own, and are called reached only where the whole interval says so."""

from dataclasses import replace
from pathlib import Path

import pytest

from judge.documents import NAME, result
from judge.documents import run as made
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
        ("no_loss", -0.00005, 0.001, "0.00 pp"),
    ],
)
def test_a_figure_has_the_digits_that_tell_it_from_the_papers(figure: str, here: float, paper: float, shown: str):
    assert claimed(figure, Interval(here, here, here, 1.0, 0, "counted"), paper).value == shown


def test_every_figure_can_be_declared():
    assert set(FIGURES) == set(ClaimDeclaration.model_fields) - {"cell", "source"}


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
    with pytest.raises(InvalidInput, match="fit no cell"):
        plan_suite(str(path), Options())
