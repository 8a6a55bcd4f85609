"""The oracle itself: what it did not see, no test that asks it would prove."""

import msgspec
import pytest

from events import event, events
from oracle import GAP, Oracle, check_dense, check_gaps_agree, check_ledger
from skerry.messages import Event

SOURCE = "/skerry/test/decision"
ALL = {(SOURCE, "e1"): 10}


def knowing(last: int = 10) -> Oracle:
    oracle = Oracle()
    oracle.send(events(1, last))
    return oracle


def gap(
    first: int, last: int, *, count: int | None = None, reason: str = "capacity", epoch: str = "e1",
    seq: int = 1, lane: str = "event", producer: str = "decision",
) -> Event:  # fmt: skip
    named = last - first + 1 if count is None else count
    ranges = [{"producer": producer, "epoch": epoch, "first": first, "last": last, "count": named}]
    data = {"lane": lane, "reason": reason, "count": named, "bytes": 1, "ranges": ranges}
    plain = event(seq, epoch="b1", source="/skerry/test/buffer")
    return msgspec.structs.replace(plain, type=GAP, data=data)


def judged(arrived, accepted=ALL, oracle=None, **options):
    return (oracle or knowing()).check_complete(arrived, accepted, **{"repeats": True, **options})


def test_all_that_was_accepted_has_arrived() -> None:
    account = judged(events(1, 10), repeats=False)
    assert (account.sent, account.accepted, account.delivered, account.repeats) == (10, 10, 10, 0)


def test_what_was_not_accepted_may_arrive_or_not() -> None:
    assert judged(events(1, 7), {(SOURCE, "e1"): 5}).delivered == 7
    assert judged(events(1, 5), {(SOURCE, "e1"): 5}).accepted == 5


def test_repeats_are_counted_where_they_are_allowed() -> None:
    assert judged([*events(1, 6), *events(4, 10)]).repeats == 3


def test_a_gap_record_accounts_for_what_it_names() -> None:
    account = judged([*events(1, 3), gap(4, 6), *events(7, 10)])
    assert account.named == account.stated == {"capacity": 3}
    check_gaps_agree(account, {"capacity": 3})


def test_a_gap_may_name_what_the_far_end_has_already() -> None:
    """The receipt was lost, and then the limit came."""
    account = judged([*events(1, 5), gap(4, 6), *events(7, 10)])
    assert account.named == {"capacity": 1}
    assert account.stated == {"capacity": 3}


def test_a_loss_by_the_producer_may_be_told_late() -> None:
    late = [*events(1, 3), *events(6, 10), gap(4, 5, reason="never_submitted")]
    assert judged(late).named == {"never_submitted": 2}


def test_corruption_names_what_may_be_missing_at_most() -> None:
    arrived = [*events(1, 4), gap(2, 7, count=3, reason="corrupt"), *events(8, 10)]
    assert judged(arrived).named == {"corrupt": 3}


def test_quarantine_accounts_for_what_it_holds() -> None:
    arrived = [*events(1, 3), *events(5, 10), gap(4, 4, reason="quarantined")]
    account = judged(arrived, quarantined=events(4, 4))
    assert account.quarantined == 1
    assert account.named == {"quarantined": 1}


def test_a_retry_from_quarantine_is_known_by_what_it_repeats() -> None:
    again = msgspec.structs.replace(event(4), id="b2-11", epoch="b2", seq=11, retryof="e1-4")
    arrived = [*events(1, 3), *events(5, 10), gap(4, 4, reason="quarantined"), again]
    oracle = knowing()
    far = oracle.far_end(repeats=False)
    for one in arrived:
        far.take(one)
    assert far.check_complete(ALL, events(4, 4)).delivered == 9
    assert set(far.retried) == {"e1-4"}
    for change, why in (
        ({"data": {}}, "was changed before it was tried again"),
        ({"retryof": "e1-40"}, "nobody sent e1-40"),
        ({"retryof": "e1-3", "data": event(3).data}, "had arrived before"),
    ):
        fails([*arrived[:-1], msgspec.structs.replace(again, **change)], why)


def test_a_corrected_time_is_not_a_change() -> None:
    changed = msgspec.structs.replace(
        event(1), time="2030-01-01T00:00:00.000Z", recordedtime=event(1).time, timequality="corrected"
    )
    marked = msgspec.structs.replace(event(2), timequality="unsynchronised")
    account = judged([changed, marked, *events(3, 10)])
    assert account.qualities == {"corrected": 1, "unsynchronised": 1}


