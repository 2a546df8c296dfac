"""What papers report, as a suite declares it; `claims` compares runs with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """What a paper reports for the cells that a pattern fits.

    figures: by the names of `claims.FIGURES`. Factors are times, the others fractions; `no_loss` is the
    margin of a test for non-inferiority: the largest loss of the metric that counts as none. than: the recipe that they
    are compared with, if not the reference.
    """

    cell: str
    source: str
    figures: Mapping[str, float]
    than: str = ""
