"""Cold starts of two versions, in pairs: fresh processes one after the other, never two at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanmark.arrays import numpy as np
from leanmark.measure.sides import Side, Worker
from leanmark.results import ColdStart, Interval
from leanmark.stats import log_ratio_of_pairs

PAIRS = 8


def paired_starts(head: Side, base: Side, seed: int, pairs: int = PAIRS) -> tuple[Interval, Interval]:
    """Head over base: the time to the first answer (import, load, first call), and the peak resident size by then.

    Who starts first is drawn by lot. Raises SideError.
    """
    random = np.random.default_rng(seed)
    found: list[tuple[ColdStart, ColdStart]] = []
    for _ in range(pairs):
        if random.integers(2):
            after, before = _start(head), _start(base)
        else:
            before, after = _start(base), _start(head)
        found.append((after, before))
    seconds = [(_seconds(after), _seconds(before)) for after, before in found]
    memory = [(float(after.rss_peak_bytes), float(before.rss_peak_bytes)) for after, before in found]
    return _ratio(seconds), _ratio(memory)


def _start(side: Side) -> ColdStart:
    worker = Worker(side)
    try:
        return worker.open()
    finally:
        worker.close()


def _seconds(start: ColdStart) -> float:
    return start.import_seconds + start.load_seconds + start.first_call_seconds


def _ratio(pairs: Sequence[tuple[float, float]]) -> Interval:
    return log_ratio_of_pairs([math.log(after / before) for after, before in pairs]).interval()
