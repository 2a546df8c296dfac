"""Estimators and intervals. Pure: numpy and scipy in, dataclasses out, no I/O.

Ratios are estimated in log space, so that swapping the sides inverts the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.results import Interval, Verdict

LEVEL = 0.95
# A verdict needs more than an interval: it must hold in hundreds of comparisons.
VERDICT_LEVEL = 0.99
POWER = 0.8
MINIMUM_LAUNCHES = 4
_MAD_TO_SD = 1.4826
_MEDIAN_EFFICIENCY = math.sqrt(math.pi / 2)  # sd of a median over sd of a mean, normal samples
_PAIRS_A_ROUND = 3
# Where the pull of a pair stops growing: so many standard deviations of launches, and at
# least so many of turns; and how far around the estimate the density of pairs is taken.
_CORNER_LAUNCHES = 1.5
_CORNER_TURNS = 0.05
_SLOPE_TURNS = 0.3
# Launches can balance by chance: an error is at least this share of what their pairs alone would give.
_LEAST_ERROR = 0.3
_BALANCED = 1e-9
# A percentile is reported only where at least so many samples lie beyond it.
_TAIL_SAMPLES = 5


@dataclass(frozen=True)
class LogRatio:
    """A log ratio with its standard error and the launches that it rests on."""

    mean: float
    error: float
    launches: int
    method: str = "Huber location of paired log ratios, Student over launches"

    def interval(self, level: float = LEVEL) -> Interval:
        """The ratio with a Student interval over launches."""
        reach = student(0.5 + level / 2, self.launches - 1) * self.error
        return Interval(
            value=math.exp(self.mean),
            low=math.exp(self.mean - reach),
            high=math.exp(self.mean + reach),
            level=level,
            n=self.launches,
            method=self.method,
        )

    def minimum_detectable_effect(self, level: float = LEVEL, tolerance: float = 0.0) -> float:
        """The relative change that so many launches show to lie beyond a tolerance, in 4 of 5 such comparisons."""
        freedom = self.launches - 1
        reach = (student(0.5 + level / 2, freedom) + student(POWER, freedom)) * self.error
        return math.expm1(math.log1p(tolerance) + reach)

    def times(self, other: LogRatio) -> LogRatio:
        """The product of two ratios: variances add in log space, the fewer launches count."""
        return LogRatio(self.mean + other.mean, math.hypot(self.error, other.error), min(self.launches, other.launches))

    def over(self, other: LogRatio) -> LogRatio:
        """The quotient of two ratios that were measured apart."""
        return self.times(LogRatio(-other.mean, other.error, other.launches))


def log_ratio(interval: Interval) -> LogRatio:
    """The log ratio whose interval this is. Raises ValueError for an interval that no ratio has."""
    if not 0 < interval.low <= interval.value <= interval.high < math.inf or not 0 < interval.level < 1:
        raise ValueError("an interval that no ratio has")
    if interval.n < 2:
        if interval.low < interval.high:
            raise ValueError("an interval of a ratio from fewer than 2 launches")
        return LogRatio(math.log(interval.value), 0.0, interval.n)
    reach = math.log(interval.high / interval.low) / 2
    return LogRatio(math.log(interval.value), reach / student(0.5 + interval.level / 2, interval.n - 1), interval.n)


def log_ratio_of_pairs(logs: Sequence[float]) -> LogRatio:
    """The mean of independent log ratios with its standard error. Raises ValueError with fewer than 4."""
    count = len(logs)
    if count < MINIMUM_LAUNCHES:
        raise ValueError(f"an interval needs at least {MINIMUM_LAUNCHES} pairs, not {count}")
    values = np.array(logs)
    return LogRatio(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count), count)


def log_ratio_of_rounds(logs: Sequence[float]) -> LogRatio:
    """The same of rounds A B B A of services."""
    return replace(log_ratio_of_pairs(logs), method="mean of log ratios of rounds A B B A, Student over rounds")


def pair_table(seconds: Array, reference: Array, copies: Array) -> Array:
    """Log ratios of turns that are close in time; shape (rounds, 3), NaN where there is no such pair.

    seconds, reference: shape (rounds,), the turns of each side in order; NaN for a turn
    that does not count. copies: shape (rounds,), the copy of the processes that played
    a round. Each turn is paired with the other side's turns of its own round and of the
    rounds before and after, never across copies: three times the pairs of a plain
    pairing, all of them close.
    """
    a, b = np.log(seconds), np.log(reference)
    alike = np.where(copies[1:] == copies[:-1], 0.0, np.nan)
    table = np.full((len(a), 3), np.nan)
    table[:, 0] = a - b
    table[1:, 1] = a[1:] - b[:-1] + alike
    table[1:, 2] = a[:-1] - b[1:] + alike
    return table


def close_pairs(seconds: Array, reference: Array, copies: Array) -> Array:
    """All entries of the `pair_table` of one launch; shape (pairs,)."""
    table = pair_table(seconds, reference, copies)
    return table[np.isfinite(table)]


def paired_log_ratio(launches: Sequence[Array]) -> LogRatio:
    """Combine launches, each the log ratios of its close pairs.

    The estimate lies where the pairs of all launches balance, each launch with the same
    weight: a Huber (1964) location. Its corner is as near as the scatter between
    launches allows. Where turns scatter much more than launches, as on a machine whose
    cores jump between two speeds, that makes it the median of all pairs; where launches
    scatter more than turns, the mean of the launches.

    The standard error is that of the launches' mean pull on the estimate (the sandwich
    of a cluster-robust estimate, launches being the clusters), so turns, copies and
    launches all show in it, and its degrees of freedom are the launches'.

    Raises ValueError with fewer than 4 launches or an empty one.
    """
    if any(launch.size == 0 for launch in launches):
        raise ValueError("a launch has no pairs")
    return balanced(np.concatenate(launches or [np.empty(0)]), np.array([launch.size for launch in launches]))


def balanced(pairs: Array, sizes: Array) -> LogRatio:
    """`paired_log_ratio` of pairs in one array, launch after launch, each with so many.

    Raises ValueError with fewer than 4 launches.
    """
    count = len(sizes)
    if count < MINIMUM_LAUNCHES:
        raise ValueError(f"an interval needs at least {MINIMUM_LAUNCHES} launches, not {count}")
    medians = _medians(pairs, sizes)
    ordered = _Ordered(pairs, np.repeat(1 / (sizes * count), sizes))
    middle = float(ordered.values[(pairs.size - 1) // 2] + ordered.values[pairs.size // 2]) / 2
    scale = _MAD_TO_SD * _median(np.abs(pairs - middle))
    own = _MEDIAN_EFFICIENCY * _MAD_TO_SD * _medians(np.abs(pairs - np.repeat(medians, sizes)), sizes)
    alone = float((own**2 / np.maximum(sizes / _PAIRS_A_ROUND, 1)).sum()) / count  # variance, without launch effects
    between = _variance(medians) - alone
    corner = max(_CORNER_LAUNCHES * math.sqrt(max(between, 0.0)), _CORNER_TURNS * scale, 1e-12)
    middle = ordered.balance(middle, corner)
    reach = max(corner, _SLOPE_TURNS * scale)
    while (slope := ordered.density(middle, reach)) == 0:
        reach *= 2
    pulls = np.minimum(np.maximum((pairs - middle) / corner, -1.0), 1.0)
    by_launch = np.add.reduceat(pulls, np.cumsum(sizes) - sizes) / sizes
    error = max(math.sqrt(_variance(by_launch)) / slope, _LEAST_ERROR * math.sqrt(alone))
    return LogRatio(middle, error / math.sqrt(count), count)


class _Ordered:
    """Weighted values in order, with running sums, so that how they pull at a point is two look-ups.

    A value pulls by its weight; within `corner` of the point, by a share of it that
    falls with the distance. All weights together are 1.
    """

    def __init__(self, values: Array, weights: Array) -> None:
        order = np.argsort(values)
        self.values = values[order]
        self.weights = np.concatenate([[0.0], np.cumsum(weights[order])])
        self.moments = np.concatenate([[0.0], np.cumsum(weights[order] * self.values)])

    def _near(self, at: float, reach: float) -> tuple[int, int, float]:
        """The first value within reach, the first beyond, and the weight of those between."""
        first, last = self.values.searchsorted([at - reach, at + reach]).tolist()
        return first, last, float(self.weights[last] - self.weights[first])

    def density(self, at: float, reach: float) -> float:
        return self._near(at, reach)[2] / reach

    def pull(self, at: float, corner: float) -> tuple[float, float]:
        """Upwards, from -1 to 1, and by how much it falls when the point moves up."""
        first, last, weight = self._near(at, corner)
        near = (float(self.moments[last] - self.moments[first]) - at * weight) / corner
        return near + 1.0 - float(self.weights[last]) - float(self.weights[first]), weight / corner

    def balance(self, middle: float, corner: float) -> float:
        """Where the pulls cancel out: Newton's method from `middle`, kept within what is known."""
        low, high = float(self.values[0]), float(self.values[-1])
        for _ in range(100):
            pull, slope = self.pull(middle, corner)
            if slope == 0 and abs(pull) < _BALANCED:
                break
            low, high = (middle, high) if pull > 0 else (low, middle)
            ahead = middle + pull / slope if slope else math.inf
            before, middle = middle, ahead if low < ahead < high else (low + high) / 2
            if abs(middle - before) < _BALANCED:
                break
        # Where a gap between two values is balanced all over, its middle.
        above = int(self.values.searchsorted(middle))
        if 0 < above < self.values.size:
            between = float(self.values[above - 1] + self.values[above]) / 2
            pull, slope = self.pull(between, corner)
            if slope == 0 and abs(pull) < _BALANCED:
                return between
        return middle


