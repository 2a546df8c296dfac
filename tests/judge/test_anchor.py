"""A pinned baseline beside what a change is of: slow drift shows, and nothing else gets in the way."""

from dataclasses import replace

from judge.documents import (
    NAME,
    TODAY,
    beside,
    quality,
    ratio,
    result,
    run,
    stored,
    the,
)
from leanmark.judge.gate import judge
from leanmark.judge.opponents import Stored
from leanmark.judgement import Judgement
from leanmark.results import (
    Base,
    Comparison,
    Interval,
    Result,
    Status,
    Verdict,
)
from leanmark.rules import Limits, Rules


def anchored(head: Result, *comparisons: Comparison, before: Result | None = None) -> Judgement:
    """The verdicts on a cell that was measured beside a revision and beside a pinned baseline."""
    known = (result() if before is None else before,)
    names = (("revision", "main"), ("baseline", "quick.pinned"))
    bases = tuple(
        Base(kind, name, f"{name}0123456789", known, {NAME: item})
        for (kind, name), item in zip(names, comparisons, strict=True)
    )
    return judge(run(head, bases=bases), [], TODAY)


def test_drift_that_each_change_keeps_small_shows_against_the_anchor():
    small = Comparison(screened=ratio(0.8, 0.2))
    drifted = Comparison(screened=ratio(4, 0.2), decided=ratio(4, 0.2))
    found = anchored(result(), small, drifted)
    latency = {change.against: change.verdict for change in found.changes if change.metric == "latency"}
    assert list(latency.values()) == [Verdict.UNCHANGED, Verdict.REGRESSED]
    assert found.exit_code == 1


def test_an_anchor_that_cannot_be_run_says_so_and_fails_nobody():
    found = anchored(result(), Comparison(screened=ratio(0.1, 0.2)), Comparison(problem="the code has changed"))
    assert found.exit_code == 0
    assert [(item.metric, item.reason) for item in found.unjudged] == [("latency", "the code has changed")]


def test_what_was_taken_out_of_a_suite_is_not_missing_against_an_anchor():
    gone = "net/old/cpu-onnxruntime-t1-b1"
    pinned = Stored("quick.pinned", run(result(), result(gone)), pinned=True)
    found = judge(run(result()), [Stored("quick", run(result())), pinned], TODAY)
    assert found.exit_code == 0
    assert [item.cell for item in found.unjudged] == [gone]
    alone = judge(run(result()), [pinned], TODAY)
    assert alone.exit_code == 1, "where it is all that there is, it is the baseline"


def test_scores_of_two_metrics_of_one_name_say_nothing():
    changed = replace(result(), quality=replace(quality(850), scored_by="new"))
    before = replace(result(), quality=replace(quality(900), scored_by="old"))
    found = the(stored(changed, before), "quality")
    assert (found.verdict, found.change) == (Verdict.INCONCLUSIVE, None)
    assert "has changed" in found.reason
    assert "--base" in found.wanted
    paired = Comparison(quality=Interval(-0.05, -0.07, -0.03, 0.95, 1000, "paired"), answers_changed=0.05)
    assert the(beside(changed, paired, before=before), "quality").verdict is Verdict.REGRESSED


def test_an_anchor_that_cannot_be_run_has_no_starts_either():
    rules = Rules(Limits(cold_start=0.2, memory=0.2))
    first = Comparison(screened=ratio(0.1, 0.2), cold_start=ratio(0, 0.5), memory=ratio(0, 0.5))
    bases = (
        Base("revision", "main", "0123456789", (result(),), {NAME: first}, rules),
        Base("baseline", "quick.pinned", "abc", (result(),), {NAME: Comparison(problem="other code")}, rules),
    )
    found = judge(run(result(), rules=rules, bases=bases), [], TODAY)
    assert found.exit_code == 0
    assert {item.metric for item in found.unjudged} == {"latency", "cold_start", "memory"}


def test_what_failed_in_the_base_already_does_not_fail_by_the_anchor():
    bad = replace(result(), status=Status.FAILED, reason="since last week")
    bases = (
        Base("revision", "main", "0123456789", (bad,), {}),
        Base("baseline", "quick.pinned", "abc", (result(),), {}),
    )
    found = judge(run(bad, bases=bases), [], TODAY)
    assert [item.verdict for item in found.changes] == []
    assert len(found.unjudged) == 2


def test_a_changed_metric_is_not_held_against_an_anchor():
    changed = replace(result(), quality=replace(quality(850), scored_by="new"))
    pinned = Stored("quick.pinned", run(replace(result(), quality=replace(quality(900), scored_by="old"))), pinned=True)
    same = Stored("quick", run(changed))
    found = judge(run(changed), [same, pinned], TODAY)
    assert found.exit_code == 0
    assert ("quality", "quick.pinned") in {(item.metric, item.against) for item in found.unjudged}
