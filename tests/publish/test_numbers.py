"""Numbers as people read them, and text of unknown origin."""

import math
import unicodedata
from dataclasses import replace

import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from leanmark.publish import numbers
from leanmark.publish.numbers import MISSING
from leanmark.results import Interval, Quality, Score

UNITS = {" B": 1, " kB": 1e3, " MB": 1e6, " GB": 1e9}


def interval(value: float, low: float, high: float, n: int = 5) -> Interval:
    return Interval(value, low, high, 0.95, n, "test")


def accuracy(value: float, difference: Interval | None = None, metric: str = "accuracy") -> Quality:
    return Quality(metric, interval(value, value - 0.015, value + 0.0131, 2000), (value,), difference)


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [
        (interval(0.5234, 0.512, 0.5311), "0.523x [0.512, 0.531]"),
        (interval(1.0004, 0.9961, 1.0049), "1.000x [0.996, 1.005]"),
        (interval(3.4, 3.377, 3.423), "3.40x [3.38, 3.42]"),
        (interval(41.26, 40.0, 42.5), "41.3x [40.0, 42.5]"),
        (interval(1.0, 1.0, 1.0, n=0), "1x"),
        (interval(math.nan, 0.5, 1.0), MISSING),
        (interval(2.0, 0.1, math.inf), MISSING),
        (None, MISSING),
    ],
)
def test_ratio(ratio: Interval | None, shown: str):
    assert str(numbers.ratio(ratio)) == shown


def test_quality_and_its_difference_in_percent_and_in_a_unit_of_its_own():
    paired = interval(-0.0042, -0.0091, 0.0012)
    assert str(numbers.quality(accuracy(0.8891))) == "88.9 % [87.4, 90.2]"
    assert str(numbers.difference(accuracy(0.8891, paired))) == "-0.4 pp [-0.9, +0.1]"
    assert str(numbers.quality(accuracy(0.729, metric="spearman"))) == "0.729 [0.714, 0.742]"
    assert str(numbers.difference(accuracy(0.729, paired, "spearman"))) == "-0.004 [-0.009, +0.001]"
    assert str(numbers.difference(accuracy(0.9))) == MISSING


def test_no_difference_has_no_sign():
    assert str(numbers.difference(accuracy(0.9, interval(-0.00001, -0.0001, 0.0001)))) == "0.0 pp [0.0, 0.0]"


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (266_610, "266.6 kB"),
        (999_960, "1.00 MB"),
        (1_067_540, "1.07 MB"),
        (None, MISSING),
    ],
)
def test_size(n_bytes: int | None, shown: str):
    assert numbers.size(n_bytes) == shown


@given(st.integers(0, 10**12))
def test_a_size_reads_back_as_itself_and_is_never_a_thousand_of_its_unit(n_bytes: int):
    shown = numbers.size(n_bytes)
    number, unit = shown.split(" ")
    assert float(number) * UNITS[f" {unit}"] == pytest.approx(n_bytes, rel=0.006)
    assert float(number) < 1000 or unit == "GB"


@pytest.mark.parametrize(
    ("duration", "shown"),
    [
        (4.2e-7, "0.42 µs"),
        (45.24e-6, "45.2 µs"),
        (212e-6, "212 µs"),
        (0.00099999, "1.00 ms"),
        (1.234e-3, "1.23 ms"),
        (9.4, "9.40 s"),
        (754.2, "12.6 min"),
        (7300, "2.0 h"),
        (math.nan, MISSING),
        (None, MISSING),
    ],
)
def test_seconds(duration: float | None, shown: str):
    assert numbers.seconds(duration) == shown


def test_counts_and_percentages():
    assert [numbers.count(n) for n in (7, 266_610, 4_240_000, 569_000_000)] == ["7", "266.6k", "4.24M", "569.0M"]
    assert [numbers.percent(share) for share in (0.0, 0.0124, 0.31, None)] == ["0.0 %", "1.2 %", "31 %", MISSING]
    assert numbers.plural(1, "launch", "launches") == "1 launch"
    assert numbers.plural(5, "launch", "launches") == "5 launches"


@given(st.text(st.characters(), max_size=300))
def test_visible_text_cannot_drive_a_terminal_or_reorder_a_line(text: str):
    shown = numbers.visible(text)
    shown.encode()  # no lone surrogate is left
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    assert not any(unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI") for c in shown)
    assert numbers.visible(shown) == shown


def test_visible_text_says_what_was_hidden_and_keeps_the_rest():
    assert numbers.visible("größe ﬁ 模型") == "größe ﬁ 模型"
    assert numbers.visible("a\u202eb\x1b[2Jc\nd") == "a\\u202eb\\u001b[2Jc d"
    assert numbers.visible(runs.LONG, 20) == runs.LONG[:19] + "…"


def test_an_interval_that_is_not_a_number_is_not_shown():
    broken = replace(accuracy(0.9), score=interval(0.9, math.nan, 1.0))
    assert numbers.quality(broken) is numbers.NOTHING


def test_metrics_of_rankings_say_how_far_they_look():
    found = Score(interval(0.2357, 0.2249, 0.2466), (0.2357,), interval(-0.065, -0.0764, -0.0553))
    assert numbers.further("recall", found) == "0.236 [0.225, 0.247]; -0.065 [-0.076, -0.055] from fp32"
    assert [numbers.metric(name) for name in ("ndcg", "recall", "f1")] == ["NDCG@10", "recall@20", "f1"]