def judge(ratio: LogRatio, tolerance: float, level: float = VERDICT_LEVEL) -> Verdict:
    """Whether a latency ratio is a regression beyond a relative tolerance.

    Regressed or improved only where the whole interval at `level` lies beyond the
    tolerance, unchanged only where it lies within; the limits are 1 + tolerance and
    its inverse, so that swapping the sides swaps the verdicts. Fewer launches than an interval needs decide nothing.
    """
    if ratio.launches < MINIMUM_LAUNCHES:
        return Verdict.INCONCLUSIVE
    interval, limit = ratio.interval(level), 1 + tolerance
    if interval.low > limit:
        return Verdict.REGRESSED
    if interval.high < 1 / limit:
        return Verdict.IMPROVED
    return Verdict.UNCHANGED if interval.low >= 1 / limit and interval.high <= limit else Verdict.INCONCLUSIVE


def judge_difference(difference: Interval, tolerance: float) -> Verdict:
    """Whether a difference of quality, head minus base on the same examples, is a loss beyond a tolerance.

    Regressed where the loss is beyond the tolerance and the interval excludes zero, unchanged where the whole
    interval lies within the tolerance; improved is the mirror of regressed.
    """
    if difference.value < -tolerance and difference.high < 0:
        return Verdict.REGRESSED
    if difference.value > tolerance and difference.low > 0:
        return Verdict.IMPROVED
    inside = difference.low >= -tolerance and difference.high <= tolerance
    return Verdict.UNCHANGED if inside else Verdict.INCONCLUSIVE


