"""Run a recipe: each step on the artifact that the one before it left, or from the store.

Runs in a child process of its own. Every step reads its input from disk, so what it
makes does not depend on what was cached.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leanmark import counting, effort, registry
from leanmark.arrays import numpy as np
from leanmark.errors import InvalidInput, NotApplicable, PreparationError
from leanmark.host import peak_rss_bytes
from leanmark.jsonable import from_json, to_json
from leanmark.prepare import origins
from leanmark.prepare.artifacts import Entry, Keys, Origin, Store, is_shipped, make_keys
from leanmark.prepare.base import make_base, seed_generators
from leanmark.registry import Workload
from leanmark.results import Cost, Evidence, Footprint, Status, StepSpec
from leanmark.stages import AnyStage, Artifact, Context, Program, Service, Split, TorchModel, save
from leanmark.traffic import Traffic
from leanmark.workloads import split_store

# Exact steps are checked on so many examples of the validation split.
_EXACT_EXAMPLES = 256
_SECONDS_BETWEEN_REPORTS = 0.2
NOWHERE = "redis://127.0.0.1:1/0"

# What a step gets where the workload's data lack a split. Nobody trains on other splits.
_STAND_INS = {"validation": ("calibration", "train"), "calibration": ("validation", "train")}

ProgressCallback = Callable[[float, str], None]


@dataclass(frozen=True)
class Trial:
    """A recipe of a workload with one seed: what a child prepares.

    reference: the steps from the base model to what evidence compares with, which
    is the unmodified model as the same target runs it. origin: what the workload's
    own functions make, where it has any. plugins: a hash of the code of the suite's own steps.
    """

    workload: Workload
    steps: tuple[StepSpec, ...]
    seed: int
    reference: tuple[StepSpec, ...] = ()
    origin: Origin | None = None
    plugins: str = ""

    def keys(self) -> Keys:
        """The keys of the trial's artifacts."""
        return make_keys(self.workload, self.steps, self.seed, self.origin, self.plugins)


@dataclass(frozen=True)
class Final:
    """What is read off the last artifact of a recipe, once: it never changes."""

    evidence: tuple[Evidence, ...] = ()
    footprint: Footprint | None = None


@dataclass(frozen=True)
class Prepared:
    """What became of a trial."""

    status: Status
    reason: str = ""
    content: str | None = None
    splits: str | None = None
    cost: Cost | None = None
    final: Final = Final()


def from_store(trial: Trial, store: Store, *, checked: bool) -> Prepared | None:
    """The trial as it lies in the store, or None if any part is missing.

    `checked` compares the hashes of all its files too, and clears damaged artifacts away.
    """
    keys = trial.keys()
    look_up = store.get_checked if checked else store.get
    entries = [look_up(key) for key in (keys.base, *keys.steps)]
    if any(entry is None for entry in entries):
        return None
    found = [entry for entry in entries if entry is not None]
    final = store.final(_final_key(keys, found))
    if final is None or not _splits_are_there(keys.splits, store, checked=checked):
        return None
    try:
        return _outcome(trial, keys, found, from_json(Final, final), cached=True)
    except InvalidInput:
        return None


def prepare(trial: Trial, store: Store, progress: ProgressCallback) -> Prepared:
    """Make whatever of the trial is missing, and read the evidence off the final artifact."""
    keys = trial.keys()
    splits = _Splits(trial.workload, store, keys.splits)
    parts = _parts(trial, keys, store, _throttled(progress))
    context = Context(splits.open, trial.seed, next(parts), trial.workload.metric)
    entries = [_base(trial, keys, store, context)]
    for spec, key, advance in zip(trial.steps, keys.steps, parts, strict=True):
        context = replace(context, progress=advance)
        entries.append(_step(spec, entries[-1], key, store, context))
    artifact = store.open(entries[-1].content)
    silent = replace(context, progress=lambda *_: None)
    compared = replace(artifact, reference=_reference(trial, keys, artifact, store, silent))
    evidence = tuple(_evidence(spec, compared) for spec in trial.steps)
    final = Final(evidence, counting.weigh(artifact, _latest_counts(entries)))
    store.put_final(_final_key(keys, entries), to_json(final))
    return _outcome(trial, keys, entries, final, cached=False)


def _parts(trial: Trial, keys: Keys, store: Store, progress: ProgressCallback) -> Iterator[ProgressCallback]:
    """What tells progress of the model, then of each step: the share of all that is still to be made."""
    seconds = effort.seconds_of(trial.workload, trial.steps)
    wanted = [
        own if store.get(key) is None else 0.0 for own, key in zip(seconds, (keys.base, *keys.steps), strict=True)
    ]
    total, before = sum(wanted) or 1.0, 0.0
    for own in wanted:
        yield lambda share, text, own=own, before=before: progress((before + share * own) / total, text)
        before += own


def _final_key(keys: Keys, entries: Sequence[Entry]) -> str:
    """Of what was read off an artifact: a step that reads files may make another under the same key."""
    return f"{keys.final}-{entries[-1].content[:16]}"


