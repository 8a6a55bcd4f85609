"""Groups are closed by time, number, size or an alarm; nothing waits without a bound."""

import threading
import time

from skerry.buffer.mailbox import MAX_RECEIPTS, Mailbox, Offer
from skerry.messages import Receipt


def offer(count: int = 1, size: int = 10, urgent: bool = False, first: int = 1) -> Offer:
    return Offer("p", "e", 1, first, [b"x"] * count, [0] * count, urgent, size)


def test_a_group_waits_for_its_linger_time() -> None:
    box = Mailbox(1000, 100, linger_s=30)
    box.offer(offer())
    assert box.wait(0.01).offers == []
    assert not box.empty


def test_without_linger_a_group_is_taken_at_once() -> None:
    box = Mailbox(1000, 100, linger_s=0)
    box.offer(offer())
    assert len(box.wait(30).offers) == 1
    assert box.empty


def test_an_alarm_takes_the_group_along_at_once() -> None:
    box = Mailbox(1000, 100, linger_s=30)
    box.offer(offer())
    box.offer(offer(urgent=True))
    assert len(box.wait(30).offers) == 2


def test_a_group_is_closed_by_number_and_the_rest_stays() -> None:
    box = Mailbox(1000, 4, linger_s=30)
    for n in range(3):
        box.offer(offer(count=2, first=n))
    assert [o.first for o in box.wait(30).offers] == [0, 1]
    assert box.wait(0.01).offers == []


def test_a_full_mailbox_refuses_but_takes_one_offer_of_any_size() -> None:
    box = Mailbox(100, 100, linger_s=30)
    assert box.offer(offer(size=5000))
    assert not box.offer(offer(size=1))
    box.wait(30)
    assert box.offer(offer(size=1))


def test_receipts_and_calls_do_not_wait_for_a_group() -> None:
    box = Mailbox(1000, 100, linger_s=30)
    box.offer(offer())
    box.receipt(Receipt(store="s", upto=1))
    box.call("look")
    mail = box.wait(30)
    assert (mail.offers, len(mail.receipts), mail.calls) == ([], 1, {"look"})


def test_of_too_many_receipts_the_newest_stay() -> None:
    box = Mailbox(1000, 100, 0)
    for n in range(MAX_RECEIPTS + 5):
        box.receipt(Receipt(store="s", upto=n))
    assert [r.upto for r in box.wait(1).receipts][-1] == MAX_RECEIPTS + 4


def test_what_comes_wakes_the_loop() -> None:
    box = Mailbox(1000, 100, 0)
    threading.Timer(0.05, box.offer, [offer()]).start()
    began = time.monotonic()
    assert len(box.wait(30).offers) == 1
    assert time.monotonic() - began < 10
