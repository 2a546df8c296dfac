"""One run as one HTML page that needs nothing but itself.

Every text of a run may come from a stranger. It reaches the page only through Jinja2's
autoescaping or as escaped JSON in an inert element, and a content policy lets nothing
run but the page's own scripts, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache as memoized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from leanmark import claims
from leanmark.errors import InvalidInput
from leanmark.jsonable import Json
from leanmark.publish import curves, leaderboard, numbers, plot
from leanmark.publish.leaderboard import Row
from leanmark.publish.numbers import visible
from leanmark.results import Interval, Run, StepSpec
from leanmark.traffic import Served

if TYPE_CHECKING:
    from jinja2 import Environment

NAME_LIMIT: Final = 80
_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_WIDEST: Final = 32.0  # ratios beyond this factor lie at the edge of a whisker's scale


def write_page(run: Run, path: Path, *, cache: Path | None = None) -> None:
    """Write the page of a run; a page that is there already is replaced at once.

    cache: a folder in which the plot library may be kept, which saves seconds.

    Raises InvalidInput if the file cannot be written.
    """
    with ThreadPoolExecutor(1) as pool:  # the bundle is made in another process; render meanwhile
        script = pool.submit(plot.vega, cache)
        page = render(run)
        text = page.html(Asset.script(script.result()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except OSError as error:
        raise InvalidInput(f"the page cannot be written: {error}", where=path, do="Choose another place.") from error


def templates() -> Path:
    """The folder of templates: in the installed package, or in the checkout that this runs from."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_reports", package.parents[1] / "reports"):
        if (folder / "page.html.j2").is_file():
            return folder
    raise InvalidInput("the templates of the pages are missing", where=package, do="Install leanmark again.")


@dataclass(frozen=True)
class Asset:
    """A script or style sheet that stands in the page, and the hash that the content policy knows it by."""

    text: Markup
    source: str

    @staticmethod
    def script(text: str) -> Asset:
        # Neither sequence means anything in the scripts that come here but inside a string.
        return Asset._of(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))

    @staticmethod
    def style(text: str) -> Asset:
        return Asset._of(text)

    @staticmethod
    def _of(text: str) -> Asset:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return Asset(Markup(text), f"'sha256-{digest}'")  # noqa: S704 - leanmark's own files and Vega


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale from 0 to 100 on which the ratios of a page are drawn."""

    low: float
    high: float

    @staticmethod
    def over(table: Sequence[Row]) -> Scale:
        ratios = [bound for row in table if row.latency for bound in (row.latency.low, row.latency.high)]
        finite = [min(max(bound, 1 / _WIDEST), _WIDEST) for bound in ratios if math.isfinite(bound)]
        return Scale(min([0.9, *finite]) / 1.08, max([1.1, *finite]) * 1.08)

    def at(self, ratio: float) -> float:
        """Where a ratio lies; what is outside, or no number, lies at an edge."""
        if not ratio > self.low:
            return 0.0
        part = math.log(min(ratio, self.high) / self.low) / math.log(self.high / self.low)
        return round(100 * part, 2)


@dataclass(frozen=True)
class Page:
    """Everything about a run that its page shows, apart from the plot library."""

    run: Run
    table: list[Row]
    plot_data: dict[str, Any]

    def html(self, vega: Asset) -> str:
        """The page as text."""
        folder = templates()
        run, table = self.run, self.table
        groups = leaderboard.groups(table)
        template = _environment().get_template("page.html.j2")
        return template.render(
            run=run,
            table=table,
            groups=groups,
            best={group: leaderboard.best(members) for group, members in groups.items()},
            references={group: leaderboard.reference(members) for group, members in groups.items()},
            controls={group: leaderboard.controls(members) for group, members in groups.items()},
            seen={group: leaderboard.sensitivity(members) for group, members in groups.items()},
            front=leaderboard.pareto(table, leaderboard.AXES[0].value),
            scale=Scale.over(table),
            families=_families(table),
            statuses=leaderboard.statuses(table),
            services={group: members for group, members in groups.items() if any(row.served for row in members)},
            charts={group: curves.chart(members) for group, members in groups.items()},
            panels=[group for group, members in groups.items() if any(row.quality for row in members)],
            axes=leaderboard.AXES,
            colours=plot.families(table),
            margin=leaderboard.QUALITY_MARGIN,
            latency_title=leaderboard.LATENCY_TITLE,
            eager_title=leaderboard.EAGER_TITLE,
            machine=leaderboard.machine(run.environment),
            versions=leaderboard.versions(run.environment),
            commit=leaderboard.commit(run),
            environment=list(flat(run.environment)),
            claims=claims.beside(run),
            plot_data=self.plot_data,
            style=Asset.style((folder / "page.css").read_text(encoding="utf-8")),
            script=Asset.script((folder / "page.js").read_text(encoding="utf-8")),
            vega=vega,
        )


def render(run: Run) -> Page:
    """Rank a run and prepare its plot."""
    table = leaderboard.rows(run)
    return Page(run, table, plot.data(table))


@memoized
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    filters: dict[str, Any] = {
        "bytes": numbers.size,
        "count": numbers.count,
        "seconds": numbers.seconds,
        "percent": numbers.percent,
        "ratio": numbers.ratio,
        "score": numbers.quality,
        "metric": numbers.metric,
        "difference": numbers.difference,
        "published": numbers.published,
        "claimed": numbers.claimed,
        "figure_name": numbers.figure_name,
        "name": _name,
        "short": _short,
        "step": step_text,
        "fact": fact_text,
        "json": embedded,
        "plain": plain,
        "words": _words,
        "moment": _moment,
        "direction": _direction,
        "panel": plot.panel,
        "rate": numbers.rate,
        "tiers": _tiers,
    }
    names: dict[str, Any] = {
        "reproduce": leaderboard.reproduce,
        "plural": numbers.plural,
        "further": numbers.further,
        "missing": numbers.MISSING,
    }
    environment.filters.update(filters)
    environment.globals.update(names)
    return environment


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def embedded(value: Json) -> Markup:
    """JSON for a script element of type application/json: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return Markup(escaped)  # noqa: S704 - what HTML could read is escaped


