"""What recorded duels say, as the Markdown tables of the documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from leanmark import stats
from leanmark.power import Tally
from leanmark.results import Interval


def print_report(found: dict[str, Any], slowdowns: Sequence[float]) -> None:
    """Markdown tables, as they stand in the documents."""
    print_same({name.split(" ", 1)[1]: row for name, row in found.items() if name.startswith("same ")})
    for kind in ("slower-3", "slower-1", "twice"):
        print_slower(kind, {name.split(" ", 1)[1]: row for name, row in found.items() if name.startswith(f"{kind} ")})
    rows = [row["real"] for row in found.values() if "real" in row]
    whole = added(rows)
    print(f"All real comparisons: n {whole.count}; covered {percent(whole.share(whole.covered))}\n")
    for name, row in found.items():
        if name.startswith("usual "):
            print_usual(name.split(" ", 1)[1], row, slowdowns)


def print_same(rows: dict[str, dict[str, Any]]) -> None:
    """Networks against themselves, and what of that would have been seen had one side been slower."""
    print("| a network with itself | ms | parts, launches | a comparison | false alarms | of 10,000 drawn | covered |")
    print("| --- | --: | --: | --- | --- | --- | --- |")
    for name, row in rows.items():
        real, drawn = Tally(**row["real"]), Tally(**row["drawn"]) if row["drawn"] else None
        shape = f"{row['launches_a_comparison']} launches of {row['copies_a_launch']}"
        alarms = "" if drawn is None else counted(drawn.false_alarms, drawn)
        cells = (name, f"{row['milliseconds']:.2f}", f"{row['parts']}, {row['launches']}", shape)
        print_line(*cells, counted(real.false_alarms, real), alarms, percent(real.share(real.covered)))
    whole = added([row["real"] for row in rows.values()])
    drawn = [row["drawn"] for row in rows.values() if row["drawn"]]
    alarms = counted(added(drawn).false_alarms, added(drawn)) if drawn else ""
    share = percent(whole.share(whole.covered))
    print_line("all together", "", "", "", counted(whole.false_alarms, whole), alarms, share)
    print(
        f"\nMean error {whole.bias:+.4%}, standard error of one comparison {whole.mean_error:.3%} (root mean square).\n"
    )
    kinds = ("real, made 3 % slower", "drawn, 3 % slower", "drawn, 1 % slower, 30 s", "drawn, 8 launches, 3 % slower")
    print(f"| seen, of a slowdown made of such comparisons | {' | '.join(kinds)} |")
    print(f"| --- |{' --- |' * len(kinds)}")
    for name, row in rows.items():
        tallies = [Tally(**row[kind]) if row[kind] else None for kind in kinds]
        print_line(name, *("" if item is None else percent(item.share(item.detections)) for item in tallies))
    together: list[str] = []
    for kind in kinds:
        found = [row[kind] for row in rows.values() if row[kind]]
        item = added(found) if found else None
        together.append("" if item is None else f"{percent(item.share(item.detections))}, n {item.count:,}")
    print_line("all together", *together)
    print()


def print_slower(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    """Real comparisons with a slowdown that is exact."""
    if not rows:
        return
    print(f"| {kind} | parts | a comparison | seen | covered | standard error |")
    print("| --- | --: | --- | --- | --- | --: |")
    for name, row in rows.items():
        real, shape = Tally(**row["real"]), f"{row['launches_a_comparison']} launches of {row['copies_a_launch']}"
        print_line(name, row["parts"], shape, counted(real.detections, real), *covered(real))
    whole = added([row["real"] for row in rows.values()])
    print_line(
        "all together",
        sum(row["parts"] for row in rows.values()),
        "",
        counted(whole.detections, whole),
        *covered(whole),
    )
    print()


def covered(tally: Tally) -> tuple[str, str]:
    return percent(tally.share(tally.covered)), f"{tally.mean_error:.3%}"


def counted(hits: int, tally: Tally) -> str:
    share = tally.share(hits)
    return f"{hits} of {tally.count:,} [{share.low:.2%}, {share.high:.2%}]"


def print_line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def print_usual(name: str, row: dict[str, Any], slowdowns: Sequence[float]) -> None:
    """The methods that people use now, side by side with a duel."""
    titles = ("false alarms", *(f"{slowdown:.0%} slower seen" for slowdown in slowdowns))
    print(f"| {name} | n | {' | '.join(titles)} | ratio off by | wall time |")
    print(f"| --- | --: |{' --- |' * len(titles)} --: | --: |")
    for method, values in row.items():
        shares = [stats.wilson(hits, values["count"]) for hits in (values["false_alarms"], *values["detections"])]
        wall = f"{values['wall_seconds']:.0f} s"
        print_line(method, values["count"], *map(percent, shares), f"{values['spread']:.2%}", wall)
    print()


def added(tallies: list[dict[str, Any]]) -> Tally:
    """Several tallies as one."""
    rows = [Tally(**values) for values in tallies]
    count = sum(row.count for row in rows)
    counts = [sum(getattr(row, key) for row in rows) for key in ("false_alarms", "detections", "covered")]
    error = math.sqrt(sum(row.count * row.mean_error**2 for row in rows) / count)
    return Tally(count, *counts, error, sum(row.count * row.bias for row in rows) / count)


def percent(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
