"""A run for the terminal, and as Markdown and CSV; all from the rows of `leaderboard`."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from leanmark import claims
from leanmark.publish import leaderboard, numbers
from leanmark.publish.leaderboard import EAGER_TITLE, LATENCY_TITLE, Group, Row
from leanmark.publish.numbers import Figure, visible
from leanmark.results import Interval, Role, Run, Status

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

NAME_LIMIT: Final = 60
_WIDE_GAP: Final = 2
_NARROW_GAP: Final = 1
_RIGHT: Final = (False, True, True, True, True, False)
_COLOURS: Final = {Status.OK: "green", Status.NOISY: "yellow", Status.INEFFECTIVE: "magenta", Status.WRONG: "red"}
_FAILURE_COLOUR: Final = "red"
_FORMULA: Final = ("=", "+", "-", "@")


def print_run(run: Run, console: Console) -> None:
    """The table of a run: one line a cell where the console is wide enough, else two."""
    from rich.text import Text

    table = leaderboard.rows(run)
    console.print(
        Text(visible(f"{run.suite}: {run.title}" if run.title not in ("", run.suite) else run.suite, 400), style="bold")
    )
    if not run.complete:
        console.print(Text("! This run is not complete.", style="bold yellow"))
    for warning in run.warnings:
        console.print(Text(f"! {visible(warning)}", style="bold yellow"))
    front = leaderboard.pareto(table, leaderboard.AXES[0].value)
    for group, members in leaderboard.groups(table).items():
        console.print()
        _print_group(group, members, front, console)
    _print_claims(run, console)
    console.print()
    for line in _footer(run, table):
        console.print(Text(line, style="dim"))


def _print_claims(run: Run, console: Console) -> None:
    """What papers report, beside what was found: a cell and its source, then a line a figure."""
    from rich.text import Text

    found = claims.beside(run)
    if not found:
        return
    console.print()
    console.print(Text("Published, and here", style="bold cyan"))
    last = ("", "")
    for item in found:
        if (item.cell, item.source) != last:
            last = (item.cell, item.source)
            console.print(Text(visible(item.cell, 200)))
            console.print(_indented(Text(visible(item.source, 300), style="dim")))
        here = numbers.claimed(item.figure, item.here, item.paper)
        name, paper = numbers.figure_name(item.figure, item.than), numbers.published(item.figure, item.paper)
        text = f"{name:14} {paper:>8}   {here}"
        console.print(
            _indented(Text(f"{text}  {item.finding}{f' ({visible(item.reason, 200)})' if item.reason else ''}"))
        )


def _print_group(group: Group, members: Sequence[Row], front: frozenset[str], console: Console) -> None:
    from rich.text import Text

    metric = next((row.quality.metric for row in members if row.quality is not None), "quality")
    header = ("variant", visible(numbers.metric(metric), 24), "size", LATENCY_TITLE, EAGER_TITLE, "status")
    traffic = group.target.traffic
    if traffic is not None:
        highest = f"highest rate with p99 within {numbers.seconds(traffic.limit_seconds)}"
        last = highest if traffic.search else traffic.figure
        header = (*header[:2], "bytes a request", f"{traffic.figure} vs plain service", last, "status")
    lines = [_Line.of(row, row.id in front) for row in members]
    inline = [line.cells(two_lines=False) for line in lines]
    wide = sum(_widths(inline, header)) + _WIDE_GAP * (len(header) - 1) <= console.width
    cells = inline if wide else [line.cells(two_lines=True) for line in lines]
    gap = _WIDE_GAP if wide else _NARROW_GAP
    widths = _fitted(_widths(cells, header), gap, console.width)
    console.print(Text(visible(group.title, 300), style="bold cyan"))
    console.print(_grid([Text(word, style="dim") for word in header], widths, gap))
    for line, parts in zip(lines, cells, strict=True):
        texts = [Text(part, style=style) for part, style in zip(parts, line.styles(), strict=True)]
        console.print(_grid(texts, widths, gap))
        if line.reason:
            console.print(_indented(Text(line.reason, style="dim")))


class _Line:
    """One cell's texts."""

    def __init__(self, row: Row, name: str, figures: tuple[Figure, ...]) -> None:
        self.row = row
        self.name = name
        self.figures = figures  # quality, size, latency ratio, eager ratio
        self.reason = visible(row.result.reason) if not row.ok else ""

    @staticmethod
    def of(row: Row, on_front: bool) -> _Line:
        size = numbers.size(row.footprint.size_bytes if row.footprint else None)
        last = numbers.ratio(row.eager)
        traffic = row.group.target.traffic
        if traffic is not None:
            size = numbers.size(round(row.served.bytes_in) if row.served else None)
            last = Figure(numbers.seconds(row.served.seconds if row.served else None))
            last = numbers.rate(row.served.highest if row.served else None) if traffic.search else last
        figures = (numbers.quality(row.quality), Figure(size), numbers.ratio(row.latency), last)
        return _Line(row, visible(row.variant, NAME_LIMIT) + (" *" if on_front else ""), figures)

    def cells(self, *, two_lines: bool) -> tuple[str, ...]:
        status = self.row.status.value
        if not two_lines:
            return (self.name, *(str(figure) for figure in self.figures), status)
        stacked = (f"{figure.value}\n{figure.interval}".rstrip() for figure in self.figures)
        head, hyphen, tail = status.rpartition("-")  # out-of-memory, not-applicable
        return (self.name, *stacked, f"{head}-\n{tail}" if hyphen else status)

    def styles(self) -> tuple[str, ...]:
        if not self.row.ok:
            return ("dim",) * 5 + (_COLOURS.get(self.row.status, _status_colour(self.row.status)),)
        name = "bold" if self.row.role is Role.REFERENCE else "italic" if self.row.role is Role.CONTROL else ""
        return (name, "", "", _direction(self.row.latency), "", "green")


