"""The plot of quality against cost: its points, its Vega-Lite specification, and Vega itself.

Altair builds the specification once (a chart takes it 0.1 s); the page fills in the
chosen points and their axes' titles and domains. Vega runs in the page with its expression
interpreter, because the page's content policy forbids `eval`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from leanmark.errors import InvalidInput
from leanmark.publish import leaderboard, numbers
from leanmark.publish.leaderboard import AXES, Group, Row
from leanmark.publish.numbers import difference, quality, ratio, size, visible
from leanmark.results import FRACTIONS, Interval, Role

if TYPE_CHECKING:
    import altair as alt

NAME_LIMIT: Final = 40
MAX_FAMILIES: Final = 7  # colours of Okabe and Ito's palette (2008) that stand out on light and dark
COMBINED: Final = "combined"
OTHER: Final = "other"

_LABELS: Final = {
    "ratio": "format(datum.value, '~g') + 'x'",
    "bytes": "format(datum.value, '~s') + 'B'",
    "count": "format(datum.value, '~s')",
}
_BUNDLE_SECONDS: Final = 120
_BUNDLE_CODE: Final = (
    "import sys, vl_convert\n"
    "bundle = vl_convert.javascript_bundle(snippet='window.vegaEmbed = vegaEmbed;', vl_version=sys.argv[1])\n"
    "sys.stdout.buffer.write(bundle.encode())\n"
)


def families(table: Sequence[Row]) -> list[str]:
    """The families that have a colour of their own, most frequent first, then `OTHER` if there are more."""
    counted = Counter(_family(row) for row in table if row.role is Role.VARIANT)
    names = [name for name, _ in counted.most_common()]
    return names if len(names) <= MAX_FAMILIES else [*names[: MAX_FAMILIES - 1], OTHER]


def panel(group: Group) -> str:
    """The name of a workload and target in the page's address."""
    return visible(group.key, 200)


def points(table: Sequence[Row]) -> list[dict[str, Any]]:
    """One JSON object a cell that has a quality: its values, bounds and texts by axis."""
    fronts = {axis.key: leaderboard.pareto(table, axis.value) for axis in AXES}
    coloured = families(table)
    found: list[dict[str, Any]] = []
    for index, row in enumerate(table):
        if row.quality is None or not math.isfinite(row.quality.score.value):
            continue
        scale = 100.0 if row.quality.metric in FRACTIONS else 1.0
        family = _family(row)
        found.append(
            {
                "cell": index,
                "panel": panel(row.group),
                "label": visible(row.variant, NAME_LIMIT),
                "family": family if family in coloured else OTHER,
                "kind": _kind(row),
                "reference": row.role in (Role.REFERENCE, Role.EAGER),
                "x": {axis.key: _bounds(axis.bounds(row)) for axis in AXES},
                "y": {
                    "score": _bounds(row.quality.score, scale),
                    "difference": [0.0, 0.0, 0.0]
                    if row.role is Role.REFERENCE
                    else _bounds(row.quality.difference, scale),
                },
                "front": [axis.key for axis in AXES if row.id in fronts[axis.key]],
                "text": _texts(row),
            }
        )
    return found


def data(table: Sequence[Row]) -> dict[str, Any]:
    """All that the page needs to draw the plot, as JSON values."""
    metrics = {panel(row.group): row.quality.metric for row in reversed(table) if row.quality is not None}
    return {
        "specification": specification(families(table)),
        "axes": {axis.key: {"title": axis.title, "labels": _LABELS[axis.unit]} for axis in AXES},
        "panels": {key: {y: _y_title(metric, y) for y in ("score", "difference")} for key, metric in metrics.items()},
        "points": points(table),
    }


def _family(row: Row) -> str:
    own = [family for family in row.families if family != "controls"] or list(row.families)
    return visible(own[0], NAME_LIMIT) if len(own) == 1 else COMBINED if own else OTHER


def _kind(row: Row) -> str:
    if not row.ok:
        return "greyed"
    return {Role.REFERENCE: "reference", Role.EAGER: "reference", Role.CONTROL: "control"}.get(row.role, "variant")


def _bounds(found: Interval | float | None, scale: float = 1.0) -> list[float] | None:
    if found is None:
        return None
    triple = (found.value, found.low, found.high) if isinstance(found, Interval) else (found, found, found)
    return [scale * bound for bound in triple] if all(map(math.isfinite, triple)) else None


