"""A contestant as pyperf runs one: python for_pyperf.py --copy-env -o FILE."""

import pyperf
from contestant import load

if __name__ == "__main__":
    pyperf.Runner().bench_func("call", load())
