"""The log: what it promises when nothing, or only the process, fails."""

from pathlib import Path

import pytest

from oracle import check_ledger
from skerry.buffer.store import REMEMBERED, Store
from skerry.errors import Unavailable
from unit.buffer.stores import LIMIT, contents, fill, kill, open_store, payload, record


def balance(store: Store, lost: int = 0) -> None:
    check_ledger(store.accepted, store.delivered, store.waiting, store.evicted, lost=lost)
    assert store.waiting == store.recount()


def test_offsets_are_dense_from_one(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.append([record(1), record(2)]) == 2
    assert store.append([record(3)]) == 3
    assert contents(store) == {n: payload(n) for n in (1, 2, 3)}


def test_what_was_appended_is_there_after_a_kill(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 300, batch=7)
    kill(store)
    again = open_store(tmp_path)
    assert contents(again) == {n: payload(n) for n in range(1, 301)}
    assert again.watermark("p", "e") == 300
    assert again.id == store.id
    balance(again)


def test_append_after_a_kill_goes_on_where_it_was(tmp_path: Path) -> None:
    for start in range(1, 101, 10):
        store = open_store(tmp_path)
        fill(store, start, start + 9)
        kill(store)
    assert contents(open_store(tmp_path)) == {n: payload(n) for n in range(1, 101)}


def test_receipt_moves_the_cursor_and_frees_whole_segments(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 250)
    before = len(list(tmp_path.glob("*.segment")))
    assert store.receipt(150) == 150
    assert len(list(tmp_path.glob("*.segment"))) < before
    assert min(contents(store)) == 151
    balance(store)


def test_receipts_survive_a_kill_exactly(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 100)
    store.receipt(42)
    kill(store)
    again = open_store(tmp_path)
    assert (again.upto, again.delivered, again.waiting) == (42, 42, 58)
    balance(again)


def test_an_old_receipt_counts_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 10)
    assert store.receipt(5) == 5
    assert store.receipt(5) == store.receipt(3) == 0
    balance(store)


def test_a_receipt_for_what_was_never_kept_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 10)
    with pytest.raises(ValueError, match="expected at most 10, got 11"):
        store.receipt(11)


def test_a_seq_at_the_watermark_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 3)
    with pytest.raises(ValueError, match="above the watermark"):
        store.append([record(3)])
    with pytest.raises(ValueError, match="above the watermark"):
        store.append([record(5), record(5)])
    assert store.last == 3


def test_bytes_never_exceed_the_limit_and_the_oldest_go_first(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for n in range(1, 2001):
        store.append([record(n)])
        assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= LIMIT
    assert store.evicted["capacity"] == store.accepted - store.waiting
    assert list(contents(store)) == list(range(store.evicted["capacity"] + 1, 2001))
    balance(store, lost=store.evicted["capacity"])


def test_delivered_records_of_an_evicted_segment_are_not_evicted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 10)  # a part of the first segment, which is then filled and evicted
    store.receipt(10)
    number = 11
    while not store.evicted:
        store.append([record(number)])
        number += 1
    assert store.delivered == 10
    assert store.evicted["capacity"] == store.upto - 10
    balance(store, lost=store.evicted["capacity"])


def test_eviction_is_counted_once_over_kills(tmp_path: Path) -> None:
    for start in range(1, 1001, 50):
        store = open_store(tmp_path)
        fill(store, start, start + 49)
        kill(store)
    store = open_store(tmp_path)
    balance(store, lost=store.evicted["capacity"])
    assert len(contents(store)) == 1000 - store.evicted["capacity"]


def test_a_record_larger_than_a_segment_is_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 3)
    store.append([record(4, size=20_000)])
    fill(store, 5, 6)
    kill(store)
    assert contents(open_store(tmp_path))[4] == payload(4, size=20_000)


def test_a_batch_is_as_large_as_was_asked_for_and_never_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 20, batch=20)
    batch = store.read(3, max_records=4, max_bytes=10_000)
    assert batch is not None
    assert (batch.first, len(batch.payloads)) == (3, 4)
    small = store.read(3, max_records=4, max_bytes=1)
    assert small is not None
    assert len(small.payloads) == 1
    assert store.read(21, 1, 1) is None


def test_watermarks_are_kept_per_producer_and_epoch(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([record(5, "a", "x"), record(6, "a", "x"), record(1, "b", "x"), record(9, "a", "y")])
    kill(store)
    again = open_store(tmp_path)
    assert again.watermarks() == {("a", "x"): 6, ("b", "x"): 1, ("a", "y"): 9}
    assert again.watermark("c", "x") is None


def test_watermarks_outlive_the_segments_that_held_their_records(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.append([record(7, "rare", "x")])
    fill(store, 1, 500)
    store.receipt(501)
    fill(store, 501, 510)
    assert len(list(tmp_path.glob("*.segment"))) < 5
    kill(store)
    assert open_store(tmp_path).watermark("rare", "x") == 7


def test_the_number_of_remembered_epochs_is_bounded(tmp_path: Path) -> None:
    store = open_store(tmp_path, limit=4 << 20, segment=1 << 20, spare=256 * 1024)
    store.append([record(1, epoch=f"e{n}") for n in range(REMEMBERED + 50)])
    assert len(store.watermarks()) == REMEMBERED
    assert store.watermark("p", "e0") is None
    kill(store)
    assert (
        len(open_store(tmp_path, limit=4 << 20, segment=1 << 20, spare=256 * 1024).watermarks()) == REMEMBERED
    )


def test_the_longest_checkpoint_fits_into_the_spare_space(tmp_path: Path) -> None:
    store = open_store(tmp_path, limit=4 << 20, segment=256 * 1024, spare=256 * 1024)
    store.append([record(2**53 - 1, producer="p" * 64, epoch=f"{n:064d}") for n in range(REMEMBERED)])
    store._roll()
    assert store._segments[-1].size < 256 * 1024


def test_a_second_process_is_told_that_the_store_is_open(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(Unavailable, match="open in another process"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.close()
    store.close()


def test_a_limit_too_small_for_two_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit_bytes: expected at least"):
        open_store(tmp_path, limit=1000)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="the disk failed: Not a directory"):
        open_store(tmp_path / "file" / "store")


def test_a_skipped_record_is_counted_under_its_reason(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, 5)
    store.skip(3, "unreadable")
    store.skip(3, "unreadable")
    batch = store.read(1, 10, 10_000)
    assert batch is not None
    assert len(batch.payloads) == 2
    store.receipt(2)
    assert store.upto == 3
    assert store.evicted == {"unreadable": 1}
    check_ledger(store.accepted, store.delivered, store.waiting, store.evicted, lost=1)


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (tmp_path / "0000000009-00000000000000000009.segment.tmp").write_bytes(b"draft")
    open_store(tmp_path).close()
    assert not list(tmp_path.glob("*.tmp"))
