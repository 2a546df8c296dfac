"""What the tables of recorded duels add up."""

import numpy as np
import pytest

from power_tables import added, standardized, stats_of_parts


@pytest.mark.parametrize(("shared", "low", "high"), [(0.0, -0.1, 0.1), (1.0, 0.4, 0.6), (10.0, 0.97, 1.0)])
def test_the_correlation_within_parts_is_what_they_share(shared: float, low: float, high: float):
    """Variance `shared` squared between parts and 1 within them: a correlation of s2 / (1 + s2)."""
    random = np.random.default_rng(3)
    parts = [(random.normal(0, shared) + random.normal(0, 1, 14)).tolist() for _ in range(200)]
    alike, size = stats_of_parts(parts)
    assert low <= alike <= high
    assert size == pytest.approx(14)


def test_settings_of_unlike_scatter_and_truth_are_put_on_one_scale():
    for truth, scatter in ((0.0, 1.0), (np.log(1.03), 0.001)):
        values = np.random.default_rng(1).normal(truth, scatter, (20, 14)).tolist()
        flat = np.concatenate(standardized(values))
        assert abs(np.median(flat)) < 1e-9
        assert np.sqrt(np.mean(flat**2)) == pytest.approx(1)


def test_nothing_recorded_adds_up_to_nothing_found():
    assert added([]).false_alarms == 0
