"""Models that behave for so many calls of about 1 ms, and then, once, do not."""

import os
import resource
import subprocess
import sys
import time

import torch
from torch import nn

# A worker makes about 30 calls when it is opened, up to 45 to be warmed up, then its turns.
IN_OPENING, IN_TURNS = 3, 100
_CALL_SECONDS = 0.001


class Misbehaving(nn.Module):
    def __init__(self, what: str, after: int) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256, bias=False)
        self.what, self.after = what, after
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.after + 1:
            _DEEDS[self.what]()
        until = time.perf_counter() + _CALL_SECONDS
        while time.perf_counter() < until:
            pass
        return self.layer(x)


def build(what: str = "behaves", after: int = IN_TURNS) -> nn.Module:
    return Misbehaving(what, after)


def _spins() -> None:
    while True:
        pass


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
    "spins": _spins,
    "allocates": _allocates,
    "moves": _moves,
    "forks": _forks,
    "starts": lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]),
}