def _status_colour(status: Status) -> str:
    return _FAILURE_COLOUR if status.is_failure else "dim"


def _direction(ratio: Interval | None) -> str:
    """Blue for faster, orange for slower where the interval excludes 1: colour-blind eyes tell them apart."""
    if ratio is None or not ratio.excludes(1.0):
        return ""
    return "bright_blue" if ratio.value < 1 else "dark_orange"


def _widths(cells: Sequence[Sequence[str]], header: Sequence[str]) -> list[int]:
    """The width that each column needs; a title may be broken at its spaces."""
    from rich.cells import cell_len

    widths: list[int] = []
    for column, title in enumerate(header):
        texts = [line for row in cells for line in row[column].split("\n")]
        widths.append(max(max(map(cell_len, title.split())), *(cell_len(text) for text in texts)))
    return widths


def _fitted(widths: list[int], gap: int, available: int) -> list[int]:
    """The same widths, with the first column narrowed until all fit, as far as that goes."""
    excess = sum(widths) + gap * (len(widths) - 1) - available
    return [max(8, widths[0] - max(0, excess)), *widths[1:]]


def _grid(texts: Sequence[Text], widths: Sequence[int], gap: int) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
    for width, right in zip(widths, _RIGHT, strict=True):
        grid.add_column(width=width, justify="right" if right else "left", overflow="fold")
    grid.add_row(*texts)
    return grid


def _indented(text: Text) -> Padding:
    from rich.padding import Padding

    return Padding(text, (0, 0, 0, 4))


def _footer(run: Run, table: Sequence[Row]) -> Iterator[str]:
    yield measured_on(run.environment)
    yield visible(f"Run {run.id}, started {run.started}, took {numbers.seconds(run.seconds)}: {run.command}", 600)
    seen = leaderboard.sensitivity(table)
    if seen is not None:
        yield (
            f"At least {numbers.plural(seen.launches, 'launch', 'launches')} an interval, level "
            f"{numbers.percent(seen.level)}; minimum detectable effect {numbers.percent(seen.median)} "
            f"({numbers.percent(seen.smallest)} to {numbers.percent(seen.largest)})"
        )
    yield "Ratios below 1x are faster. * on the Pareto front of latency and quality"


def measured_on(environment: Mapping[str, Any]) -> str:
    """The machine and the versions, in one line."""
    libraries = ", ".join(f"{name} {version}" for name, version in leaderboard.versions(environment).items())
    return visible(f"Measured on {leaderboard.machine(environment)}; {libraries or 'versions unknown'}", 600)


def markdown(run: Run) -> str:
    """The run as GitHub-flavoured Markdown; text from the run stands in code spans only."""
    table = leaderboard.rows(run)
    front = leaderboard.pareto(table, leaderboard.AXES[0].value)
    lines = [f"### {code(run.suite, 80)}", ""]
    if not run.complete:
        lines += ["> [!WARNING]", "> This run is not complete.", ""]
    for warning in run.warnings:
        lines += ["> [!WARNING]", f"> {code(warning, 600)}", ""]
    for group, members in leaderboard.groups(table).items():
        metric = next((row.quality.metric for row in members if row.quality is not None), "quality")
        titles = (
            "variant",
            code(numbers.metric(metric), 24),
            "difference",
            "size",
            LATENCY_TITLE,
            EAGER_TITLE,
            "status",
        )
        lines += [f"**{code(group.title, 200)}**", "", table_line(titles), table_line(("---", *["--:"] * 5, "---"))]
        lines += [table_line(_markdown_cells(row, row.id in front)) for row in members]
        lines.append("")
    lines += _markdown_claims(run)
    lines += [f"<sub>{code(line, 600)}</sub><br>" for line in _footer(run, table)]
    return "\n".join(lines) + "\n"


