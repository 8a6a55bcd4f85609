"""Bounds of percentiles: LoadGen's ranks, and that they hold."""

import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.models.benching.percentiles import CONFIDENCE, discards, least_samples, percentile


# What LoadGen 6.0.17 printed ("Would discard N highest latency queries") for SingleStream and MultiStream.
@pytest.mark.parametrize(
    ("q", "n", "discarded"),
    [
        (0.90, 63, None), (0.90, 64, 0), (0.90, 65, 0), (0.90, 100, 2), (0.90, 200, 9), (0.90, 1000, 77),
        (0.90, 5000, 449), (0.99, 661, None), (0.99, 662, 0), (0.99, 663, 0), (0.99, 1000, 1),
        (0.99, 5000, 32), (0.99, 20000, 166),
    ],
)  # fmt: skip
def test_as_many_are_discarded_as_loadgen_discards(q: float, n: int, discarded: int | None) -> None:
    assert discards(n, q) == discarded


def test_a_bound_takes_as_many_samples_as_the_rules_say() -> None:
    assert (least_samples(0.90), least_samples(0.99)) == (64, 662)
    assert discards(least_samples(0.95), 0.95) == 0
    assert discards(least_samples(0.95) - 1, 0.95) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_bound_is_a_sample_and_never_below_the_percentile(samples: list[float], q: float) -> None:
    samples.sort()
    found = percentile(samples, q)
    assert found.value in samples
    assert sum(s <= found.value for s in samples) >= q * len(samples) - 1e-6
    if found.upper is not None:
        assert found.upper in samples
        assert found.upper >= found.value
    else:
        assert len(samples) < least_samples(q)


def test_the_bound_is_below_the_true_percentile_no_more_often_than_it_says() -> None:
    draw = random.Random(6)
    n, runs = 200, 2000
    true = -math.log(1 - 0.95)  # of the exponential distribution
    below = 0
    for _ in range(runs):
        upper = percentile(sorted(draw.expovariate(1) for _ in range(n)), 0.95).upper
        assert upper is not None
        below += upper < true
    assert below / runs <= 1 - CONFIDENCE


def test_answers_that_never_came_are_later_than_all_others() -> None:
    few, many = [1.0] * 990 + [math.inf] * 10, [1.0] * 900 + [math.inf] * 100
    assert percentile(few, 0.95).upper == 1.0
    assert percentile(many, 0.95).value == math.inf
