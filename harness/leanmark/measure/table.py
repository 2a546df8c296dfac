"""The sides of one launch around a table: who takes a turn when, and what of it counts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.measure.launches import UNDISTURBED_SHARE, Launch, LaunchFacts
from leanmark.measure.sides import Seats, SideError, Worker
from leanmark.processes import Death

# Rounds in which a turn was disturbed are played again, up to this share of all.
_REPEAT_SHARE = 0.5
# Nothing more is opened beside a block once fewer turns of a launch were undisturbed.
_QUIET_SHARE = 0.85
_QUIET_ROUNDS = 20
# At the end of a copy each side has a stretch of calls to itself, after some that are not timed.
_SOLO_SECONDS = 0.02
_SOLO_UNTIMED_SECONDS = 0.002
_SOLO_CALLS = 2
# A side is warmed up for at least so long, then until its trend is flat, within a limit.
_WARM_SECONDS = 0.01
_WARM_TREND = 0.05
_WARM_LIMIT_SECONDS = 0.04
# A worker that does not answer for so long, and twenty times what its turn should take, hangs.
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Amount:
    """How much a launch plays."""

    calls: int
    untimed: int  # calls before each turn
    copies: int
    rounds: int  # in each copy
    limit_seconds: float  # for a turn


@dataclass(frozen=True)
class Groups:
    """Sides that are compared with each other, by name; the first of each group is its reference.

    least: how many of a group must live for it to play.
    """

    groups: tuple[tuple[str, ...], ...]
    least: int = 1

    @staticmethod
    def of(names: Sequence[str], *, pairs: bool) -> Groups:
        """Every two sides a group, or all of them one."""
        size = 2 if pairs else len(names)
        return Groups(tuple(tuple(names[at : at + size]) for at in range(0, len(names), size)), 2 if pairs else 1)

    def playing(self, gone: Set[str]) -> list[list[str]]:
        """Group by group those who play: where its reference is gone, or too few are left, nobody."""
        left = [[name for name in group if name not in gone] for group in self.groups]
        return [
            names
            for group, names in zip(self.groups, left, strict=True)
            if group[0] in names and len(names) >= self.least
        ]

    def names(self) -> set[str]:
        return {name for group in self.groups for name in group}


@dataclass(frozen=True)
class _Turn:
    seconds: float  # a call
    cpu_share: float
    calls: Array | None  # nanoseconds of each, where they were asked for


class Table:
    """The sides of one launch around a table, taking turns; copy after copy sits down at it."""

    def __init__(self, random: np.random.Generator, groups: Groups) -> None:
        self.random, self.groups = random, groups
        self.workers: dict[str, Worker] = {}
        self.deaths: dict[str, Death] = {}
        self.busy: dict[str, float] = {}
        self.position = int(random.integers(2**30))
        self.rounds: list[tuple[int, dict[str, _Turn]]] = []
        self.alone: dict[tuple[str, int], _Turn] = {}

    def seat(self, seats: Seats, alive: Set[str]) -> None:
        """Workers that were opened ahead may be of sides that have died since; those get no turns."""
        self.workers = {worker.side.name: worker for worker in seats.workers if worker.side.name in alive}
        self.deaths = {**{name: death for name, death in seats.deaths.items() if name in alive}, **self.deaths}

    def pin(self, cpus: tuple[int, ...]) -> bool:
        answers = [self._ask(name, 10.0, op="pin", cpus=list(cpus)) for name in self._alive()]
        return all(answer is not None and answer["pinned"] for answer in answers)

    def warm_up(self) -> dict[str, float]:
        """Turns until a side's trend is flat, within a limit; returns seconds a call."""
        guess: dict[str, float] = {}
        for name in self._alive():
            before, calls, spent = math.inf, 1, 0.0
            while spent < _WARM_LIMIT_SECONDS:
                turn = self._turn(name, calls, 2 * PATIENCE_SECONDS)
                if turn is None:
                    guess.pop(name, None)
                    break
                guess[name] = now = turn.seconds
                spent += now * (calls + 1)
                if spent >= _WARM_SECONDS and abs(now / before - 1) < _WARM_TREND:
                    break
                before, calls = now, max(1, min(100_000, math.ceil(_WARM_SECONDS / 2 / max(now, 1e-9))))
        return guess

    def is_disturbed(self) -> bool:
        """Whether other programs reach into many of the turns so far."""
        good = [self._is_undisturbed(name, turn) for _, turns in self.rounds for name, turn in turns.items()]
        return len(self.rounds) >= _QUIET_ROUNDS and sum(good) < _QUIET_SHARE * len(good)

    def play(self, amount: Amount, copy: int, progress: Callable[[float], None]) -> None:
        """Rounds until every side has had so many undisturbed turns, within a limit."""
        good = dict.fromkeys(itertools.chain(*self._playing()), 0)
        played, limit = 0, (1 + _REPEAT_SHARE) * amount.rounds
        while self._playing() and min(good.values()) < amount.rounds and played < limit:
            turns = self._round(amount)
            self.rounds.append((copy, turns))
            playing = set(itertools.chain(*self._playing()))
            good = {
                name: good[name] + self._is_undisturbed(name, turn) for name, turn in turns.items() if name in playing
            }
            played += 1
            if played % 10 == 0:
                progress(min(played / amount.rounds, 1.0))

    def play_alone(self, copy: int, guess: Mapping[str, float]) -> None:
        """A stretch of calls for each side, nobody else's between them."""
        names = list(itertools.chain(*self._playing()))
        for index in self.random.permutation(len(names)):
            name = names[index]
            calls, untimed = (
                max(least, math.ceil(seconds / max(guess[name], 1e-9)))
                for seconds, least in ((_SOLO_SECONDS, _SOLO_CALLS), (_SOLO_UNTIMED_SECONDS, 1))
            )
            limit = PATIENCE_SECONDS + 20 * (calls + untimed) * guess[name]
            turn = self._turn(name, calls, limit, untimed=untimed, each=True)
            if turn is not None:
                self.alone[name, copy] = turn

    def _alive(self) -> list[str]:
        return [name for name in self.workers if name not in self.deaths]

    def _playing(self) -> list[list[str]]:
        return self.groups.playing((self.groups.names() - set(self.workers)) | set(self.deaths))

    def _round(self, amount: Amount) -> dict[str, _Turn]:
        """One turn of every side that plays: groups in random order, and each group's sides."""
        turns: dict[str, _Turn] = {}
        playing = self._playing()
        for at in self.random.permutation(len(playing)):
            names = playing[at]
            for index in self.random.permutation(len(names)):
                turn = self._turn(names[index], amount.calls, amount.limit_seconds, untimed=amount.untimed)
                if turn is not None:
                    turns[names[index]] = turn
        self.position += amount.calls
        return turns

    def _turn(
        self, name: str, calls: int, limit_seconds: float, *, untimed: int = 1, each: bool = False
    ) -> _Turn | None:
        answer = self._ask(name, limit_seconds, op="turn", calls=calls, start=self.position, untimed=untimed, each=each)
        if answer is None:
            return None
        wall = answer["wall_ns"] * 1e-9
        turn = _Turn(wall / calls, answer["cpu_ns"] * 1e-9 / wall, answer.get("calls_ns"))
        target = self.workers[name].side.target
        if target.threads > 1 or target.device != "cpu":  # several at once, or waiting: only its own best tells
            self.busy[name] = max(self.busy.get(name, 0.0), turn.cpu_share)
        return turn

    def _is_undisturbed(self, name: str, turn: _Turn) -> bool:
        return turn.cpu_share >= UNDISTURBED_SHARE * self.busy.get(name, 1.0)

    def gather(self, sides: Sequence[str], facts: Mapping[str, Any]) -> Launch:
        """The turns of the sides that lived to the end."""
        there = {name for name in sides if all(name in turns for _, turns in self.rounds)}
        gone = (self.groups.names() - there) | set(self.deaths)
        # Without its reference there is nothing that a side could be compared with.
        kept = tuple(itertools.chain(*self.groups.playing(gone))) if self.rounds else ()
        rounds = self.rounds if kept else []
        shape = (len(rounds), len(kept))
        shares = np.array([[turns[name].cpu_share for name in kept] for _, turns in rounds]).reshape(shape)
        # A single turn may have been lucky: what a tenth of them reach is what a side can have.
        busy = [float(np.quantile(shares[:, at], 0.9)) if name in self.busy else 1.0 for at, name in enumerate(kept)]
        solo, solo_share = self._gather_alone(kept)
        return Launch(
            LaunchFacts(sides=kept, busy=tuple(busy), deaths=self.deaths, **facts),
            np.array([[turns[name].seconds for name in kept] for _, turns in rounds]).reshape(shape),
            shares,
            np.array([copy for copy, _ in rounds], dtype=np.int32),
            solo,
            solo_share,
        )

    def _gather_alone(self, kept: Sequence[str]) -> tuple[Array, Array]:
        """The stretches of each side, shape (sides, copies, calls), and processor over wall time, (sides, copies)."""
        copies = 1 + max((copy for _, copy in self.alone), default=-1)
        alone = {at: (turn.calls, turn.cpu_share) for at, turn in self.alone.items() if turn.calls is not None}
        longest = max((calls.size for calls, _ in alone.values()), default=0)
        solo, share = np.zeros((len(kept), copies, longest), dtype=np.int64), np.zeros((len(kept), copies))
        for (name, copy), (calls, busy) in alone.items():
            if name in kept:
                solo[kept.index(name), copy, : calls.size] = calls
                share[kept.index(name), copy] = busy
        return solo, share

    def _ask(self, name: str, timeout: float, **message: Any) -> dict[str, Any] | None:
        try:
            return self.workers[name].ask(timeout, **message)
        except SideError as error:
            self.deaths[name] = error.death
            self.workers[name].child.begin_kill()  # or it might go on, on the core that is measured
            return None
