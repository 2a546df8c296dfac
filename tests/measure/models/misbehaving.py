"""Models that behave for three calls, and then, once, do not."""

import os
import resource
import subprocess
import sys
import time

import torch
from torch import nn

_CALLS_BEFORE = 3


class Misbehaving(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256, bias=False)
        self.what = what
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == _CALLS_BEFORE + 1:
            _DEEDS[self.what]()
        return self.layer(x)


def build(what: str = "behaves") -> nn.Module:
    return Misbehaving(what)


def _prints() -> None:
    print("noise on standard output")
    os.write(1, b"\xff\x00 noise on the descriptor\n")
    print("noise on standard error", file=sys.stderr)


def _allocates() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    bytearray(2**40)


def _moves() -> None:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _forks() -> None:
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)


_DEEDS = {
    "behaves": lambda: None,
    "prints": _prints,
    "dies": lambda: os._exit(3),
    "crashes": lambda: os.kill(os.getpid(), 11),
    "raises": lambda: 1 / 0,
    "hangs": lambda: time.sleep(1000),
    "allocates": _allocates,
    "moves": _moves,
    "forks": _forks,
    "starts": lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]),
}
