"""What the gate says, for the terminal, a pull request, JUnit and GitHub; all from a `Judgement`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from xml.etree import ElementTree

from leanmark.errors import EXIT_NOTHING_TO_COMPARE
from leanmark.jsonable import Json, to_json
from leanmark.judgement import Basis, Change, Judgement
from leanmark.publish import numbers
from leanmark.publish.numbers import Figure, plural, visible
from leanmark.publish.summary import code, table_line
from leanmark.results import Run, Verdict
from leanmark.rules import CELL

if TYPE_CHECKING:
    from rich.console import Console

# Where a comment is looked for that is to be replaced by the next one.
MARKER: Final = "<!-- leanmark gate {suite} -->"
_RATIOS: Final = ("latency", "cold_start", "memory", "size", "compressed_size", "parameters", "macs")
_WORDS: Final = {"cold_start": "cold start", "compressed_size": "compressed size", "macs": "MACs"}
_COLOURS: Final = {
    Verdict.REGRESSED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.BROKEN: "bold red",
    Verdict.INCONCLUSIVE: "bold yellow",
    Verdict.IMPROVED: "green",
}
_ORDER: Final = (
    Verdict.BROKEN,
    Verdict.MISSING,
    Verdict.REGRESSED,
    Verdict.INCONCLUSIVE,
    Verdict.IMPROVED,
    Verdict.NEW,
    Verdict.UNCHANGED,
)
_MOST_CHARACTERS: Final = 60_000  # GitHub takes 65,536 in a comment


def headline(judgement: Judgement) -> str:
    """The whole in one line."""
    cells = len({change.cell for change in judgement.changes})
    against = " and ".join(judgement.against) or "nothing"
    compared = f"{plural(cells, 'cell')} compared with {against}"
    if judgement.findings:
        return f"failed: {plural(len(judgement.findings), 'finding')} in {compared}"
    if judgement.inconclusive:
        return f"undecided: {plural(len(judgement.inconclusive), 'figure')} in {compared}"
    if judgement.exit_code:
        return f"nothing to compare: no cell is in {against} too"
    improved = sum(change.verdict is Verdict.IMPROVED for change in judgement.changes)
    return f"passed: nothing got worse in {compared}" + (f"; {plural(improved, 'figure')} improved" if improved else "")


def amount(change: Change) -> Figure:
    """How large a change is: ``+3.1 % [+2.4, +3.9]``, for quality ``-2.0 pp [-3.1, -0.9]``."""
    found = change.change
    if found is None:
        return Figure("none" if change.verdict is Verdict.UNCHANGED else numbers.MISSING)
    if change.metric in _RATIOS:
        parts, unit = [100 * (value - 1) for value in (found.value, found.low, found.high)], "%"
    else:
        parts, unit = [100 * value for value in (found.value, found.low, found.high)], "pp"
    places = 2 if max(map(abs, parts)) < 1 else 1
    value, low, high = (numbers.signed(part, places) for part in parts)
    return Figure(f"{value} {unit}", "" if found.low == found.high else f"[{low}, {high}]")


def metric(change: Change) -> str:
    """The metric in words."""
    return _WORDS.get(change.metric, change.metric)


def what(change: Change) -> str:
    """Size, interval, tolerance and ground of a change, or its reason."""
    if change.metric == CELL:
        return change.reason
    parts: list[str] = []
    if change.change is not None:
        parts.append(str(amount(change)))
    if change.before is not None and change.after is not None:
        parts.append(f"{_absolute(change.metric, change.before)} to {_absolute(change.metric, change.after)}")
    if change.tolerance is not None:
        parts.append(f"tolerance {_tolerance(change)}")
    parts.append(
        _ground(change) + (f" at {100 * change.change.level:.5g} %" if change.change and _is_duel(change) else "")
    )
    parts += filter(None, [change.reason, f"would decide: {change.wanted}" if change.wanted else ""])
    return "; ".join(parts)


def _is_duel(change: Change) -> bool:
    return change.basis is Basis.DUEL and change.change is not None


def _ground(change: Change) -> str:
    """What a verdict rests on, and how much of it there is."""
    launches = f" of {change.change.n} launches" if change.change is not None and _is_duel(change) else ""
    return change.basis.value + launches


def _tolerance(change: Change) -> str:
    assert change.tolerance is not None
    return f"{100 * change.tolerance:g} {'pp' if change.metric == 'quality' else '%'}"


def _absolute(name: str, value: float) -> str:
    if name in ("size", "compressed_size"):
        return numbers.size(value)
    if name in ("parameters", "macs"):
        return numbers.count(value)
    return f"{100 * value:.1f} %" if name == "quality" else numbers.seconds(value)


def _sorted(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: (bool(change.allowed), _ORDER.index(change.verdict)))


def _counts(judgement: Judgement) -> str:
    counted = {verdict: sum(change.verdict is verdict for change in judgement.changes) for verdict in _ORDER}
    words = [f"{count} {verdict.value}" for verdict, count in counted.items() if count]
    return ", ".join([*words, *([f"{len(judgement.unjudged)} not judged"] if judgement.unjudged else [])])


def _matters(change: Change) -> bool:
    return change.verdict not in (Verdict.UNCHANGED, Verdict.NEW, Verdict.IMPROVED)


def as_json(judgement: Judgement) -> dict[str, Json]:
    """Everything as JSON values."""
    return {"headline": headline(judgement), "exit_code": judgement.exit_code, **to_json(judgement)}


# --- terminal ---------------------------------------------------------------------


def print_judgement(judgement: Judgement, console: Console, *, everything: bool = False) -> None:
    """The headline, what matters in full, counts of the rest; `everything` prints the rest too."""
    from rich.text import Text

    style = "bold red" if judgement.findings else "bold yellow" if judgement.exit_code else "bold green"
    console.print(Text(visible(f"{judgement.suite}: {headline(judgement)}", 600), style=style))
    for change in _sorted(judgement.changes):
        if not (everything or _matters(change) or change.verdict is Verdict.IMPROVED):
            continue
        word = Text(change.verdict.value, style=_COLOURS.get(change.verdict, ""))
        against = f"  against {visible(change.against, 80)}" if len(judgement.against) > 1 else ""
        console.print(word + Text(f"  {visible(change.cell, 300)}  {metric(change)}{against}"))
        for text in (what(change), change.allowed and f"allowed: {change.allowed}"):
            for part in textwrap.wrap(visible(text, 600), max(20, console.width - 4)):
                console.print(Text(f"    {part}", style="dim"), soft_wrap=True)
    if everything:
        for item in judgement.unjudged:
            console.print(Text(visible(f"not judged  {item.cell}  {item.metric}: {item.reason}", 600), style="dim"))
    for note in judgement.notes:
        console.print(Text(visible(f"! {note}", 600), style="yellow"))
    console.print(Text(_counts(judgement), style="dim"))


def print_measured(run: Run, console: Console) -> None:
    """What was measured beside another version, and how to have it judged."""
    for base in run.bases:
        same = sum(bool(item.same) for item in base.comparisons.values())
        shown = (
            f"{plural(len(run.results), 'cell')} beside {base.name}: {same} the same, {len(run.results) - same} others"
        )
        console.print(f"{visible(shown, 300)}. Judge it with: leanmark gate {run.id}", markup=False, soft_wrap=True)
        for note in base.notes:
            console.print(f"! {visible(note, 600)}", markup=False, soft_wrap=True)


# --- Markdown ---------------------------------------------------------------------


def markdown(judgement: Judgement, pages: str | None = None) -> str:
    """A pull-request comment: the headline, the few cells that matter, the rest folded.

    pages: the address of the run's page, to which each cell is linked. Text from the run stands in code spans only.
    """
    mark = MARKER.format(suite=quote(judgement.suite[:80], safe=""))
    word = "Failed" if judgement.findings else "Undecided" if judgement.inconclusive else "Passed"
    if judgement.exit_code == EXIT_NOTHING_TO_COMPARE:
        word = "Nothing to compare"
    several = len(judgement.against) > 1
    matter = _sorted(change for change in judgement.changes if _matters(change))
    rest = _sorted(change for change in judgement.changes if not _matters(change))
    head = [mark, f"### {word}: {code(judgement.suite, 80)}", "", code(headline(judgement), 400), ""]
    commit = f" of commit {code(judgement.commit[:10], 20)}" if judgement.commit else ""
    tail = ["", f"<sub>run {code(judgement.run, 100)}{commit}</sub>", ""]
    left = _MOST_CHARACTERS - sum(len(line) + 1 for line in (*head, *tail))
    notes = _fitting([f"> [!NOTE]\n> {code(note, 400)}\n" for note in judgement.notes], left // 4)
    first = _fitting([*_table(matter, pages, several)] if matter else [], left // 2)
    folded = [*(_table(rest, pages, several) if rest else ()), ""]
    folded += [
        f"- not judged: {code(item.cell, 200)} {item.metric}: {code(item.reason, 300)}" for item in judgement.unjudged
    ]
    left -= sum(len(line) + 1 for line in (*notes, *first)) + 200
    lines = [*head, *first, "", *notes]
    if rest or judgement.unjudged:
        opening = ["<details>", f"<summary>{_counts(judgement)}</summary>", ""]
        lines += [*opening, *_fitting(folded, left), "", "</details>"]
    return "\n".join([*lines, *tail])


def _fitting(lines: Sequence[str], characters: int) -> list[str]:
    """As many of the lines as fit, and how many do not."""
    kept: list[str] = []
    for number, line in enumerate(lines):
        characters -= len(line) + 1
        if characters < 0:
            return [*kept, "", f"and {len(lines) - number} more lines"]
        kept.append(line)
    return kept


def _table(changes: Sequence[Change], pages: str | None, several: bool) -> Iterator[str]:
    """One row a change; `several` says that it takes a column to tell what it is compared with."""
    against = ("against",) if several else ()
    yield table_line(("cell", "metric", *against, "verdict", "change", "tolerance", "ground"))
    yield table_line(("---", "---", *["---" for _ in against], "---", "--:", "--:", "---"))
    for change in changes:
        name = code(change.cell, 200)
        if pages is not None:
            name = f"[{name}]({pages}#q={quote(change.cell[:200], safe='')})"
        verdict = change.verdict.value if change.verdict is Verdict.UNCHANGED else f"**{change.verdict.value}**"
        reason = "; ".join(filter(None, [change.reason, change.wanted and f"would decide: {change.wanted}"]))
        yield table_line(
            (
                name,
                metric(change),
                *([code(change.against, 80)] if several else []),
                verdict + (f", allowed: {code(change.allowed, 200)}" if change.allowed else ""),
                "" if change.metric == CELL else str(amount(change)),
                "" if change.tolerance is None else _tolerance(change),
                _ground(change) + (f": {code(reason, 300)}" if reason else ""),
            )
        )


# --- JUnit ------------------------------------------------------------------------


def junit(judgement: Judgement) -> str:
    """JUnit XML, a test case a metric of a cell: a finding is a failure, what is undecided or not judged is skipped."""
    undecided = set(judgement.inconclusive)
    suite = ElementTree.Element(
        "testsuite",
        name=f"leanmark.{visible(judgement.suite, 200)}",
        tests=str(len(judgement.changes) + len(judgement.unjudged)),
        failures=str(len(judgement.findings)),
        errors="0",
        skipped=str(len(undecided) + len(judgement.unjudged)),
    )
    for change in judgement.changes:
        several = f" against {visible(change.against, 80)}" if len(judgement.against) > 1 else ""
        case = _case(suite, change.cell, change.metric + several)
        message = visible(what(change), 1000)
        if change.fails:
            ElementTree.SubElement(case, "failure", type=change.verdict.value, message=message)
        elif change in undecided:
            ElementTree.SubElement(case, "skipped", message=f"inconclusive: {message}")
    for item in judgement.unjudged:
        ElementTree.SubElement(
            _case(suite, item.cell, item.metric), "skipped", message=visible(f"not judged: {item.reason}", 1000)
        )
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, cell: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=visible(cell, 300), name=name, time="0")


# --- GitHub -----------------------------------------------------------------------


def workflow_commands(judgement: Judgement) -> list[str]:
    """Workflow commands, one for each finding and each undecided figure."""
    lines = [_annotation("error", change) for change in _sorted(judgement.findings)]
    return [*lines, *(_annotation("warning", change) for change in _sorted(judgement.inconclusive))]


def _annotation(kind: str, change: Change) -> str:
    title = _escaped(f"{change.verdict.value}: {change.cell}, {metric(change)}").replace(",", "%2C").replace(":", "%3A")
    return f"::{kind} title={title}::{_escaped(what(change))}"


def _escaped(text: str) -> str:
    return visible(text, 600).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
