"""The store: what is damaged is noticed and made again, never served."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from leanmark.errors import InvalidInput
from leanmark.prepare.artifacts import Entry, Store
from leanmark.stages import Program, Split, save
from leanmark.workloads import split_store
from running import leanmark

KEY = "0" * 64


def program(name: str = "x") -> Program:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", [name], ["y"])],
        "g",
        [value(name, TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return Program(model.SerializeToString())


def stored(root: Path) -> tuple[Store, Entry]:
    store = Store(root)
    entry = store.put(KEY, lambda folder: save(program(), folder), lambda content: Entry(content, 1.0, 2))
    return store, entry


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "empty", "gone", "link"])
def test_a_damaged_artifact_is_made_again(tmp_path: Path, name: str, damage: str):
    store, entry = stored(tmp_path / "store")
    assert store.get_checked(KEY) == entry
    path = store.open(entry.content).root / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if damage == "link":
            (tmp_path / "elsewhere").write_bytes(b"secret")
            path.symlink_to(tmp_path / "elsewhere")
    assert Store(tmp_path / "store").get_checked(KEY) is None
    again, made = stored(tmp_path / "store")
    assert made == entry
    assert again.get_checked(KEY) == entry
    assert path.read_bytes() == content
    assert not path.is_symlink()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"content": 5}', '{"content": "../x", "seconds": 1, "peak_rss_bytes": 1}', "[" * 100_000]
)
def test_a_damaged_key_is_no_entry(tmp_path: Path, text: str):
    store, _ = stored(tmp_path)
    (tmp_path / "keys" / f"{KEY}.json").write_text(text)
    assert store.get(KEY) is None
    assert store.get_checked(KEY) is None


@pytest.mark.parametrize("content", ["../../x", "0" * 63, ""])
def test_nothing_outside_the_store_is_opened(tmp_path: Path, content: str):
    with pytest.raises(InvalidInput, match="64 hexadecimal digits"):
        Store(tmp_path).open(content)


def test_damaged_splits_are_noticed(tmp_path: Path):
    made = {"test": Split({"x": np.arange(8.0).reshape(4, 2)}, np.arange(4))}
    for damage in (None, "test-0.npy", "test-targets.npy", "splits.json"):
        root = tmp_path / str(damage)
        split_store.store(made, root)
        if damage is not None:
            content = bytearray((root / damage).read_bytes())
            content[-20] ^= 1
            (root / damage).write_bytes(bytes(content))
        assert split_store.are_whole(root) is (damage is None)


@pytest.mark.parametrize(
    "text", ["[]", '{"format": 1, "files": 5}', '{"format": 1, "files": {"FILE": {"stamp": 1}}}', "{"]
)
def test_a_damaged_memory_of_sources_is_none(tmp_path: Path, text: str):
    from leanmark import registry

    source = str(Path(registry.__file__))
    (tmp_path / "sources.json").write_text(text.replace("FILE", json.dumps(source)[1:-1]))
    done = leanmark("plan", "quick", cwd=tmp_path, LEANMARK_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_store_that_cannot_be_made_says_so(tmp_path: Path):
    done = leanmark("plan", "quick", cwd=tmp_path, LEANMARK_CACHE="/proc/nothing")
    assert done.returncode == 2
    assert "/proc/nothing: cannot be written" in done.stderr
    assert os.linesep.join(done.stderr.splitlines()[1:]).strip().startswith("Choose another folder")
