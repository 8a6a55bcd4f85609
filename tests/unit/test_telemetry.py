import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.telemetry import Latency, Telemetry

durations = st.lists(st.floats(0.001, 86_400_000.0), min_size=1, max_size=200)


@given(durations, st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_quantile_is_within_one_percent_of_the_exact_one(values, q):
    latency = Latency()
    for value in values:
        latency.add(value)
    exact = float(np.quantile(values, q, method="lower"))
    assert latency.quantile(q) == pytest.approx(exact, rel=0.01)


@given(durations)
def test_count_sum_and_maximum_are_exact(values):
    latency = Latency()
    for value in values:
        latency.add(value)
    assert latency.count == len(values)
    assert latency.sum_ms == pytest.approx(sum(values))
    assert latency.max_ms == max(values)
    assert latency.quantiles().max == round(max(values), 3)


@given(st.lists(st.floats(0.001, 100_000.0), max_size=200))
def test_cumulative_counts_grow_to_the_total_and_are_right_within_one_bucket(values):
    latency = Latency()
    for value in values:
        latency.add(value)
    rows = latency.cumulative()
    counts = [count for _, count in rows]
    assert counts == sorted(counts)
    assert rows[-1] == ("+Inf", len(values))
    for bound, count in rows[:-1]:
        ms = float(bound) * 1000
        assert sum(v <= ms / 1.021 for v in values) <= count <= sum(v <= ms * 1.000001 for v in values)


@pytest.mark.parametrize(("given_ms", "kept_ms"), [(-5.0, 0.001), (0.0, 0.001), (1e12, 86_400_000.0)])
def test_impossible_durations_are_kept_within_bounds(given_ms, kept_ms):
    latency = Latency()
    latency.add(given_ms)
    assert latency.quantile(0.5) == pytest.approx(kept_ms, rel=0.01)


def test_latency_of_nothing_is_zero():
    assert Latency().quantiles().max == Latency().quantile(0.5) == 0


def test_latency_takes_constant_memory():
    latency = Latency()
    for n in range(200_000):
        latency.add(0.001 * 1.0001**n)
    assert len(latency._buckets) < 1500


def test_same_labels_in_any_order_are_one_series():
    telemetry = Telemetry()
    telemetry.count("frames_total", camera="a", reason="b")
    telemetry.count("frames_total", 2, reason="b", camera="a")
    telemetry.gauge("depth", 5, camera="a")
    telemetry.gauge("depth", 3, camera="a")
    assert telemetry.values() == {"frames_total{camera=a,reason=b}": 3, "depth{camera=a}": 3}
    assert telemetry.latency("x", camera="a") is telemetry.latency("x", camera="a")
    assert telemetry.latency("x", camera="a") is not telemetry.latency("x", camera="b")


def test_counting_from_many_threads_loses_nothing():
    telemetry = Telemetry()

    def work() -> None:
        for _ in range(5000):
            telemetry.count("n_total")
            telemetry.latency("t").add(1.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert telemetry.values() == {"n_total": 20_000}
    assert telemetry.quantiles()["t"].count == 20_000
