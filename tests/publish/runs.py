"""Runs that look like real ones, for the tests of what is published."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from leanmark.results import (
    Cell,
    ColdStart,
    Cost,
    Evidence,
    Footprint,
    Interval,
    Quality,
    Result,
    Role,
    Run,
    Status,
    StepSpec,
    Target,
    Timing,
)

ENVIRONMENT = {
    "cpu": "AMD EPYC 9R14 96-Core Processor",
    "features": ["avx", "avx2", "avx512_vnni", "avx512f", "fma"],
    "cores": 2,
    "system": "Linux",
    "release": "Debian GNU/Linux 12 (bookworm)",
    "architecture": "x86_64",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0+cpu", "onnxruntime": "1.31.1", "numpy": "2.4.1", "leanmark": "0.1.0"},
    "machine_class": "1f0c9d2b7e55",
    "kernel": "6.1.0-31-cloud-amd64",
    "memory_bytes": 25_274_220_544,
    "load_average": [0.41, 0.52, 0.47],
    "governor": None,
    "pressure_cpu_avg10": 0.38,
    "hypervisor": True,
}
COMMIT = {"id": "57e6c6b1f0c2d3a4b5968778695a4b3c2d1e0f9a", "branch": "main", "dirty": False}

HOSTILE = (
    '</script><script>window.pwned=1</script>"\'{{ 7*7 }}<img src=x onerror="window.pwned=2">\u202egnp.exe\x1b[2J\u2028'
)
LONG = "long-" + "x" * 10_000

# recipe: families, steps, latency ratio, quality difference, size share, parameters share, MACs share
VARIANTS = {
    "graph-clean": (("graph",), ["graph.clean"], 0.96, 0.0, 0.99, 1.0, 1.0),
    "half": (("quantization",), ["quantize.half"], 1.31, 0.0002, 0.5, 1.0, 1.0),
    "int8-dynamic": (("quantization",), ["export.onnx", "quantize.dynamic"], 0.61, -0.002, 0.27, 1.0, 1.0),
    "int8-static": (("quantization",), ["export.onnx", "quantize.static"], 0.47, -0.004, 0.26, 1.0, 1.0),
    "pruned-0.5": (("pruning",), ["prune.magnitude", "train.finetune"], 1.002, 0.001, 1.0, 1.0, 1.0),
    "channels": (("pruning",), ["prune.channels", "train.finetune"], 0.55, -0.006, 0.38, 0.35, 0.33),
    "channels-int8": (
        ("pruning", "quantization"),
        ["prune.channels", "train.finetune", "export.onnx", "quantize.static"],
        0.31, -0.011, 0.11, 0.35, 0.33,
    ),
    "svd": (("lowrank",), ["lowrank.svd"], 0.72, -0.003, 0.44, 0.42, 0.45),
    "clustered": (("sharing",), ["cluster.kmeans"], 0.998, -0.005, 0.15, 1.0, 1.0),
    "distilled": (("learning",), ["distill.response"], 0.40, -0.021, 0.30, 0.30, 0.31),
}  # fmt: skip
# recipe: status, reason, whether it was measured before that
BROKEN = {
    "fake-int8": (Status.INEFFECTIVE, "quantize.fake: 0 of 3 MatMul nodes are int8; the weights are float32", True),
    "one-weight": (Status.WRONG, "graph.clean says that it is exact, but answers differ by 0.013 (limit 1e-05)", True),
    "openvino-tuned": (Status.NOISY, "31 % of its turns were disturbed, twice", True),
    "tucker": (Status.FAILED, "lowrank.tucker: LinAlgError: SVD did not converge in layer conv2", False),
    "taylor-iterative": (Status.TIMEOUT, "preparing took longer than 600 s", False),
    "ensemble": (Status.OUT_OF_MEMORY, "the worker was killed at 4.0 GB", False),
    "cuda-graph": (Status.SKIPPED, "there is no CUDA device here", False),
    "heads": (Status.NOT_APPLICABLE, "prune.heads has nothing to work on: the model has no attention", False),
}


def interval(value: float, half: float, n: int = 5, method: str = "median of paired log ratios") -> Interval:
    return Interval(value, value - half, value + half, 0.95, n, method)


def realistic_run(*, seed: int = 7) -> Run:
    """Two workloads, one target, every status, both controls."""
    draw = random.Random(seed)
    results: list[Result] = []
    for workload, score, macs, parameters, median in (
        ("lenet-300-100", 0.8815, 266_200, 266_610, 41e-6),
        ("lenet-5", 0.9015, 2_293_000, 431_080, 212e-6),
    ):
        results += _block(draw, workload, score, macs, parameters, median)
    return Run(
        id="2026-03-02T09-14-07-quick",
        suite="quick",
        title="Every compression family on two small image classifiers",
        started="2026-03-02T09:14:07+00:00",
        seconds=754.2,
        command="leanmark run quick",
        seeds=(0,),
        environment=ENVIRONMENT,
        commit=COMMIT,
        results=tuple(results),
        warnings=(
            "control failed: lenet-5/slower-3/cpu-onnxruntime-t1-b1 is 1.030x by construction but reads "
            "1.029x [0.998, 1.061]; such a slowdown cannot be seen with this budget",
        ),
    )


def hostile_run() -> Run:
    """A run in which every text that a stranger can choose is an attack or 10,000 characters long."""
    run = realistic_run()
    changed: list[Result] = []
    for index, result in enumerate(run.results):
        name = f"{HOSTILE}{index}" if index % 2 else f"{LONG}{index}"
        cell = replace(
            result.cell,
            id=f"{name}/{index}",
            recipe=name,
            workload=f"{HOSTILE}{result.cell.workload}",
            block=f"{HOSTILE}{result.cell.block}",
            families=(HOSTILE,) if index % 3 else (),
            steps=(StepSpec(HOSTILE, {HOSTILE: [HOSTILE, float("nan"), None]}),),
            target=replace(result.cell.target, device=HOSTILE, runtime=HOSTILE),
        )
        quality = result.quality and replace(result.quality, metric=HOSTILE)
        changed.append(
            replace(
                result,
                cell=cell,
                reason=HOSTILE if result.reason else "",
                artifact=HOSTILE,
                quality=quality,
                evidence=(Evidence(HOSTILE, True, {HOSTILE: HOSTILE, "long": LONG}, HOSTILE),),
                warnings=(HOSTILE, LONG),
            )
        )
    return replace(
        run,
        id=HOSTILE,
        suite=HOSTILE,
        title=f"{HOSTILE} \ud800",
        started=HOSTILE,
        command=HOSTILE,
        environment={HOSTILE: {HOSTILE: HOSTILE}, "machine": LONG, "nan": float("nan")},
        commit={"id": HOSTILE, HOSTILE: HOSTILE},
        results=tuple(changed),
        warnings=(HOSTILE, LONG),
    )


def empty_run() -> Run:
    """A run that was interrupted before its first cell."""
    return replace(realistic_run(), results=(), warnings=(), complete=False)


def only(run: Run, *recipes: str) -> Run:
    """The run with the cells of these recipes alone."""
    return replace(run, results=tuple(found for found in run.results if found.cell.recipe in recipes))


def _block(draw: random.Random, workload: str, score: float, macs: int, parameters: int, median: float) -> list[Result]:
    target = Target()
    block = f"{workload}/{target.id}"
    full = Footprint(parameters, parameters, macs, 4 * parameters + 1100, int(3.7 * parameters), {})

    def cell(recipe: str, role: Role, families: tuple[str, ...] = (), steps: tuple[str, ...] = ()) -> Cell:
        runs_on = replace(target, runtime="torch") if role is Role.EAGER else target
        specs = tuple(StepSpec(name, _params(name)) for name in steps)
        lowered = 0 if role is Role.EAGER or "export.onnx" in steps else 1
        specs += (StepSpec("export.onnx"),) * lowered
        return Cell(
            f"{workload}/{recipe}/{target.id}", workload, recipe, specs, runs_on, block, role, families, lowered
        )

    def measured(where: Cell, ratio: float, loss: float | None, footprint: Footprint, **more: object) -> Result:
        against = (
            None if where.role is Role.REFERENCE else interval(ratio, draw.uniform(0.004, 0.012) * max(ratio, 0.5))
        )
        to_eager = interval(ratio / 3.4, 0.008 * ratio)
        reached = score + (loss or 0.0)
        quality = Quality(
            metric="accuracy",
            score=interval(reached, 0.0137, 2000, "Wilson"),
            by_seed=(reached,),
            difference=None if loss is None else interval(loss, abs(loss) * 0.6 + 0.0008, 2000, "paired bootstrap"),
            answers_changed=None if loss is None else min(1.0, 3 * abs(loss)),
        )
        fields: dict[str, Any] = {
            "cell": where,
            "status": Status.OK,
            "artifact": f"{draw.getrandbits(256):064x}",
            "against_reference": against,
            "against_eager": None if where.role is Role.EAGER else to_eager,
            "minimum_detectable_effect": None if against is None else draw.uniform(0.006, 0.021),
            "timing": _timing(draw, median * ratio),
            "quality": quality,
            "footprint": footprint,
            "cold_start": _cold_start(draw, where.role is Role.EAGER),
            "cost": Cost(draw.uniform(0.4, 31.0), 612_000_000, cached=draw.random() < 0.3),
        }
        return Result(**(fields | more))

    results = [
        measured(cell("fp32", Role.REFERENCE), 1.0, None, full),
        measured(cell("fp32-eager", Role.EAGER), 3.4, 0.0, replace(full, size_bytes=full.size_bytes - 600)),
        measured(cell("same", Role.CONTROL, ("controls",), ("control.identity",)), 1.0008, 0.0, full, truth=1.0),
        measured(cell("slower-3", Role.CONTROL, ("controls",), ("control.slowdown",)), 1.0291, 0.0, full, truth=1.0303),
    ]
    for recipe, (families, steps, ratio, loss, share, kept, work) in VARIANTS.items():
        footprint = Footprint(
            round(parameters * kept),
            round(parameters * kept * (0.5 if recipe == "pruned-0.5" else 1)),
            round(macs * work),
            round(full.size_bytes * share),
            round(full.compressed_bytes * share * 0.93),
            {},
        )
        evidence = tuple(_evidence(name, kept) for name in steps if not name.startswith(("train.", "export.")))
        results.append(
            measured(cell(recipe, Role.VARIANT, families, tuple(steps)), ratio, loss, footprint, evidence=evidence)
        )
    for recipe, (status, reason, was_measured) in BROKEN.items():
        where = cell(
            recipe, Role.VARIANT, ("controls",) if recipe == "one-weight" else ("quantization",), ("graph.clean",)
        )
        if was_measured:
            evidence = (
                Evidence("graph.clean", status is not Status.INEFFECTIVE, {"nodes_before": 14, "nodes_after": 14}),
            )
            results.append(measured(where, 0.9, -0.001, full, status=status, reason=reason, evidence=evidence))
        else:
            results.append(Result(where, status, reason))
    return results


def _params(step: str) -> dict[str, object]:
    known: dict[str, dict[str, object]] = {
        "prune.magnitude": {"sparsity": 0.5, "scope": "global"},
        "prune.channels": {"ratio": 0.5, "criterion": "l1"},
        "train.finetune": {"epochs": 1, "preserve": ["sparsity"]},
        "quantize.static": {"method": "minmax", "per_channel": True, "activations": "uint8"},
        "control.slowdown": {"percent": 3},
        "cluster.kmeans": {"clusters": 16},
    }
    return known.get(step, {})


def _evidence(step: str, kept: float) -> Evidence:
    facts: dict[str, object] = {
        "int8_nodes": 3,
        "nodes": 3,
        "bytes_by_type": {"int8": 266_200, "float32": 1640},
        "calibration_split": "sha256:9c1185a5c5e9fc54612808977ee8f548b2258d31",
    }
    return Evidence(step, True, facts if step.startswith("quantize") else {"kept_fraction": kept, "layers": 2})


def _timing(draw: random.Random, median: float) -> Timing:
    return Timing(
        calls=20_000,
        launches=5,
        minimum=median * 0.93,
        median=median,
        p90=median * 1.06,
        p95=median * 1.11,
        p99=median * 1.4,
        calls_per_second=1 / (median * 1.02),
        cpu_per_wall=0.998,
        disturbed_turns=draw.uniform(0.0, 0.03),
    )


def _cold_start(draw: random.Random, eager: bool) -> ColdStart:
    base = 222_000_000 if eager else 43_000_000
    return ColdStart(
        import_seconds=1.9 if eager else 0.31,
        load_seconds=draw.uniform(0.004, 0.03),
        first_call_seconds=draw.uniform(0.0004, 0.003),
        rss_import_bytes=base,
        rss_load_bytes=draw.randrange(3_000_000, 9_000_000),
        rss_first_call_bytes=draw.randrange(400_000, 900_000),
        rss_peak_bytes=base + draw.randrange(8_000_000, 12_000_000),
        uss_import_bytes=None,
        uss_load_bytes=None,
        uss_first_call_bytes=None,
    )
