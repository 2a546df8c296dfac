"""Rounds of services: what counts, what a round says, and how the highest rate is looked for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanmark.measure import rounds
from leanmark.measure.rounds import PROBES, BlockServed, Round, Test, bracket, compare, next_rate, served, timing
from leanmark.measure.services import check
from leanmark.processes import Death
from leanmark.results import Status
from leanmark.traffic import Scenario, Traffic

TRAFFIC = Traffic("busy", limit_seconds=0.02, price=0.36)
TEST = Test(
    side="plain",
    rate=100.0,
    valid=True,
    reason="",
    queries=700,
    seconds=7.0,
    completed_rate=99.0,
    mean=0.005,
    minimum=0.001,
    p50=0.004,
    p90=0.008,
    p95=0.01,
    p99=0.016,
    busy=0.1,
    service_busy=0.4,
    requests=700,
    rejected=0,
    failed=0,
    late=0,
    lost=0,
    failure="",
    bytes_in=70_000,
    bytes_out=7_000,
    waited=(0.001, 0.01),
    computed=(0.002, 0.003),
    decoded_seconds=0.07,
    batches={"1": 500, "2": 100},
    work={"calls": 600, "rows": 700, "positions": 700, "padded": 70, "lookups": 0},
    tiers={},
)


def block(ratios: list[float], **changes: object) -> BlockServed:
    """Rounds in which `fast` takes these shares of the plain service's time."""
    found: list[Round] = []
    for number, ratio in enumerate(ratios):
        drift = 1 + 0.3 * number
        plain = replace(TEST, p99=0.016 * drift, p90=0.008 * drift)
        fast = replace(plain, side="fast", p99=plain.p99 * ratio, p90=plain.p90 * ratio)
        fast = replace(fast, **changes)  # pyright: ignore[reportArgumentType]
        found.append(Round((plain, fast, fast, plain)))
    return BlockServed(tuple(found))


@pytest.mark.parametrize("scenario", [Scenario.SERVER, Scenario.SINGLE_STREAM])
def test_a_round_is_the_unit_and_drift_cancels_out(scenario: Scenario):
    ratio = compare(block([0.5, 0.5, 0.5, 0.5]), "fast", "plain", replace(TRAFFIC, scenario=scenario))
    assert math.isclose(math.exp(ratio.mean), 0.5)
    interval = compare(block([0.4, 0.6, 0.45, 0.5]), "fast", "plain", TRAFFIC).interval()
    assert interval.low < 0.5 < interval.high
    assert interval.n == 4
    assert "rounds" in interval.method


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"valid": False, "reason": "too few"}, "LoadGen calls it invalid: too few"),
        ({"rejected": 3}, "3 of 700 requests were turned away"),
        ({"failed": 2, "failure": "ValueError: x"}, "2 of 700 requests failed, the first with ValueError: x"),
        ({"lost": 5}, "5 requests were lost"),
        ({"busy": 0.95}, "the generator itself was busy"),
    ],
)
def test_what_does_not_count_gives_no_ratio(changes: dict[str, object], why: str):
    found = block([0.5] * 4, **changes)
    with pytest.raises(ValueError, match="at least 4"):
        compare(found, "fast", "plain", TRAFFIC)
    assert why in found.problem("fast")
    assert found.problem("plain") == ""
    assert timing(found, "fast", TRAFFIC) is None


def test_a_side_that_died_is_known():
    found = BlockServed((Round((), {"fast": Death(Status.FAILED, "gone")}),))
    death = found.death("fast")
    assert death is not None
    assert death.reason == "gone"
    assert found.death("plain") is None


def test_what_a_service_did_is_added_up():
    found = block([0.5] * 4)
    found = replace(found, probes={"fast": (replace(TEST, rate=200.0), replace(TEST, rate=400.0, p99=0.05))})
    did = served(found, "fast", TRAFFIC, 2, 0)
    assert did is not None
    assert did.queries == 8 * 700
    assert (did.bytes_in, did.bytes_out) == (100.0, 10.0)
    assert did.batches == {"1": 4000, "2": 800}
    assert did.padding == 0.1
    assert did.highest == (200.0, 400.0)
    assert did.cost_per_million == pytest.approx(0.36 * 2 / 3600 / 200 * 1e6)
    assert [point.rate for point in did.curve] == [100.0, 200.0, 400.0]
    assert [point.holds for point in did.curve] == [True, True, False]
    assert did.seconds == pytest.approx(timing(found, "fast", TRAFFIC).p99)  # pyright: ignore[reportOptionalMemberAccess]


