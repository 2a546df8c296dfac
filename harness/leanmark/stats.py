"""Estimators and intervals. Pure: numpy and scipy in, dataclasses out, no I/O.

Ratios are estimated in log space, so that swapping the sides inverts the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.results import Interval

LEVEL = 0.95
POWER = 0.8
MINIMUM_LAUNCHES = 4
# A percentile is reported only where at least so many samples lie beyond it.
_TAIL_SAMPLES = 5
_MAD_TO_SD = 1.4826
_MEDIAN_EFFICIENCY = math.sqrt(math.pi / 2)  # sd of a median over sd of a mean, normal samples


@dataclass(frozen=True)
class LogRatio:
    """A log ratio with its standard error and the launches that it rests on."""

    mean: float
    error: float
    launches: int

    def interval(self, level: float = LEVEL) -> Interval:
        """The ratio with a Student interval over launches."""
        reach = student(0.5 + level / 2, self.launches - 1) * self.error
        return Interval(
            value=math.exp(self.mean),
            low=math.exp(self.mean - reach),
            high=math.exp(self.mean + reach),
            level=level,
            n=self.launches,
            method="median of paired log ratios a launch, Student over launches",
        )

    def minimum_detectable_effect(self, level: float = LEVEL) -> float:
        """The relative change that this many launches detect with power 0.8."""
        freedom = self.launches - 1
        return math.expm1((student(0.5 + level / 2, freedom) + student(POWER, freedom)) * self.error)

    def times(self, other: LogRatio) -> LogRatio:
        """The product of two ratios: variances add in log space, the fewer launches count."""
        return LogRatio(self.mean + other.mean, math.hypot(self.error, other.error), min(self.launches, other.launches))


def paired_log_ratio(launches: Sequence[Array]) -> LogRatio:
    """Combine launches, each an array of log ratios of the turns that were paired.

    A launch's figure is its median; the estimate is their mean. The standard error
    is the larger of what the spread between launches and what the spread of the
    turns within them gives: launches that agree by luck do not make it small.

    Raises ValueError with fewer than 4 launches or an empty one.
    """
    if len(launches) < MINIMUM_LAUNCHES:
        raise ValueError(f"an interval needs at least {MINIMUM_LAUNCHES} launches, not {len(launches)}")
    if any(launch.size == 0 for launch in launches):
        raise ValueError("a launch has no turns")
    medians = np.array([float(np.median(launch)) for launch in launches])
    count = len(launches)
    between = float(np.std(medians, ddof=1)) / math.sqrt(count)
    within = math.sqrt(sum(_median_error(launch) ** 2 for launch in launches)) / count
    return LogRatio(float(np.mean(medians)), max(between, within), count)


def _median_error(sample: Array) -> float:
    """Standard error of the median of one launch's turns, from their robust spread."""
    spread = _MAD_TO_SD * float(np.median(np.abs(sample - np.median(sample))))
    return _MEDIAN_EFFICIENCY * spread / math.sqrt(sample.size)


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


def wilson(successes: float, count: int, level: float = LEVEL) -> Interval:
    """A proportion with its score interval (Wilson 1927)."""
    z = normal(0.5 + level / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))
    return Interval(share, low, high, level, count, "Wilson score")


def mean_score(scores: Array, level: float = LEVEL) -> Interval:
    """The mean of scores, shape (seeds, examples), over examples and seeds.

    Hits and misses of one seed get a Wilson interval. Else the variance is that of
    the examples' means plus, with several seeds, that of the seeds' means.
    """
    seeds, examples = scores.shape
    if seeds == 1 and bool(np.isin(scores, (0, 1)).all()):
        return wilson(float(scores.sum()), examples, level)
    value = float(scores.mean())
    variance = float(scores.mean(axis=0).var(ddof=1)) / examples if examples > 1 else math.inf
    if seeds > 1:
        variance += float(scores.mean(axis=1).var(ddof=1)) / seeds
    reach = student(0.5 + level / 2, (seeds if seeds > 1 else examples) - 1) * math.sqrt(variance)
    method = "Student over seeds and examples" if seeds > 1 else "Student over examples"
    return Interval(value, value - reach, value + reach, level, examples, method)


def paired_difference(scores: Array, reference: Array, level: float = LEVEL) -> Interval:
    """Mean of `scores` minus mean of `reference` on the same examples.

    Both have shape (seeds, examples). For hits and misses of one seed this is the
    adjusted Wald interval of Bonett and Price (2012), which holds its level where
    few answers changed.
    """
    seeds, examples = scores.shape
    value = float(scores.mean() - reference.mean())
    if seeds == 1 and bool(np.isin(scores, (0, 1)).all() and np.isin(reference, (0, 1)).all()):
        won = float(((scores == 1) & (reference == 0)).sum()) + 1
        lost = float(((scores == 0) & (reference == 1)).sum()) + 1
        total = examples + 2
        p, q = won / total, lost / total
        reach = normal(0.5 + level / 2) * math.sqrt((p + q - (p - q) ** 2) / total)
        middle = p - q
        return Interval(
            value, max(-1.0, min(middle - reach, value)), min(1.0, max(middle + reach, value)), level, examples,
            "Bonett-Price, paired",
        )  # fmt: skip
    moved = mean_score(scores - reference, level)
    return Interval(value, moved.low, moved.high, level, examples, moved.method + ", paired")
