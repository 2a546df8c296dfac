"""The built-in workloads: known without torch, and their parts fit together."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from leanmark import registry
from leanmark.registry import Workload
from leanmark.stages import build
from leanmark.workloads.data_sets import get_data_set
from leanmark.workloads.splits import load


def test_knowing_and_loading_them_imports_no_torch() -> None:
    program = (
        "import sys; from leanmark import registry; from leanmark.workloads import splits; "
        "assert len(splits.load(registry.get_workload('lenet-5'))) == 4; "
        "print([name for name in ('torch', 'pydantic', 'pandas', 'onnx', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Numbers of an answer, where they are not 10 classes.
ANSWERS = {"catalogue-ranking": 500, "frame-mlp": 5, "minilm-l6": 384, "movielens-ranking": 1682}
BUILT_IN = [item for item in registry.workloads() if str(item.model).startswith("leanmark.")]


@pytest.mark.parametrize("workload", BUILT_IN, ids=lambda workload: workload.name)
def test_model_takes_the_data(workload: Workload) -> None:
    for name in workload.needs:
        if not get_data_set(name).is_here():
            pytest.skip(f"`leanmark fetch {name}` has not been run")
    for library in {"minilm-l6": ["tokenizers"], "movielens-ranking": ["pyarrow"]}.get(workload.name, []):
        pytest.importorskip(library)
    assert workload.model is not None
    assert workload.config is not None
    test = load(workload)["test"].head(4)
    assert test.targets is not None
    with torch.no_grad():
        answers = build(workload.model, workload.config)(*(torch.from_numpy(array) for array in test.inputs.values()))
    assert answers.shape == (4, ANSWERS.get(workload.name, 10))
    if ":" in workload.metric:  # its own, of targets that are no classes
        return
    assert test.targets.min() >= 0
    assert test.targets.max() < answers.shape[1]
