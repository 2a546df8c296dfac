"""Verdicts that rest on two documents alone: what they can say, and what they cannot."""

from dataclasses import replace

from judge.documents import quality, result, stored, the
from leanmark.results import Interval, Role, Verdict


def test_one_artifact_in_two_documents_is_unchanged_by_any_metric():
    """A metric that is no count of hits has wide intervals that are not paired."""
    wide = replace(quality(450, metric="f1"), score=Interval(0.45, 0.3, 0.6, 0.95, 1000, "bootstrap"), hits=())
    one = replace(result(), quality=wide, code="c")
    assert the(stored(one, one), "quality").verdict is Verdict.UNCHANGED
    for other in (
        replace(one, artifact="0" * 64),
        replace(one, code="d"),
        replace(one, quality=replace(wide, examples="x")),
    ):
        assert the(stored(one, other), "quality").verdict is Verdict.INCONCLUSIVE


def test_agreement_with_a_reference_that_has_changed_says_nothing():
    """A reference agrees with itself, whatever it answers."""
    itself = replace(result(role=Role.REFERENCE, right=1000), quality=quality(1000, metric="agreement"), code="c")
    change = the(stored(itself, replace(itself, artifact="0" * 64)), "quality")
    assert change.verdict is Verdict.INCONCLUSIVE
    assert "a reference that has changed" in change.reason
    assert the(stored(itself, itself), "quality").verdict is Verdict.UNCHANGED


def test_figures_that_a_baseline_lacks_are_listed():
    edited = replace(result(), footprint=None, quality=None)
    unjudged = {item.metric: item.reason for item in stored(result(), edited).unjudged}
    assert {"size", "parameters", "quality"} <= unjudged.keys()
    assert "does not say it" in unjudged["quality"]
