"""Where trials start from: whatever a user's own functions make of files is known by its content."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leanmark import registry
from leanmark.prepare.artifacts import Origin, code_hash, make_keys
from leanmark.prepare.origins import data_read, described, files_read, has_own_code, hashes_of, own_modules
from leanmark.results import Target


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.labels = ["cat", "dog"]
        self.table = np.arange(3)
        self.offset = torch.tensor(0.5)
        self.limits = {"low": (0, 1), "high": None}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x - self.mean)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_the_same_model_is_the_same_however_often_it_is_built():
    assert hashes_of(net()) == hashes_of(net())
    assert hashes_of(net().eval()) != hashes_of(net().train()), "whether it trains is one of its attributes"


def change(item: Net, name: str) -> None:
    with torch.no_grad():
        {
            "weight": lambda: item.linear.weight[0, 0].add_(1e-6),
            "buffer": lambda: item.mean.__setitem__(1, 2.0),
            "passing buffer": lambda: item.passing.__setitem__(1, 2.0),
            "text": lambda: item.labels.__setitem__(1, "dogs"),
            "array": lambda: item.table.__setitem__(0, 9),
            "plain tensor": lambda: item.offset.fill_(0.25),
            "nested": lambda: item.limits.update(low=(0, 2)),
            "width": lambda: setattr(item, "linear", nn.Linear(4, 2)),
        }[name]()


@pytest.mark.parametrize("name", ["weight", "buffer"])
def test_weights_are_told_from_the_rest(name: str):
    changed = net()
    change(changed, name)
    before, after = hashes_of(net()), hashes_of(changed)
    assert (before[0] != after[0], before[1] != after[1]) == (True, False)


@pytest.mark.parametrize("name", ["passing buffer", "text", "array", "plain tensor", "nested"])
def test_what_an_artifact_does_not_hold_is_known_too(name: str):
    changed = net()
    change(changed, name)
    before, after = hashes_of(net()), hashes_of(changed)
    assert (before[0] != after[0], before[1] != after[1]) == (False, True)


def test_another_shape_is_another_structure():
    changed = net()
    change(changed, "width")
    assert hashes_of(changed)[1] != hashes_of(net())[1]


def test_files_that_are_read_meanwhile_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("before", "during", "written", "after", "code.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "before").read_text()
    with files_read() as found:
        (tmp_path / "during").read_text()
        os.close(os.open(tmp_path / "during", os.O_RDONLY))
        (tmp_path / "written").write_text("new")
        (tmp_path / "code.py").read_text()
        Path("/proc/self/stat").read_text()
        assert not (tmp_path / "missing").exists()
    (tmp_path / "after").read_text()
    assert [name for name, _ in data_read(found, tmp_path)] == ["code.py", "during"], "code that is no module is data"
    assert [name for name, _ in data_read(found, tmp_path / "elsewhere")] == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(values, values)
def test_values_are_described_alike_only_where_they_are_alike(first: Any, second: Any):
    assert (described(first) == described(second)) == (repr(_sorted(first)) == repr(_sorted(second)))


def _sorted(value: Any) -> Any:
    """What does not depend on the order in which a dictionary was filled; deeper than is looked, types only."""

    def at(item: Any, depth: int) -> Any:
        if depth == 0 and isinstance(item, (dict, list)):
            return type(item).__name__
        if isinstance(item, dict):
            return ["dict-or-list", sorted([repr(key), at(inner, depth - 1)] for key, inner in item.items())]
        if isinstance(item, list):
            return ["dict-or-list", [at(inner, depth - 1) for inner in item]]
        return item

    return at(value, 4)


WEIGHTS = Origin("s", "w", "t")


@pytest.mark.parametrize(
    ("other", "same_splits", "same_code"),
    [
        (Origin("S", "w", "t"), False, True),
        (Origin("s", "W", "t"), True, True),
        (Origin("s", "w", "T"), True, False),
    ],
)
def test_every_part_of_an_origin_is_in_the_keys(other: Origin, same_splits: bool, same_code: bool):
    workload = registry.get_workload("lenet-5")
    before, after = (make_keys(workload, (), 0, origin) for origin in (WEIGHTS, other))
    assert before.base != after.base
    assert (before.splits == after.splits) is same_splits
    codes = [code_hash(workload, Target(runtime="torch"), origin.structure) for origin in (WEIGHTS, other)]
    assert (codes[0] == codes[1]) is same_code
    assert make_keys(workload, (), 0).base not in (before.base, after.base)


def test_a_text_that_names_the_checkout_is_the_same_in_every_checkout():
    first, second = net(), net()
    first.place, second.place = Path("/one/checkout/data"), Path("/tmp/another/data")
    assert hashes_of(first) != hashes_of(second)
    assert hashes_of(first, "/one/checkout") == hashes_of(second, "/tmp/another")


def test_what_cannot_be_hashed_is_told_by_its_shape():
    sparse = torch.eye(3).to_sparse()
    assert described(sparse) == described(sparse * 2) != described(torch.eye(4).to_sparse())
    assert described(np.array([object()])) == described(np.array([object()]))
    assert described({test_whose_functions_are_called: 1}) == described({test_whose_functions_are_called: 1})


def test_modules_are_known_by_their_source_and_packages_by_their_version():
    facts, files = own_modules()
    known = dict(facts)
    assert "numpy" not in dict(own_modules(frozenset(sys.modules))[0])
    assert known["numpy"] == np.__version__
    assert Path(__file__) in files
    assert not [name for name in known if name.split(".")[0] == "leanmark"], "leanmark's own are in the keys already"


def test_whose_functions_are_called():
    assert not has_own_code(registry.get_workload("lenet-5"))
    assert not has_own_code(registry.Workload("file", onnx="model.onnx", inputs="inputs.npz"))
    assert has_own_code(registry.Workload("own", model="net:build", data="net:splits"))
    assert has_own_code(registry.Workload("data", model="leanmark.networks.lenet:lenet_5", data="mine:splits"))