def _variance(values: Array) -> float:
    around = values - values.sum() / values.size
    return float(around @ around) / (values.size - 1)


def _median(values: Array) -> float:
    middle = ((values.size - 1) // 2, values.size // 2)
    low, high = np.partition(values, middle)[list(middle)]
    return float(low + high) / 2


def _medians(values: Array, sizes: Array) -> Array:
    """The median of each stretch of `values`, so many long."""
    longest = int(sizes.max())
    if values.size == longest * len(sizes):
        rows = values.reshape(len(sizes), longest)
    else:
        rows = np.full((len(sizes), longest), np.inf)
        rows[np.arange(longest) < sizes[:, None]] = values
    low, high = (sizes - 1) // 2, sizes // 2
    rows = np.sort(rows, axis=1)
    where = np.arange(len(rows))
    return (rows[where, low] + rows[where, high]) / 2


def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def normal(probability: float) -> float:
    """Quantile of the normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def percentile(samples: Array, fraction: float) -> float | None:
    """A tail percentile, or None where too few samples lie beyond it."""
    if samples.size * (1 - fraction) < _TAIL_SAMPLES:
        return None
    return float(np.quantile(samples, fraction))


def student_mean(samples: Array, level: float = LEVEL) -> Interval:
    """The mean of independent samples with Student's interval. Raises ValueError with fewer than 2."""
    count = len(samples)
    if count < 2:
        raise ValueError("an interval needs at least 2 samples")
    value = float(np.mean(samples))
    reach = student(0.5 + level / 2, count - 1) * float(np.std(samples, ddof=1)) / math.sqrt(count)
    return Interval(value, value - reach, value + reach, level, count, "Student")


def break_even(seconds: float, before: float, ratio: Interval) -> Interval | None:
    """Calls after which one-off seconds have paid off; None unless the whole interval is faster.

    before: seconds a call of the reference; ratio: variant over reference.
    """
    if ratio.high >= 1:
        return None
    value, low, high = (seconds / (before * (1 - at)) for at in (ratio.value, ratio.low, ratio.high))
    return Interval(
        value,
        low,
        high,
        ratio.level,
        ratio.n,
        "one-off seconds over seconds saved a call, by the interval of the ratio alone",
    )