def _splits_are_there(key: str, store: Store, *, checked: bool) -> bool:
    root = store.splits(key)
    if not checked or root.name in store.checked:
        return (root / split_store.INDEX).exists()
    whole = split_store.are_whole(root)
    if whole:
        store.checked.add(root.name)
    return whole


def _evidence(spec: StepSpec, artifact: Artifact) -> Evidence:
    """What a step left behind, as its evidence function says: of a service's program, where the step made a program."""
    step = registry.get_step(spec.name)
    if artifact.stage is Service and step.produces is Program and len(artifact.programs) == 1:
        artifact = artifact.part(artifact.program)
    function = step.evidence
    found: Any = function(artifact, dict(spec.params))
    if not isinstance(found, Evidence):
        raise PreparationError(
            f"the evidence of {spec.name}, {function.__name__}, returned {type(found).__name__}, not an Evidence"
        )
    return found


def _latest_counts(entries: list[Entry]) -> Mapping[str, int | None]:
    """Those of the last structure that had any: programs carry on what their torch model had."""
    return next((entry.counts for entry in reversed(entries) if entry.counts), {})


def _outcome(trial: Trial, keys: Keys, entries: list[Entry], final: Final, *, cached: bool) -> Prepared:
    own = entries[1:] or entries
    status, reason = Status.OK, ""
    for item in final.evidence:
        if not item.effective:
            status, reason = Status.INEFFECTIVE, f"{item.step}: {item.reason}"
            break
    for spec, entry in zip(trial.steps, entries[1:], strict=True):
        limit = registry.get_step(spec.name).exact
        if limit is not None and entry.exact_difference is not None and not entry.exact_difference <= limit:
            status = Status.WRONG
            moved = f"one moved by {entry.exact_difference:.3g}"
            reason = f"{spec.name} says that it changes no answer by more than {limit:g}, but {moved}"
            break
    return Prepared(
        status=status,
        reason=reason,
        content=entries[-1].content,
        splits=keys.splits,
        cost=Cost(sum(e.seconds for e in own), max(e.peak_rss_bytes for e in own), cached),
        final=final,
    )


def _base(trial: Trial, keys: Keys, store: Store, context: Context) -> Entry:
    return _make(
        keys.base,
        store,
        lambda: make_base(trial.workload, context),
        lambda stage: (_counts(stage, context), None),
    )


def _step(spec: StepSpec, before: Entry, key: str, store: Store, context: Context) -> Entry:
    step = registry.get_step(spec.name)
    source = store.open(before.content)

    read: list[Path] = []

    def run() -> AnyStage:
        context.progress(0.0, spec.name)
        seed_generators(context.seed)  # a step that draws without asking for a generator draws the same again
        none: list[Path] = []
        with contextlib.nullcontext(none) if is_shipped(step.function) else origins.files_read() as files:
            stage = step.function(source.load(), context, **step.parameters(**spec.params).model_dump())
        if not is_shipped(step.function):
            read.extend(files)
        wanted = step.produces or source.stage
        if not isinstance(stage, (TorchModel, Program, Service)) or not isinstance(stage, wanted):
            raise PreparationError(f"{spec.name} returned {type(stage).__name__}, not a {wanted.__name__}")
        return stage

    def facts(stage: AnyStage) -> tuple[Mapping[str, int | None], float | None]:
        difference = None
        if step.exact is not None:
            difference = _answers_moved(source.load(), stage, context)
        return (_counts(stage, context) if isinstance(stage, TorchModel) else before.counts), difference

    def depends() -> list[tuple[str, str]]:
        own = [] if is_shipped(step.function) else origins.code_read(store.project)
        outside = [path for path in read if not path.is_relative_to(store.root)]
        return sorted({*before.files, *own, *origins.data_read(outside, store.project)})

    return _make(key, store, run, facts, depends)


def _make(
    key: str,
    store: Store,
    run: Callable[[], AnyStage],
    facts: Callable[[AnyStage], tuple[Mapping[str, int | None], float | None]],
    depends: Callable[[], Sequence[tuple[str, str]]] = tuple,
) -> Entry:
    with store.lock(key):
        entry = store.get(key)
        if entry is not None:
            return entry
        started = time.perf_counter()
        stage = run()
        seconds = time.perf_counter() - started
        peak = peak_rss_bytes()
        counts, difference = facts(stage)
        files = tuple(depends())
        return store.put(
            key,
            lambda folder: save(stage, folder),
            lambda content: Entry(content, seconds, peak, counts, difference, files),
        )


def _reference(trial: Trial, keys: Keys, final: Artifact, store: Store, context: Context) -> Artifact:
    """The unmodified model at the stage of `final`, for evidence that compares."""
    base = store.get(keys.base)
    assert base is not None
    if store.open(base.content).stage is final.stage or not trial.reference:
        return store.open(base.content)
    reference = replace(trial, steps=trial.reference)
    entry = base
    for spec, key in zip(reference.steps, reference.keys().steps, strict=True):
        entry = _step(spec, entry, key, store, context)
    return store.open(entry.content)


