"""Verdicts from documents: what each kind of change is called, and what it means for the whole."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.documents import (
    ELSEWHERE,
    NAME,
    TODAY,
    beside,
    quality,
    ratio,
    result,
    run,
    stored,
    the,
    timing,
)
from leanmark import deciding, hits, stats
from leanmark.errors import InvalidInput
from leanmark.judge.gate import judge
from leanmark.judge.latency import suspects
from leanmark.judge.metrics import at_level
from leanmark.judge.opponents import Stored, decision_level, documented
from leanmark.judgement import Basis, Change, Judgement
from leanmark.results import (
    Base,
    Comparison,
    Footprint,
    Interval,
    Role,
    Status,
    Verdict,
)
from leanmark.rules import Allowance, Limits, Rules

# --- measured side by side ------------------------------------------------------


def test_what_the_screening_shows_unchanged_needs_no_decision():
    found = beside(result(), Comparison(screened=ratio(0.1, 0.2)), before=result())
    assert the(found, "latency").verdict is Verdict.UNCHANGED
    assert found.exit_code == 0


def test_a_regression_is_one_only_once_it_was_decided():
    screened = Comparison(screened=ratio(3.5, 0.2))
    undecided = beside(result(), screened, before=result())
    assert the(undecided, "latency").verdict is Verdict.INCONCLUSIVE
    assert undecided.exit_code == 3
    decided = beside(result(), replace(screened, decided=ratio(3.2, 0.2)), before=result())
    change = the(decided, "latency")
    assert (change.verdict, change.basis, decided.exit_code) == (Verdict.REGRESSED, Basis.DUEL, 1)
    assert change.change is not None
    assert change.change.low > 1.02
    assert "main (0123456789)" in change.against


def test_the_decision_counts_and_the_screening_no_more():
    """A suspect that fresh launches show unchanged is unchanged, however bad its screening looked."""
    found = beside(result(), Comparison(screened=ratio(3.5, 0.2), decided=ratio(0.0, 0.2)), before=result())
    assert the(found, "latency").verdict is Verdict.UNCHANGED


def test_what_cannot_be_decided_says_what_would():
    found = beside(result(), Comparison(screened=ratio(2, 1), decided=ratio(2, 1), seconds=0.2), before=result())
    change = the(found, "latency")
    assert change.verdict is Verdict.INCONCLUSIVE
    launches = int(change.wanted.split()[0])
    assert launches > 24
    assert f"{0.2 * launches:.3g} s of turns" in change.wanted


def test_more_suspects_are_decided_at_a_stricter_level():
    assert decision_level(1) == stats.VERDICT_LEVEL
    assert 1 - decision_level(10) == pytest.approx((1 - stats.VERDICT_LEVEL) / 10)
    one = suspects({"a/b/c": Comparison(screened=ratio(3, 0.3))}, Rules())
    several = suspects({f"a/{n}/c": Comparison(screened=ratio(3, 0.3)) for n in range(20)}, Rules())
    assert set(several.values()) == {several["a/0/c"]}
    assert several["a/0/c"] > one["a/b/c"]


def test_who_is_no_suspect():
    comparisons = {
        "quiet/x/t": Comparison(screened=ratio(0, 0.2)),
        "same/x/t": Comparison(same="the same"),
        "off/x/t": Comparison(screened=ratio(9, 0.2)),
        "slow/x/t": Comparison(screened=ratio(9, 0.2)),
    }
    rules = Rules(cells={"off/*": Limits(latency=None)})
    assert set(suspects(comparisons, rules)) == {"slow/x/t"}


def test_the_same_artifact_is_unchanged_without_a_measurement():
    found = beside(replace(result(), status=Status.SKIPPED), Comparison(same="the same file"), before=result())
    assert [(change.verdict, change.basis) for change in found.changes] == [(Verdict.UNCHANGED, Basis.SAME)]
    assert found.exit_code == 0


def test_quality_is_a_paired_difference():
    lost = Interval(-0.02, -0.029, -0.011, 0.95, 1000, "paired")
    found = beside(result(), Comparison(screened=ratio(0, 0.2), quality=lost, answers_changed=0.02), before=result())
    change = the(found, "quality")
    assert (change.verdict, change.basis) == (Verdict.REGRESSED, Basis.ANSWERS)
    unsure = replace(lost, value=-0.004, low=-0.009, high=0.001)
    found = beside(result(), Comparison(screened=ratio(0, 0.2), quality=unsure, answers_changed=0.02), before=result())
    assert the(found, "quality").verdict is Verdict.INCONCLUSIVE
    assert "test examples" in the(found, "quality").wanted


def test_not_one_answer_changed_is_unchanged_however_wide_the_interval():
    wide = Interval(0.0, -0.01, 0.01, 0.95, 100, "paired")
    found = beside(result(), Comparison(screened=ratio(0, 0.2), quality=wide, answers_changed=0.0), before=result())
    assert the(found, "quality").verdict is Verdict.UNCHANGED


def test_the_same_classes_can_be_worse_by_a_metric_of_degrees():
    worse = Interval(-0.05, -0.06, -0.04, 0.95, 1000, "paired bootstrap")
    found = beside(result(), Comparison(screened=ratio(0, 0.2), quality=worse, answers_changed=0.0), before=result())
    assert the(found, "quality").verdict is Verdict.REGRESSED


def test_a_base_that_ran_out_of_time_says_nothing_of_the_head():
    found = beside(result(), Comparison(), before=replace(result(), status=Status.TIMEOUT, reason="slow"))
    assert [change.verdict for change in found.changes] == [Verdict.INCONCLUSIVE]
    assert "more time" in found.changes[0].wanted, "an undecided verdict says what would decide it"


@pytest.mark.parametrize(
    "status", [Status.FAILED, Status.TIMEOUT, Status.OUT_OF_MEMORY, Status.WRONG, Status.INEFFECTIVE]
)
def test_what_was_fine_and_is_not_is_broken(status: Status):
    found = beside(replace(result(), status=status, reason="why"), Comparison(), before=result())
    assert [(change.verdict, change.reason) for change in found.changes] == [(Verdict.BROKEN, f"{status.value}: why")]
    assert found.exit_code == 1


def test_what_was_broken_before_is_listed_not_judged():
    broken = replace(result(), status=Status.FAILED, reason="why")
    found = beside(broken, Comparison(), before=broken)
    assert not found.changes
    assert found.unjudged
    assert found.exit_code == 4


def test_new_and_missing_cells():
    head, gone = result(), result("net/gone/cpu-onnxruntime-t1-b1")
    base = Base("revision", "main", "0" * 40, (gone,), {})
    found = judge(run(head, bases=(base,)), [], TODAY)
    assert {change.cell: change.verdict for change in found.changes} == {
        head.cell.id: Verdict.NEW,
        gone.cell.id: Verdict.MISSING,
    }
    assert found.exit_code == 1


def test_what_was_not_selected_is_not_missing():
    head, other = result(), result("net/other/cpu-onnxruntime-t1-b1")
    gone = result("net/int8-gone/cpu-onnxruntime-t1-b1")
    part = replace(run(head), only=("int8",))
    found = judge(part, [Stored("quick-aaa", run(head, other, gone))], TODAY)
    assert {change.cell for change in found.changes if change.verdict is Verdict.MISSING} == {gone.cell.id}


def test_skipped_cells_are_listed():
    found = beside(replace(result(), status=Status.SKIPPED, reason="no CUDA"), Comparison(), before=result())
    assert [item.reason for item in found.unjudged] == ["skipped: no CUDA"]


def test_starts_are_judged_where_they_have_a_tolerance():
    slow = Comparison(screened=ratio(0, 0.2), cold_start=ratio(50, 2, 8), memory=ratio(0, 0.5, 8))
    assert {change.metric for change in beside(result(), slow, before=result()).changes}.isdisjoint({"cold_start"})
    rules = Rules(Limits(cold_start=0.2, memory=0.05))
    found = beside(result(), slow, before=result(), rules=rules)
    assert (the(found, "cold_start").verdict, the(found, "cold_start").basis) == (Verdict.REGRESSED, Basis.STARTS)
    assert the(found, "memory").verdict is Verdict.UNCHANGED
    assert found.exit_code == 1


# --- stored ---------------------------------------------------------------------


def test_sizes_are_compared_exactly():
    assert the(stored(result(size=1001), result()), "size").verdict is Verdict.REGRESSED
    assert the(stored(result(size=999), result()), "size").verdict is Verdict.IMPROVED
    assert the(stored(result(), result()), "size").verdict is Verdict.UNCHANGED
    lenient = Rules(Limits(size=0.01))
    assert the(stored(result(size=1001), result(), rules=lenient), "size").verdict is Verdict.UNCHANGED


def test_ratios_of_two_runs_count_both_intervals():
    found = stored(result(percent=30), result())
    change = the(found, "latency")
    assert (change.verdict, change.basis) == (Verdict.REGRESSED, Basis.RATIOS)
    assert change.change is not None
    alone = ratio(30, 0.2)
    assert change.change.high / change.change.low > alone.high / alone.low
    assert the(stored(result(percent=3), result()), "latency").verdict is Verdict.UNCHANGED  # within 10 %


def test_a_reference_is_judged_by_its_time_and_only_on_one_class_of_machine():
    before = result("net/fp32/cpu-onnxruntime-t1-b1", role=Role.REFERENCE)
    slow = replace(before, timing=timing(1.5e-3))
    found = stored(slow, before)
    assert (the(found, "latency").verdict, the(found, "latency").basis) == (Verdict.REGRESSED, Basis.TIMES)
    apart = stored(slow, before, environment=ELSEWHERE)
    assert all(change.metric != "latency" for change in apart.changes)
    assert any(item.metric == "latency" for item in apart.unjudged)


def test_stored_answers_are_paired_by_example():
    """Twenty of a thousand lost, none won: two loose scores would not tell, the same examples do."""
    found = stored(result(right=880), result(right=900))
    assert (the(found, "quality").verdict, the(found, "quality").basis) == (Verdict.REGRESSED, Basis.ANSWERS)
    other = replace(result(right=880), quality=quality(880, examples="other"))
    loose = stored(other, result(right=900))
    assert (the(loose, "quality").verdict, the(loose, "quality").basis) == (Verdict.INCONCLUSIVE, Basis.SCORES)


def test_the_same_artifact_scored_on_the_same_examples_is_unchanged():
    assert the(stored(result(), result()), "quality").verdict is Verdict.UNCHANGED


def test_damaged_hits_fall_back_to_the_scores():
    broken = replace(quality(900), hits=("1000:AAAA",))
    assert the(stored(replace(result(), quality=broken), result()), "quality").basis is Basis.SCORES


def test_an_interval_that_no_ratio_has_is_refused():
    for bad in (Interval(1.0, 1.1, 0.9, 0.95, 8, ""), Interval(-1.0, -2.0, 1.0, 0.95, 8, "")):
        with pytest.raises(InvalidInput, match=NAME):
            stored(replace(result(), against_reference=bad), result())


def test_noisy_ratios_and_lost_figures_are_not_judged_as_fine():
    noisy = stored(replace(result(percent=30), status=Status.NOISY), result())
    assert the(noisy, "latency").verdict is Verdict.INCONCLUSIVE
    assert result().footprint is not None
    lost = replace(result(), footprint=replace(Footprint(100, 100, 100, 1000, 1000), macs=None))
    assert the(stored(lost, result()), "macs").verdict is Verdict.INCONCLUSIVE


def test_other_seeds_are_other_trials():
    before = replace(run(result(right=900)), seeds=(1,))
    found = judge(run(result(right=880)), [Stored("quick-aaa", before)], TODAY)
    assert the(found, "quality").basis is Basis.SCORES


# --- rules ------------------------------------------------------------------------


def test_an_allowance_holds_to_its_last_day():
    def judged(until: date, metric: str | None = "size") -> Judgement:
        rules = Rules(allow=(Allowance("net/*", "new codec", until, metric),))
        return stored(result(size=2000), result(), rules=rules)

    assert judged(TODAY).exit_code == 0
    assert "new codec" in the(judged(TODAY), "size").allowed
    assert judged(date(2026, 3, 1)).exit_code == 1
    assert any("ended on 2026-03-01" in note for note in judged(date(2026, 3, 1)).notes)
    assert judged(TODAY, metric="latency").exit_code == 1
    assert judged(TODAY, metric=None).exit_code == 0


def test_a_change_that_loosens_its_own_gate_is_told():
    head = run(result(), rules=Rules(Limits(latency=0.05), allow=(Allowance("net/*", "trust me", TODAY),)))
    found = judge(head, [Stored("quick-aaa", run(result()))], TODAY)
    assert any("latency is 5 % here and 2 %" in note for note in found.notes)
    assert any("trust me" in note for note in found.notes)


def test_nothing_in_common_is_nothing_to_compare():
    assert judge(run(result()), [Stored("quick-aaa", run())], TODAY).exit_code == 4


# --- the numbers beneath ----------------------------------------------------------


@given(st.floats(-1, 1), st.floats(1e-6, 0.5), st.integers(4, 100), st.floats(0.5, 0.999))
def test_an_interval_tells_its_log_ratio(mean: float, error: float, launches: int, level: float):
    before = stats.LogRatio(mean, error, launches)
    after = stats.log_ratio(before.interval(level))
    assert after.mean == pytest.approx(mean, abs=1e-9)
    assert after.error == pytest.approx(error, rel=1e-6)
    assert after.launches == launches


@given(st.floats(0.0005, 0.02), st.integers(4, 48), st.floats(0, 0.05), st.floats(0.001, 0.05))
def test_the_launches_that_decide_do_so(error: float, launches: int, tolerance: float, margin: float):
    """With so many launches of this scatter, a change of what must be seen lies beyond the tolerance."""
    must_see = tolerance + margin
    screened = stats.LogRatio(float(np.log1p(must_see)), error, launches)
    wanted = deciding.launches(screened, tolerance, must_see, 0.99)
    if wanted is None:
        return
    decided = stats.LogRatio(screened.mean, error * (launches / wanted) ** 0.5, wanted)
    assert stats.judge(decided, tolerance, 0.99) is Verdict.REGRESSED


@pytest.mark.parametrize("scatter", [0.0085, 0.025])
@pytest.mark.parametrize("change", [0.03, 0.04, 0.06])
def test_a_change_that_must_be_seen_is_decided_about_in_nine_of_ten_cases(scatter: float, change: float):
    """Of launches that are drawn: what a screening of eight that scatter so says is needed is enough."""
    random = np.random.default_rng(7)

    def drawn(launches: int) -> stats.LogRatio:
        return stats.log_ratio_of_pairs(list(random.normal(np.log1p(change), scatter, launches)))

    decided = []
    for _ in range(300):
        screened = drawn(8)
        if stats.judge(screened, 0.02) is Verdict.UNCHANGED:
            continue
        wanted = deciding.launches(screened, 0.02, 0.03, 0.99)
        decided.append(stats.judge(drawn(wanted), 0.02, 0.99) is Verdict.REGRESSED)
    assert len(decided) > 200
    assert np.mean(decided) >= 0.87, "0.9 less what 300 draws scatter"


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_hits_come_back(right: list[bool]):
    assert hits.unpack(hits.pack(np.array(right, dtype=float))).tolist() == [float(item) for item in right]


@given(st.text(max_size=40))
def test_any_text_is_hits_or_refused(text: str):
    try:
        found = hits.unpack(text)
    except ValueError:
        return
    assert set(np.unique(found)) <= {0.0, 1.0}


# --- quality among many cells -----------------------------------------------------


@given(st.floats(-0.5, 0.5), st.floats(1e-4, 0.2), st.floats(1e-4, 0.2), st.floats(0.5, 0.9999))
def test_a_stricter_level_widens_and_a_laxer_one_narrows(value: float, below: float, above: float, level: float):
    interval = Interval(value, value - below, value + above, stats.LEVEL, 500, "paired")
    other = at_level(interval, level)
    assert (other.low <= interval.low) == (level >= stats.LEVEL) or other.low == pytest.approx(interval.low)
    back = at_level(other, stats.LEVEL)
    assert (back.low, back.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_among_many_cells_that_answer_otherwise_one_loss_must_be_clearer():
    """A loss that one cell alone would show does not stand out among forty."""
    names = [f"net/r{number}/cpu-onnxruntime-t1-b1" for number in range(40)]
    lost = Interval(-0.02, -0.038, -0.002, 0.95, 500, "paired")
    moved = Comparison(quality=Interval(0.0, -0.004, 0.004, 0.95, 500, "paired"), answers_changed=0.01)
    worse = Comparison(quality=lost, answers_changed=0.1)

    def found_among(count: int) -> Change:
        comparisons = dict.fromkeys(names[:count], moved) | {names[0]: worse}
        base = Base("revision", "main", "0123456789", tuple(map(result, names)), comparisons)
        judgement = judge(run(*map(result, names), bases=(base,)), [], TODAY)
        return next(item for item in judgement.changes if (item.cell, item.metric) == (names[0], "quality"))

    alone, among = found_among(1), found_among(40)
    assert (alone.verdict, among.verdict) == (Verdict.REGRESSED, Verdict.INCONCLUSIVE)
    assert alone.change is not None
    assert among.change is not None
    assert alone.change.high == pytest.approx(lost.high)
    assert among.change.high > 0
    assert int(among.wanted.split()[0].replace(",", "")) > 500


def test_rounded_figures_are_no_other_answers():
    """A baseline keeps six digits; the same answers stay the same."""
    names = [f"net/r{number}/cpu-onnxruntime-t1-b1" for number in range(40)]
    stored_before = [replace(result(name), quality=replace(quality(547, 600))) for name in names]
    rounded = [
        replace(item, quality=replace(item.quality, score=replace(item.quality.score, value=0.911667)))
        for item in stored_before
        if item.quality is not None
    ]
    assert documented(run(*stored_before), Stored("quick", run(*rounded))).other_answers == 0
    worse = replace(stored_before[0], quality=quality(500, 600))
    assert documented(run(worse, *stored_before[1:]), Stored("quick", run(*rounded))).other_answers == 1


def test_a_base_that_lost_its_data_decides_nothing_and_one_that_failed_is_told():
    bad = replace(result(), status=Status.FAILED, reason="no such file")
    lost = beside(result(), Comparison(problem="main has no model or data", lost=True), before=bad)
    assert (the(lost, "cell").verdict, lost.exit_code) == (Verdict.INCONCLUSIVE, 3)
    assert "under version control" in the(lost, "cell").wanted
    mended = beside(result(), Comparison(problem="nothing of it runs"), before=bad)
    assert the(mended, "cell").verdict is Verdict.NEW
    assert any("no such file" in note for note in mended.notes)


@pytest.mark.parametrize("seeds", [2, 5])
def test_few_seeds_make_a_stricter_level_much_wider(seeds: int):
    interval = Interval(-0.02, -0.03, -0.01, stats.LEVEL, 500, "paired")
    assert at_level(interval, 0.999, seeds).low < at_level(interval, 0.999).low
    assert at_level(interval, stats.LEVEL, seeds).low == pytest.approx(interval.low)
