"""Whose turn it is: alarms first, live and backlog by their shares, higher lanes first, nobody saves up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.messages import LANES, Lane
from skerry.uplink.shares import Shares


def sent_bytes(shares: Shares, waiting: dict[Lane, bool], rounds: int, size: int = 1000) -> Counter[Lane]:
    total: Counter[Lane] = Counter()
    for _ in range(rounds):
        lane = shares.choose(waiting)
        assert lane is not None
        shares.sent(lane, waiting[lane], size)
        total[lane] += size
    return total


def test_nothing_waits_and_nobody_is_chosen() -> None:
    assert Shares(0.3).choose({}) is None


@pytest.mark.parametrize("backlog", [True, False])
def test_an_alarm_is_always_first(backlog: bool) -> None:
    shares = Shares(0.3)
    for _ in range(1000):
        assert shares.choose({"event": False, "bulk": True, "alarm": backlog}) == "alarm"
        shares.sent("alarm", backlog, 1_000_000)
    assert sent_bytes(shares, {"event": False, "bulk": True}, 1000)["event"] == pytest.approx(
        300_000, abs=1000
    )


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.95])
def test_live_and_backlog_share_the_bytes(share: float) -> None:
    total = sent_bytes(Shares(share), {"event": False, "telemetry": True}, 1000)
    assert total["event"] / 1_000_000 == pytest.approx(share, abs=0.005)


def test_bytes_are_shared_and_not_batches() -> None:
    shares, total = Shares(0.5), Counter[str]()
    for _ in range(1000):
        lane = shares.choose({"event": False, "bulk": True})
        assert lane is not None
        size = 100 if lane == "event" else 10_000
        shares.sent(lane, lane == "bulk", size)
        total[lane] += size
    assert abs(total["event"] - total["bulk"]) <= 10_000


@pytest.mark.parametrize("backlog", [True, False])
def test_one_class_alone_has_all_of_the_pipe(backlog: bool) -> None:
    assert sent_bytes(Shares(0.3), {"event": backlog}, 10)["event"] == 10_000


@pytest.mark.parametrize("backlog", [True, False])
def test_in_a_class_the_higher_lane_goes_first(backlog: bool) -> None:
    shares = Shares(0.3)
    assert shares.choose({"bulk": backlog, "telemetry": backlog, "event": backlog}) == "event"
    assert shares.choose({"bulk": backlog, "telemetry": backlog}) == "telemetry"


def test_who_was_idle_has_not_saved_up() -> None:
    shares = Shares(0.5)
    sent_bytes(shares, {"bulk": True}, 10_000)
    total = sent_bytes(shares, {"event": False, "bulk": True}, 100)
    assert total["event"] == pytest.approx(50_000, abs=1000)
    sent_bytes(shares, {"event": False}, 10_000)
    total = sent_bytes(shares, {"event": False, "bulk": True}, 100)
    assert total["bulk"] == pytest.approx(50_000, abs=1000)
    shares.choose({})
    total = sent_bytes(shares, {"event": False, "bulk": True}, 100)
    assert total["bulk"] == pytest.approx(50_000, abs=1000)


lanes = st.dictionaries(st.sampled_from(LANES), st.booleans(), min_size=1)


@given(st.lists(st.tuples(lanes, st.integers(1, 100_000)), max_size=60), st.floats(0.05, 0.95))
def test_the_choice_waits_and_no_class_ever_gets_far_ahead(
    rounds: list[tuple[dict[Lane, bool], int]], share: float
) -> None:
    shares = Shares(share)
    both: Counter[bool] = Counter()
    for waiting, size in rounds:
        lane = shares.choose(waiting)
        assert lane in waiting
        assert lane == "alarm" or "alarm" not in waiting
        assert all(LANES.index(lane) <= LANES.index(o) for o, b in waiting.items() if b == waiting[lane])
        shares.sent(lane, waiting[lane], size)
        if lane == "alarm" or len(set(waiting.values())) < 2:
            both.clear()
            continue
        both[waiting[lane]] += size
        live, backlog = both[False] / share, both[True] / (1 - share)
        assert abs(live - backlog) <= 2 * 100_000 / min(share, 1 - share)
