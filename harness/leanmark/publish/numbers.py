"""Numbers with units and intervals as people read them, and text made safe to show.

Pure; shared by the terminal table, Markdown and the pages, so that one figure looks
the same everywhere. A figure that is missing or not finite is shown as a dash.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import Final

from leanmark.results import FRACTIONS, Interval, Quality, Score

MISSING: Final = "\u2013"  # an en dash

_MOST_PLACES = 6

# Characters that reorder or hide the text around them (Unicode TR 36, section 2.5).
_BIDI: Final = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")
_INVISIBLE: Final = frozenset({"Cc", "Cn", "Cs", "Zl", "Zp"})  # Cn: such as U+FFFE, which no XML may hold


@dataclass(frozen=True)
class Figure:
    """A value with its unit, and its interval, which may be empty."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


NOTHING: Final = Figure(MISSING)


def ratio(interval: Interval | None) -> Figure:
    """A latency ratio, variant over reference: ``0.523x [0.512, 0.531]``.

    The reference itself, whose ratio is 1 by definition, has no interval.
    """
    if interval is None or not interval.is_finite:
        return NOTHING
    if interval.n == 0:
        return Figure("1x")
    places = _ratio_places(interval)
    low, high = _fixed(interval.low, places), _fixed(interval.high, places)
    return Figure(f"{_fixed(interval.value, places)}x", f"[{low}, {high}]")


# What a ranking's metrics look at: `workloads.interactions` says it.
_METRICS: Final = {"ndcg": "NDCG@10", "recall": "recall@20", "auc": "AUC"}


def metric(name: str) -> str:
    """A metric as people write it."""
    return _METRICS.get(name, name)


def further(name: str, found: Score) -> str:
    """What a further metric says: ``0.729 [0.701, 0.755]``, and its difference from the reference's, if any."""
    whole = Quality(name, found.score, found.by_seed, found.difference)
    against = f"; {difference(whole)} from fp32" if found.difference is not None else ""
    return f"{quality(whole)}{against}"


def quality(found: Quality | None) -> Figure:
    """A score: ``88.9 % [87.4, 90.2]``, or ``0.729 [0.701, 0.755]`` where it is no fraction."""
    if found is None or not found.score.is_finite:
        return NOTHING
    score = found.score
    if found.metric in FRACTIONS:
        low, high = _fixed(100 * score.low, 1), _fixed(100 * score.high, 1)
        return Figure(f"{_fixed(100 * score.value, 1)} %", f"[{low}, {high}]")
    return Figure(_fixed(score.value, 3), f"[{_fixed(score.low, 3)}, {_fixed(score.high, 3)}]")


def difference(found: Quality | None) -> Figure:
    """Score minus the reference's, paired: ``-0.4 pp [-0.9, +0.1]``."""
    if found is None or found.difference is None or not found.difference.is_finite:
        return NOTHING
    paired = found.difference
    if found.metric in FRACTIONS:
        low, high = signed(100 * paired.low, 1), signed(100 * paired.high, 1)
        return Figure(f"{signed(100 * paired.value, 1)} pp", f"[{low}, {high}]")
    return Figure(signed(paired.value, 3), f"[{signed(paired.low, 3)}, {signed(paired.high, 3)}]")


# Figures of papers that are fractions: their unit, and whether they have a sign. Others are factors.
_FRACTIONAL: Final = {
    "error": (" %", False),
    "follows_macs": (" %", False),
    "no_loss": (" pp", True),
    "better": (" pp", True),
}


def published(figure: str, value: float) -> str:
    """A figure of a paper: ``12x``, ``1.59 %``, ``0.1 pp``."""
    return f"{100 * value:.4g}{_FRACTIONAL[figure][0]}" if figure in _FRACTIONAL else f"{value:.4g}x"


