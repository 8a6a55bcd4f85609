"""The log after bits flipped, files were cut, lengthened or lost: it opens, and counts what is gone."""

import random
import shutil
from pathlib import Path

import pytest

from oracle import check_ledger
from skerry.buffer.chain import Chain
from unit.buffer.stores import contents, fill, holes, kill, open_chain, payload, record

LAST = 100


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A store of 100 records in four segments, 5 of them delivered, as a killed process left it."""
    folder = tmp_path / "store"
    store, chain = open_chain(folder)
    fill(chain, 1, LAST, batch=3)
    chain.receipt(5)
    kill(store)
    return folder


def check(folder: Path, exact: int | None = None) -> Chain:
    """It opens, what is readable is right, and all the rest is counted, and told, once."""
    lost = -1
    for _ in range(2):
        store, chain = open_chain(folder, committed=LAST)
        found = contents(chain)
        assert all(found[n] == payload(n) for n in found)
        assert chain.accepted == LAST
        assert chain.waiting == len(found) == chain.recount()
        gone = sum(chain.evicted.values())
        told = [n for first, last, _ in holes(chain) for n in range(first, last + 1)]
        assert sorted([*found, *told]) == list(range(chain.upto + 1, LAST + 1))
        check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=gone)
        assert lost in (-1, gone), "counted differently the second time"
        lost = gone
        kill(store)
    assert exact is None or lost == exact
    store, chain = open_chain(folder, committed=LAST)
    fill(chain, (chain.watermark("p", "e") or 0) + 1, LAST + 30)
    assert max(contents(chain)) == chain.last
    return chain


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
        store, chain = open_chain(copy, committed=LAST)
        assert sum(chain.evicted.values()) <= 3
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
    firsts = [*(int(p.stem.split("-")[2]) for p in paths), LAST + 1]
    index = paths.index(paths[part])
    paths[index].unlink()
    check(damaged, exact=firsts[index + 1] - max(firsts[index], 6))


def test_all_segments_lost_are_counted_exactly(damaged: Path) -> None:
    for path in segments(damaged):
        path.unlink()
    check(damaged, exact=LAST - 5)


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"\xff" * 8192, None])
def test_a_lost_cursor_costs_repeats_and_no_record(damaged: Path, content: bytes | None) -> None:
    if content is None:
        (damaged / "event.cursor").unlink()
    else:
        (damaged / "event.cursor").write_bytes(content)
    _store, chain = open_chain(damaged)
    assert contents(chain) == {n: payload(n) for n in range(1, LAST + 1)}
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)


def test_one_damaged_cursor_slot_leaves_the_other(damaged: Path) -> None:
    content = bytearray((damaged / "event.cursor").read_bytes())
    for slot in (0, 1):
        broken = bytearray(content)
        broken[slot * 4096 + 20] ^= 1
        (damaged / "event.cursor").write_bytes(broken)
        store, chain = open_chain(damaged)
        assert chain.upto in (0, 5)
        assert contents(chain)[LAST] == payload(LAST)
        check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)
        kill(store)


def test_records_that_rot_while_the_store_is_open_are_skipped_and_counted(tmp_path: Path) -> None:
    _store, chain = open_chain(tmp_path)
    fill(chain, 1, LAST, batch=3)
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = contents(chain)
    assert 0 < LAST - len(found) <= 3
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=LAST - len(found))
    assert chain.waiting == chain.recount()
    chain.receipt(LAST)
    assert chain.evicted == {"corrupt": LAST - len(found)}


LARGE = 40_000
"""Two such records are a commit of two blocks."""


def torn(tmp_path: Path) -> Path:
    """A store killed in the middle of a commit: its first block did not reach the disk, its second did."""
    folder = tmp_path / "torn"
    store, chain = open_chain(folder, segment=1 << 20, limit=32 << 20)
    fill(chain, 1, 3, batch=3)
    path, start = chain._segments[-1].path, chain._segments[-1].size
    before = path.read_bytes()
    chain.append([record(4, size=LARGE), record(5, size=LARGE)])
    kill(store)
    content = bytearray(path.read_bytes())
    content[start : start + 4096] = before[start : start + 4096]
    path.write_bytes(content)
    return folder


def test_half_a_commit_that_was_never_accepted_does_not_count(tmp_path: Path) -> None:
    store, chain = open_chain(torn(tmp_path), segment=1 << 20, limit=32 << 20)
    assert (chain.last, chain.watermark("p", "e"), chain.evicted) == (3, 3, {})
    chain.append([record(4)])
    kill(store)
    store, chain = open_chain(torn(tmp_path / "again"), segment=1 << 20, limit=32 << 20)
    chain.append([record(4)])
    kill(store)
    _, chain = open_chain(tmp_path / "again" / "torn", segment=1 << 20, limit=32 << 20)
    assert contents(chain) == {n: payload(n) for n in range(1, 5)}, "the rest of the torn commit came back"
    assert not chain.evicted


def test_half_a_commit_that_was_accepted_is_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    _, chain = open_chain(torn(tmp_path), committed=5, segment=1 << 20, limit=32 << 20)
    assert sorted(contents(chain)) == [1, 2, 3, 5]
    assert holes(chain) == [(4, 4, "corrupt")]


def test_records_cannot_pretend_to_be_blocks(tmp_path: Path) -> None:
    from skerry.buffer import blocks
    from skerry.buffer.records import Record
    from skerry.buffer.seal import Seal

    store, chain = open_chain(tmp_path)
    forged = blocks.frame(Seal(), blocks.RECORDS, segment=1, first=1000, count=5, body=b"").decode("latin-1")
    chain.append([Record("p", "e", 1, f'{{"x":"{forged}"}}'.encode()), Record("p", "e", 2, b"{}")])
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[content.rindex(b"{}") + 1] ^= 1  # the block is unsound, so its inside is searched for another
    path.write_bytes(content)
    kill(store)
    assert open_chain(tmp_path)[1].last == 0
