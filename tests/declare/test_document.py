"""YAML is untrusted: it builds plain values, with positions, within limits."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmark.declare.document import MAX_FILE_BYTES, parse, parse_text
from leanmark.errors import InvalidInput, Position

FILE = Path("suite.yaml")

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abc xyz", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


def test_positions_count_from_one():
    document = parse_text("a: 1\nb:\n  - x\n  - {c: 2}\n", FILE)
    assert document.value == {"a": 1, "b": ["x", {"c": 2}]}
    assert document.position(("b", 1, "c")) == Position(FILE, 4, 9)
    assert document.position(("b", 1, "c"), key=True) == Position(FILE, 4, 6)
    assert document.position(("b", 7, "nothing")) == document.position(("b",))


@given(plain)
def test_json_is_yaml(value: object):
    import json

    assert parse_text(json.dumps({"value": value}), FILE).value == {"value": value}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\na: 2\n", 2, "'a' stands here twice"),
        ("a: 1\nb: !!python/object/apply:os.system ['echo']\n", 2, "python/object/apply:os.system is not allowed"),
        ("a: !mine 1\n", 1, "the tag !mine is not allowed"),
        ("a: !!binary aGVsbG8=\n", 1, "is not allowed"),
        ("a:\n  - [1\n", 3, "is not valid YAML"),
        ("? [a]\n: 1\n", 1, "a key must be plain text"),
        ("a: &a [*a]\n", 1, "nested deeper"),
        ("a: 1\n---\nb: 2\n", 2, "is not valid YAML"),
    ],
)
def test_what_is_refused_is_located(text: str, line: int, says: str):
    with pytest.raises(InvalidInput) as raised:
        parse_text(text, FILE)
    assert says in raised.value.what
    assert isinstance(raised.value.where, Position)
    assert raised.value.where.line == line


def test_an_alias_bomb_ends_soon():
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidInput, match="unfolds to more than"):
        parse_text("\n".join(lines), FILE)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 3000 + "x", "{a: " * 5000])
def test_deep_nesting_is_refused(text: str):
    with pytest.raises(InvalidInput):
        parse_text(text, FILE)


def test_files_that_cannot_be_read(tmp_path: Path):
    for name, content in {
        "empty.yaml": b"",
        "binary.yaml": b"\xff\xfe\x00",
        "large.yaml": b"#" * (MAX_FILE_BYTES + 1),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=name):
            parse(tmp_path / name)
    with pytest.raises(InvalidInput, match=r"missing\.yaml"):
        parse(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: .nan", "not a finite number"),
        ("a: -.inf", "not a finite number"),
        ("a: !!bool abc", "not a valid bool"),
        ("a: 0x" + "f" * 5000, "at most 63 bits"),
    ],
)
def test_values_that_are_none(text: str, says: str):
    with pytest.raises(InvalidInput, match=says) as raised:
        parse_text(f"# first\n{text}\n", FILE)
    assert raised.value.where == Position(FILE, 2, 4)


def test_only_files_are_read_and_bytes_have_a_line(tmp_path: Path):
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path):
        with pytest.raises(InvalidInput, match="is no file"):
            parse(path)
    latin = tmp_path / "latin.yaml"
    for content in (b"a: 1\nb: \xff\n", b"a: 1\nb: \x00\n"):
        latin.write_bytes(content)
        with pytest.raises(InvalidInput) as raised:
            parse(latin)
        assert isinstance(raised.value.where, Position)
        assert raised.value.where.line == 2