def test_offline_a_request_takes_its_share_of_the_test():
    offline = replace(TRAFFIC, scenario=Scenario.OFFLINE)
    found = timing(block([0.5] * 4), "plain", offline)
    assert found is not None
    assert found.median == found.p99 == pytest.approx(1 / found.calls_per_second)


@given(st.floats(1, 50_000), st.floats(0.1, 10))
def test_the_search_ends_with_the_capacity_between_two_rates(capacity: float, guess: float):
    probes: list[Test] = []
    while (rate := next_rate(probes, TRAFFIC, capacity * guess)) is not None:
        probes.append(replace(TEST, rate=rate, p99=0.01 if rate <= capacity else 0.03))
    assert len(probes) <= PROBES
    found = bracket(probes, TRAFFIC)
    assert found is not None
    low, high = found
    assert low <= capacity
    assert high is None or high > capacity
    if 0.6 < guess < 1.5:
        assert low > 0
        assert high is not None
        assert high / low < 1.2


def test_a_rate_beyond_one_that_failed_does_not_count_as_held():
    probes = [replace(TEST, rate=rate, p99=p99) for rate, p99 in ((100, 0.01), (200, 0.03), (300, 0.01))]
    assert bracket(probes, TRAFFIC) == (100, 200)
    assert bracket([], TRAFFIC) is None
    assert rounds.first_rate([TEST]) == pytest.approx(0.8 * 99 / 0.4)


def test_answers_to_the_same_requests_are_compared():
    own = {"indices": np.array([1, 4, 7]), "rows": np.array([1, 2, 1]), "changed": 3}
    plain = {"indices": np.array([0, 1, 4]), "rows": np.array([1, 1, 2]), "changed": 0}
    own["of_answer"] = np.array([0.5, 0.25, 0.75, 0.9])
    plain["of_answer"] = np.array([0.1, 0.5, 0.25, 0.76])
    found = check(own, plain, 1e-3)
    assert (found.compared, found.wrong, found.changed) == (2, 1, 3)
    assert found.moved == pytest.approx(0.01)
    assert check(own, plain, None).wrong == 0
    assert check(own, plain, 0.1).wrong == 0
    other_size = {**own, "rows": np.array([2, 1, 1])}
    assert check(other_size, plain, 0.1).wrong == 2
    broken = {**own, "of_answer": np.array([np.nan, 0.25, 0.75, 0.9])}
    assert check(broken, plain, 0.1).wrong == 1


def test_an_answer_that_was_right_the_first_time_only_is_wrong():
    plain = {"indices": np.array([0, 1]), "rows": np.array([1, 1]), "of_answer": np.array([0.5, 0.7]), "changed": 0}
    own = {"indices": np.array([0, 0, 1]), "rows": np.array([1, 1, 1]), "changed": 4}
    own["of_answer"] = np.array([0.5, 0.9, 0.7])
    found = check(own, plain, 1e-3)
    assert (found.compared, found.wrong) == (2, 1)
    assert found.moved == pytest.approx(0.4)


def test_items_that_were_chosen_are_compared_by_item():
    plain = {"indices": np.array([0]), "rows": np.array([3]), "changed": 0}
    plain |= {"of_answer": np.array([0.9, 0.8, 0.5]), "of_item": np.array([4, 2, 9])}
    as_good = {**plain, "of_item": np.array([4, 2, 7])}  # the last one's score is that of what it displaced
    assert check(as_good, plain, 1e-6).wrong == 0
    other = {**plain, "of_item": np.array([4, 7, 9])}
    found = check(other, plain, 0.1)
    assert found.wrong == 1
    assert found.moved == pytest.approx(0.3)
    swapped = {**plain, "of_item": np.array([2, 4, 9])}
    assert check(swapped, plain, 1e-6).moved == pytest.approx(0.1)