def _markdown_claims(run: Run) -> list[str]:
    found = claims.beside(run)
    if not found:
        return []
    titles = ("cell", "published by", "figure", "paper", "here", "finding")
    return [
        "**Published, and here**",
        "",
        table_line(titles),
        table_line(("---", "---", "---", "--:", "--:", "---")),
        *(table_line(_markdown_claim(item)) for item in found),
        "",
    ]


def _markdown_claim(item: claims.Beside) -> tuple[str, ...]:
    return (
        code(item.cell, 200),
        code(item.source, 300),
        code(numbers.figure_name(item.figure, item.than), 120),
        str(numbers.published(item.figure, item.paper)),
        str(numbers.claimed(item.figure, item.here, item.paper)),
        item.finding + (f" {code(item.reason, 200)}" if item.reason else ""),
    )


def _markdown_cells(row: Row, on_front: bool) -> tuple[str, ...]:
    reason = f" {code(row.result.reason, 300)}" if not row.ok and row.result.reason else ""
    return (
        code(row.variant, NAME_LIMIT) + (" \\*" if on_front else ""),
        str(numbers.quality(row.quality)),
        str(numbers.difference(row.quality)),
        numbers.size(row.footprint.size_bytes if row.footprint else None),
        str(numbers.ratio(row.latency)),
        str(numbers.ratio(row.eager)),
        row.status.value + reason,
    )


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def code(text: str, limit: int) -> str:
    """A code span, in which neither HTML nor links nor mentions work, fit for a table's cell."""
    # A backslash before a bar would undo the bar's own, so both go: no name needs them.
    shown = visible(text, limit).replace("\\", "/").replace("`", "'").replace("|", "\\|").strip()
    return f"`{shown or '-'}`"


def csv(run: Run) -> str:
    """The run as comma-separated values, one line a cell; numbers bare, in seconds, bytes and fractions."""
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in leaderboard.rows(run):
        writer.writerow([_plain(read(row)) for read in _COLUMNS.values()])
    return out.getvalue()


_Value = str | float | None
_COLUMNS: Final[dict[str, Callable[[Row], _Value]]] = {
    "workload": lambda row: row.group.workload,
    "target": lambda row: row.group.target.id,
    "variant": lambda row: row.variant,
    "role": lambda row: row.role.value,
    "status": lambda row: row.status.value,
    "reason": lambda row: row.result.reason,
    "metric": lambda row: row.quality and row.quality.metric,
    "quality": lambda row: row.score,
    "quality_low": lambda row: row.quality and row.quality.score.low,
    "quality_high": lambda row: row.quality and row.quality.score.high,
    "difference": lambda row: row.difference and row.difference.value,
    "difference_low": lambda row: row.difference and row.difference.low,
    "difference_high": lambda row: row.difference and row.difference.high,
    "latency_ratio": lambda row: row.latency and row.latency.value,
    "latency_ratio_low": lambda row: row.latency and row.latency.low,
    "latency_ratio_high": lambda row: row.latency and row.latency.high,
    "launches": lambda row: row.latency and row.latency.n,
    "eager_ratio": lambda row: row.eager and row.eager.value,
    "eager_ratio_low": lambda row: row.eager and row.eager.low,
    "eager_ratio_high": lambda row: row.eager and row.eager.high,
    "minimum_detectable_effect": lambda row: row.result.minimum_detectable_effect,
    "latency_median_seconds": lambda row: row.result.timing and row.result.timing.median,
    "size_bytes": lambda row: row.footprint and row.footprint.size_bytes,
    "compressed_bytes": lambda row: row.footprint and row.footprint.compressed_bytes,
    "parameters": lambda row: row.footprint and row.footprint.parameters,
    "macs": lambda row: row.footprint and row.footprint.macs,
    "cold_start_seconds": lambda row: row.cold_start_seconds,
    "rss_peak_bytes": lambda row: row.peak_bytes,
    "preparation_seconds": lambda row: row.result.cost and row.result.cost.seconds,
    "artifact": lambda row: row.result.artifact,
}


def _plain(value: _Value) -> _Value:
    if not isinstance(value, str):
        return value
    shown = visible(value)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown  # a spreadsheet would execute it