def fails(arrived, why: str, oracle=None, **options) -> None:
    with pytest.raises(AssertionError, match=why):
        judged(arrived, oracle=oracle, **options)


def test_a_loss_in_the_middle_is_seen() -> None:
    fails([*events(1, 4), *events(6, 10)], r"1 accepted events never arrived")


def test_a_loss_at_the_end_is_seen() -> None:
    fails(events(1, 9), r"1 accepted events never arrived")


def test_a_loss_beside_a_gap_is_seen() -> None:
    fails([*events(1, 2), gap(4, 6), *events(7, 10)], r"first \[.*, 3\)\]")


def test_a_gap_that_counts_less_than_is_missing_is_seen() -> None:
    fails([*events(1, 3), gap(4, 6, count=2), *events(7, 10)], "counts 2, but 3")


def test_a_gap_that_counts_more_than_it_names_is_seen() -> None:
    fails([*events(1, 3), gap(4, 6, count=4), *events(7, 10)], "counts more than it names")


def test_a_gap_of_what_nobody_sent_is_seen() -> None:
    fails([*events(1, 10), gap(11, 12)], "nobody sent these")
    fails([*events(1, 10), gap(1, 2, epoch="e9", reason="never_submitted")], "an epoch that nobody sent")


def test_a_gap_in_the_wrong_place_is_seen() -> None:
    fails([*events(1, 3), *events(7, 10), gap(4, 6)], "came after 10 of its epoch")
    fails([*events(1, 3), gap(4, 6), *events(6, 10)], "after the gap record that says up to 6")


def test_a_gap_in_the_wrong_lane_is_seen() -> None:
    fails([*events(1, 3), gap(4, 6, lane="bulk"), *events(7, 10)], "lane bulk came in lane event")


def test_an_unknown_event_is_seen() -> None:
    fails([*events(1, 10), event(11)], "nobody sent")
    fails([*events(1, 10), event(1, epoch="e2")], "nobody sent")


def test_a_changed_event_is_seen() -> None:
    for change in ({"subject": "gate/other"}, {"data": {"seq": 1}}, {"time": "2020-01-01T00:00:00.000Z"}):
        fails([msgspec.structs.replace(event(1), **change), *events(2, 10)], "was changed on its way")


def test_a_repeat_where_none_may_be_is_seen() -> None:
    fails([*events(1, 10), event(10)], "arrived twice", repeats=False)


def test_an_event_after_a_later_one_of_its_epoch_is_seen() -> None:
    fails([event(1), event(3), event(2), *events(4, 10)], "arrived after a later one of its epoch")


def test_disorder_within_a_key_across_epochs_is_seen() -> None:
    oracle = knowing()
    oracle.send(events(1, 3, epoch="e2"))
    good = [*events(1, 10), *events(1, 3, epoch="e2")]
    assert judged(good, oracle=oracle).delivered == 13
    fails([*events(1, 9), event(1, epoch="e2"), event(10)], "made later, of the same key", oracle=oracle)


def test_quarantine_of_what_nobody_sent_or_in_another_form_is_seen() -> None:
    fails(events(1, 10), "which nobody sent", quarantined=events(11, 11))
    other = msgspec.structs.replace(event(4), subject="other")
    fails(events(1, 10), "changed in quarantine", quarantined=[other])


def test_one_name_for_two_events_is_seen() -> None:
    oracle = knowing()
    oracle.send(events(1, 10))
    with pytest.raises(AssertionError, match="names two events"):
        oracle.send([event(4, size=7)])


def test_gap_records_that_say_less_than_the_ledger_are_seen() -> None:
    account = judged([*events(1, 3), gap(4, 6), *events(7, 10)])
    with pytest.raises(AssertionError, match="evicted 4, but the gap records say 3"):
        check_gaps_agree(account, {"capacity": 4})


def test_a_ledger_that_does_not_add_up_is_seen() -> None:
    check_ledger(10, 6, 3, {"capacity": 1}, lost=1)
    check_ledger(10, 6, 3, {"capacity": 1}, lost=None)
    for wrong in ((10, 6, 4, {"capacity": 1}), (10, 6, 3, {})):
        with pytest.raises(AssertionError):
            check_ledger(*wrong, lost=None)
    with pytest.raises(AssertionError, match="expected 0 evicted"):
        check_ledger(10, 6, 3, {"capacity": 1})


def test_what_is_not_dense_is_seen() -> None:
    check_dense([*events(1, 4), *events(1, 2, epoch="e2")])
    for wrong in ([*events(1, 3), event(5)], events(2, 4), [event(1), event(1)]):
        with pytest.raises(AssertionError):
            check_dense(wrong)
