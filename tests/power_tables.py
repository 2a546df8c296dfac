"""What recorded duels say, as the Markdown tables of the documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from leanmark import scoring
from leanmark.power import Tally
from leanmark.results import Interval


def print_report(found: dict[str, Any], slowdowns: Sequence[float]) -> None:
    """Markdown tables, as they stand in the documents."""
    rows = [row for row in found.values() if "real" in row]
    print_same({name.split(" ", 1)[1]: row for name, row in found.items() if name.startswith("same ")})
    print_spread(found)
    for kind in ("slower-3", "slower-1", "twice"):
        print_slower(kind, {name.split(" ", 1)[1]: row for name, row in found.items() if name.startswith(f"{kind} ")})
    if rows:
        whole = added([row["real"] for row in rows])
        print(f"All real comparisons: n {whole.count}; covered {percent(whole.share(whole.covered))}.")
        print_dependence(rows)
        versions = sorted({text for row in rows for text in row["versions"]})
        print(f"Recorded on {len(versions)} machine(s) and set(s) of versions:")
        print("\n".join(f"- `{text}`" for text in versions) + "\n")
    for name, row in found.items():
        if name.startswith("usual "):
            print_usual(name.split(" ", 1)[1], row, slowdowns)


def print_spread(found: dict[str, Any]) -> None:
    """What copies and interpreters add to a log ratio, where sides share an interpreter and where each has its own."""
    print_line("spread: copies, interpreters", "both sides of one interpreter", "each of its own", "launches of these")
    print_line("---", "---", "---", "--:")
    for name, row in found.items():
        kind, setting = name.split(" ", 1)
        if kind == "apart":
            together = found.get(f"same {setting}", {}).get("spread", (math.nan, math.nan))
            pairs = (f"{copies:.2%}, {interpreters:+.2%}" for copies, interpreters in (together, row["spread"]))
            print_line(setting, *pairs, row["launches"])
    print()


def print_dependence(rows: Sequence[dict[str, Any]]) -> None:
    """How alike the comparisons of one part are, which share their interpreters, and what that does to the bounds."""
    parts = [part for row in rows for part in standardized(row["estimates"])]
    alike, size = stats_of_parts(parts)
    whole = added([row["real"] for row in rows])
    effect = 1 + (size - 1) * max(0.0, alike)
    effective = max(1, int(whole.count / effect))
    wrong = whole.false_alarms
    bound = scoring.wilson(wrong / whole.count * effective, effective).high
    covered = scoring.wilson(whole.covered / whole.count * effective, effective)
    print(
        f"The comparisons of a part share their interpreters: their estimates correlate by {alike:+.3f} within a part "
        f"({len(parts)} parts), so they weigh as much as {effective} independent ones: false verdicts at most "
        f"{bound:.2%}, covered {percent(covered)}.\n"
    )


def stats_of_parts(parts: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The intraclass correlation of values in groups (analysis of variance, Fisher 1925), and the groups' mean size."""
    whole = np.concatenate([np.array(part) for part in parts])
    count, groups = len(whole), len(parts)
    size = (count - sum(len(part) ** 2 for part in parts) / count) / (groups - 1) if groups > 1 else float(count)
    if groups < 2 or count <= groups:
        return 0.0, size
    between = sum(len(part) * (float(np.mean(part)) - float(whole.mean())) ** 2 for part in parts) / (groups - 1)
    within = sum(float(((np.array(part) - np.mean(part)) ** 2).sum()) for part in parts) / (count - groups)
    return (between - within) / (between + (size - 1) * within), size


def standardized(parts: Sequence[Sequence[float]]) -> list[list[float]]:
    """Estimates of one setting about their median in units of their scatter, so that settings can be put together."""
    values = np.concatenate([np.array(part) for part in parts])
    middle = float(np.median(values))
    scatter = float(np.sqrt(np.mean((values - middle) ** 2))) or 1.0
    return [[(value - middle) / scatter for value in part] for part in parts if part]


