"""Services in a whole run: planned, prepared, sent traffic, resumed, shown and exported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from leanmark.judge.store import Journal, read_run
from leanmark.results import Result, Status
from running import PROGRAM, leanmark

pytestmark = pytest.mark.slow

SUITE = """\
suite: services
workloads: [catalogue-ranking]
seeds: [0]
recipes:
  precomputed: [serve.two_tower, inputs.precompute]
  ann-exact:   [serve.two_tower, inputs.precompute, {serve.ann: {kind: exact}}]
  ann-ivf:     [serve.two_tower, inputs.precompute, {serve.ann: {kind: ivf, lists: 16, probes: 4}}]
  cached:      [{serve.cache: {what: features, share: 0.5, policy: lfu}}]
  batched:     [{serve.batch: {rows: 512, wait_ms: 2}}]
  int8-raw:    [export.onnx, quantize.dynamic, {inputs.payload: {format: raw}}]
  slower-50:   [{control.slowdown: {percent: 50}}]
traffic:
  larger: {scenario: offline, candidates: all, catalogue: 5000, requests: 64, duration: 200ms}
  far:    {scenario: single-stream, candidates: [1, 4], zipf: 1.2, users: 20, features: store, store: {rtt: 3ms},
           requests: 256, duration: 300ms, cache: cold}
  busy:   {rate: 400/s, candidates: [1, 32], requests: 512, duration: 1s, limit: 2s, price_an_hour: 1}
targets:
  - {traffic: larger, recipes: [precomputed, ann-exact, ann-ivf]}
  - {traffic: far, recipes: [cached, int8-raw]}
  - {traffic: busy, recipes: [batched, slower-50]}
"""


def rounds_of(folder: Path) -> int:
    return sum(entry["kind"] == "served" and entry["what"] == "round" for entry in Journal(folder).entries())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in the middle of its rounds, and resumed."""
    project = tmp_path_factory.mktemp("services")
    (project / "mine.yaml").write_text(SUITE)
    process = subprocess.Popen(
        [sys.executable, *PROGRAM, "run", "mine.yaml", "--out", "runs"], cwd=project, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 300
    while not any(rounds_of(folder) >= 2 for folder in (project / "runs").glob("*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(children, timeout=20)[1]
    (folder,) = (project / "runs").iterdir()
    before = rounds_of(folder)
    done = leanmark("run", "mine.yaml", "--out", "runs", "--resume", folder.name, cwd=project)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rounds_of(folder) == 12  # four of each block: what was there was not measured again
    assert before >= 2
    return folder


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Result]:
    return {result.cell.id.removeprefix("catalogue-ranking/"): result for result in read_run(run).results}


def test_every_service_is_measured_beside_the_plain_one(results: dict[str, Result]):
    assert len(results) == 4 + 3 + 3
    for name, result in results.items():
        assert result.status in (Status.OK, Status.NOISY), f"{name}: {result.reason}"
        assert result.served is not None
        assert result.served.tests == 8
        assert result.served.wrong == 0
        assert result.against_reference is not None
        assert result.against_reference.n == 4 or result.cell.recipe == "fp32"


def test_what_an_approximate_search_finds_among_copies_has_no_quality(results: dict[str, Result]):
    found = {name: results[f"{name}/cpu-onnxruntime-t1-larger"] for name in ("precomputed", "ann-exact", "ann-ivf")}
    assert found["ann-ivf"].quality is None
    exact, plain = found["ann-exact"].quality, found["precomputed"].quality
    assert exact is not None
    assert plain is not None
    assert exact.score.value == pytest.approx(plain.score.value)
    assert set(exact.also) == {"recall", "auc"}
    (facts,) = (item.facts for item in found["ann-ivf"].evidence if item.step == "serve.ann")
    assert facts["copies"] == 4500
    assert 0.1 < facts["recall_at_20"] <= 1


def test_a_store_that_is_far_is_asked_less_through_a_cache(results: dict[str, Result]):
    plain, cached = (results[f"{name}/cpu-onnxruntime-t1-far"].served for name in ("fp32", "cached"))
    assert plain is not None
    assert cached is not None
    assert plain.seconds > 2 * 0.003  # queries and items are asked for one after the other
    tier = cached.tiers["instance"]
    assert 0.3 < tier.hit_rate < 1
    assert tier.asked > 0


def test_batches_are_of_several_requests_and_cost_what_the_declared_price_says(results: dict[str, Result]):
    batched = results["batched/cpu-onnxruntime-t1-busy"].served
    assert batched is not None
    assert batched.rejected == batched.failed == 0
    assert sum(batched.batches.values()) < batched.queries
    assert batched.cost_per_million == pytest.approx(1 / 3600 / 400 * 1e6, rel=0.2)  # at the rate that came


def test_steps_before_the_service_are_judged_by_its_program(results: dict[str, Result]):
    evidence = {item.step: item for item in results["int8-raw/cpu-onnxruntime-t1-far"].evidence}
    assert evidence["export.onnx"].facts["nodes"] > 3
    assert evidence["quantize.dynamic"].facts["integer_operators"] > 0
    assert evidence["inputs.payload"].effective


def test_the_page_shows_services(run: Path):
    page = (run / "index.html").read_text()
    assert "Services under traffic" in page
    assert "features from a store, 3 ms away, cold caches" in page
    assert "1 to 32 candidates" in page


def test_a_service_is_exported_as_files(run: Path, tmp_path: Path):
    done = leanmark("export", str(run), "precomputed/cpu-onnxruntime-t1-larger", "--to", str(tmp_path / "out"), cwd=run)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "out").rglob("*")}
    assert any(name.endswith(".onnx") for name in files)
    json.loads((tmp_path / "out" / "manifest.json").read_text())
