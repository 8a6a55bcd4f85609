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