def print_same(rows: dict[str, dict[str, Any]]) -> None:
    """Networks against themselves, and what of that would have been seen had one side been slower."""
    if not rows:
        return
    titles = ("ms", "parts, launches", "a comparison", "false alarms", "of drawn ones", "covered", "covered, drawn")
    print_line("a network with itself", *titles, "finite population", "least effect")
    print_line("---", "--:", *["---"] * 7, "--:")
    for name, row in rows.items():
        real, drawn = Tally(**row["real"]), Tally(**row["drawn"]) if row["drawn"] else None
        cells = (name, f"{row['milliseconds']:.2f}", f"{row['parts']}, {row['launches']}", shape_of(row))
        of_drawn = ("", "") if drawn is None else (bounded(drawn), f"{drawn.covered / drawn.count:.1%}")
        alarms, share = counted(real.false_alarms, real), percent(real.share(real.covered))
        effect = f"{row['minimum_detectable_effect']:.2%}"
        print_line(*cells, alarms, of_drawn[0], share, of_drawn[1], finite([row]), effect)
    groups = {"alone": False, "beside a busy neighbour": True, "all together": None}
    for name, busy in groups.items():
        some = [row for row in rows.values() if busy is None or row["busy"] is busy]
        if some:
            whole = added([row["real"] for row in some])
            drawn = added([row["drawn"] for row in some if row["drawn"]])
            of_drawn = (bounded(drawn), f"{drawn.covered / drawn.count:.1%}")
            alarms, share = counted(whole.false_alarms, whole), percent(whole.share(whole.covered))
            print_line(
                name, "", "", "", alarms, of_drawn[0] if drawn.count > 1 else "", share, of_drawn[1], finite(some), ""
            )
    whole = added([row["real"] for row in rows.values()])
    print(
        f"\nMean error {whole.bias:+.4%}, standard error of one comparison {whole.mean_error:.3%} (root mean square). "
        "What is drawn is drawn from the recorded launches of its setting; least effect: what 4 of 5 such comparisons "
        "show to lie beyond the tolerance, at 99 %.\n"
    )
    kinds = ("real, made 3 % slower", "drawn, 3 % slower", "drawn, 1 % slower, 30 s", "drawn, 8 launches, 3 % slower")
    print(f"| seen, of a slowdown made of such comparisons | {' | '.join(kinds)} |")
    print(f"| --- |{' --- |' * len(kinds)}")
    for name, row in rows.items():
        tallies = [Tally(**row[kind]) if row[kind] else None for kind in kinds]
        print_line(name, *("" if item is None else seen(item) for item in tallies))
    together = [added([row[kind] for row in rows.values() if row[kind]]) for kind in kinds]
    print_line("all together", *(seen(item) if item.count > 1 else "" for item in together))
    print()


def seen(tally: Tally) -> str:
    return f"{tally.detections / tally.count:.1%} of {tally.count:,}"


def shape_of(row: dict[str, Any]) -> str:
    return f"{row['launches_a_comparison']:g} launches of {row['copies_a_launch']}"


def print_slower(kind: str, rows: dict[str, dict[str, Any]]) -> None:
    """Real comparisons with a slowdown that is exact."""
    if not rows:
        return
    print(f"| {kind} | parts | a comparison | seen | false verdicts | covered | mean error | standard error |")
    print("| --- | --: | --- | --- | --: | --- | --: | --: |")
    for name, row in rows.items():
        print_line(name, row["parts"], shape_of(row), *slower_of(Tally(**row["real"])))
    parts = sum(row["parts"] for row in rows.values())
    print_line("all together", parts, "", *slower_of(added([row["real"] for row in rows.values()])))
    print()


def slower_of(tally: Tally) -> tuple[str, ...]:
    covered = percent(tally.share(tally.covered))
    counts = (counted(tally.detections, tally), str(tally.false_alarms))
    return (*counts, covered, f"{tally.bias:+.3%}", f"{tally.mean_error:.3%}")


def counted(hits: int, tally: Tally) -> str:
    share = tally.share(hits)
    return f"{hits} of {tally.count:,} [{share.low:.2%}, {share.high:.2%}]"


def finite(rows: Sequence[dict[str, Any]]) -> str:
    """Coverage of drawn comparisons as those of a finite population."""
    held, count = (sum(row["drawn, of a finite population"][at] for row in rows) for at in (0, 1))
    return f"{held / count:.1%}" if count else ""


def bounded(drawn: Tally) -> str:
    """False alarms of drawn comparisons, with bounds that hold for the launches they were drawn from."""
    share = drawn.share(drawn.false_alarms)
    return f"{drawn.false_alarms} of {drawn.count:,} [{share.low:.3%}, {share.high:.3%}]"


def print_line(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def print_usual(name: str, row: dict[str, Any], slowdowns: Sequence[float]) -> None:
    """The methods that people use now, side by side with a duel."""
    titles = ("false alarms", *(f"{slowdown:.0%} slower seen" for slowdown in slowdowns))
    print(f"| {name} | n | {' | '.join(titles)} | ratio off by | wall time |")
    print(f"| --- | --: |{' --- |' * len(titles)} --: | --: |")
    for method, values in row.items():
        shares = [scoring.wilson(hits, values["count"]) for hits in (values["false_alarms"], *values["detections"])]
        wall = f"{values['wall_seconds']:.0f} s"
        print_line(method, values["count"], *map(percent, shares), f"{values['spread']:.2%}", wall)
    print()


def added(tallies: Sequence[dict[str, Any]]) -> Tally:
    """Several tallies as one; one of a single nothing where there are none."""
    rows = [Tally(**values) for values in tallies]
    count = sum(row.count for row in rows)
    if not count:
        return Tally(1, 0, 0, 0, 0.0, 0.0)
    counts = [sum(getattr(row, key) for row in rows) for key in ("false_alarms", "detections", "covered")]
    error = math.sqrt(sum(row.count * row.mean_error**2 for row in rows) / count)
    return Tally(count, *counts, error, sum(row.count * row.bias for row in rows) / count)


def percent(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"
