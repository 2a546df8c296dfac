"""The page of a run: one file, safe whatever the run says."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from leanmark.errors import InvalidInput
from leanmark.publish import leaderboard, site
from leanmark.publish.numbers import MISSING
from leanmark.publish.site import Asset, Scale
from leanmark.results import Base, Claim, Comparison, Interval, Role, Run

BODILESS = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.content: dict[int, str] = {}  # of scripts and styles, by number of the tag
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in BODILESS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.content[len(self.tags) - 1] = self.content.get(len(self.tags) - 1, "") + data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page(run: Run) -> str:
    return site.render(run).html(Asset.script("/* Vega stands here */"))


@pytest.fixture(scope="module")
def realistic() -> str:
    return page(runs.realistic_run())


@pytest.fixture(scope="module")
def hostile() -> str:
    return page(runs.hostile_run())


def test_the_file_is_whole_small_and_made_in_little_memory(tmp_path: Path, pages_cache: Path):
    target = tmp_path / "deep" / "index.html"
    code = (
        "import resource, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import runs\n"
        "from leanmark.host import peak_rss_bytes\n"
        "from leanmark.publish import site\n"
        "site.write_page(runs.realistic_run(), Path(sys.argv[2]), cache=Path(sys.argv[3]))\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'pandas'} & set(sys.modules)\n"
        "children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(peak_rss_bytes() + children * (1024 if sys.platform == 'linux' else 1))"
    )
    here = str(Path(runs.__file__).parent)
    arguments = [sys.executable, "-c", code, here, str(target), str(pages_cache)]
    peak = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    assert peak < 400e6
    assert 500_000 < target.stat().st_size < 1_500_000  # Vega is in it
    assert [file.name for file in target.parent.iterdir()] == ["index.html"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_nothing_refers_to_another_place(realistic: str):
    for tag, attributes in Reader(realistic).tags:
        assert tag not in ("iframe", "object", "embed", "base", "img", "a")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "src", "srcset", "action", "formaction")
            if name == "href":
                assert value == "data:,"


@pytest.mark.parametrize("kind", ["realistic", "hostile"])
def test_the_policy_names_every_script_and_style_and_no_other(kind: str, request: pytest.FixtureRequest):
    found = Reader(request.getfixturevalue(kind))
    (policy,) = [a["content"] or "" for tag, a in found.tags if tag == "meta" and a.get("http-equiv")]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert not any("unsafe" in word for words in rules.values() for word in words)
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        contents = [
            found.content[index]
            for index, (name, attributes) in enumerate(found.tags)
            if name == tag and attributes.get("type") != "application/json"
        ]
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents]
        assert rules[rule] == [f"'sha256-{digest}'" for digest in hashes]


def test_hostile_text_adds_no_element_and_no_attribute(realistic: str, hostile: str):
    def shape(text: str) -> set[tuple[str, tuple[str, ...]]]:
        return {(tag, tuple(attributes)) for tag, attributes in Reader(text).tags}

    def count(text: str, tag: str) -> int:
        return sum(name == tag for name, _ in Reader(text).tags)

    assert shape(hostile) <= shape(realistic) | {("ul", ()), ("li", ())}
    assert [count(hostile, tag) for tag in ("script", "style", "tbody")] == [3, 1, 3]
    assert count(hostile, "tr") > 80


def test_hostile_text_is_shown_as_it_is(hostile: str):
    text = Reader(hostile).text
    assert "{{ 7*7 }}" in text
    assert "'49<img" not in text  # the braces were not evaluated
    assert "</script><script>window.pwned=1</script>" in text
    assert not any(character in hostile for character in "\u202e\x1b\u2028\ud800")
    assert "x" * 2001 not in hostile
    assert len(hostile) < 600_000


def test_the_plots_data_survive_their_escaping(realistic: str):
    found = Reader(realistic)
    index = next(i for i, (tag, a) in enumerate(found.tags) if tag == "script" and a.get("type") == "application/json")
    data = json.loads(found.content[index])
    assert set(data["panels"]) == {"lenet-300-100/cpu-onnxruntime-t1-b1", "lenet-5/cpu-onnxruntime-t1-b1"}
    assert len(data["points"]) == 34


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_is_the_same_json_and_ends_no_element(value: object):
    text = str(site.embedded(value))
    assert json.loads(text) == value
    assert not any(character in text for character in "<>&\u2028\u2029")


def test_every_cell_stands_in_the_page_with_its_reason(realistic: str):
    run = runs.realistic_run()
    text = Reader(realistic).text
    for result in run.results:
        assert result.cell.recipe in text
        assert result.reason in text
        assert leaderboard.reproduce(run, next(r for r in leaderboard.rows(run) if r.id == result.cell.id)) in text
    assert text.count("0.470x [0.46") >= 2


def test_what_a_reader_needs_to_judge_is_there(realistic: str):
    text = Reader(realistic).text
    for phrase in (
        "Before you trust these numbers",
        "control failed: lenet-5/slower-3",
        "AMD EPYC 9R14 96-Core Processor, 2 cores",
        "onnxruntime 1.31.1",
        "2026-03-02 09:14:07 UTC",
        "latency vs fp32, same runtime",
        "latency vs torch eager",
        "20000 in 5 launches",
        "57e6c6b1f0c2",
    ):
        assert phrase in text, phrase


def test_warnings_come_before_the_numbers(realistic: str):
    assert realistic.index('class="warnings"') < realistic.index('class="cards"') < realistic.index('id="cells"')


def test_a_run_beside_another_version_shows_both_and_ranks_nothing():
    run = runs.realistic_run()
    first, second = (result.cell.id for result in run.results[:2])
    comparisons = {
        first: Comparison(screened=Interval(1.012, 1.004, 1.021, 0.95, 8, ""), answers_changed=0.25),
        second: Comparison(same="artifact, code and versions are those of main"),
    }
    notes = ("<b>a note</b>",)
    beside = replace(run, bases=(Base("revision", "main", "0123456789abcdef", (), comparisons, notes=notes),))
    shown = Reader(page(beside))
    assert "Best by workload" not in shown.text
    for words in (
        "Beside main",
        "1.012x [1.004, 1.021]",
        "25 % of the answers",
        "the same: artifact, code",
        "<b>a note</b>",
        first,
    ):
        assert words in " ".join(shown.text.split()), words


def test_a_run_without_cells_is_a_page_too():
    text = Reader(page(runs.empty_run())).text
    assert "This run is not complete" in text
    assert "How to read this" in text


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leanmark.publish.plot.vega", lambda cache: "")
    target = tmp_path / "index.html"
    site.write_page(runs.empty_run(), target)
    before = target.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.os, "replace", full)
    with pytest.raises(InvalidInput, match="No space left"):
        site.write_page(runs.realistic_run(), target)
    assert target.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_a_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leanmark.publish.plot.vega", lambda cache: "")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        site.write_page(runs.empty_run(), tmp_path / "file" / "index.html")


def test_missing_templates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "a" / "b" / "leanmark" / "publish"
    package.mkdir(parents=True)
    monkeypatch.setattr(site, "__file__", str(package / "site.py"))
    with pytest.raises(InvalidInput, match="Install leanmark again"):
        site.templates()
    installed = package.parent / "_reports"
    installed.mkdir()
    (installed / "page.html.j2").write_text("")
    assert site.templates() == installed.resolve()


def test_a_script_cannot_end_its_element():
    asset = Asset.script("const text = '</script><!--';")
    assert "</script" not in asset.text
    assert "<!--" not in asset.text


@given(st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_a_whisker_lies_on_its_scale_in_order(one: float, other: float):
    scale = Scale.over(leaderboard.rows(runs.realistic_run()))
    low, high = sorted((one, other))
    assert 0 <= scale.at(low) <= scale.at(high) <= 100
    assert 0 < scale.at(1) < 100


def test_a_whisker_of_no_number_is_no_error():
    assert Scale(0.5, 2).at(float("nan")) == 0
    assert Scale(0.5, 2).at(float("inf")) == 100


def test_facts_of_any_kind_are_text():
    facts = {
        "versions": {"torch": "2.13"},
        "memory_bytes": 25_274_220_544,
        "load": [0.5, 1],
        "governor": None,
        "on": True,
    }
    assert list(site.flat(facts)) == [
        ("versions: torch", "2.13"),
        ("memory", "25.3 GB"),
        ("load", "0.5, 1"),
        ("governor", MISSING),
        ("on", "true"),
    ]
    assert site.fact_text({"int8": 3, "float32": [1, 2.5]}) == "int8: 3, float32: 1, 2.5"


def test_published_figures_stand_beside_the_runs_own(hostile: str):
    def shape(text: str) -> set[tuple[str, tuple[str, ...]]]:
        return {(tag, tuple(attributes)) for tag, attributes in Reader(text).tags}

    run = runs.realistic_run()
    chosen = next(item for item in run.results if item.cell.role is Role.VARIANT and item.footprint is not None)
    with_claim = page(replace(run, claims=(Claim(chosen.cell.id, "A. Author 1990", {"smaller": 40.0}),)))
    assert "Published, and here" in with_claim
    assert "A. Author 1990" in with_claim
    assert "40x" in with_claim
    assert "Published, and here" not in page(run)
    attacked = page(replace(runs.hostile_run(), claims=(Claim("*", runs.HOSTILE, {"smaller": 40.0, "error": 0.1}),)))
    assert shape(attacked) <= shape(hostile) | shape(with_claim)
