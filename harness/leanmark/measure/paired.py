"""Paired measurement: sides alive at once on the same cores, taking short turns in random order.

A block is a reference and its variants. It is measured in launches, each a fresh set
of interpreters, and a launch in copies of those; within a copy every round gives each
side one turn, and what counts is the ratio of turns that are close in time. While one
set of copies is measured, the next is opened on another core. See docs/methodology.md.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from leanmark import registry
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.host import available_memory, one_per_core, pinned, stolen_seconds
from leanmark.measure.launches import UNDISTURBED_SHARE, Launch, LaunchFacts
from leanmark.measure.sides import CAN_FORK, Bases, Opener, Seats, Side, SideError, Worker
from leanmark.processes import Death

TURN_SECONDS = 0.001
# Coming back after the other side costs a call 0.03 to 0.3 ms: little of one so long.
_LONG_CALL_SECONDS = 0.005
# Of two equal lengths of turns the one that is spread over more launches sees more, but each
# launch costs a start; beyond so many little is gained. See docs/results.md.
LAUNCHES = 24
MINIMUM_ROUNDS = 4
# A side's time in one copy: about what opening the next copy takes meanwhile.
COPY_SECONDS = 0.1
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


def measure(
    sides: Sequence[Side],
    *,
    launches: int,
    seconds: float,
    cpus: Sequence[int],
    seed: int,
    before: Sequence[Launch] = (),
    overlap: bool = True,
    solo: bool = True,
    alike: bool = False,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> Generator[Launch]:
    """Launch after launch, each with rounds of turns for `seconds` a side.

    The first side is the reference. Turns are about 1 ms of its calls. `before` are
    launches that were already measured; `launches` counts them too. A side that dies is
    left out from then on and reported; if it is the reference, that launch is the last.

    overlap: open the next workers on another core while these are measured, where there
    is one and memory for both. solo: also let each side of a copy run alone for 20 ms, for
    figures of its own. alike: the sides are versions of one program, so what their first calls
    cost them cancels out, and long calls need none before them. progress: told the share of a launch and its number.
    """
    dead = {name for launch in before for name in launch.deaths}
    calls = before[0].facts.calls_a_turn if before else None
    with Opener() as opener:
        block = _Block(sides, seconds, cpus, seed, overlap, solo, alike, opener)
        for number in range(len(before), launches):
            alive = [side for side in sides if side.name not in dead]
            if sides[0] not in alive:
                return
            last = number == launches - 1
            launch = block.launch(number, alive, calls, last, lambda share, n=number: progress(share, n))
            dead |= set(launch.deaths)
            calls = calls or launch.facts.calls_a_turn
            yield launch


def calls_a_turn(seconds_a_call: float) -> int:
    """Calls that last about 1 ms.

    Short turns follow each other so closely that what disturbs one disturbs its pair too.
    """
    return max(1, math.ceil(TURN_SECONDS / max(seconds_a_call, 1e-9)))


@dataclass(frozen=True)
class _Amount:
    """How much a launch plays."""

    calls: int
    untimed: int  # calls before each turn
    copies: int
    rounds: int  # in each copy
    limit_seconds: float  # for a turn


class _Block:
    """Sides that are measured together, and the workers that are open or being opened for them."""

    def __init__(
        self,
        sides: Sequence[Side],
        seconds: float,
        cpus: Sequence[int],
        seed: int,
        overlap: bool,
        solo: bool,
        alike: bool,
        opener: Opener,
    ) -> None:
        self.seconds, self.seed, self.solo, self.alike, self.opener = seconds, seed, solo, alike, opener
        self.threads = max(side.target.threads for side in sides)
        # Two threads of one core would disturb each other, and not both sides alike.
        cores = one_per_core(cpus)
        self.cpus = cores if len(cores) >= self.threads else list(cpus)
        self.seating = np.random.default_rng([seed, len(sides)])
        # Where loading takes long, copies are worth less than they cost.
        loading = max(registry.get_runtime(side.target.runtime).load_seconds for side in sides)
        self.copy_seconds = max(COPY_SECONDS, loading)
        self.overlap = overlap and self.threads < len(self.cpus)
        self.fastest: dict[str, float] = {}  # seconds a call of each side, at its best
        self.bases: dict[int, Future[Bases]] = {}
        self.ahead: Future[Seats] | None = None

    def launch(
        self, number: int, alive: Sequence[Side], calls: int | None, last: bool, progress: Callable[[float], None]
    ) -> Launch:
        """Measure one launch; `calls` a turn, or as many as fit the reference."""
        begun, stolen = time.perf_counter(), stolen_seconds()
        wanted = range(number, number + min(self.threads, len(self.cpus)))
        chosen = tuple(self.cpus[index % len(self.cpus)] for index in wanted)
        random = np.random.default_rng([self.seed, number])
        table = _Table(random, alive[0].name)
        waited, on_cores, overlapped = 0.0, True, False
        amount: _Amount | None = None
        copy, living = 0, list(alive)
        while amount is None or copy < amount.copies:
            waiting = time.perf_counter()
            seats = (self.ahead or self._open(number, living, ())).result()
            self.ahead = None
            waited += time.perf_counter() - waiting
            table.seat(seats, {side.name for side in living})
            # Elsewhere the parent would wait, between any two turns, for what is starting there.
            with pinned(chosen):
                on_cores &= table.pin(chosen)
                guess = table.warm_up()
                living = [side for side in living if side.name not in table.deaths]
                if alive[0] not in living:
                    self.opener.close(seats)
                    break
                # What was disturbed while it warmed up is not as slow as it seems.
                self.fastest |= {name: min(now, self.fastest.get(name, now)) for name, now in guess.items()}
                amount = amount or self._amount({side.name for side in living}, calls, alive[0].name)
                fits = self.overlap and available_memory() > 2 * seats.memory_bytes
                if fits:
                    overlapped = True
                    self._open_ahead(number, living, chosen, copy + 1 < amount.copies, last)
                share = 1 / amount.copies
                table.play(amount, copy, lambda done, at=copy, part=share: progress((at + done) * part))
                if self.solo:
                    table.play_alone(copy, guess)
                living = [side for side in living if side.name not in table.deaths]
                # Where other programs want that core too, starting there drives them over here.
                self.overlap &= not (fits and table.is_disturbed())
            self.opener.close(seats)
            copy += 1
            if alive[0] not in living:
                break
        self.opener.close_bases(self.bases.pop(number))
        sides = [side.name for side in alive]
        facts = {
            "pinned": on_cores,
            "overlapped": overlapped,
            "cpus": chosen,
            "start_seconds": waited,
            "wall_seconds": time.perf_counter() - begun,
            "steal_share": _steal_share(stolen, time.perf_counter() - begun),
        }
        facts |= {"calls_a_turn": amount.calls if amount else 1, "untimed": amount.untimed if amount else 1}
        return table.gather(sides, facts)

    def _amount(self, living: Set[str], calls: int | None, reference: str) -> _Amount:
        """As many copies as last `copy_seconds` a side, but each with a few rounds."""
        calls = calls or calls_a_turn(self.fastest[reference])
        untimed = 0 if self.alike and self.fastest[reference] >= _LONG_CALL_SECONDS else 1
        round_seconds = max(sum(self.fastest[name] for name in living) * (calls + untimed), 1e-9)
        rounds = max(MINIMUM_ROUNDS, round(self.seconds * len(living) / round_seconds))
        copies = max(1, min(round(self.seconds / self.copy_seconds), rounds // MINIMUM_ROUNDS)) if CAN_FORK else 1
        return _Amount(calls, untimed, copies, math.ceil(rounds / copies), PATIENCE_SECONDS + 20 * round_seconds)

    def _others(self, chosen: Sequence[int]) -> list[int]:
        return [cpu for cpu in self.cpus if cpu not in chosen] or list(self.cpus)

    def _open(self, number: int, alive: Sequence[Side], measured: Sequence[int]) -> Future[Seats]:
        """Begin to open a worker for each side, off the processors that are measured on."""
        cpus = self._others(measured)
        if number not in self.bases:
            self.bases[number] = self.opener.begin_bases(alive, cpus)
        # Whoever sits down first differs from copy to copy.
        order = [alive[index] for index in self.seating.permutation(len(alive))]
        return self.opener.begin_seats(order, self.bases[number], cpus)

    def _open_ahead(self, number: int, alive: Sequence[Side], chosen: Sequence[int], more: bool, last: bool) -> None:
        """Begin to open what comes next: another copy of this launch, or the next launch."""
        if not last and number + 1 not in self.bases:
            self.bases[number + 1] = self.opener.begin_bases(alive, self._others(chosen))
        if more:
            self.ahead = self._open(number, alive, chosen)
        elif not last:
            self.ahead = self._open(number + 1, alive, chosen)


def _steal_share(before: float | None, wall: float) -> float | None:
    """Of all processors' time, what the host gave to others since then."""
    now = stolen_seconds()
    return None if before is None or now is None else (now - before) / (wall * (os.cpu_count() or 1))


