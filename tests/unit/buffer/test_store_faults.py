"""The log on a disk that is full or failing: nothing accepted is lost, nothing refused is kept."""

import contextlib
import errno
from pathlib import Path

import pytest

from disks import FailingDisk
from oracle import check_ledger
from skerry.buffer.store import Store, StoreFault, StoreFull
from skerry.errors import Unavailable
from unit.buffer.stores import contents, kill, open_store, payload, record

CALLS = ("create", "write", "truncate", "sync", "rename", "unlink", "sync_folder")


def drive(store: Store, disk: FailingDisk, upto: int) -> int:
    """Append one at a time as a producer does, repeating what was not accepted; how often that was."""
    refused = 0
    while store.last < upto:
        seq = (store.watermark("p", "e") or 0) + 1
        try:
            store.append([record(seq)])
        except Unavailable:
            refused += 1
            assert refused < 1000
            assert store.watermark("p", "e") in (seq - 1, None)
        if seq % 10 == 0 and seq - 15 > store.upto:
            try:
                store.receipt(seq - 15)
            except Unavailable:
                refused += 1
    return refused


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fails_for", [1, 3])
def test_any_call_may_fail_at_any_time(tmp_path: Path, call: str, code: int, fails_for: int) -> None:
    plain = FailingDisk()
    store = open_store(tmp_path / "plain", disk=plain)
    drive(store, plain, 120)
    total = plain.calls.get(call, 0)
    store.close()
    # Each moment for the rare calls, a sample of the frequent ones; the calls of `open` are another test's.
    opening = FailingDisk()
    open_store(tmp_path / "opening", disk=opening).close()
    for nth in range(opening.calls.get(call, 0) + 1, total + 1, max(total // 12, 1)):
        folder = tmp_path / f"{nth}"
        disk = FailingDisk(
            lambda name, n, nth=nth: code if name == call and nth <= n < nth + fails_for else 0
        )
        store = open_store(folder, disk=disk)
        drive(store, disk, 120)
        for again in (store, None):
            current = again or open_store(folder)
            assert contents(current) == {n: payload(n) for n in range(current.upto + 1, 121)}
            check_ledger(current.accepted, current.delivered, current.waiting, current.evicted)
            assert current.waiting == current.recount()
            kill(current)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_opening_fails_clearly_and_works_afterwards(tmp_path: Path, call: str, code: int) -> None:
    store = open_store(tmp_path)
    for n in range(1, 101):
        store.append([record(n)])
    store.receipt(30)
    kill(store)
    for nth in range(1, 6):
        disk = FailingDisk(lambda name, n, nth=nth: code if name == call and n == nth else 0)
        try:
            store = open_store(tmp_path, disk=disk)
        except StoreFull:
            assert code == errno.ENOSPC
        except StoreFault:
            assert code == errno.EIO
        else:
            kill(store)
    store = open_store(tmp_path)
    assert contents(store) == {n: payload(n) for n in range(31, 101)}
    check_ledger(store.accepted, store.delivered, store.waiting, store.evicted)


def test_a_full_disk_refuses_and_a_failing_one_says_so(tmp_path: Path) -> None:
    disk = FailingDisk()
    store = open_store(tmp_path, disk=disk)
    disk.fails = lambda name, _: errno.ENOSPC if name == "write" else 0
    size = store.bytes_on_disk
    with pytest.raises(StoreFull, match="the disk is full"):
        store.append([record(1)])
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) == size, "half a block was left behind"
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault, match="the disk failed: Input/output error"):
        store.append([record(1)])
    disk.fails = lambda *_: 0
    assert store.append([record(1)]) == 1


def test_after_a_failed_flush_the_file_is_never_written_again(tmp_path: Path) -> None:
    """The kernel may call pages clean that it never wrote; only a new file is to be trusted."""
    disk = FailingDisk()
    store = open_store(tmp_path, disk=disk)
    for n in range(1, 6):
        store.append([record(n)])
    store.receipt(2)
    old = next(tmp_path.glob("*.segment"))
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault):
        store.append([record(6)])
    disk.fails = lambda *_: 0
    store.append([record(6)])
    assert not old.exists()
    kill(store)
    assert contents(open_store(tmp_path)) == {n: payload(n) for n in range(3, 7)}


def test_a_kill_between_rewriting_and_removing_leaves_each_record_once(tmp_path: Path) -> None:
    disk = FailingDisk()
    store = open_store(tmp_path, disk=disk)
    for n in range(1, 6):
        store.append([record(n)])
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault):
        store.append([record(6)])
    old = next(tmp_path.glob("*.segment"))
    abandoned = old.read_bytes()
    disk.fails = lambda *_: 0
    store.append([record(6)])
    kill(store)
    old.write_bytes(abandoned)  # as if the process had been killed just before it was removed
    again = open_store(tmp_path)
    assert contents(again) == {n: payload(n) for n in range(1, 7)}
    check_ledger(again.accepted, again.delivered, again.waiting, again.evicted)


def test_a_drained_store_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    """One growing segment may be all there is: it has to go, and what it knew of producers must stay."""
    disk = FailingDisk()
    store = open_store(tmp_path, limit=1 << 20, segment=256 * 1024, disk=disk)

    def full(name: str, _: int) -> int:
        used = sum(p.stat().st_size for p in tmp_path.iterdir())
        grows = name == "write" and disk.target != "cursor"
        return errno.ENOSPC if grows and used > 20_000 else 0

    disk.fails = full
    n = 0
    with contextlib.suppress(StoreFull):
        while n < 1000:
            store.append([record(n + 1)])
            n += 1
    assert contents(store) == {k: payload(k) for k in range(1, n + 1)}
    with pytest.raises(StoreFull):
        store.append([record(n + 1)])
    store.receipt(n)
    assert store.append([record(n + 1)]) == n + 1
    kill(store)
    again = open_store(tmp_path, limit=1 << 20, segment=256 * 1024)
    assert again.watermark("p", "e") == n + 1
    check_ledger(again.accepted, again.delivered, again.waiting, again.evicted)
