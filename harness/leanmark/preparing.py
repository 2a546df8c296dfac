"""Every trial of a plan prepared: from the store, or in a child process with a time limit.

What a user's own functions make is looked at first: it is where the keys of the store start from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, replace

from leanmark import effort
from leanmark.errors import InvalidInput, StorageFull
from leanmark.jobs import Done, Job, Preloaded, Progress, run_jobs
from leanmark.jsonable import from_json
from leanmark.planned import Planned, TrialName
from leanmark.prepare.child import exports
from leanmark.prepare.origins import Seen
from leanmark.prepare.recipe import Prepared, Trial, from_store, trial_message
from leanmark.progress import Meter
from leanmark.results import short_id

Keep = Callable[[TrialName, Prepared], None]
PreparedCells = dict[str, tuple[Prepared, ...]]


def look(planned: Planned, meter: Meter) -> Planned:
    """The plan with what the user's own code is and makes now, each function called once, in a child process.

    Raises InvalidInput for plug-ins that cannot be imported there.
    """
    suite = planned.plan.suite
    message = {
        "plugins": list(suite.plugins),
        "store": str(planned.store.root),
        "project": str(planned.store.project),
        "seeds": list(suite.seeds),
    }
    jobs = [
        Job(
            name,
            "leanmark.prepare.child",
            {**message, "workload": None if workload is None else asdict(workload)},
            suite.prepare_timeout_seconds,
            code=planned.code,
        )
        for name, workload in planned.looked_at().items()
    ]
    seen: dict[str, Seen] = {}
    broken: dict[str, Prepared] = {}
    for event in run_jobs(jobs, planned.jobs):
        name = event.job.name
        meter.tell("prepare", f"{name or 'plug-ins'}: what they make")
        if isinstance(event, Progress):
            continue
        if event.answer is not None and "seen" in event.answer:
            seen[name] = from_json(Seen, event.answer["seen"])
            planned.store.remember(planned.memory_key(name), event.answer["seen"])
        elif name:
            broken[name] = _outcome(event)
        else:
            raise InvalidInput(f"the plug-ins cannot be imported: {_outcome(event).reason}", where=suite.file)
    return replace(planned, seen=seen, broken=broken)


def prepare_all(planned: Planned, failed: Mapping[TrialName, Prepared], keep: Keep, meter: Meter) -> PreparedCells:
    """What became of every trial, by cell, in the order of the seeds.

    What `failed` before a run was resumed is not tried again. keep: told of each trial that was made.
    """
    trials = planned.trials()
    done = dict(failed)
    for name, trial in trials.items():
        cause = planned.broken.get(trial.workload.name)
        if cause is not None:
            done[name] = _for_want_of_base(cause) if trial.steps else cause
    for name, trial in trials.items():
        if name not in done and (cached := from_store(trial, planned.store, checked=True)) is not None:
            done[name] = cached
    waiting = {name: trial for name, trial in trials.items() if name not in done}
    done |= _without_base(waiting, trials, done)
    waiting = {name: trial for name, trial in waiting.items() if name not in done}
    exporting = any(exports(spec) for trial in waiting.values() for spec in trial.steps)
    order = _Order(waiting, lambda key: planned.store.get(key) is not None)
    with Preloaded({"exports": exporting}) as preloaded:
        for name, outcome in _prepare(order, planned, meter, preloaded):
            done[name] = outcome
            keep(name, outcome)
            done |= order.drop(_without_base(waiting, trials, {name: outcome}))
    meter.reach("prepare", 1.0, "prepared")
    cells = [cell for cell in planned.plan.cells if cell.skip is None]
    return {cell.id: tuple(done[cell.id, seed] for seed in planned.plan.suite.seeds) for cell in cells}


def _without_base(
    batch: Mapping[TrialName, Trial], trials: Mapping[TrialName, Trial], done: Mapping[TrialName, Prepared]
) -> dict[TrialName, Prepared]:
    """The trials whose base model failed, with that failure."""
    failed = {
        (trials[name].workload.name, trials[name].seed): outcome
        for name, outcome in done.items()
        if not trials[name].steps and outcome.content is None
    }
    causes = {name: failed.get((trial.workload.name, trial.seed)) for name, trial in batch.items()}
    return {name: _for_want_of_base(cause) for name, cause in causes.items() if cause is not None}


def _for_want_of_base(cause: Prepared) -> Prepared:
    return replace(cause, reason=f"its reference model could not be made: {cause.reason}")


class _Order:
    """Trials that wait: which is the next.

    Base models come first. Whatever another trial makes right now, a base model or a step that both begin with, is
    waited for: it is found in the store then, and waiting for it there would use up a trial's time.
    """

    def __init__(self, waiting: Mapping[TrialName, Trial], is_stored: Callable[[str], bool]) -> None:
        self.trials = dict(waiting)
        self._is_stored = is_stored
        found = {name: trial.keys() for name, trial in waiting.items()}
        self._keys = {name: frozenset((keys.base, *keys.steps)) for name, keys in found.items()}
        self._waiting = dict.fromkeys(sorted(waiting, key=lambda name: bool(waiting[name].steps)))
        self._making: dict[TrialName, frozenset[str]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def seconds(self) -> dict[TrialName, float]:
        """About what each trial that waits takes, in their order, without what is stored or made before it."""
        made: dict[TrialName, list[tuple[Hashable, float]]] = {}
        for name in self._waiting:
            trial, keys = self.trials[name], self.trials[name].keys()
            parts = zip((keys.base, *keys.steps), effort.seconds_of(trial.workload, trial.steps), strict=True)
            made[name] = [(key, own) for key, own in parts if not self._is_stored(key)]
        return effort.unshared(made)

    def take(self) -> TrialName | None:
        """The next trial, which is then being made; None if all that wait begin with what is being made."""
        self._making = {name: self._left(keys) for name, keys in self._making.items()}
        made = frozenset[str]().union(*self._making.values())
        name = next((name for name in self._waiting if made.isdisjoint(self._keys[name])), None)
        if name is not None:
            del self._waiting[name]
            self._making[name] = self._left(self._keys[name])
        return name

    def _left(self, keys: frozenset[str]) -> frozenset[str]:
        return frozenset(key for key in keys if not self._is_stored(key))

    def end(self, name: TrialName) -> None:
        """The trial was made, or failed."""
        del self._making[name]

    def drop(self, lost: Mapping[TrialName, Prepared]) -> dict[TrialName, Prepared]:
        """Take trials away that cannot be made; gives those of them that were still waiting."""
        return {name: outcome for name, outcome in lost.items() if self._waiting.pop(name, self) is not self}


class _Jobs:
    """The trials in order, as jobs."""

    def __init__(self, order: _Order, planned: Planned) -> None:
        self.order, self.planned = order, planned
        self.names = {f"{cell}#{seed}": (cell, seed) for cell, seed in order.trials}

    def __len__(self) -> int:
        return len(self.order)

    def take(self) -> Job | None:
        name = self.order.take()
        if name is None:
            return None
        suite = self.planned.plan.suite
        message = trial_message(self.order.trials[name], self.planned.store, suite.plugins)
        limit = suite.prepare_timeout_seconds
        return Job(f"{name[0]}#{name[1]}", "leanmark.prepare.child", message, limit, code=self.planned.code)


def _prepare(
    order: _Order, planned: Planned, meter: Meter, preloaded: Preloaded
) -> Iterator[tuple[TrialName, Prepared]]:
    queue = _Jobs(order, planned)
    seconds = order.seconds()
    total = sum(seconds.values()) or 1.0
    finished = meter.shares["prepare"]
    under_way: dict[TrialName, float] = {}
    for event in run_jobs(queue, planned.jobs, preloaded):
        name = queue.names[event.job.name]
        share = seconds[name] / total
        if isinstance(event, Progress):
            under_way[name] = share * event.fraction
            meter.reach("prepare", finished + sum(under_way.values()), f"{short_id(name[0])}: {event.text}")
            continue
        outcome = _outcome(event)
        order.end(name)
        finished += share
        under_way.pop(name, None)
        meter.reach("prepare", finished + sum(under_way.values()), f"{short_id(name[0])}: prepared")
        yield name, outcome


def _outcome(done: Done) -> Prepared:
    """What a child answered, or the status of how it died."""
    if done.death is not None:
        return Prepared(done.death.status, done.death.reason)
    assert done.answer is not None
    if "full" in done.answer:
        raise StorageFull("the disk is full", where=done.answer["full"])
    return from_json(Prepared, done.answer["prepared"])
