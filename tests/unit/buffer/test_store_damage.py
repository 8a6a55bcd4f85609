"""The log after bits flipped, files were cut, lengthened or lost: it opens, and counts what is gone."""

import random
import shutil
from pathlib import Path

import pytest

from oracle import check_ledger
from skerry.buffer.store import Store
from unit.buffer.stores import contents, fill, kill, open_store, payload

LAST = 100


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store of 100 records in four segments, 5 of them delivered, as a killed process left it."""
    folder = tmp_path / "store"
    store = open_store(folder)
    fill(store, 1, LAST, batch=3)
    store.receipt(5)
    kill(store)
    return folder


def check(folder: Path, exact: int | None = None) -> Store:
    """It opens, what is readable is right, and all the rest is counted, once."""
    lost = -1
    for _ in range(2):
        store = open_store(folder, committed=LAST)
        found = contents(store)
        assert all(found[n] == payload(n) for n in found)
        assert store.accepted == LAST
        assert store.waiting == len(found) == store.recount()
        gone = sum(store.evicted.values())
        check_ledger(store.accepted, store.delivered, store.waiting, store.evicted, lost=gone)
        assert lost in (-1, gone), "counted differently the second time"
        lost = gone
        kill(store)
    assert exact is None or lost == exact
    store = open_store(folder, committed=LAST)
    fill(store, (store.watermark("p", "e") or 0) + 1, LAST + 30)
    assert max(contents(store)) == store.last
    return store


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


@pytest.mark.parametrize("part", [0, 1, -1])
def test_a_flipped_bit_anywhere_costs_at_most_its_block(damaged: Path, tmp_path: Path, part: int) -> None:
    size = segments(damaged)[part].stat().st_size
    draw = random.Random(part)
    for n, at in enumerate(sorted(draw.sample(range(size), 60))):
        copy = tmp_path / f"{n}"
        shutil.copytree(damaged, copy)
        path = segments(copy)[part]
        content = bytearray(path.read_bytes())
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        store = open_store(copy, committed=LAST)
        assert sum(store.evicted.values()) <= 3
        kill(store)
        check(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("part", [0, 1, -1])
def test_a_segment_cut_anywhere_costs_what_was_cut(damaged: Path, tmp_path: Path, part: int) -> None:
    size = segments(damaged)[part].stat().st_size
    for n, at in enumerate(range(0, size, size // 25)):
        copy = tmp_path / f"{n}"
        shutil.copytree(damaged, copy)
        with segments(copy)[part].open("r+b") as file:
            file.truncate(at)
        check(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize("part", [0, 1, -1])
@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xf5SKB" * 100, b"x" * 13])
def test_a_lengthened_segment_loses_nothing(damaged: Path, part: int, tail: bytes) -> None:
    with segments(damaged)[part].open("ab") as file:
        file.write(tail)
    check(damaged, exact=0)


@pytest.mark.parametrize("part", [0, 1, -1])
def test_a_lost_segment_is_counted_exactly(damaged: Path, part: int) -> None:
    paths = segments(damaged)
    firsts = [*(int(p.stem.split("-")[1]) for p in paths), LAST + 1]
    index = paths.index(paths[part])
    paths[index].unlink()
    check(damaged, exact=firsts[index + 1] - max(firsts[index], 6))


def test_all_segments_lost_are_counted_exactly(damaged: Path) -> None:
    for path in segments(damaged):
        path.unlink()
    check(damaged, exact=LAST - 5)


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"\xff" * 8192, None])
def test_a_lost_cursor_costs_repeats_and_no_record(damaged: Path, content: bytes | None) -> None:
    before = open_store(damaged)
    kill(before)
    if content is None:
        (damaged / "cursor").unlink()
    else:
        (damaged / "cursor").write_bytes(content)
    store = open_store(damaged)
    assert store.id != before.id
    assert contents(store) == {n: payload(n) for n in range(1, LAST + 1)}
    check_ledger(store.accepted, store.delivered, store.waiting, store.evicted)


def test_one_damaged_cursor_slot_leaves_the_other(damaged: Path) -> None:
    content = bytearray((damaged / "cursor").read_bytes())
    for slot in (0, 1):
        broken = bytearray(content)
        broken[slot * 4096 + 20] ^= 1
        (damaged / "cursor").write_bytes(broken)
        store = open_store(damaged)
        assert store.upto in (0, 5)
        assert contents(store)[LAST] == payload(LAST)
        check_ledger(store.accepted, store.delivered, store.waiting, store.evicted)
        kill(store)


def test_records_that_rot_while_the_store_is_open_are_skipped_and_counted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 1, LAST, batch=3)
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = contents(store)
    assert 0 < LAST - len(found) <= 3
    check_ledger(store.accepted, store.delivered, store.waiting, store.evicted, lost=LAST - len(found))
    assert store.waiting == store.recount()
    store.receipt(LAST)
    assert store.evicted == {"corrupt": LAST - len(found)}


def test_after_the_tail_was_cut_old_receipts_count_for_nothing(damaged: Path) -> None:
    """Offsets behind the cut are given out again; a new identity tells the uplink so."""
    before = open_store(damaged)
    kill(before)
    with segments(damaged)[-1].open("ab") as file:
        file.write(b"\xf5SKB torn")
    store = open_store(damaged)
    assert store.id != before.id
    assert store.accepted == LAST


def test_records_cannot_pretend_to_be_blocks(tmp_path: Path) -> None:
    from skerry.buffer import blocks
    from skerry.buffer.store import Record

    store = open_store(tmp_path)
    forged = blocks.frame(blocks.RECORDS, 1, 1000, 5, b"").decode("latin-1")
    store.append([Record("p", "e", 1, f'{{"x":"{forged}"}}'.encode()), Record("p", "e", 2, b"{}")])
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[content.rindex(b"{}") + 1] ^= 1  # the block is unsound, so its inside is searched for another
    path.write_bytes(content)
    kill(store)
    assert open_store(tmp_path).last == 0
