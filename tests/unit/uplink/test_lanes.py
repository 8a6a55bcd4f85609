"""What waits in the uplink: every record once, in order, bounded lane by lane; receipts only in order."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import event, events
from records import outbound
from skerry.messages import LANES, Event, Lane, Outbound, Receipt
from skerry.uplink.lanes import Lanes
from skerry.uplink.parts import Part
from skerry.uplink.record import Record


def batch(first: int, last: int, *, base: int = 0, store: str = "s", lane: Lane = "event") -> Outbound:
    return outbound(first, list(events(first, last)), base=base, store=store, lane=lane)


def seqs(part: Part) -> list[int]:
    return [r.envelope.seq for r in part.records if isinstance(r, Record)]


def take_all(lanes: Lanes, lane: Lane = "event", most: int = 100) -> list[int]:
    found = []
    while lane in lanes.waiting():
        found += seqs(lanes.take(lane, most, 1 << 20))
    return found


def upto(receipts: list[Receipt]) -> dict[str, int]:
    return {r.store: r.upto for r in receipts}


def test_what_is_there_already_is_not_taken_again() -> None:
    lanes = Lanes(1 << 20)
    assert [lanes.put(batch(*b)) for b in ((1, 3), (1, 3), (2, 5), (6, 6))] == ["", "repeat", "", ""]
    assert take_all(lanes) == [1, 2, 3, 4, 5, 6]
    assert lanes.put(batch(4, 6)) == "repeat"


def test_a_jump_waits_for_what_was_lost_on_the_bus() -> None:
    lanes = Lanes(1 << 20)
    assert lanes.put(batch(4, 5)) == "jump"
    assert lanes.put(batch(1, 3)) == ""
    assert lanes.put(batch(4, 5)) == ""
    assert take_all(lanes) == [1, 2, 3, 4, 5]


def test_what_the_store_no_longer_has_is_not_waited_for() -> None:
    lanes = Lanes(1 << 20)
    assert lanes.put(batch(9, 10, base=8)) == ""
    assert lanes.put(batch(20, 21, base=19)) == ""
    assert take_all(lanes) == [9, 10, 20, 21]


def test_a_base_out_of_thin_air_confirms_nothing() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 2, base=10**9))
    assert lanes.put(batch(1, 5, base=10**9)) == ""
    assert upto(lanes.receipts()) == {}
    lanes.confirm(lanes.take("event", 100, 1 << 20))
    assert upto(lanes.receipts()) == {"s": 5}


def test_each_lane_has_room_of_its_own() -> None:
    lanes = Lanes(10_000)
    first = 1
    while lanes.put(batch(first, first + 4, store="bulk", lane="bulk")) == "":
        first += 5
    assert 0 < lanes.sizes()["bulk"] <= 10_000
    assert lanes.put(batch(1, 5, store="alarm", lane="alarm")) == ""


def test_room_is_given_back_only_when_it_is_confirmed() -> None:
    lanes = Lanes(2000)
    assert lanes.put(batch(1, 5)) == ""
    assert lanes.put(batch(6, 15)) == "full"
    part = lanes.take("event", 100, 1 << 20)
    assert lanes.put(batch(6, 15)) == "full"
    lanes.confirm(part)
    assert lanes.put(batch(6, 15)) == ""
    assert lanes.sizes()["event"] > 2000  # one message is taken whatever its size


def test_a_batch_is_bounded_in_records_and_bytes_and_made_of_several_messages() -> None:
    lanes = Lanes(1 << 20)
    for n in range(1, 21):
        lanes.put(batch(n, n))
    size = len(msgspec.json.encode(event(1)))
    assert seqs(lanes.take("event", 7, 1 << 20)) == [1, 2, 3, 4, 5, 6, 7]
    assert seqs(lanes.take("event", 100, 3 * (size + 2))) == [8, 9, 10]
    assert seqs(lanes.take("event", 100, 1)) == [11]
    assert take_all(lanes) == [12, 13, 14, 15, 16, 17, 18, 19, 20]


def test_a_batch_is_of_one_store_and_one_kind() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 2))
    lanes.put(batch(1, 2, store="t"))
    lanes.put(outbound(3, list(events(3, 4)), store="t", backlog=True))
    assert [seqs(lanes.take("event", 100, 1 << 20)) for _ in range(3)] == [[1, 2], [1, 2], [3, 4]]


def gap(seq: int) -> Event:
    return msgspec.structs.replace(event(seq, epoch="chain"), type="skerry.gap")


def test_a_gap_goes_alone_and_confirms_all_that_it_spans() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 2))
    lanes.put(outbound(3, [gap(3)], last=9))
    lanes.put(batch(10, 11))
    parts = [lanes.take("event", 100, 1 << 20) for _ in range(3)]
    assert [(p.first, p.last) for p in parts] == [(1, 2), (3, 9), (10, 11)]
    for part, reached in zip(parts, (2, 9, 11), strict=True):
        lanes.confirm(part)
        assert upto(lanes.receipts()) == {"s": reached}


def test_what_was_put_back_comes_again_first() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 9))
    parts = [lanes.take("event", 3, 1 << 20) for _ in range(2)]
    for part in reversed(parts):
        lanes.put_back(part)
    assert take_all(lanes) == list(range(1, 10))


def test_what_is_searched_for_a_refused_record_goes_one_by_one() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 3))
    lanes.put_back(lanes.take("event", 100, 1 << 20), alone=True)
    lanes.put(batch(4, 6))
    taken = []
    while lanes.waiting():
        taken.append(seqs(lanes.take("event", 100, 1 << 20)))
    assert taken == [[1], [2], [3], [4, 5, 6]]


def test_the_buffer_is_told_once_and_again_when_it_asks() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 3))
    lanes.confirm(lanes.take("event", 100, 1 << 20), "no")
    told = lanes.receipts()
    assert upto(told) == {"s": 3}
    assert [(r.offset, r.reason) for r in told[0].refused] == [(3, "no")]
    assert lanes.receipts() == []
    lanes.put(batch(1, 3))
    assert lanes.receipts() == told
    lanes.put(batch(4, 4, base=3))
    lanes.confirm(lanes.take("event", 100, 1 << 20))
    assert lanes.receipts()[0].refused == ()


def test_a_buffer_that_lost_its_place_is_told_no_more_than_it_has_sent_since() -> None:
    """It believes no receipt for what it has not sent, and would wait for ever."""
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 500))
    lanes.confirm(lanes.take("event", 1000, 1 << 20))
    assert upto(lanes.receipts()) == {"s": 500}
    sent = 0
    while sent < 500:
        assert lanes.put(batch(sent + 1, sent + 50)) == "repeat"
        (receipt,) = lanes.receipts()
        assert receipt.upto == sent + 50
        sent = receipt.upto
    assert lanes.put(batch(501, 501)) == ""


def test_memory_is_bounded_however_many_stores_there_are() -> None:
    lanes = Lanes(1 << 20)
    lanes.put(batch(1, 1))
    for n in range(100):
        lanes.put(batch(1, 1, store=f"t{n}", lane="bulk"))
        lanes.confirm(lanes.take("bulk", 100, 1 << 20))
    assert len(lanes.receipts()) <= 32
    assert lanes.put(batch(2, 2)) == ""  # not forgotten: it has something under way
    assert take_all(lanes) == [1, 2]


@pytest.mark.parametrize("lane", LANES)
def test_a_store_is_of_one_lane(lane: Lane) -> None:
    lanes = Lanes(1 << 20)
    assert lanes.put(batch(1, 1, lane=lane)) == ""
    others = [other for other in LANES if other != lane]
    assert [lanes.put(batch(2, 2, lane=other)) for other in others] == ["malformed"] * 3


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9)), max_size=60), st.data())
def test_whatever_is_lost_or_repeated_each_record_goes_once_and_in_order(
    messages: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Go-back-N over a bus that loses and repeats, with batches that fail: a model of both ends."""
    lanes, sent, confirmed = Lanes(3000), [], 0
    for first, count, most in messages:
        lanes.put(batch(first, first + count - 1))
        if not lanes.waiting():
            continue
        part = lanes.take("event", most, 2000)
        if data.draw(st.booleans()):
            lanes.put_back(part)
            continue
        sent += seqs(part)
        lanes.confirm(part)
        for receipt in lanes.receipts():
            assert receipt.upto >= confirmed
            confirmed = receipt.upto
            assert sent == list(range(1, confirmed + 1))
    assert sent == list(range(1, len(sent) + 1))
