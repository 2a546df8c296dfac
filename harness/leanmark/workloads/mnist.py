"""MNIST: 70,000 handwritten digits, 28x28 pixels, one channel, 10 classes; `leanmark fetch mnist` brings them here.

Source: LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition.
"""

from __future__ import annotations

from leanmark.stages import Split
from leanmark.workloads import idx

MEAN = 0.1307
STD = 0.3081


def splits() -> dict[str, Split]:
    """The four splits; see `idx.splits`. Raises InvalidInput if the data are not here."""
    return idx.splits("mnist", MEAN, STD)
