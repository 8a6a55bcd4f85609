"""The log: what it promises when nothing, or only the process, fails."""

from pathlib import Path

import pytest

from oracle import check_ledger
from skerry.buffer.chain import REMEMBERED, Chain
from skerry.buffer.gaps import Hole
from skerry.buffer.pool import KEEP
from skerry.buffer.settings import LaneSettings
from skerry.buffer.store import Batch, StoreFull
from skerry.errors import Unavailable
from unit.buffer.stores import (
    LIMIT,
    SEGMENT,
    contents,
    fill,
    holes,
    kill,
    open_chain,
    open_store,
    payload,
    record,
)


def balance(chain: Chain, lost: int = 0) -> None:
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=lost)
    assert chain.waiting == chain.recount()


def test_offsets_are_dense_from_one(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    assert chain.append([record(1), record(2)]) == 2
    assert chain.append([record(3)]) == 3
    assert contents(chain) == {n: payload(n) for n in (1, 2, 3)}


def test_what_was_appended_is_there_after_a_kill(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 300, batch=7)
    kill(store)
    _, again = open_chain(tmp_path)
    assert contents(again) == {n: payload(n) for n in range(1, 301)}
    assert again.watermark("p", "e") == 300
    balance(again)


def test_append_after_a_kill_goes_on_where_it_was(tmp_path: Path) -> None:
    for start in range(1, 101, 10):
        store, chain = open_chain(tmp_path)
        fill(chain, start, start + 9)
        kill(store)
    assert contents(open_chain(tmp_path)[1]) == {n: payload(n) for n in range(1, 101)}


def test_a_chain_that_was_not_closed_takes_another_identity(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 3)
    store.close()
    store, again = open_chain(tmp_path)
    assert again.id == chain.id
    kill(store)
    assert open_chain(tmp_path)[1].id != chain.id


def test_receipt_moves_the_cursor_and_frees_whole_segments(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 250)
    before = len(list(tmp_path.glob("*.segment")))
    assert chain.receipt(150) == 150
    assert len(list(tmp_path.glob("*.segment"))) < before
    assert min(contents(chain)) == 151
    balance(chain)


def test_receipts_survive_a_kill_exactly(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 100)
    chain.receipt(42)
    kill(store)
    _, again = open_chain(tmp_path)
    assert (again.upto, again.delivered, again.waiting) == (42, 42, 58)
    balance(again)


def test_an_old_receipt_counts_nothing(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 10)
    assert chain.receipt(5) == 5
    assert chain.receipt(5) == chain.receipt(3) == 0
    balance(chain)


def test_a_receipt_for_what_was_never_kept_is_refused(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 10)
    with pytest.raises(ValueError, match="expected at most 10, got 11"):
        chain.receipt(11)


def test_a_seq_at_the_watermark_is_refused(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 3)
    with pytest.raises(ValueError, match="above the watermark"):
        chain.append([record(3)])
    with pytest.raises(ValueError, match="above the watermark"):
        chain.append([record(5), record(5)])
    assert chain.last == 3


def test_bytes_never_exceed_the_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    for n in range(1, 3001):
        chain.append([record(n)])
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= LIMIT
    lost = chain.evicted["capacity"]
    assert lost == chain.accepted - chain.waiting > 0
    assert list(contents(chain)) == list(range(lost + 1, 3001))
    balance(chain, lost=lost)


def test_what_was_given_up_is_read_as_one_hole_in_its_place(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 3000)
    lost = chain.evicted["capacity"]
    hole = chain.read(1, 10, 1000)
    assert isinstance(hole, Hole)
    assert (hole.first, hole.last, hole.reason) == (1, lost, "capacity")
    assert [(n.producer, n.epoch, n.first, n.last, n.count) for n in hole.names] == [
        ("p", "e", 1, lost, lost)
    ]
    assert hole.bytes == sum(len(payload(n)) for n in range(1, lost + 1))
    batch = chain.read(hole.last + 1, 1, 1000)
    assert isinstance(batch, Batch)
    assert batch.first == lost + 1


def test_a_hole_that_was_told_does_not_grow(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 3000)
    told = chain.read(1, 10, 1000)
    assert isinstance(told, Hole)
    last = told.last
    fill(chain, 3001, 3200)
    assert told.last == last
    first, second = holes(chain)[:2]
    assert first[1] == last
    assert second[0] == last + 1
    assert chain.receipt(chain.last) == chain.last - chain.evicted["capacity"]
    balance(chain, lost=chain.evicted["capacity"])


def test_holes_are_told_again_after_a_kill(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 3000)
    before = chain.read(1, 10, 1000)
    kill(store)
    store, again = open_chain(tmp_path)
    after = again.read(1, 10, 1000)
    assert isinstance(before, Hole)
    assert isinstance(after, Hole)
    assert (after.epoch, after.seq, after.first, after.last) == (before.epoch, before.seq, 1, before.last)
    assert after.names == before.names
    balance(again, lost=again.evicted["capacity"])


def test_delivered_records_of_an_evicted_segment_are_not_evicted(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 10)  # a part of the first segment, which is then filled and evicted
    chain.receipt(10)
    number = 11
    while not chain.evicted:
        chain.append([record(number)])
        number += 1
    assert chain.delivered == 10
    ((first, last, _),) = holes(chain)
    assert first == 11
    assert chain.evicted["capacity"] == last - 10
    balance(chain, lost=chain.evicted["capacity"])


def test_what_was_under_way_when_it_was_given_up_counts_as_delivered(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 10)
    number = 11
    while not chain.evicted:
        chain.append([record(number)])
        number += 1
    lost = chain.evicted["capacity"]
    chain.receipt(7)  # sent before, and confirmed now
    assert chain.delivered == 7
    assert chain.evicted["capacity"] == lost - 7
    balance(chain, lost=lost - 7)
    kill(store)
    balance(open_chain(tmp_path)[1], lost=lost - 7)


def test_the_lowest_lane_makes_room_for_the_higher_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    bulk, alarm = store.chain("bulk"), store.chain("alarm")
    fill(bulk, 1, 3000)
    fill(alarm, 1, 100)
    assert not alarm.evicted
    before = bulk.evicted["capacity"]
    fill(alarm, 101, 400)
    assert not alarm.evicted
    assert bulk.evicted["capacity"] > before
    fill(alarm, 401, 1500)
    assert alarm.evicted["capacity"] > 0


def test_a_higher_lane_is_never_given_up_for_a_lower_one(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    alarm, bulk = store.chain("alarm"), store.chain("bulk")
    fill(alarm, 1, 1400)
    kept = alarm.waiting
    with pytest.raises(StoreFull, match="limit"):
        bulk.append([record(1)])
    assert alarm.waiting == kept
    alarm.receipt(alarm.last - kept // 2)
    fill(bulk, 1, 1000)
    assert alarm.waiting == kept // 2
    assert bulk.evicted["capacity"] > 0


def test_a_higher_lane_finds_room_although_the_lower_ones_block(tmp_path: Path) -> None:
    blocking = LaneSettings(when_full="block")
    store = open_store(tmp_path, lanes={"bulk": blocking, "telemetry": blocking, "event": blocking})
    with pytest.raises(StoreFull, match="limit"):
        fill(store.chain("bulk"), 1, 100_000)
    store.append("event", [record(1)])
    store.append("alarm", [record(1)])
    assert not store.evicted


def test_a_lane_that_blocks_refuses_and_goes_on_when_some_was_delivered(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path, lanes={"event": LaneSettings(when_full="block")})
    with pytest.raises(StoreFull, match="nothing accepted is lost"):
        fill(chain, 1, 100_000)
    n = chain.last + 1
    assert list(contents(chain)) == list(range(1, n))
    chain.receipt(n // 2)
    chain.append([record(n)])
    balance(chain)


def test_a_lane_keeps_to_its_own_limit(tmp_path: Path) -> None:
    store = open_store(tmp_path, lanes={"bulk": LaneSettings(limit_bytes=4 * SEGMENT)})
    fill(store.chain("bulk"), 1, 1000)
    assert store.chain("bulk").space == 4 * SEGMENT
    assert store.evicted["capacity"] > 0


def test_segments_are_used_again(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    for start in range(1, 2001, 50):
        fill(chain, start, start + 49)
        chain.receipt(start + 49)
    assert len(list(tmp_path.glob("free-*"))) == KEEP
    assert len(list(tmp_path.glob("*.segment"))) == 1
    kill(store)
    balance(open_chain(tmp_path)[1])


def test_what_a_file_held_before_is_never_read_again(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 500)
    chain.receipt(500)
    fill(chain, 501, 540)
    kill(store)
    store, again = open_chain(tmp_path)
    assert list(contents(again)) == list(range(501, 541))
    balance(again)


def test_eviction_is_counted_once_over_kills(tmp_path: Path) -> None:
    for start in range(1, 1001, 50):
        store, chain = open_chain(tmp_path)
        fill(chain, start, start + 49)
        kill(store)
    store, chain = open_chain(tmp_path)
    balance(chain, lost=chain.evicted["capacity"])
    assert len(contents(chain)) == 1000 - chain.evicted["capacity"]


def test_a_record_larger_than_a_segment_is_kept(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    fill(chain, 1, 3)
    chain.append([record(4, size=20_000)])
    fill(chain, 5, 6)
    kill(store)
    assert contents(open_chain(tmp_path)[1])[4] == payload(4, size=20_000)


def test_a_batch_is_as_large_as_was_asked_for_and_never_empty(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 20, batch=20)
    batch = chain.read(3, max_records=4, max_bytes=10_000)
    assert batch is not None
    assert (batch.first, len(batch.payloads)) == (3, 4)
    small = chain.read(3, max_records=4, max_bytes=1)
    assert small is not None
    assert len(small.payloads) == 1
    assert chain.read(21, 1, 1) is None


def test_watermarks_are_kept_per_producer_and_epoch(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    chain.append([record(5, "a", "x"), record(6, "a", "x"), record(1, "b", "x"), record(9, "a", "y")])
    kill(store)
    _, again = open_chain(tmp_path)
    assert again.watermarks() == {("a", "x"): 6, ("b", "x"): 1, ("a", "y"): 9}
    assert again.watermark("c", "x") is None


def test_watermarks_outlive_the_segments_that_held_their_records(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path)
    chain.append([record(7, "rare", "x")])
    fill(chain, 1, 500)
    chain.receipt(501)
    fill(chain, 501, 510)
    assert len(list(tmp_path.glob("*.segment"))) < 5
    kill(store)
    assert open_chain(tmp_path)[1].watermark("rare", "x") == 7


def test_the_number_of_remembered_epochs_is_bounded(tmp_path: Path) -> None:
    store, chain = open_chain(tmp_path, limit=4 << 20, segment=1 << 20)
    chain.append([record(1, epoch=f"e{n}") for n in range(REMEMBERED + 50)])
    assert len(chain.watermarks()) == REMEMBERED
    assert chain.watermark("p", "e0") is None
    kill(store)
    assert len(open_chain(tmp_path, limit=4 << 20, segment=1 << 20)[1].watermarks()) == REMEMBERED


def test_the_longest_checkpoint_fits_into_a_segment(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path, limit=64 << 20, segment=2 << 20)
    for start in range(0, REMEMBERED, 100):
        chain.append([record(2**53 - 1, "p" * 64, f"{n:064d}") for n in range(start, start + 100)])
    chain._use(*chain._begin(chain.last + 1))
    assert chain._segments[-1].size < 1 << 20


def test_a_second_process_is_told_that_the_store_is_open(tmp_path: Path) -> None:
    store, _chain = open_chain(tmp_path)
    with pytest.raises(Unavailable, match="open in another process"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    store, _chain = open_chain(tmp_path)
    store.close()
    store.close()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="the disk failed: Not a directory"):
        open_store(tmp_path / "file" / "store")


def test_a_skipped_record_is_a_hole_with_its_reason(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 5)
    chain.skip(3, "unreadable")
    chain.skip(3, "unreadable")
    assert holes(chain) == [(3, 3, "unreadable")]
    assert list(contents(chain)) == [1, 2, 4, 5]
    chain.receipt(3)
    assert chain.evicted == {"unreadable": 1}
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=1)


def test_what_the_far_end_refused_is_not_delivered(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path)
    fill(chain, 1, 5)
    assert chain.receipt(4, refused=[2, 2, 9]) == 3
    assert chain.evicted == {"quarantined": 1}
    balance(chain, lost=1)


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "event-0000000009-00000000000000000009.segment.tmp").write_bytes(b"draft")
    open_store(tmp_path).close()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_that_served_another_lane_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    event, alarm = store.chain("event"), store.chain("alarm")
    fill(event, 1, 100)
    event.receipt(event.last)
    fill(event, 101, 130)
    event.receipt(event.last)
    fill(alarm, 1, 2)
    kill(store)
    alarm = open_store(tmp_path).chain("alarm")
    assert contents(alarm) == {n: payload(n) for n in (1, 2)}
    assert (alarm.last, alarm.evicted) == (2, {})


def test_a_commit_larger_than_half_of_the_limit_does_not_jam_its_lane(tmp_path: Path) -> None:
    _, chain = open_chain(tmp_path, lanes={"event": LaneSettings(limit_bytes=8 * SEGMENT)})
    for n in range(1, 6):
        chain.append([record(n, size=6 * SEGMENT)])
        chain.receipt(n)
    balance(chain)


def test_opening_gives_up_nothing_that_the_limits_allow(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store.chain("bulk"), 1, 3000)
    fill(store.chain("alarm"), 1, 100)
    before = store.evicted
    kill(store)
    assert open_store(tmp_path).evicted == before
