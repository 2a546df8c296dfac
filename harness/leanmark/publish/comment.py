"""What the gate says as a comment on a pull request, in GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import quote

from leanmark.errors import EXIT_NOTHING_TO_COMPARE
from leanmark.judgement import Change, Judgement
from leanmark.publish.summary import code, measured_on, table_line
from leanmark.publish.verdicts import amount, counts, ground, grounds, headline, in_order, matters, metric, tolerance
from leanmark.results import Verdict
from leanmark.rules import CELL

# Where a comment is looked for that is to be replaced by the next one.
MARKER: Final = "<!-- leanmark gate {suite} -->"
_MOST_CHARACTERS: Final = 60_000  # GitHub takes 65,536 in a comment


def markdown(judgement: Judgement, pages: str | None = None) -> str:
    """A pull-request comment: the headline, the few cells that matter, the rest folded.

    pages: the address of the run's page, to which each cell is linked. Text from the run stands in code spans only.
    """
    mark = MARKER.format(suite=quote(judgement.suite[:80], safe=""))
    word = "Failed" if judgement.findings else "Undecided" if judgement.inconclusive else "Passed"
    if judgement.exit_code == EXIT_NOTHING_TO_COMPARE:
        word = "Nothing to compare"
    several = len(judgement.against) > 1
    matter = in_order(change for change in judgement.changes if matters(change))
    rest = in_order(change for change in judgement.changes if not matters(change))
    head = [mark, f"### {word}: {code(judgement.suite, 80)}", "", code(headline(judgement), 400), ""]
    head += [f"{code(line, 300)}<br>" for line in grounds(judgement)] + [""]
    commit = f" of commit {code(judgement.commit, 40)}" if judgement.commit else ""
    tail = ["", f"<sub>run {code(judgement.run, 100)}{commit}: {code(judgement.command, 300)}</sub><br>"]
    tail += [f"<sub>{code(measured_on(judgement.environment), 300)}</sub>", ""]
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
        opening = ["<details>", f"<summary>{counts(judgement)}</summary>", ""]
        lines += [*opening, *_fitting(folded, left), "", "</details>"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join([*lines, *tail]))


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
                "" if change.tolerance is None else tolerance(change),
                code(ground(change) + (f": {reason}" if reason else ""), 400),
            )
        )