def plain(number: float | None) -> str:
    """A number for sorting; empty where there is none."""
    return "" if number is None or not math.isfinite(number) else f"{number:.9g}"


def step_text(step: StepSpec) -> str:
    """A step with its parameters: ``prune.magnitude(sparsity=0.5)``."""
    params = ", ".join(f"{visible(name, 60)}={fact_text(value)}" for name, value in step.params.items())
    return f"{visible(step.name, NAME_LIMIT)}({params})" if params else visible(step.name, NAME_LIMIT)


def fact_text(value: Json) -> str:
    """A fact of any JSON type as one short text."""
    if isinstance(value, str):
        return visible(value, 200)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return visible(", ".join(f"{name}: {fact_text(part)}" for name, part in value.items()), 400)
    if isinstance(value, (list, tuple)):
        return visible(", ".join(fact_text(part) for part in value[:100]), 400)
    return visible(json.dumps(value, default=str), 400)


def flat(mapping: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as pairs of a name and a text."""
    for name, value in mapping.items():
        title = f"{prefix}{visible(str(name), 60).replace('_', ' ')}"
        if isinstance(value, Mapping) and value and len(prefix) < 120:
            yield from flat(value, f"{title}: ")
        elif str(name).endswith("_bytes") and isinstance(value, (int, float)):
            yield title.removesuffix(" bytes"), numbers.size(value)
        else:
            yield title, (numbers.MISSING if value is None else fact_text(value)) or numbers.MISSING


def _name(text: object) -> str:
    return visible(str(text), NAME_LIMIT)


def _short(text: object, limit: int = 400) -> str:
    return visible(str(text), limit)


def _tiers(served: Served) -> str:
    """Hit rates by tier: ``instance 81 %, shared 12 %``."""
    return ", ".join(f"{name} {numbers.percent(use.hit_rate)}" for name, use in served.tiers.items()) or numbers.MISSING


def _moment(started: str) -> str:
    return started.replace("T", " ", 1).replace("+00:00", " UTC").replace("Z", " UTC")


def _words(row: Row) -> str:
    """What the page's search looks through."""
    parts = (
        row.id,
        row.variant,
        row.group.workload,
        row.group.target.id,
        *row.families,
        *(step.name for step in row.steps),
    )
    words = [*(visible(part, 120) for part in parts), row.status.value, row.result.reason]
    return visible(" ".join(words), 600).lower()


def _direction(ratio: Interval | None) -> str:
    if ratio is None or ratio.n == 0 or not ratio.excludes(1.0):
        return "even"
    return "faster" if ratio.value < 1 else "slower"


def _families(table: Sequence[Row]) -> list[str]:
    return sorted({family for row in table for family in row.families})


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
            out.write(text)
        Path(name).chmod(0o644)  # mkstemp's own is for secrets; a page is to be served
        os.replace(name, path)
    except OSError:
        Path(name).unlink()
        raise
