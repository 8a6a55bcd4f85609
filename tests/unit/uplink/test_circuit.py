"""The circuit: open after the first failure, half-open after the wait, closed by a confirmation."""

from skerry.uplink.backoff import Backoff
from skerry.uplink.circuit import Circuit


def circuit() -> Circuit:
    return Circuit(Backoff(first_s=1, last_s=8, draw=lambda: 1.0))


def test_it_opens_at_the_first_failure_and_lets_one_try_through_after_the_wait() -> None:
    c = circuit()
    assert c.state(0) == "closed"
    assert c.wait_s(0) == 0
    assert c.failed(10) == 1
    assert (c.state(10.5), c.wait_s(10.5)) == ("open", 0.5)
    assert (c.state(11), c.wait_s(11)) == ("half-open", 0)


def test_it_stays_open_for_longer_each_time_and_closes_at_once() -> None:
    c = circuit()
    assert [c.failed(n) for n in range(5)] == [1, 2, 4, 8, 8]
    assert c.succeeded()
    assert c.state(0) == "closed"
    assert not c.succeeded()
    assert c.failed(0) == 1


def test_it_can_be_hurried_but_not_slowed_down() -> None:
    c = circuit()
    c.failed(0)
    c.hurry(0.25)
    assert c.wait_s(0) == 0.25
    c.hurry(5)
    assert c.wait_s(0) == 0.25


def test_it_stays_open_for_as_long_as_was_asked_for_and_the_backoff_on_top() -> None:
    c = circuit()
    assert c.failed(10, 30) == 31
    assert c.wait_s(10) == 31
    assert c.failed(41, 0) == 2


def test_what_may_be_asked_for_is_bounded() -> None:
    c = Circuit(Backoff(first_s=1, last_s=8, draw=lambda: 1.0), longest_asked_s=60)
    assert c.failed(0, 86400) == 61


def test_hurry_ends_where_it_was_asked_for_patience() -> None:
    c = circuit()
    c.failed(0, 5)
    c.hurry(0.25)
    assert c.wait_s(0) == 5
    c.failed(6)
    c.hurry(6.25)
    assert c.wait_s(6) == 0.25