class _Splits:
    """The workload's splits: made once, checked, then read from the store."""

    def __init__(self, workload: Workload, store: Store, key: str) -> None:
        self.source = workload.data or workload.inputs
        self.root = store.splits(key)
        origins.keep_splits(store, key, workload)

    def open(self, name: str) -> Split:
        """A split, or the nearest one that stands in for it; never the test split."""
        known = split_store.names(self.root)
        for candidate in (name, *_STAND_INS.get(name, ())):
            if candidate in known:
                return split_store.open_split(self.root, candidate)
        if name == "train":
            raise NotApplicable(f"there are no examples to train with: '{self.source}' gives no train split")
        raise PreparationError(
            f"'{self.source}' gives no {name} split",
            do=f"Let it return {' or '.join((name, *_STAND_INS.get(name, ())))}; test data never reach a step.",
        )


def _counts(stage: AnyStage, context: Context) -> Mapping[str, int | None]:
    if isinstance(stage, TorchModel):
        parameters, nonzero = counting.parameter_counts(stage)
        example = context.split("validation").head(1)
        return {"parameters": parameters, "nonzero_parameters": nonzero, "macs": counting.macs(stage, example.inputs)}
    if isinstance(stage, Service):
        return {}
    from onnx import numpy_helper

    weights = [numpy_helper.to_array(tensor) for tensor in stage.proto().graph.initializer]
    floats = [array for array in weights if array.dtype.kind == "f"]
    return {
        "parameters": sum(array.size for array in floats),
        "nonzero_parameters": sum(int(np.count_nonzero(array)) for array in floats),
        "macs": None,
    }


def _answers_moved(before: AnyStage, after: AnyStage, context: Context) -> float:
    """Largest difference between the answers of two stages, relative to the largest answer."""
    examples = context.split("validation").head(_EXACT_EXAMPLES)
    old, new = _answers(before, examples), _answers(after, examples)
    if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        return float("inf")
    moved = 0.0
    for a, b in zip(old, new, strict=True):
        if not a.size:
            continue
        scale = max(1.0, float(np.max(np.abs(a.astype(np.float64)))))
        moved = max(moved, float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))) / scale)
    return moved


def _answers(stage: AnyStage, examples: Split) -> list[np.ndarray[Any, Any]]:
    import tempfile

    import torch

    from leanmark import runtimes

    with tempfile.TemporaryDirectory() as folder:
        artifact = save(stage, Path(folder))
        if isinstance(stage, Service):
            return _answered(artifact, examples)
        load = runtimes.load_torch if isinstance(stage, TorchModel) else runtimes.load_onnxruntime
        try:
            session = load(artifact, 1, "cpu")
            batches = _batches(examples, _fixed_batch(stage) or len(examples))
            parts = [session.outputs(session.call(session.bind(batch))) for batch in batches]
            return [np.concatenate(outputs)[: len(examples)] for outputs in zip(*parts, strict=True)]
        finally:
            # Loading sets it for the whole process; later steps must not depend on who was checked before.
            torch.set_flush_denormal(False)


def _answered(artifact: Artifact, examples: Split) -> list[np.ndarray[Any, Any]]:
    """What a service answers, asked in its own process; without a server beside it, what it shares is not shared."""
    from leanmark.runtimes import load_onnxruntime
    from leanmark.serving.asking import answers
    from leanmark.serving.making import make_handler

    # All at once, as programs are asked: what is quantized by the range of a whole batch differs between batches.
    handler = make_handler(artifact, Traffic("check"), load_onnxruntime, 1, NOWHERE)
    return [answers(handler, examples, len(examples))]


def _fixed_batch(stage: AnyStage) -> int | None:
    """The batch size that a program was exported for; None if it takes any."""
    if not isinstance(stage, Program):
        return None
    dimensions = [value.type.tensor_type.shape.dim for value in stage.proto().graph.input]
    return next((int(shape[0].dim_value) for shape in dimensions if shape and shape[0].dim_value > 0), None)


def _batches(examples: Split, size: int) -> list[dict[str, Any]]:
    """Whole batches in order; the last one is filled up from the beginning."""
    rows = [np.arange(start, start + size) % len(examples) for start in range(0, len(examples), size)]
    return [{name: np.ascontiguousarray(array[row]) for name, array in examples.inputs.items()} for row in rows]


def _throttled(progress: ProgressCallback) -> ProgressCallback:
    last = [0.0]

    def report(fraction: float, text: str) -> None:
        now = time.monotonic()
        if now - last[0] >= _SECONDS_BETWEEN_REPORTS or fraction in (0.0, 1.0):
            last[0] = now
            progress(fraction, text)

    return report


def trial_message(trial: Trial, store: Store, plugins: tuple[str, ...]) -> dict[str, Any]:
    """The message that `leanmark.prepare.child` takes."""
    workload = asdict(trial.workload)
    steps = [[spec.name, dict(spec.params)] for spec in trial.steps]
    reference = [[spec.name, dict(spec.params)] for spec in trial.reference]
    return {
        "workload": workload,
        "steps": steps,
        "reference": reference,
        "seed": trial.seed,
        "origin": None if trial.origin is None else to_json(trial.origin),
        "steps_hash": trial.plugins,
        "store": str(store.root),
        "project": str(store.project),
        "plugins": list(plugins),
    }
