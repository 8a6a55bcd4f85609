"""Groups are closed by time, number, size or an alarm; nothing waits without a bound."""

import threading
import time

from skerry.buffer.mailbox import MAX_RECEIPTS, Mailbox, Offer
from skerry.messages import LANES, Lane, Receipt


def offer(count: int = 1, size: int = 10, lane: Lane = "event", first: int = 1) -> Offer:
    return Offer(lane, "p", "e", 1, first, [b"x"] * count, [0] * count, False, size, lambda: None)


def box_of(max_bytes: int = 1000, max_events: int = 100, linger_s: float = 0) -> Mailbox:
    return Mailbox(max_bytes, max_events, {**dict.fromkeys(LANES, linger_s), "alarm": 0.0})


def test_a_group_waits_for_its_linger_time() -> None:
    box = box_of(linger_s=30)
    box.offer(offer())
    assert box.wait(0.01).offers == {}
    assert not box.empty


def test_a_shorter_linger_time_counts_for_what_waits_already() -> None:
    box = box_of(linger_s=30)
    box.offer(offer())
    assert box.wait(0.01).offers == {}
    box.linger(dict.fromkeys(LANES, 0.0))
    assert len(box.wait(30).offers["event"]) == 1


def test_without_linger_a_group_is_taken_at_once() -> None:
    box = box_of()
    box.offer(offer())
    assert len(box.wait(30).offers["event"]) == 1
    assert box.empty


def test_an_alarm_is_taken_at_once_and_the_others_go_on_waiting() -> None:
    box = box_of(linger_s=30)
    box.offer(offer())
    box.offer(offer(lane="alarm"))
    assert list(box.wait(30).offers) == ["alarm"]
    assert not box.empty


def test_what_is_due_comes_with_the_highest_lane_first() -> None:
    box = box_of()
    for lane in ("bulk", "alarm", "telemetry", "event"):
        box.offer(offer(lane=lane))
    assert tuple(box.wait(30).offers) == LANES


def test_a_full_lane_does_not_hinder_another() -> None:
    box = box_of(max_bytes=100, linger_s=30)
    assert box.offer(offer(size=100, lane="bulk"))
    assert not box.offer(offer(size=1, lane="bulk"))
    assert box.offer(offer(size=1, lane="event"))


def test_a_group_is_closed_by_number_and_the_rest_stays() -> None:
    box = box_of(max_events=4, linger_s=30)
    for n in range(3):
        box.offer(offer(count=2, first=n))
    assert [o.first for o in box.wait(30).offers["event"]] == [0, 1]
    assert box.wait(0.01).offers == {}


def test_a_full_mailbox_refuses_but_takes_one_offer_of_any_size() -> None:
    box = box_of(100, linger_s=30)
    assert box.offer(offer(size=5000))
    assert not box.offer(offer(size=1))
    box.wait(30)
    assert box.offer(offer(size=1))


def test_receipts_and_calls_do_not_wait_for_a_group() -> None:
    box = box_of(linger_s=30)
    box.offer(offer())
    box.receipt(Receipt(store="s", upto=1))
    box.call("look")
    mail = box.wait(30)
    assert (mail.offers, len(mail.receipts), mail.calls) == ({}, 1, {"look"})


def test_of_too_many_receipts_the_newest_stay() -> None:
    box = box_of()
    for n in range(MAX_RECEIPTS + 5):
        box.receipt(Receipt(store="s", upto=n))
    assert [r.upto for r in box.wait(1).receipts][-1] == MAX_RECEIPTS + 4


def test_what_comes_wakes_the_loop() -> None:
    box = box_of()
    threading.Timer(0.05, box.offer, [offer()]).start()
    began = time.monotonic()
    assert len(box.wait(30).offers["event"]) == 1
    assert time.monotonic() - began < 10
