"""A contestant as pytest-benchmark runs one: pytest for_pytest.py."""

from contestant import load
from pytest_benchmark.fixture import BenchmarkFixture


def test_call(benchmark: BenchmarkFixture) -> None:
    benchmark(load())
