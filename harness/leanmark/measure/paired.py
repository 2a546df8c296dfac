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
from collections.abc import Callable, Generator, Sequence, Set
from concurrent.futures import Future

from leanmark import registry
from leanmark.arrays import numpy as np
from leanmark.host import available_memory, clock_hertz, one_per_core, pinned, stolen_seconds, waited_seconds
from leanmark.measure.launches import Launch
from leanmark.measure.sides import Bases, Opener, Seats, Side
from leanmark.measure.table import PATIENCE_SECONDS, Amount, Groups, Table
from leanmark.processes import CAN_FORK

TURN_SECONDS = 0.001
# Coming back after the other side costs a call 0.03 to 0.3 ms: little of one so long.
_LONG_CALL_SECONDS = 0.005
# Of two equal lengths of turns the one that is spread over more launches sees more, but each
# launch costs a start; beyond so many little is gained. See docs/results.md.
LAUNCHES = 24
MINIMUM_ROUNDS = 4
# A side's time in one copy: about what opening the next copy takes meanwhile.
COPY_SECONDS = 0.1


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
    pairs: bool = False,
    progress: Callable[[float, int], None] = lambda *_: None,
) -> Generator[Launch]:
    """Launch after launch, each with rounds of turns for `seconds` a side.

    The first side is the reference. Turns are about 1 ms of its calls. `before` are
    launches that were already measured; `launches` counts them too. A side that dies is
    left out from then on and reported; if it is the reference, that launch is the last.

    overlap: open the next workers on another core while these are measured, where there
    is one and memory for both. solo: also let each side of a copy run alone for 20 ms, for
    figures of its own. alike: the sides are versions of one program, so what their first calls
    cost them cancels out, and long calls need none before them. pairs: every two sides are a pair of their
    own, the first its reference; the turns of a pair follow each other, and a pair ends when one of it dies.
    progress: told the share of a launch and its number.
    """
    dead = {name for launch in before for name in launch.deaths}
    calls = before[0].facts.calls_a_turn if before else None
    with Opener() as opener:
        block = _Block(sides, seconds, cpus, seed, overlap, solo, alike, pairs, opener)
        for number in range(len(before), launches):
            alive = block.playing(dead)
            if not alive:
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
        pairs: bool,
        opener: Opener,
    ) -> None:
        self.sides = {side.name: side for side in sides}
        self.groups = Groups.of([side.name for side in sides], pairs=pairs)
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

    def playing(self, dead: Set[str]) -> list[Side]:
        """The sides that still have something to be compared with."""
        return [self.sides[name] for names in self.groups.playing(dead) for name in names]

    def launch(
        self, number: int, alive: Sequence[Side], calls: int | None, last: bool, progress: Callable[[float], None]
    ) -> Launch:
        """Measure one launch; `calls` a turn, or as many as fit the reference."""
        begun, stolen, waited_for = time.perf_counter(), stolen_seconds(), waited_seconds()
        wanted = range(number, number + min(self.threads, len(self.cpus)))
        chosen = tuple(self.cpus[index % len(self.cpus)] for index in wanted)
        random = np.random.default_rng([self.seed, number])
        table = Table(random, self.groups)
        gone = set(self.sides) - {side.name for side in alive}
        waited, on_cores, overlapped = 0.0, True, False
        amount: Amount | None = None
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
                living = self.playing(gone | set(table.deaths))
                if not living:
                    self.opener.close(seats)
                    break
                # What was disturbed while it warmed up is not as slow as it seems.
                self.fastest |= {name: min(now, self.fastest.get(name, now)) for name, now in guess.items()}
                amount = amount or self._amount([side.name for side in living], calls)
                fits = self.overlap and available_memory() > 2 * seats.memory_bytes
                if fits:
                    overlapped = True
                    self._open_ahead(number, living, chosen, copy + 1 < amount.copies, last)
                share = 1 / amount.copies
                table.play(amount, copy, lambda done, at=copy, part=share: progress((at + done) * part))
                if self.solo:
                    table.play_alone(copy, guess)
                living = self.playing(gone | set(table.deaths))
                # Where other programs want that core too, starting there drives them over here.
                self.overlap &= not (fits and table.is_disturbed())
            self.opener.close(seats)
            copy += 1
            if not living:
                break
        self.opener.close_bases(self.bases.pop(number))
        sides = [side.name for side in alive]
        wall = time.perf_counter() - begun
        facts = {
            "pinned": on_cores,
            "overlapped": overlapped,
            "cpus": chosen,
            "start_seconds": waited,
            "wall_seconds": wall,
            "steal_share": _share(stolen, stolen_seconds(), wall * (os.cpu_count() or 1)),
            "waiting_share": _share(waited_for, waited_seconds(), wall),
            "clock_hertz": clock_hertz(chosen),
        }
        facts |= {"calls_a_turn": amount.calls if amount else 1, "untimed": amount.untimed if amount else 1}
        return table.gather(sides, facts)

    def _amount(self, living: Sequence[str], calls: int | None) -> Amount:
        """As many copies as last `copy_seconds` a side, but each with a few rounds; a turn fits the first side."""
        calls = calls or calls_a_turn(self.fastest[living[0]])
        quickest = min(self.fastest[name] for name in living)
        untimed = 0 if self.alike and quickest >= _LONG_CALL_SECONDS else 1
        round_seconds = max(sum(self.fastest[name] for name in living) * (calls + untimed), 1e-9)
        rounds = max(MINIMUM_ROUNDS, round(self.seconds * len(living) / round_seconds))
        copies = max(1, min(round(self.seconds / self.copy_seconds), rounds // MINIMUM_ROUNDS)) if CAN_FORK else 1
        return Amount(calls, untimed, copies, math.ceil(rounds / copies), PATIENCE_SECONDS + 20 * round_seconds)

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


def _share(before: float | None, now: float | None, whole: float) -> float | None:
    """What a count of seconds grew by, of so many seconds; None where it cannot be read."""
    return None if before is None or now is None else (now - before) / whole