def _texts(row: Row) -> list[str]:
    footprint = row.footprint
    return [
        f"{leaderboard.LATENCY_TITLE}: {ratio(row.latency)}",
        f"{visible(numbers.metric(row.quality.metric) if row.quality else '', NAME_LIMIT)}: {quality(row.quality)}",
        f"difference: {difference(row.quality)}",
        f"size: {size(footprint.size_bytes if footprint else None)}",
        f"status: {row.status.value}",
    ]


def _y_title(metric: str, y: str) -> str:
    name, percentage = visible(numbers.metric(metric), NAME_LIMIT), metric in FRACTIONS
    if y == "score":
        return f"{name} (%)" if percentage else name
    return f"{name} minus fp32's, paired" + (" (pp)" if percentage else "")


def specification(coloured: Sequence[str]) -> dict[str, Any]:
    """The plot without its data set `points` and without its axes' titles and domains, as Vega-Lite.

    coloured: the families in the order of their colours.
    """
    import altair as alt

    ticks = alt.Axis(tickCount=6, labelFlush=False, labelSeparation=8)
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False, padding=24), axis=ticks)
    y = alt.Y("y:Q", scale=alt.Scale(zero=False, nice=False, padding=16), axis=ticks)
    colour = alt.Color("family:N", scale=alt.Scale(domain=list(coloured)), legend=None)
    base = alt.Chart(alt.NamedData("points")).encode(x=x, y=y, tooltip="label:N")
    variants = base.transform_filter("datum.kind === 'variant'").encode(color=colour)
    offset: dict[str, Any] = {"dx": alt.expr("datum.dx"), "dy": alt.expr("datum.dy"), "align": alt.expr("datum.align")}
    layers: list[alt.Chart] = [
        base.transform_filter("datum.front").mark_line(interpolate="step-after", style="front").encode(order="x:Q"),
        base.mark_rule(style="whisker").encode(x="x_low:Q", x2="x_high:Q"),
        base.mark_rule(style="whisker").encode(y="y_low:Q", y2="y_high:Q"),
        _shown(base, "greyed", "cross", 45, filled=True),
        _shown(base, "control", "triangle-up", 50, filled=False),
        _shown(base, "reference", "diamond", 120, filled=True),
        variants.transform_filter("!datum.front").mark_point(filled=False, size=70, strokeWidth=1.8, opacity=1),
        variants.transform_filter("datum.front").mark_point(filled=True, size=120, opacity=1),
        # The page finds each name's place once it knows the scales, so that names do not cover each other.
        base.mark_text(style="name", **offset).encode(text="name:N"),
    ]
    size: dict[str, Any] = {"width": "container", "height": 400, "autosize": {"type": "fit", "contains": "padding"}}
    return alt.layer(*layers).properties(**size).to_dict(validate=False)  # a test validates it


def _shown(base: alt.Chart, kind: str, shape: str, area: int, *, filled: bool) -> alt.Chart:
    return base.transform_filter(f"datum.kind === '{kind}'").mark_point(
        shape=shape, size=area, filled=filled, opacity=1, style=kind
    )


def vega(cache: Path | None = None) -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Bundling takes seconds and 150 MB, so a process of its own does it. With `cache`,
    a folder, the script is kept there and checked by its own hash when it is read.

    Raises InvalidInput if the installed vl-convert cannot make it.
    """
    import altair as alt

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    kept = cache / f"vega-{importlib.metadata.version('vl-convert-python')}-{version}.js" if cache else None
    script = _read_kept(kept) if kept else None
    if script is None:
        script = _bundle(version)
        if kept:
            _keep(kept, script)
    return script


def _bundle(version: str) -> str:
    advice = "Install vl-convert-python again, in the version that leanmark asks for."
    try:
        done = subprocess.run(
            [sys.executable, "-c", _BUNDLE_CODE, version], capture_output=True, timeout=_BUNDLE_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise InvalidInput(f"the plot library cannot be bundled: {visible(''.join(last), 300)}", do=advice) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"the plot library cannot be bundled: {error}", do=advice) from error
    return done.stdout.decode()


def _read_kept(file: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        head, _, script = file.read_text(encoding="utf-8").partition("\n")
        if head == _seal(script):
            return script
    return None


def _keep(file: Path, script: str) -> None:
    # A cache that cannot be written costs time, not the page.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".vega-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
                out.write(f"{_seal(script)}\n{script}")
            os.replace(name, file)
        except OSError:
            Path(name).unlink()
            raise


def _seal(script: str) -> str:
    return f"// sha256 {hashlib.sha256(script.encode()).hexdigest()}"
