"""A suite's mistakes are each found before anything runs, with file, line and advice."""

from datetime import date
from pathlib import Path

import pytest

from leanmark.declare.suite import Suite, load
from leanmark.errors import InvalidInput, Position
from leanmark.rules import Rules

GOOD = """\
suite: small
workloads: [lenet-300-100]
recipes:
  pruned: [{prune.magnitude: {sparsity: 0.5}}]
targets:
  - {runtime: onnxruntime}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        load(write(folder, text))
    return raised.value


def good(folder: Path, text: str = GOOD) -> Suite:
    return load(write(folder, text))


def test_defaults_are_filled_in_and_controls_added(tmp_path: Path):
    suite = good(tmp_path)
    assert [recipe.name for recipe in suite.recipes] == ["pruned", "same", "slower-3"]
    assert suite.recipes[0].steps[0].params == {"sparsity": 0.5, "scope": "global"}
    assert (suite.seeds, suite.launches) == ((0,), 5)
    assert [target.id for target in suite.targets] == ["cpu-onnxruntime-t1-b1"]
    assert suite.rules == Rules()


def test_controls_can_be_switched_off(tmp_path: Path):
    assert [r.name for r in good(tmp_path, GOOD + "controls: off\n").recipes] == ["pruned"]


def test_sweeps_unfold_to_one_recipe_a_combination(tmp_path: Path):
    text = GOOD.replace(
        "{prune.magnitude: {sparsity: 0.5}}",
        "{prune.magnitude: {sparsity: {sweep: [0.5, 0.9]}, scope: {sweep: [global, layer]}}}",
    )
    names = [recipe.name for recipe in good(tmp_path, text).recipes][:-2]
    assert names == [
        f"pruned[sparsity={sparsity},scope={scope}]" for sparsity in ("0.5", "0.9") for scope in ("global", "layer")
    ]


def test_targets_sweep_threads_and_batch_sizes(tmp_path: Path):
    text = GOOD.replace(
        "{runtime: onnxruntime}", "{runtime: onnxruntime, threads: {sweep: [1, 2]}, batch: {sweep: [1, 8]}}"
    )
    names = [target.id for target in good(tmp_path, text).targets]
    assert names == [f"cpu-onnxruntime-t{threads}-b{batch}" for threads in (1, 2) for batch in (1, 8)]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("{sweep: [1, 1]}", "stands here twice"),
        ("{sweep: []}", "threads"),
        ("{sweep: [0]}", "threads"),
        ("{sweeps: [1]}", "unknown key 'sweeps'"),
        ("{}", "'sweep' is missing"),
        ("two", "threads = 'two'"),
    ],
)
def test_a_wrong_sweep_of_threads_is_refused(tmp_path: Path, sweep: str, says: str):
    error = refused(tmp_path, GOOD.replace("{runtime: onnxruntime}", f"{{runtime: onnxruntime, threads: {sweep}}}"))
    assert says in error.what
    assert error.where is not None


def test_units_are_needed_and_read(tmp_path: Path):
    assert good(tmp_path, GOOD + "measure: {budget: 500ms}\n").budget_seconds == 0.5
    assert good(tmp_path, GOOD + "measure: {budget: 2min}\n").budget_seconds == 120
    assert good(tmp_path, GOOD + "gate: {quality: {tolerance: 0.5pp}}\n").rules.limits.quality == 0.005
    error = refused(tmp_path, GOOD + "measure: {budget: 5}\n")
    assert "needs a number and a unit" in error.what


@pytest.mark.parametrize(
    ("old", "new", "line", "says", "advice"),
    [
        ("recipes:", "recipies:", 3, "unknown key 'recipies'", "'recipes'"),
        ("prune.magnitude", "prune.magnitud", 4, "unknown step 'prune.magnitud'", "'prune.magnitude'"),
        ("sparsity: 0.5", "sparsty: 0.5", 4, "prune.magnitude: unknown key 'sparsty'", "'sparsity'"),
        ("sparsity: 0.5", "sparsity: 1.5", 4, "sparsity = 1.5", None),
        ("sparsity: 0.5", "sparsity: {sweep: []}", 4, "the sweep of prune.magnitude.sparsity is empty", None),
        ("sparsity: 0.5", "sparsity: {sweep: [0.5, 0.5]}", 4, "stands here twice", None),
        ("[lenet-300-100]", "[lenet-300]", 2, "unknown workload 'lenet-300'", "'lenet-300-100'"),
        ("[lenet-300-100]", "[lenet-5, lenet-5]", 2, "the workload 'lenet-5' stands here twice", None),
        ("[lenet-300-100]", "[]", 2, "workloads", None),
        ("runtime: onnxruntime", "runtime: onxruntime", 6, "unknown runtime 'onxruntime'", "'onnxruntime'"),
        ("{runtime: onnxruntime}", "{runtime: onnxruntime, device: gpu}", 6, "device = 'gpu'", None),
        ("{runtime: onnxruntime}", "{threads: 0}", 6, "threads = 0", None),
        (
            "[{prune",
            "[quantize.static, {prune",
            4,
            "quantize.static consumes a Program, but the workload",
            "export.onnx",
        ),
        ("[{prune.magnitude: {sparsity: 0.5}}]", "[]", 4, "recipe 'pruned' has no steps", None),
        ("  pruned:", "  fp32:", 4, "reserved", None),
        ("  pruned:", "  'a b':", 4, "'a b' is no name for a recipe", None),
        ("  - {runtime: onnxruntime}", "  - {threads: 2}\n  - {threads: 2}", 7, "stands here twice", None),
        ("suite: small", "suite: [small]", 1, "suite", None),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, line: int, says: str, advice: str | None):
    assert old in GOOD
    error = refused(tmp_path, GOOD.replace(old, new))
    assert says in error.what
    assert isinstance(error.where, Position)
    assert error.where.line == line
    assert error.exit_code == 2
    if advice is not None:
        assert error.do is not None
        assert advice in error.do


def test_the_missing_step_is_named(tmp_path: Path):
    recipe = "pruned: [{prune.magnitude: {sparsity: 0.5}}, quantize.static]"
    error = refused(tmp_path, GOOD.replace("pruned: [{prune.magnitude: {sparsity: 0.5}}]", recipe))
    assert "recipe 'pruned' step 2" in error.what
    assert "quantize.static consumes a Program, but prune.magnitude produces a TorchModel" in error.what
    assert error.do == "Put export.onnx between them."


def test_duplicate_seeds_and_names(tmp_path: Path):
    assert "seed 1 stands here twice" in refused(tmp_path, GOOD + "seeds: [1, 1]\n").what
    assert "'recipes' stands here twice" in refused(tmp_path, GOOD + "recipes: {}\n").what


def test_an_own_model_must_exist(tmp_path: Path):
    own = GOOD.replace("[lenet-300-100]", '[{name: mine, model: "mine.net:build", data: "mine.net:splits"}]')
    assert "there is no module 'mine.net'" in refused(tmp_path, own).what
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "net.py").write_text("")
    assert good(tmp_path, own).workloads[0].model == "mine.net:build"
    assert "unknown metric 'acuracy'" in refused(tmp_path, own.replace('build"', 'build", metric: acuracy')).what
    assert "unknown key 'modle'" in refused(tmp_path, own.replace("model:", "modle:")).what


def test_an_onnx_workload_needs_its_files(tmp_path: Path):
    own = GOOD.replace("[lenet-300-100]", "[{onnx: net.onnx, inputs: x.npz}]")
    error = refused(tmp_path, own)
    assert "the file 'net.onnx' does not exist" in error.what
    assert isinstance(error.where, Position)
    assert error.where.line == 2


def test_a_plugin_that_cannot_be_imported(tmp_path: Path):
    error = refused(tmp_path, GOOD + "plugins: [no_such_plugin]\n")
    assert "the plug-in 'no_such_plugin' cannot be imported" in error.what
    assert isinstance(error.where, Position)
    assert error.where.line == GOOD.count("\n") + 1


@pytest.mark.parametrize(
    "line", ["plugins: [queue]", 'workloads: [{name: mine, model: "queue:build", data: "m:splits"}]']
)
def test_a_module_named_like_one_of_pythons(tmp_path: Path, line: str):
    suite = GOOD + f"{line}\n" if line.startswith("plugins") else GOOD.replace("workloads: [lenet-300-100]", line)
    (tmp_path / "queue.py").write_text("def build(): ...\n")
    error = refused(tmp_path, suite)
    assert error.what == "'queue' is the name of a module of Python's own"
    assert error.do == "Give your module another name."


def test_too_many_cells(tmp_path: Path):
    values = ", ".join(str(n / 10001) for n in range(10_000))
    error = refused(tmp_path, GOOD.replace("sparsity: 0.5", f"sparsity: {{sweep: [{values}]}}"))
    assert "at most 10,000" in error.what


def test_many_small_sweeps_are_counted_before_they_unfold(tmp_path: Path):
    sweep = "{prune.magnitude: {sparsity: {sweep: [" + ", ".join(str(n / 300) for n in range(1, 200)) + "]}}}"
    error = refused(tmp_path, GOOD.replace("{prune.magnitude: {sparsity: 0.5}}", ", ".join([sweep] * 4)))
    assert "at most 10,000" in error.what


@pytest.mark.parametrize("name", ["same", "slower-3"])
def test_no_recipe_takes_the_name_of_a_control(tmp_path: Path, name: str):
    error = refused(tmp_path, GOOD.replace("pruned:", f"{name}:"))
    assert f"the name '{name}' is that of a control" in error.what
    assert good(tmp_path, GOOD.replace("pruned:", f"{name}:") + "controls: off\n").recipes[0].name == name


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("{epoch: 1}", "unknown key 'epoch'"),
        ("{batch_size: 4}", "'epochs' is missing"),
        ("{epochs: 0}", "train: epochs = 0"),
        ("{epochs: one}", "train: epochs = 'one'"),
    ],
)
def test_training_is_checked(tmp_path: Path, train: str, says: str):
    (tmp_path / "net.py").write_text("")
    own = f'[{{name: mine, model: "net:build", data: "net:splits", train: {train}}}]'
    error = refused(tmp_path, GOOD.replace("[lenet-300-100]", own))
    assert says in error.what
    assert isinstance(error.where, Position)
    assert error.where.line == 2


def test_a_plugin_neither_ends_nor_prints_into_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ends_plugin.py").write_text("import sys; sys.exit(0)\n")
    assert "the plug-in 'ends_plugin' cannot be imported" in refused(tmp_path, GOOD + "plugins: [ends_plugin]\n").what
    (tmp_path / "prints_plugin.py").write_text("print('hello')\n")
    good(tmp_path, GOOD + "plugins: [prints_plugin]\n")
    assert capsys.readouterr().out == ""


def test_a_plugin_that_takes_a_name_twice_is_named(tmp_path: Path):
    (tmp_path / "twice_plugin.py").write_text(
        "from leanmark.registry import step\nfrom leanmark.stages import TorchModel\n"
        "@step('prune.magnitude', family='x', consumes=TorchModel, produces=TorchModel, evidence=None)\n"
        "def other(model, ctx): return model\n"
    )
    error = refused(tmp_path, GOOD + "plugins: [twice_plugin]\n")
    assert "the plug-in 'twice_plugin'" in error.what
    assert isinstance(error.where, Position)
    assert error.where.line == GOOD.count("\n") + 1


def test_names_are_one_line(tmp_path: Path):
    assert "is no name for a recipe" in refused(tmp_path, GOOD.replace("pruned:", '"pruned\\n":')).what


def test_the_gates_limits_are_read_and_checked(tmp_path: Path):
    """The README's example, with an override that tolerates more than the suite must see."""
    text = """\
gate:
  latency: {tolerance: 2%, must_see: 3%}
  compressed_size: {tolerance: 1%}
  macs: off
  budget: 30s
  cells:
    "*/pruned/*": {latency: {tolerance: 5%}, quality: off}
  allow:
    - {cell: "*/pruned/*", metric: latency, reason: "until the next release", until: 2026-12-31}
"""
    rules = good(tmp_path, GOOD + text).rules
    assert (rules.limits.latency, rules.limits.must_see, rules.limits.macs, rules.decide_seconds) == (
        0.02,
        0.03,
        None,
        30,
    )
    own = rules.of("lenet-300-100/pruned/cpu-onnxruntime-t1-b1")
    assert (own.latency, own.must_see, own.quality) == (0.05, pytest.approx(0.075), None)
    assert rules.of("lenet-300-100/fp32/cpu-onnxruntime-t1-b1") == rules.limits
    assert rules.allow[0].until == date(2026, 12, 31)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gate: {latency: {tolerance: 3%, must_see: 2%}}", "Let must_see be larger"),
        ("gate: {latncy: off}", "Did you mean 'latency'"),
        ("gate: {quality: 0.5pp}", "gate.quality"),
        ("gate: {allow: [{cell: x, reason: y, until: soon}]}", "2026-12-31"),
        ("gate: {allow: [{cell: x, reason: y, until: 2026-12-31, metric: latncy}]}", "Did you mean 'latency'"),
    ],
)
def test_wrong_limits_are_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(InvalidInput, match=says):
        load(write(tmp_path, GOOD + text + "\n"))


def test_a_workload_takes_another_data_set(tmp_path: Path):
    suite = good(tmp_path, GOOD.replace("lenet-300-100", "{lenet-300-100: {data: mnist}}, lenet-300-100"))
    assert [(item.name, item.needs) for item in suite.workloads] == [
        ("lenet-300-100-mnist", ("mnist",)),
        ("lenet-300-100", ()),
    ]


@pytest.mark.parametrize(
    ("entry", "says", "advice"),
    [
        ("{lenet-5: {data: mnits}}", "there is no lenet-5 on 'mnits'", "Did you mean 'mnist'?"),
        ("{lenet-6: {data: mnist}}", "unknown workload 'lenet-6'", "Did you mean 'lenet-5'?"),
        ("{lenet-5: {dta: mnist}}", "unknown key 'dta'", "Did you mean 'data'?"),
        ("{lenet-5: {}}", "'data' is missing", None),
    ],
)
def test_a_wrong_data_set_is_told(tmp_path: Path, entry: str, says: str, advice: str | None):
    error = refused(tmp_path, GOOD.replace("lenet-300-100", entry))
    assert says in error.what
    assert error.do == advice
    assert isinstance(error.where, Position)
    assert error.where.line == 2
