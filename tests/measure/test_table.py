"""Who takes a turn when, and which turns count; with workers that only say what they are told to."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from leanmark.measure.table import Amount, Groups, Table
from leanmark.results import Target

AMOUNT = Amount(calls=3, untimed=1, copies=1, rounds=40, limit_seconds=1.0)


class Scripted:
    """A worker whose n-th turn computed for a given share of its time; a stand-in for a process."""

    def __init__(self, name: str, played: list[str], disturbed: range = range(0), threads: int = 1) -> None:
        self.side = SimpleNamespace(name=name, target=Target(threads=threads))
        self.played, self.disturbed, self.turns = played, disturbed, 0

    def ask(self, timeout: float, **message: Any) -> dict[str, Any]:
        assert message["op"] == "turn"
        self.played.append(self.side.name)
        share = 0.5 if self.turns in self.disturbed else 1.0
        self.turns += 1
        return {"wall_ns": 1_000_000 * message["calls"], "cpu_ns": share * 1_000_000 * message["calls"]}


def table(*workers: Scripted, seed: int = 0) -> Table:
    names = [worker.side.name for worker in workers]
    found = Table(np.random.default_rng(seed), Groups.of(names, pairs=False))
    found.workers = {worker.side.name: worker for worker in workers}  # pyright: ignore[reportAttributeAccessIssue]
    return found


def test_rounds_with_a_disturbed_turn_are_played_again():
    played: list[str] = []
    one = table(Scripted("a", played), Scripted("b", played, disturbed=range(5, 12)))
    one.play(AMOUNT, 0, lambda _: None)
    assert len(one.rounds) == AMOUNT.rounds + 7
    assert sum(turns["b"].cpu_share > 0.9 for _, turns in one.rounds) == AMOUNT.rounds


def test_what_is_always_disturbed_is_not_played_for_ever():
    played: list[str] = []
    one = table(Scripted("a", played), Scripted("b", played, disturbed=range(10_000)))
    one.play(AMOUNT, 0, lambda _: None)
    assert len(one.rounds) == 1.5 * AMOUNT.rounds


@pytest.mark.parametrize(("disturbed", "is_told"), [(2, False), (6, False), (20, True)])
def test_many_disturbed_turns_are_told_while_they_are_played(disturbed: int, is_told: bool):
    """So that nothing more is started beside them."""
    played: list[str] = []
    one = table(Scripted("a", played), Scripted("b", played, disturbed=range(disturbed)))
    one.play(AMOUNT, 0, lambda _: None)
    assert one.is_disturbed() is is_told


def test_the_order_is_random_from_a_seed_and_gives_nobody_the_first_turn():
    orders: list[list[str]] = []
    for seed in (0, 0, 1):
        played: list[str] = []
        table(Scripted("a", played), Scripted("b", played), seed=seed).play(AMOUNT, 0, lambda _: None)
        orders.append(played)
    first, again, other = orders
    assert first == again
    assert first != other
    leaders = first[::2]
    assert 10 <= leaders.count("a") <= 30, "of 40 rounds"
    assert {*zip(first[::2], first[1::2], strict=True)} == {("a", "b"), ("b", "a")}
