"""The window: wide on a fast way and on a long one, narrow where batches would queue."""

import heapq

import pytest

from skerry.uplink.window import Window


def longest_queue(window: Window, *, way_s: float, batch_s: float, batches: int) -> tuple[float, float]:
    """A pipe with a delay and a bandwidth: how long the last half queued at most, and how long all took."""
    under_way: list[tuple[float, float]] = []
    now = free_at = 0.0
    queued = []
    for n in range(batches):
        while len(under_way) >= max(window.size - 1, 1):
            done, started = heapq.heappop(under_way)
            now = max(now, done)
            window.confirmed(started, now)
        free_at = max(free_at, now) + batch_s
        heapq.heappush(under_way, (free_at + way_s, now))
        if n > batches / 2:
            queued.append(free_at - now)
    return max(queued), free_at + way_s


def test_where_nothing_queues_it_stays_wide() -> None:
    window = Window(8, 1.0)
    longest_queue(window, way_s=0.05, batch_s=0.001, batches=200)
    assert window.size == 8


def test_a_long_way_is_not_taken_for_a_queue() -> None:
    window = Window(8, 1.0)
    _, took = longest_queue(window, way_s=3.0, batch_s=0.01, batches=200)
    assert window.size == 8
    assert took == pytest.approx(200 / 7 * 3, rel=0.1)


def test_on_a_narrow_way_few_batches_queue_and_the_way_is_full_all_the_same() -> None:
    queue, took = longest_queue(Window(32, 1.0), way_s=0.1, batch_s=0.5, batches=200)
    assert queue <= 3.0
    assert took == pytest.approx(100, rel=0.1)
    wide, _ = longest_queue(Window(32, 1e9), way_s=0.1, batch_s=0.5, batches=200)
    assert wide > 10


def test_one_batch_and_the_place_for_an_alarm_remain() -> None:
    window = Window(64, 1.0)
    window.confirmed(0, 0.1)
    for n in range(100):
        window.confirmed(n * 10, n * 10 + 9)
    assert window.size == 2
    assert Window(1, 1.0).size == 1


def test_one_slow_moment_halves_it_once() -> None:
    window = Window(16, 1.0)
    window.confirmed(0, 0.1)
    for n in range(16):
        window.confirmed(1 + n / 100, 5)
    assert window.size == 8
