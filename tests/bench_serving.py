"""What sending traffic costs: how many requests a second the generator brings to a service that does nothing.

Part of `tox run -e bench`. The service answers each request with what it was sent; it runs on one core, the generator
on another. A rate counts where LoadGen calls the test valid and the generator was busy for less than 90 % of its time.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

from leanmark.measure.generator import SWITCH_SECONDS, Client, run_test
from leanmark.measure.rounds import SATURATED
from leanmark.serving.config import Batching
from leanmark.serving.payloads import Field, codec
from leanmark.serving.server import Network, Server, serve

CPUS = sorted(os.sched_getaffinity(0))
RATES = (1000, 2000, 5000, 7000, 9000, 12000)
FIELDS = (Field("answer", "float32"),)


class Echo:
    rows = 1

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload

    def decode(self, payload: bytes) -> "Echo":
        return Echo(payload)

    def answer(self, requests: list["Echo"]) -> list[bytes]:
        return [request.payload for request in requests]


def answer(path: str) -> None:
    os.sched_setaffinity(0, CPUS[:1])
    asyncio.run(serve(Server(Echo(), Batching(), Network()), Path(path), asyncio.Event()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    found = []
    sys.setswitchinterval(SWITCH_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        service = multiprocessing.get_context("spawn").Process(target=answer, args=(path,), daemon=True)
        service.start()
        while not Path(path).exists():
            if not service.is_alive():
                raise SystemExit("the service did not start")
        os.sched_setaffinity(0, CPUS[-1:])
        client = Client([path], [b"0123456789abcdef" * 4] * 1000, codec("raw", FIELDS))
        for rate in RATES:
            test = run_test(
                client,
                {
                    "scenario": "server",
                    "seconds": parsed.seconds,
                    "most_seconds": 4 * parsed.seconds,
                    "queries": 662,
                    "seed": 1,
                    "rate": float(rate),
                    "limit_seconds": 0.02,
                    "percentile": 0.99,
                    "most_waiting": 2000,
                },
            )
            valid = test.get("validity") == "VALID" and test["busy"] < SATURATED and not test["rejected"]
            found.append({"rate": rate, "valid": valid, **test})
            shown = " ".join(f"{name} {test.get(f'{name}_ns', 0) / 1e6:.3f} ms" for name in ("p50", "p99"))
            print(
                f"{rate:6} requests/s: {'valid' if valid else 'invalid':8} {shown}, generator busy {test['busy']:.0%}"
            )
        client.close()
        service.kill()
    if parsed.json:
        parsed.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
