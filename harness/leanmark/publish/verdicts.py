"""What the gate says, for the terminal, JUnit and GitHub; all from a `Judgement`. See `comment` for pull requests."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

from leanmark.jsonable import Json, to_json
from leanmark.judgement import Basis, Change, Judgement
from leanmark.publish import numbers
from leanmark.publish.numbers import Figure, plural, visible
from leanmark.results import FRACTIONS, SCHEMA_VERSION, Run, Verdict
from leanmark.rules import CELL

if TYPE_CHECKING:
    from rich.console import Console

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
        return f"nothing to compare: no cell can be compared with {against}"
    improved = sum(change.verdict is Verdict.IMPROVED for change in judgement.changes)
    allowed = sum(bool(change.allowed) for change in judgement.changes)
    worse = f"nothing but what is allowed ({plural(allowed, 'figure')})" if allowed else "nothing"
    return f"passed: {worse} got worse in {compared}" + (f"; {plural(improved, 'figure')} improved" if improved else "")


def grounds(judgement: Judgement) -> Iterator[str]:
    """What the verdicts on latency rest on, a line for each of those that it was compared with."""
    for against in judgement.against:
        changes = [item for item in judgement.changes if (item.metric, item.against) == ("latency", against)]
        left = [item for item in judgement.unjudged if (item.metric, item.against) == ("latency", against)]
        parts: list[str] = []
        for basis in dict.fromkeys(item.basis for item in changes):
            found = [item for item in changes if item.basis is basis]
            tolerances = sorted({item.tolerance for item in found if item.tolerance is not None})
            allowed = " and ".join(f"{100 * value:g} %" for value in tolerances)
            parts.append(f"{basis.value} for {plural(len(found), 'cell')}, tolerance {allowed}")
        parts += [f"not judged for {plural(len(left), 'cell')}: {left[0].reason}"] if left else []
        if parts:
            yield f"latency against {against}: {'; '.join(parts)}"


def amount(change: Change) -> Figure:
    """How large a change is: ``+3.1 % [+2.4, +3.9]``, for quality ``-2.0 pp [-3.1, -0.9]``."""
    found = change.change
    if found is None:
        return Figure("none" if change.verdict is Verdict.UNCHANGED else numbers.MISSING)
    if change.metric in _RATIOS:
        parts, unit = [100 * (value - 1) for value in (found.value, found.low, found.high)], "%"
    elif _is_percentage(change):
        parts, unit = [100 * value for value in (found.value, found.low, found.high)], "pp"
    else:
        parts, unit = [found.value, found.low, found.high], ""
    places = (3 if not unit else 2) if max(map(abs, parts)) < 1 else 1
    value, low, high = (numbers.signed(part, places) for part in parts)
    return Figure(f"{value} {unit}".rstrip(), "" if found.low == found.high else f"[{low}, {high}]")


def _is_percentage(change: Change) -> bool:
    """Whether quality is of a metric that is shown in percent."""
    return not change.scored or change.scored in FRACTIONS


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
        parts.append(f"{_absolute(change, change.before)} to {_absolute(change, change.after)}")
    if change.tolerance is not None:
        parts.append(f"tolerance {tolerance(change)}")
    parts.append(ground(change))
    parts += filter(None, [change.reason, f"would decide: {change.wanted}" if change.wanted else ""])
    return "; ".join(parts)


def ground(change: Change) -> str:
    """What a verdict rests on, how much of it there is, and the level of its interval."""
    found, basis = change.change, change.basis.value
    if found is not None and change.basis is Basis.DUEL:
        taken = "" if change.seconds is None else f" in {change.seconds:.3g} s of turns a side"
        return f"{basis} of {plural(found.n, 'launch', 'launches')}{taken} at {100 * found.level:.5g} %"
    if found is not None and change.metric == "quality":
        scored = f"{change.scored} on " if change.scored else ""
        return f"{scored}{basis} ({found.n:,}) at {100 * found.level:.5g} %"
    return basis


def tolerance(change: Change) -> str:
    """What a change may be, with its unit."""
    assert change.tolerance is not None
    if change.metric == "quality" and not _is_percentage(change):
        return f"{change.tolerance:g}"
    return f"{100 * change.tolerance:g} {'pp' if change.metric == 'quality' else '%'}"


def _absolute(change: Change, value: float) -> str:
    if change.metric in ("size", "compressed_size"):
        return numbers.size(value)
    if change.metric in ("parameters", "macs"):
        return numbers.count(value)
    if change.metric == "quality":
        return f"{100 * value:.1f} %" if _is_percentage(change) else f"{value:.4g}"
    return numbers.seconds(value)


def in_order(changes: Iterable[Change]) -> list[Change]:
    """The worst first, what is allowed last."""
    return sorted(changes, key=lambda change: (bool(change.allowed), _ORDER.index(change.verdict)))


def counts(judgement: Judgement) -> str:
    """How many verdicts there are of each kind."""
    counted = {verdict: sum(change.verdict is verdict for change in judgement.changes) for verdict in _ORDER}
    words = [f"{count} {verdict.value}" for verdict, count in counted.items() if count]
    return ", ".join([*words, *([f"{len(judgement.unjudged)} not judged"] if judgement.unjudged else [])])


def matters(change: Change) -> bool:
    """Whether a reader must see it."""
    return change.verdict not in (Verdict.UNCHANGED, Verdict.NEW, Verdict.IMPROVED)


def as_json(judgement: Judgement) -> dict[str, Json]:
    """Everything as JSON values."""
    said = {"headline": headline(judgement), "exit_code": judgement.exit_code}
    return {"schema_version": SCHEMA_VERSION, **said, **to_json(judgement)}


# --- terminal ---------------------------------------------------------------------


def print_judgement(judgement: Judgement, console: Console, *, everything: bool = False) -> None:
    """The headline, what speaks against it, what matters in full, counts of the rest; `everything` prints that too."""
    from rich.text import Text

    style = "bold red" if judgement.findings else "bold yellow" if judgement.exit_code else "bold green"
    console.print(Text(visible(f"{judgement.suite}: {headline(judgement)}", 600), style=style))
    _print_changes(judgement, console, everything=everything)


def _print_changes(judgement: Judgement, console: Console, *, everything: bool) -> None:
    from rich.text import Text

    for note in judgement.notes:
        console.print(Text(visible(f"! {note}", 600), style="yellow"))
    for change in in_order(judgement.changes):
        if not (everything or matters(change) or change.verdict is Verdict.IMPROVED):
            continue
        word = Text(change.verdict.value, style=_COLOURS.get(change.verdict, ""))
        against = f"  against {visible(change.against, 80)}" if len(judgement.against) > 1 else ""
        console.print(word + Text(f"  {visible(change.cell, 300)}  {metric(change)}{against}"))
        for text in (what(change), change.allowed and f"allowed: {change.allowed}"):
            for part in textwrap.wrap(visible(text, 600), max(20, console.width - 4)):
                console.print(Text(f"    {part}", style="dim"), soft_wrap=True)
    for item in judgement.unjudged:
        if everything or item.was_fine:
            console.print(Text(visible(f"not judged  {item.cell}  {item.metric}: {item.reason}", 600), style="dim"))
    for line in grounds(judgement):
        console.print(Text(visible(line, 600), style="dim"))
    console.print(Text(counts(judgement), style="dim"))


def print_comparison(judgement: Judgement, console: Console) -> None:
    """Two runs side by side, for reading: what is worse and better, without a verdict on the whole."""
    from rich.text import Text

    found = {verdict: sum(item.verdict is verdict for item in judgement.changes) for verdict in _ORDER}
    worse = sum(found[verdict] for verdict in _ORDER if verdict.is_finding)
    head = f"{judgement.suite}: {judgement.run} against {' and '.join(judgement.against)}: {worse} worse"
    head += (
        f", {found[Verdict.IMPROVED]} better, {found[Verdict.INCONCLUSIVE]} open, {found[Verdict.UNCHANGED]} the same"
    )
    console.print(Text(visible(head, 600), style="bold"))
    _print_changes(judgement, console, everything=True)


def print_measured(run: Run, folder: Path, console: Console) -> None:
    """What was measured beside another version, and how to have it judged."""
    for base in run.bases:
        same = sum(bool(item.same) for item in base.comparisons.values())
        shown = (
            f"{plural(len(run.results), 'cell')} beside {base.name}: {same} the same, {len(run.results) - same} others"
        )
        console.print(f"{visible(shown, 300)}.", markup=False, soft_wrap=True)
        for note in base.notes:
            console.print(f"! {visible(note, 600)}", markup=False, soft_wrap=True)
    command = shlex.join(["leanmark", "gate", str(folder)])
    console.print(f"Judge it with: {visible(command, 600)}", markup=False, soft_wrap=True, highlight=False)


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
    """Workflow commands, one for each finding, each undecided figure and each note."""
    lines = [_annotation("error", change) for change in in_order(judgement.findings)]
    lines += [_annotation("warning", change) for change in in_order(judgement.inconclusive)]
    return [*lines, *(f"::warning title=leanmark::{_escaped(note)}" for note in judgement.notes)]


def _annotation(kind: str, change: Change) -> str:
    title = _escaped(f"{change.verdict.value}: {change.cell}, {metric(change)}").replace(",", "%2C").replace(":", "%3A")
    return f"::{kind} title={title}::{_escaped(what(change))}"


def _escaped(text: str) -> str:
    return visible(text, 600).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
