"""What the gate prints and writes: numbers that can be read at a glance, and nothing that a name can break."""

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from rich.console import Console
from runs import HOSTILE

from leanmark.judgement import Basis, Change, Judgement, Unjudged
from leanmark.publish import comment, verdicts
from leanmark.results import Interval, Verdict


def ratio(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 0.998, 24, "")


SLOWER = Change(
    "net/int8/cpu", "latency", Verdict.REGRESSED, Basis.DUEL, "main (abc)", None, None, ratio(1.031, 1.024, 1.039), 0.02
)
WORSE = Change(
    "net/int8/cpu", "quality", Verdict.REGRESSED, Basis.ANSWERS, "main (abc)", 0.9, 0.88,
    Interval(-0.02, -0.031, -0.009, 0.95, 1000, ""), 0.005,
)  # fmt: skip
UNSURE = Change(
    "net/half/cpu", "latency", Verdict.INCONCLUSIVE, Basis.DUEL, "main (abc)", None, None, ratio(1.02, 1.0, 1.04), 0.02,
    "the interval reaches over a limit of the tolerance", "61 launches, 12 s of turns a side",
)  # fmt: skip
LARGER = Change(
    "net/int8/cpu", "size", Verdict.REGRESSED, Basis.EXACT, "main (abc)", 1000, 1100, ratio(1.1, 1.1, 1.1), 0.0
)
SAME = Change("net/fp32/cpu", "cell", Verdict.UNCHANGED, Basis.SAME, "main (abc)", reason="the same file")
GONE = Change("net/old/cpu", "cell", Verdict.MISSING, Basis.STATUS, "main (abc)", reason="it was ok")


def judgement(*changes: Change, suite: str = "quick") -> Judgement:
    return Judgement("run-1", suite, ("main (abc)",), changes, (Unjudged("net/cuda/cuda", "cell", "skipped: no CUDA"),))


def printed(found: Judgement, width: int = 80, *, everything: bool = False) -> str:
    out = io.StringIO()
    verdicts.print_judgement(found, Console(file=out, width=width, highlight=False), everything=everything)
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (SLOWER, "+3.1 % [+2.4, +3.9]"),
        (WORSE, "-2.0 pp [-3.1, -0.9]"),
        (LARGER, "+10.0 %"),
        (SAME, "none"),
    ],
)
def test_a_change_reads_at_a_glance(change: Change, shown: str):
    assert str(verdicts.amount(change)) == shown


def test_the_headline_says_what_it_means():
    assert verdicts.headline(judgement(SLOWER, SAME)) == "failed: 1 finding in 2 cells compared with main (abc)"
    assert verdicts.headline(judgement(UNSURE, SAME)) == "undecided: 1 figure in 2 cells compared with main (abc)"
    assert verdicts.headline(judgement(SAME)) == "passed: nothing got worse in 1 cell compared with main (abc)"
    assert "nothing to compare" in verdicts.headline(judgement())


def test_what_is_allowed_is_not_called_nothing():
    allowed = replace(SLOWER, allowed="until the new kernel (until 2026-12-31)")
    assert verdicts.headline(judgement(allowed, SAME)).startswith("passed: nothing but what is allowed (1 figure)")


def test_a_verdict_says_what_it_rests_on():
    numbers_only = [
        replace(SLOWER, verdict=Verdict.UNCHANGED, basis=Basis.RATIOS, tolerance=0.1, cell=f"net/{n}/cpu") for n in "ab"
    ]
    left = Unjudged("net/fp32/cpu", "latency", "another class of machine", against="main (abc)")
    found = replace(judgement(*numbers_only), unjudged=(left,))
    said = "latency against main (abc): in-run ratios for 2 cells, tolerance 10 %; not judged for 1 cell: "
    said += "another class of machine"
    assert list(verdicts.grounds(found)) == [said]
    assert said in printed(found, 200)
    assert said in comment.markdown(found)


def test_what_was_judged_before_and_is_not_now_is_listed():
    gone = replace(judgement(SAME), unjudged=(Unjudged("net/cuda/cuda", "cell", "skipped: no CUDA", was_fine=True),))
    assert "not judged  net/cuda/cuda" in printed(gone)
    assert "not judged  net/cuda/cuda" not in printed(judgement(SAME))


def test_a_metric_of_its_own_is_shown_in_its_own_unit():
    error = replace(
        WORSE, scored="negative_mse", before=-12.34, after=-14.84, change=Interval(-2.5, -3.1, -1.9, 0.95, 1000, "")
    )
    assert str(verdicts.amount(error)) == "-2.5 [-3.1, -1.9]"
    assert "-12.34 to -14.84; tolerance 0.005; negative_mse on the same examples (1,000) at 95 %" in verdicts.what(
        error
    )


