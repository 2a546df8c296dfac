"""How much more would decide what stayed open: launches for a latency, examples for a quality. Pure."""

from __future__ import annotations

import math

from leanmark import stats
from leanmark.results import Interval

# In so many cases the launches that are said to decide do so, where they scatter as they were seen to; the true scatter
# of launches is below what is reckoned with in so many.
_DECIDING = 0.9
_CAUTION = 0.8
_LEAST_LAUNCHES = 8  # fewer tell a large change, but not how large
_MOST_LAUNCHES = 100_000


def launches(ratio: stats.LogRatio, tolerance: float, must_see: float, level: float) -> int | None:
    """How many launches like those of `ratio` decide about it in 9 of 10 cases; None where no number would do.

    It is taken to be as far from the tolerance as it seems less its own standard error, since what was picked for
    a large change seems larger than it is, or as `must_see` is, whichever is further. Its scatter is taken to be the
    upper limit (of a one-sided interval, by the chi-square distribution) of what so few launches tell of it.
    """
    from scipy.special import chdtri

    limit, freedom = math.log1p(tolerance), max(1, ratio.launches - 1)
    distance = max(math.log1p(must_see) - limit, abs(abs(ratio.mean) - limit) - ratio.error)
    scatter = ratio.error * math.sqrt(ratio.launches * freedom / float(chdtri(freedom, _CAUTION)))

    def decide(count: int) -> bool:
        reach = stats.student(0.5 + level / 2, count - 1) + stats.student(_DECIDING, count - 1)
        return reach * scatter <= distance * math.sqrt(count)

    if not decide(_MOST_LAUNCHES):
        return None
    low, high = _LEAST_LAUNCHES - 1, _MOST_LAUNCHES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decide(middle) else (middle, high)
    return high


def examples(difference: Interval, tolerance: float) -> int | None:
    """With how many examples like these an inconclusive difference would be decided; None where no number would do."""
    reach = (difference.high - difference.low) / 2
    distance = abs(difference.value) if abs(difference.value) > tolerance else tolerance - abs(difference.value)
    return None if distance <= 0 else math.ceil(difference.n * (reach / distance) ** 2)
