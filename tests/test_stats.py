"""Estimators: the laws that they must obey, and their coverage on noise whose truth is known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmark import scoring, stats
from leanmark.results import Interval, Verdict

floats = st.floats(-0.5, 0.5)
launch = st.lists(floats, min_size=3, max_size=12).map(np.array)
launches = st.lists(launch, min_size=4, max_size=8)
turns = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30).map(np.array)


@given(turns, st.randoms(), st.integers(1, 4))
def test_pairs_invert_with_the_sides_and_do_not_know_the_unit(seconds: np.ndarray, random, copies: int):
    reference = np.array(random.sample(list(seconds), len(seconds)))
    where = np.arange(len(seconds)) * copies // len(seconds)
    pairs = stats.close_pairs(seconds, reference, where)
    assert np.sort(stats.close_pairs(reference, seconds, where)) == pytest.approx(np.sort(-pairs))
    assert stats.close_pairs(1e3 * seconds, 1e3 * reference, where) == pytest.approx(pairs, abs=1e-9)
    boundaries = len(set(where)) - 1
    assert len(pairs) == 3 * len(seconds) - 2 - 2 * boundaries


def test_a_turn_that_does_not_count_is_in_no_pair():
    seconds = np.array([1.0, np.nan, 1.0, 1.0])
    assert len(stats.close_pairs(seconds, np.ones(4), np.zeros(4))) == 10 - 3


def test_where_a_whole_gap_is_balanced_its_middle_counts():
    sample = [
        np.repeat([0.0, 0.5], [8, 4]),
        np.repeat([0.0, 0.5], 2),
        np.repeat([0.5, -0.5], 2),
        np.array([0, 0.5, 0.5]),
    ]
    assert stats.paired_log_ratio(sample).mean == pytest.approx(0.25)
    assert stats.paired_log_ratio([-turns for turns in sample]).mean == pytest.approx(-0.25)


@given(launches)
def test_swapping_the_sides_inverts_the_ratio(sample: list[np.ndarray]):
    one, other = stats.paired_log_ratio(sample), stats.paired_log_ratio([-turns for turns in sample])
    assert one.mean == pytest.approx(-other.mean, abs=1e-7)
    assert one.error == pytest.approx(other.error, rel=1e-3, abs=1e-7)
    a, b = one.interval(), other.interval()
    assert (a.value, a.low, a.high) == pytest.approx((1 / b.value, 1 / b.high, 1 / b.low), rel=1e-3)


@given(launches, floats)
def test_a_faster_clock_moves_every_ratio_alike(sample: list[np.ndarray], shift: float):
    one, other = stats.paired_log_ratio(sample), stats.paired_log_ratio([turns + shift for turns in sample])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert other.error == pytest.approx(one.error, rel=1e-3, abs=1e-6)


@given(launches, st.randoms())
def test_order_does_not_matter(sample: list[np.ndarray], random: object):
    mixed = [np.random.default_rng(1).permutation(turns) for turns in sample[::-1]]
    one, other = stats.paired_log_ratio(sample), stats.paired_log_ratio(mixed)
    assert one.mean == pytest.approx(other.mean, abs=1e-7)
    assert one.error == pytest.approx(other.error, rel=1e-3, abs=1e-7)


@given(launches)
def test_the_interval_holds_the_estimate(sample: list[np.ndarray]):
    ratio = stats.paired_log_ratio(sample)
    interval = ratio.interval()
    assert interval.low <= interval.value <= interval.high
    assert interval.n == len(sample)
    wider = ratio.interval(0.99)
    assert wider.low <= interval.low
    assert wider.high >= interval.high


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_launches_give_no_interval(count: int):
    with pytest.raises(ValueError, match="at least 4 launches"):
        stats.paired_log_ratio([np.zeros(5)] * count)


@dataclass(frozen=True)
class Noise:
    """Standard deviations and sizes, as log ratios; shares of turns."""

    between: float = 0.0  # launches
    within: float = 0.01  # turns
    jumps: float = 0.0  # a core changes between two speeds and takes both sides along
    drift: float = 0.0  # a launch is so much slower at its end, both sides alike
    outliers: float = 0.0  # so many turns take three times as long
    rounds: int = 60
    copies: int = 3


def _launches(random: np.random.Generator, noise: Noise, count: int, truth: float = 0.0) -> list[np.ndarray]:
    """The pairs of launches whose true log ratio is known."""
    found: list[np.ndarray] = []
    shape = (noise.rounds, 2)
    copies = np.arange(noise.rounds) * noise.copies // noise.rounds
    for _ in range(count):
        turns = np.cumsum(random.random(shape) < 0.15).reshape(shape) % 2 * noise.jumps  # in the order of the turns
        turns += np.linspace(0, noise.drift, turns.size).reshape(shape) + random.normal(0, noise.within, shape)
        turns += np.log(3) * (random.random(shape) < noise.outliers)
        turns = random.permuted(turns, axis=1)  # who comes first in a round
        turns[:, 0] += truth + random.normal(0, noise.between)
        found.append(stats.close_pairs(*np.exp(turns.T), copies))
    return found


@pytest.mark.parametrize("count", [4, 8, 24])
@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(Noise(between=0.006, jumps=0.15), id="shared machine"),
        pytest.param(Noise(jumps=0.15), id="no launch effect"),
        pytest.param(Noise(between=0.013, within=0.05, jumps=0.05), id="noisy turns"),
        pytest.param(Noise(between=0.007, within=0.001), id="quiet machine"),
        pytest.param(Noise(between=0.003, drift=0.2), id="drift"),
        pytest.param(Noise(between=0.003, jumps=0.1, outliers=0.05), id="outliers"),
        pytest.param(Noise(within=0.05, jumps=0.15, rounds=5, copies=1), id="few rounds"),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(noise: Noise, count: int):
    random = np.random.default_rng(7)
    repetitions = 500
    hits = dict.fromkeys((stats.LEVEL, stats.VERDICT_LEVEL), 0)
    for _ in range(repetitions):
        ratio = stats.paired_log_ratio(_launches(random, noise, count))
        for level in hits:
            hits[level] += not ratio.interval(level).excludes(1.0)
    # Three standard errors of a proportion of 500 are 2.9 points at 95 %, 1.3 at 99 %.
    assert 0.921 <= hits[stats.LEVEL] / repetitions <= 0.985
    assert hits[stats.VERDICT_LEVEL] / repetitions >= 0.977


@pytest.mark.parametrize("slowdown", [-0.2, 0.01, 0.5])
def test_intervals_hold_a_truth_that_is_not_one(slowdown: float):
    random, truth = np.random.default_rng(11), math.log1p(slowdown)
    noise = Noise(between=0.006, jumps=0.15, drift=0.1, outliers=0.02)
    ratios = [stats.paired_log_ratio(_launches(random, noise, 8, truth)) for _ in range(300)]
    hits = sum(not ratio.interval().excludes(1 + slowdown) for ratio in ratios)
    assert 0.91 <= hits / len(ratios) <= 0.99  # three standard errors of a proportion of 300 are 3.8 points
    middle = float(np.mean([ratio.mean for ratio in ratios]))
    spread = float(np.std([ratio.mean for ratio in ratios])) / math.sqrt(len(ratios))
    assert abs(middle - truth) < 4 * spread + 1e-4


def test_jumps_of_the_core_cost_little():
    random = np.random.default_rng(3)
    still, jumping = Noise(), Noise(jumps=0.15)
    errors = {
        noise: np.median([stats.paired_log_ratio(_launches(random, noise, 8)).error for _ in range(50)])
        for noise in (still, jumping)
    }
    means = [np.std([turns.mean() for turns in _launches(random, jumping, 8)]) / math.sqrt(8) for _ in range(50)]
    assert errors[jumping] < 2 * errors[still]
    assert errors[jumping] < 0.5 * np.median(means)


def test_launches_that_balance_by_chance_are_not_certain():
    """Pairs that scatter widely, and in every launch as many above as below."""
    sample = [np.array([-0.1, -0.05, -0.02, 0.02, 0.05, 0.1]) * scale for scale in (1.0, 1.1, 0.9, 1.05)]
    assert stats.paired_log_ratio(sample).error > 0.005


@given(launches, st.sampled_from([0.25, 0.5, 2.0, 8.0]))  # exact in binary, so that ties stay ties
def test_noise_of_twice_the_size_gives_an_interval_of_twice_the_width(sample: list[np.ndarray], factor: float):
    one, other = stats.paired_log_ratio(sample), stats.paired_log_ratio([factor * turns for turns in sample])
    assert other.mean == pytest.approx(factor * one.mean, rel=1e-4, abs=1e-6)
    assert other.error == pytest.approx(factor * one.error, rel=1e-3, abs=1e-6)


def test_one_odd_launch_widens_the_interval_instead_of_moving_the_verdict():
    sample = [np.full(30, 0.0) for _ in range(4)] + [np.full(30, 0.02)]
    assert not stats.paired_log_ratio(sample).interval().excludes(1.0)


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(-1, 1), st.floats(0.001, 1), st.integers(4, 30))
def test_a_ratio_over_another_is_the_product_with_its_inverse(a: float, b: float, c: float, d: float, n: int):
    one, other = stats.LogRatio(a, b, n), stats.LogRatio(c, d, n)
    inverse = stats.LogRatio(-c, d, n)
    over, product = one.over(other), one.times(inverse)
    assert (over.mean, over.error) == (pytest.approx(product.mean), pytest.approx(product.error))
    turned = other.over(one)
    assert (turned.mean, turned.error) == (pytest.approx(-over.mean), pytest.approx(over.error))
    interval, mirrored = over.interval(), turned.interval()
    assert interval.low == pytest.approx(1 / mirrored.high)
    assert interval.high == pytest.approx(1 / mirrored.low)


def test_products_add_variances():
    one, other = stats.LogRatio(0.1, 0.03, 5), stats.LogRatio(-0.2, 0.04, 7)
    both = one.times(other)
    assert (both.mean, both.error, both.launches) == (pytest.approx(-0.1), pytest.approx(0.05), 5)


def test_the_detectable_effect_is_detected_four_times_in_five():
    ratio = stats.LogRatio(0.0, 0.004, 6)
    effect = math.log1p(ratio.minimum_detectable_effect())
    random = np.random.default_rng(3)
    found = 0
    for _ in range(4000):
        sample = random.normal(effect, 0.004 * math.sqrt(6), 6)
        error = sample.std(ddof=1) / math.sqrt(6)
        found += sample.mean() > stats.student(0.975, 5) * error
    assert found / 4000 == pytest.approx(0.8, abs=0.04)


def test_tails_need_samples():
    assert stats.percentile(np.arange(499.0), 0.99) is None
    assert stats.percentile(np.arange(500.0), 0.99) == pytest.approx(494.01)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_stays_in_bounds(successes: int, count: int):
    successes = min(successes, count)
    interval = scoring.wilson(successes, count)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_wilson_knows_the_textbook():
    interval = scoring.wilson(81, 263)  # Newcombe 1998, table I
    assert (interval.low, interval.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_no_failures_among_a_thousand_bounds_the_rate():
    assert scoring.wilson(0, 1000).high == pytest.approx(0.00383, abs=5e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_paired_differences_are_antisymmetric(pairs: list[tuple[bool, bool]]):
    a, b = (np.array([[float(pair[side]) for pair in pairs]]) for side in (0, 1))
    one, other = scoring.paired_difference(a, b), scoring.paired_difference(b, a)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.low <= one.value <= one.high


def test_paired_differences_cover_the_truth():
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(1000):
        reference = random.random((1, 500)) < 0.9
        moved = random.random((1, 500))
        scores = np.where(moved < 0.04, False, np.where(moved > 0.97, True, reference))
        truth = 0.04 * -0.9 + 0.03 * 0.1
        hits += not scoring.paired_difference(scores.astype(float), reference.astype(float)).excludes(truth)
    assert 0.93 <= hits / 1000 <= 0.98


def test_pairing_sees_what_two_loose_accuracies_do_not():
    random = np.random.default_rng(5)
    reference = (random.random((1, 2000)) < 0.9).astype(float)
    scores = reference.copy()
    scores[0, np.flatnonzero(reference[0])[:30]] = 0
    paired = scoring.paired_difference(scores, reference)
    assert paired.excludes(0.0)
    loose_one, loose_other = scoring.mean_score(scores), scoring.mean_score(reference)
    assert loose_one.high > loose_other.low


def test_seeds_widen_the_interval_of_a_score():
    random = np.random.default_rng(2)
    alike = (random.random((1, 400)) < 0.8).astype(float).repeat(3, axis=0)
    apart = np.stack([(random.random(400) < share) for share in (0.6, 0.8, 1.0)]).astype(float)
    assert (
        scoring.mean_score(apart).high - scoring.mean_score(apart).low
        > scoring.mean_score(alike).high - scoring.mean_score(alike).low
    )


@pytest.mark.parametrize("seeds", [1, 2, 8])
def test_answers_that_are_all_alike_leave_doubt(seeds: int):
    right = np.ones((seeds, 300))
    score, moved = scoring.mean_score(right), scoring.paired_difference(right, right)
    assert score.low < score.value == score.high == 1.0
    assert moved.low < moved.value == 0.0 < moved.high
    assert moved.high - moved.low < 0.03


def test_differences_of_several_seeds_cover_the_truth():
    random = np.random.default_rng(7)
    hits = 0
    for _ in range(500):
        reference = random.random((8, 400)) < 0.98
        scores = np.where(random.random((8, 400)) < 0.005, ~reference, reference)
        truth = -0.005 * 0.98 + 0.005 * 0.02
        hits += not scoring.paired_difference(scores.astype(float), reference.astype(float)).excludes(truth)
    assert hits / 500 >= 0.93


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("apart", [0.0, 0.005, 0.05])
def test_scores_of_several_seeds_cover_the_truth(seeds: int, apart: float):
    """Whether what differs is the examples or the seeds."""
    random = np.random.default_rng(seeds)
    hard = random.random(300)
    covered, widths = 0, []
    for _ in range(400):
        easy = random.choice(hard, 300)  # examples that are more or less often answered rightly
        shift = random.normal(0, apart, (seeds, 1))
        scores = random.random((seeds, 300)) < np.clip(0.8 + 0.4 * (easy - hard.mean()) + shift, 0, 1)
        found = scoring.mean_score(scores.astype(float))
        covered += not found.excludes(0.8)
        widths.append(found.high - found.low)
    assert covered / 400 >= 0.93
    if not apart and seeds > 2:  # two seeds say next to nothing of how far seeds lie apart
        assert np.median(widths) < 0.15


@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=9), st.just(0.0) | st.floats(1e-9, 0.5))
def test_joined_means_are_as_wide_as_their_parts_and_their_scatter(values: list[float], reach: float):
    parts = [Interval(value, value - reach, value + reach, 0.95, 100, "") for value in values]
    joined = scoring.joined_means(parts, values)
    assert joined.value == pytest.approx(np.mean(values))
    scatter = np.std(values, ddof=1) / math.sqrt(len(values))
    assert joined.high - joined.value >= max(reach, stats.student(0.975, len(values) - 1) * scatter) * (1 - 1e-9)
    assert joined.value - joined.low == pytest.approx(joined.high - joined.value)


def test_one_seed_is_none_to_join():
    with pytest.raises(ValueError, match="at least 2"):
        scoring.joined_means([Interval(0.0, -1.0, 1.0, 0.95, 100, "")], [0.0])


def test_a_verdict_needs_the_whole_interval_beyond_the_tolerance():
    def verdict(percent: float, error: float) -> Verdict:
        return stats.judge(stats.LogRatio(math.log1p(percent / 100), error, 30), 0.005)

    assert verdict(3, 0.001) is Verdict.REGRESSED
    assert verdict(-3, 0.001) is Verdict.IMPROVED
    assert verdict(0, 0.001) is Verdict.UNCHANGED
    assert verdict(3, 0.05) is Verdict.INCONCLUSIVE
    assert verdict(0.5, 0.001) is Verdict.INCONCLUSIVE


@given(st.floats(-0.1, 0.1), st.floats(0, 0.05), st.integers(4, 40), st.floats(0, 0.05))
def test_swapping_the_sides_swaps_the_verdict(mean: float, error: float, count: int, tolerance: float):
    swapped = {Verdict.REGRESSED: Verdict.IMPROVED, Verdict.IMPROVED: Verdict.REGRESSED}
    one = stats.judge(stats.LogRatio(mean, error, count), tolerance)
    other = stats.judge(stats.LogRatio(-mean, error, count), tolerance)
    assert other is swapped.get(one, one)


def test_the_mean_of_samples_knows_the_textbook():
    # Student 1908, the extra sleep by drug two minus drug one, ten patients.
    interval = stats.student_mean(np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]))
    assert (interval.value, interval.low, interval.high) == pytest.approx((1.58, 0.7001142, 2.4598858))
    with pytest.raises(ValueError, match="at least 2"):
        stats.student_mean(np.ones(1))


def test_what_is_not_shown_to_be_faster_never_pays_off():
    faster = Interval(0.5, 0.4, 0.8, 0.95, 5, "")
    found = stats.break_even(10.0, 1e-3, faster)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((20_000, 16_667, 50_000), rel=1e-4)
    assert stats.break_even(10.0, 1e-3, Interval(0.9, 0.8, 1.0, 0.95, 5, "")) is None


# --- the laws of the plain estimators ---------------------------------------------

samples = st.lists(st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-3), min_size=4, max_size=40)
scores = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=30).map(
    lambda rows: np.array(rows, dtype=float).T
)


def shown(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


@given(samples, st.sampled_from([0.25, 2.0, 1024.0]), st.randoms())
def test_means_know_neither_the_unit_nor_the_order(values: list[float], factor: float, random):
    mixed = list(values)
    random.shuffle(mixed)
    before, after = stats.student_mean(np.array(values)), stats.student_mean(factor * np.array(mixed))
    assert shown(after) == pytest.approx(tuple(factor * value for value in shown(before)), rel=1e-6, abs=1e-6)
    ratio, other = stats.log_ratio_of_pairs(values), stats.log_ratio_of_pairs([-value for value in mixed])
    assert (other.mean, other.error) == pytest.approx((-ratio.mean, ratio.error), abs=1e-9)


@given(samples, st.floats(0.05, 0.95), st.sampled_from([0.25, 2.0, 1024.0]), st.randoms())
def test_percentiles_scale_and_lie_within_the_samples(values: list[float], fraction: float, factor: float, random):
    found = stats.percentile(np.array(values), fraction)
    if found is None:
        return
    mixed = list(values)
    random.shuffle(mixed)
    assert stats.percentile(factor * np.array(mixed), fraction) == pytest.approx(factor * found)
    assert min(values) <= found <= max(values)


@given(scores, st.randoms())
def test_scores_know_no_order_of_examples_and_mirror_with_hits_and_misses(table: np.ndarray, random):
    order = list(range(table.shape[1]))
    random.shuffle(order)
    for hits in (table, table[:1]):
        one, mixed, misses = (scoring.mean_score(item) for item in (hits, hits[:, order], 1 - hits))
        assert shown(mixed) == pytest.approx(shown(one))
        assert shown(misses) == pytest.approx((1 - one.value, 1 - one.high, 1 - one.low))
        moved = scoring.paired_difference(hits[:, order], (1 - hits)[:, order])
        assert shown(moved) == pytest.approx(shown(scoring.paired_difference(hits, 1 - hits)))


@given(st.floats(1e-3, 1e4), st.floats(1e-6, 10), st.floats(0.05, 0.9), st.sampled_from([2.0, 1024.0]))
def test_what_pays_off_does_so_after_as_many_calls_in_any_unit(
    seconds: float, before: float, value: float, factor: float
):
    ratio = Interval(value, value * 0.9, value * 1.1, 0.95, 8, "")
    one, other = stats.break_even(seconds, before, ratio), stats.break_even(seconds * factor, before * factor, ratio)
    assert one is not None
    assert other is not None
    assert shown(one) == pytest.approx(shown(other))
    assert one.low <= one.value <= one.high


@given(st.floats(-1, 1), st.floats(0, 0.1), st.integers(1, 3), st.floats(0, 0.05))
def test_fewer_launches_than_an_interval_needs_decide_nothing(mean: float, error: float, count: int, tolerance: float):
    assert stats.judge(stats.LogRatio(mean, error, count), tolerance) is Verdict.INCONCLUSIVE


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        scoring.wilson(0, 0)