@dataclass(frozen=True)
class _Turn:
    seconds: float  # a call
    cpu_share: float
    calls: Array | None  # nanoseconds of each, where they were asked for


class _Table:
    """The sides of one launch around a table, taking turns; copy after copy sits down at it."""

    def __init__(self, random: np.random.Generator, reference: str) -> None:
        self.random, self.reference = random, reference
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

    def play(self, amount: _Amount, copy: int, progress: Callable[[float], None]) -> None:
        """Rounds until every side has had so many undisturbed turns, within a limit."""
        good = dict.fromkeys(self._alive(), 0)
        played, limit = 0, (1 + _REPEAT_SHARE) * amount.rounds
        while self.reference in good and min(good.values()) < amount.rounds and played < limit:
            turns = self._round(amount)
            self.rounds.append((copy, turns))
            good = {name: good[name] + self._is_undisturbed(name, turn) for name, turn in turns.items()}
            played += 1
            if played % 10 == 0:
                progress(min(played / amount.rounds, 1.0))

    def play_alone(self, copy: int, guess: Mapping[str, float]) -> None:
        """A stretch of calls for each side, nobody else's between them."""
        names = self._alive()
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

    def _round(self, amount: _Amount) -> dict[str, _Turn]:
        """One turn of every side that lives, in random order."""
        turns: dict[str, _Turn] = {}
        names = self._alive()
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
        alive = [name for name in sides if name not in self.deaths]
        kept = tuple(name for name in alive if all(name in turns for _, turns in self.rounds))
        if sides[0] not in kept or not self.rounds:
            kept = ()  # without its reference there is nothing to compare
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