def test_a_comment_says_where_and_by_which_command():
    found = replace(
        judgement(SLOWER), command="leanmark gate quick --base main", commit="0123456789ab with local changes",
        environment={"cpu": "EPYC", "cores": 2, "python": "3.11.7", "versions": {"torch": "2.13.0"}},
    )  # fmt: skip
    text = comment.markdown(found)
    for shown in (
        "leanmark gate quick --base main",
        "0123456789ab with local changes",
        "EPYC, 2 cores",
        "torch 2.13.0",
    ):
        assert f"{shown}" in text


def test_notes_stand_above_the_verdicts_and_reach_github():
    noted = replace(judgement(SLOWER), notes=("control failed: x",))
    lines = printed(noted).splitlines()
    assert lines[1] == "! control failed: x"
    assert "::warning title=leanmark::control failed: x" in verdicts.workflow_commands(noted)


def test_the_terminal_shows_what_matters_within_its_width():
    text = printed(judgement(SAME, UNSURE, SLOWER, GONE))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any(line.endswith(" ") for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("missing", "regressed", "inconclusive"))] == [
        "missing",
        "regressed",
        "inconclusive",
    ]
    assert "+3.1 % [+2.4, +3.9]; tolerance 2 %; duel of 24 launches at 99.8 %" in text
    assert "would decide: 61 launches, 12 s" in " ".join(text.split())
    assert "net/fp32/cpu" not in text
    assert "net/fp32/cpu" in printed(judgement(SAME), everything=True)


def test_the_comment_folds_what_does_not_matter():
    text = comment.markdown(judgement(SAME, SLOWER, LARGER), "https://example.org/page.html")
    head, _, folded = text.partition("<details>")
    assert head.startswith("<!-- leanmark gate quick -->\n### Failed: `quick`")
    assert "[`net/int8/cpu`](https://example.org/page.html#q=net%2Fint8%2Fcpu) | latency | **regressed**" in head
    assert "`net/fp32/cpu`" in folded
    assert "`net/fp32/cpu`" not in head
    assert "<summary>2 regressed, 1 unchanged, 1 not judged</summary>" in folded


def test_a_comment_fits_what_github_takes_and_says_what_is_left_out():
    many = [replace(SLOWER, cell=f"net/{'x' * 150}{number}/cpu", reason="r" * 290) for number in range(2000)]
    text = comment.markdown(judgement(*many, SAME))
    assert len(text) < 65_000
    assert "more lines" in text
    assert "<sub>run `run-1`: `-`</sub>" in text[-400:]


def test_what_is_not_judged_is_listed_and_two_bases_are_told_apart():
    both = replace(judgement(SLOWER, replace(SLOWER, against="pinned")), against=("main (abc)", "pinned"))
    text = comment.markdown(both)
    assert "| latency | `pinned` | **regressed**" in text
    assert "- not judged: `net/cuda/cuda` cell: `skipped: no CUDA`" in text
    assert "latency  against pinned" in printed(both)
    (suite,) = ElementTree.fromstring(verdicts.junit(both))
    assert len({(case.get("classname"), case.get("name")) for case in suite}) == 3


def test_junit_has_a_failure_for_each_finding():
    (suite,) = ElementTree.fromstring(verdicts.junit(judgement(SAME, SLOWER, UNSURE, GONE)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("5", "2", "2")
    failed = {case.get("classname"): failure.get("type") for case in suite for failure in case.findall("failure")}
    assert failed == {"net/int8/cpu": "regressed", "net/old/cpu": "missing"}


def test_annotations_are_errors_and_warnings():
    lines = verdicts.workflow_commands(judgement(SAME, UNSURE, SLOWER))
    assert lines[0].startswith("::error title=regressed%3A net/int8/cpu%2C latency::+3.1 %25 [")
    assert lines[1].startswith("::warning title=inconclusive%3A net/half/cpu")


def test_json_holds_everything():
    found = json.loads(json.dumps(verdicts.as_json(judgement(SLOWER))))
    assert (found["exit_code"], found["changes"][0]["verdict"], found["changes"][0]["change"]["low"]) == (
        1,
        "regressed",
        1.024,
    )


def test_no_name_breaks_out_of_what_is_written():
    hostile = HOSTILE + "\n::error::owned\n| a | b |\n<!-- leanmark gate quick -->\n@everyone ```"
    bad = Change(hostile, "latency", Verdict.REGRESSED, Basis.DUEL, hostile, None, None, None, 0.02, hostile, hostile)
    found = Judgement(hostile, hostile, (hostile,), (bad,), (Unjudged(hostile, "cell", hostile),), (hostile,))
    text = comment.markdown(found, "https://example.org/")
    outside_code = "".join(text.split("`")[::2])
    for attack in ("<script", "<img", "@everyone", "::error", "\x1b"):
        assert attack not in outside_code
    assert outside_code.count("<!-- leanmark gate") == 1, "only the first line is a marker"
    assert "\x1b" not in printed(found, everything=True)
    ElementTree.fromstring(verdicts.junit(found))
    for line in verdicts.workflow_commands(found):
        assert line.startswith(("::error title=regressed", "::warning title=leanmark::"))
        assert "\n" not in line