def claimed(figure: str, here: Interval | None, paper: float) -> Figure:
    """The same figure as a run has it, with its interval where it was not just counted.

    It has as many digits as tell it from the paper's.
    """
    if here is None or not here.is_finite:
        return NOTHING
    unit, has_sign = _FRACTIONAL.get(figure, ("x", False))
    scale = 100.0 if figure in _FRACTIONAL else 1.0
    shown = signed if has_sign else _fixed
    bounds = [scale * bound for bound in (here.value, here.low, here.high)]
    places = 1 if scale == 1 and here.value >= 10 else 2
    while places < _MOST_PLACES and any(_looks_equal(bound, scale * paper, places) for bound in bounds):
        places += 1
    value, low, high = (shown(bound, places) for bound in bounds)
    return Figure(f"{value}{unit}", "" if here.n == 0 else f"[{low}, {high}]")


def figure_name(figure: str, than: str) -> str:
    """What is compared: ``fewer weights``, ``better vs magnitude``."""
    name = visible(figure, 40).replace("_", " ").replace("macs", "MACs")
    return f"{name} vs {visible(than, 100)}" if than else name


def _looks_equal(number: float, other: float, places: int) -> bool:
    return not math.isclose(number, other, rel_tol=1e-9) and round(number, places) == round(other, places)


def size(n_bytes: float | None) -> str:
    """Bytes, base 1000: ``266.6 kB``."""
    return _scaled(n_bytes, ((1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B")))


def count(number: float | None) -> str:
    """A count: ``266.6k``, ``4.24M``."""
    return _scaled(number, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")))


def seconds(duration: float | None) -> str:
    """A duration: ``45.2 µs``, ``1.23 ms``, ``9.4 s``, ``12.6 min``."""
    if duration is None or not math.isfinite(duration):
        return MISSING
    if duration >= 120:
        return f"{duration / 60:.1f} min" if duration < 5400 else f"{duration / 3600:.1f} h"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if duration >= 0.9995 * scale or scale == 1e-6:
            number = duration / scale
            return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"
    return MISSING


def rate(bracket: tuple[float, float | None] | None) -> Figure:
    """A highest rate as a search found it, and the lowest that was too much: ``412/s [412, 466]``."""
    if bracket is None or not math.isfinite(bracket[0]):
        return NOTHING
    low, high = bracket
    return Figure(f"{low:,.0f}/s", f"[{low:,.0f}, {MISSING if high is None else f'{high:,.0f}'}]")


def percent(fraction: float | None) -> str:
    """A fraction in percent with two significant digits: ``1.2 %``."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    return f"{_fixed(100 * fraction, 0 if abs(fraction) >= 0.0995 else 1)} %"


def plural(number: int, word: str, several: str = "") -> str:
    """``1 cell``, ``2 cells``; `several` for words that do not just take an s."""
    return f"{number} {word if number == 1 else several or word + 's'}"


def visible(text: str, limit: int = 2000) -> str:
    """Text of unknown origin on one line, safe to print.

    Control characters (which could drive a terminal), lone surrogates (which no file
    can hold) and characters that reorder the text around them become escapes such as
    ``\\u202e``; what is longer than `limit` characters is cut.
    """
    cut = text if len(text) <= limit else text[: max(0, limit - 1)] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(_visible(character) for character in cut)


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return " "
    if character in _BIDI or unicodedata.category(character) in _INVISIBLE:
        return f"\\u{ord(character):04x}"
    return character


def _ratio_places(interval: Interval) -> int:
    # By the value alone, so that a column lines up; three below 2, where being faster or slower is decided.
    return 3 if interval.value < 2 else 2 if interval.value < 20 else 1


def _fixed(number: float, places: int) -> str:
    text = f"{number:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def signed(number: float, places: int) -> str:
    text = _fixed(number, places)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def _scaled(number: float | None, units: tuple[tuple[float, str], ...]) -> str:
    if number is None or not math.isfinite(number):
        return MISSING
    for scale, unit in units:
        # 999.96 kB is written 1.00 MB, not 1000.0 kB.
        if scale == 1.0:
            return f"{number:g}{unit}" if number != round(number) else f"{round(number)}{unit}"
        if number >= 0.99995 * scale:
            part = number / scale
            return f"{part:.{2 if part < 9.995 else 1}f}{unit}"
    return MISSING
