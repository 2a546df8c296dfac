"""Scores of test examples: means and paired differences, with intervals over examples and seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from leanmark import stats
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.results import Interval

# Scores are means of at most some millions of examples: differences below this are of rounding, not of an answer.
_ROUNDING = 1e-9


def wilson(successes: float, count: int, level: float = stats.LEVEL) -> Interval:
    """A proportion with its score interval (Wilson 1927). Raises ValueError without a single trial."""
    if count < 1:
        raise ValueError("a share of nothing")
    z = stats.normal(0.5 + level / 2)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = max(0.0, min(middle - reach, share)), min(1.0, max(middle + reach, share))
    return Interval(share, low, high, level, count, "Wilson score")


def mean_score(scores: Array, level: float = stats.LEVEL) -> Interval:
    """The mean of scores, shape (seeds, examples), over examples and seeds.

    Hits and misses of one seed get a Wilson interval. Else the variance is that of
    the examples' means plus, with several seeds, that of the seeds' means, each with its own
    Student's quantile. Hits and misses
    of several seeds are reckoned with one hit and one miss more, as Agresti and Coull (1998) do
    for one: examples that were all answered alike would else have no variance at all.
    """
    seeds, examples = scores.shape
    hits = bool(np.isin(scores, (0, 1)).all())
    if seeds == 1 and hits:
        return wilson(float(scores.sum()), examples, level)
    return _mean_over(scores, level, (0.0, 1.0) if hits else ())


def _mean_over(scores: Array, level: float, added: tuple[float, ...]) -> Interval:
    """The mean of scores over examples and seeds; added: examples with which only the variance is reckoned."""
    seeds, examples = scores.shape
    value = float(scores.mean())
    means = np.concatenate([scores.mean(axis=0), added])
    parts = [(float(means.var(ddof=1)) / examples if means.size > 1 else math.inf, max(1, examples - 1))]
    if seeds > 1:
        parts.append((float(scores.mean(axis=1).var(ddof=1)) / seeds, seeds - 1))
    reach = _reach(parts, level)
    method = "Student over seeds and examples" if seeds > 1 else "Student over examples"
    low, high = value - reach, value + reach
    if added:
        low, high = max(low, min(added)), min(high, max(added))
    return Interval(value, low, high, level, examples, method)


def _reach(parts: Sequence[tuple[float, int]], level: float) -> float:
    """How far an interval reaches whose variance is a sum; parts: each variance, and its degrees of freedom.

    Each part counts with its own Student's quantile, so that few seeds widen what seeds add, and nothing else: the
    square root of the sum of squared reaches, which is no narrower than any of them (as Graybill and Wang 1980 for
    variances). One effective number of degrees of freedom for the sum (Satterthwaite 1946) covers too little with
    two seeds far apart: such runs are drawn in tests/test_stats.py.
    """
    return math.sqrt(sum(part * stats.student(0.5 + level / 2, freedom) ** 2 for part, freedom in parts))


def joined_means(parts: Sequence[Interval], by_seed: Sequence[float], level: float = stats.LEVEL) -> Interval:
    """The mean over seeds of what several intervals say, each of some of the seeds, all on the same examples.

    by_seed: the estimate of each seed. For means whose scores are not at hand: what examples add to the variance is
    taken for the same in all parts, so it does not get less with more of them, and what seeds add within a part counts
    twice: the interval is rather too wide. Raises ValueError for fewer than two seeds.
    """
    if len(by_seed) < 2:
        raise ValueError("an interval over seeds needs at least 2 of them")
    values = np.array(by_seed, dtype=np.float64)
    errors = [(part.high - part.low) / 2 / stats.normal(0.5 + part.level / 2) for part in parts]
    of_examples = (float(np.mean(np.square(errors))), max(1, parts[0].n - 1))
    of_seeds = (float(values.var(ddof=1)) / values.size, values.size - 1)
    value, reach = float(values.mean()), _reach([of_examples, of_seeds], level)
    return Interval(value, value - reach, value + reach, level, parts[0].n, "Student over seeds, by their intervals")


def difference_over_seeds(scores: Sequence[float], reference: Sequence[float], level: float) -> Interval | None:
    """Mean of the scores of several seeds minus that of a reference's, seed by seed, on examples that stay as they are.

    What it says holds for other seeds on these examples, not for other examples. None where the seeds are not the same,
    fewer than two, or differ by no more than rounding.
    """
    if len(scores) != len(reference) or len(scores) < 2:
        return None
    moved = np.array(scores, dtype=np.float64) - np.array(reference)
    if float(np.ptp(moved)) <= _ROUNDING:
        return None
    return replace(stats.student_mean(moved, level), method="Student over seeds, paired, test examples fixed")


def paired_difference(scores: Array, reference: Array, level: float = stats.LEVEL) -> Interval:
    """Mean of `scores` minus mean of `reference` on the same examples.

    Both have shape (seeds, examples). For hits and misses of one seed this is the
    adjusted Wald interval of Bonett and Price (2012), which holds its level where
    few answers changed; those of several seeds are reckoned with one example won and one lost more, too.
    """
    seeds, examples = scores.shape
    value = float(scores.mean() - reference.mean())
    hits = bool(np.isin(scores, (0, 1)).all() and np.isin(reference, (0, 1)).all())
    if seeds == 1 and hits:
        won = float(((scores == 1) & (reference == 0)).sum()) + 1
        lost = float(((scores == 0) & (reference == 1)).sum()) + 1
        total = examples + 2
        p, q = won / total, lost / total
        reach = stats.normal(0.5 + level / 2) * math.sqrt((p + q - (p - q) ** 2) / total)
        middle = p - q
        return Interval(
            value, max(-1.0, min(middle - reach, value)), min(1.0, max(middle + reach, value)), level, examples,
            "Bonett-Price, paired",
        )  # fmt: skip
    moved = _mean_over(scores - reference, level, (-1.0, 1.0) if hits else ())
    return Interval(value, moved.low, moved.high, level, examples, moved.method + ", paired")
