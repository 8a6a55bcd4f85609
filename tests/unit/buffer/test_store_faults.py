"""The log on a disk that is full or failing: nothing accepted is lost, nothing refused is kept."""

import contextlib
import errno
from pathlib import Path

import pytest

from disks import FailingDisk
from oracle import check_ledger
from skerry.buffer.chain import Chain
from skerry.buffer.disk import StoreFault, StoreFull
from skerry.errors import Unavailable
from unit.buffer.stores import contents, fill, kill, open_chain, open_store, payload, record

CALLS = ("create", "write", "truncate", "sync", "rename", "unlink", "sync_folder")


def drive(chain: Chain, upto: int) -> int:
    """Append one at a time as a producer does, repeating what was not accepted; how often that was."""
    refused = 0
    while chain.last < upto:
        seq = (chain.watermark("p", "e") or 0) + 1
        try:
            chain.append([record(seq)])
        except Unavailable:
            refused += 1
            assert refused < 1000
            assert chain.watermark("p", "e") in (seq - 1, None)
        if seq % 10 == 0 and seq - 15 > chain.upto:
            try:
                chain.receipt(seq - 15)
            except Unavailable:
                refused += 1
    return refused


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fails_for", [1, 3])
def test_any_call_may_fail_at_any_time(tmp_path: Path, call: str, code: int, fails_for: int) -> None:
    plain = FailingDisk()
    store, chain = open_chain(tmp_path / "plain", disk=plain)
    drive(chain, 120)
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
        store, chain = open_chain(folder, disk=disk)
        drive(chain, 120)
        for _ in range(2):
            assert contents(chain) == {n: payload(n) for n in range(chain.upto + 1, 121)}
            check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)
            assert chain.waiting == chain.recount()
            kill(store)
            store, chain = open_chain(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", CALLS)
def test_opening_fails_clearly_and_works_afterwards(tmp_path: Path, call: str, code: int) -> None:
    store, chain = open_chain(tmp_path)
    for n in range(1, 101):
        chain.append([record(n)])
    chain.receipt(30)
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
    store, chain = open_chain(tmp_path)
    assert contents(chain) == {n: payload(n) for n in range(31, 101)}
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)


def test_a_full_disk_refuses_and_a_failing_one_says_so(tmp_path: Path) -> None:
    disk = FailingDisk()
    _, chain = open_chain(tmp_path, disk=disk)
    disk.fails = lambda name, _: errno.ENOSPC if name == "write" else 0
    before = sum(p.stat().st_size for p in tmp_path.iterdir())
    with pytest.raises(StoreFull, match="the disk is full"):
        chain.append([record(1)])
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) == before, "half a file was left behind"
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault, match="the disk failed: Input/output error"):
        chain.append([record(1)])
    disk.fails = lambda *_: 0
    assert chain.append([record(1)]) == 1


def test_after_a_failed_flush_the_file_is_never_written_again(tmp_path: Path) -> None:
    """The kernel may call pages clean that it never wrote; only a new file is to be trusted."""
    disk = FailingDisk()
    store, chain = open_chain(tmp_path, disk=disk)
    for n in range(1, 6):
        chain.append([record(n)])
    chain.receipt(2)
    old = next(tmp_path.glob("*.segment"))
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault):
        chain.append([record(6)])
    disk.fails = lambda *_: 0
    chain.append([record(6)])
    assert not old.exists()
    kill(store)
    assert contents(open_chain(tmp_path)[1]) == {n: payload(n) for n in range(3, 7)}


def test_a_kill_between_rewriting_and_removing_leaves_each_record_once(tmp_path: Path) -> None:
    disk = FailingDisk()
    store, chain = open_chain(tmp_path, disk=disk)
    for n in range(1, 6):
        chain.append([record(n)])
    disk.fails = lambda name, _: errno.EIO if name == "sync" else 0
    with pytest.raises(StoreFault):
        chain.append([record(6)])
    old = next(tmp_path.glob("*.segment"))
    abandoned = old.read_bytes()
    disk.fails = lambda *_: 0
    chain.append([record(6)])
    kill(store)
    old.write_bytes(abandoned)  # as if the process had been killed just before it was removed
    _, again = open_chain(tmp_path)
    assert contents(again) == {n: payload(n) for n in range(1, 7)}
    check_ledger(again.accepted, again.delivered, again.waiting, again.evicted)


def test_a_drained_store_goes_on_on_a_full_disk(tmp_path: Path) -> None:
    """No new file can be made: those that were delivered have to serve again."""
    disk = FailingDisk()
    store, chain = open_chain(tmp_path, disk=disk)
    for n in range(1, 31):
        chain.append([record(n)])
    while store.prepare():
        pass
    disk.fails = lambda name, _: errno.ENOSPC if name == "create" else 0
    n = 31
    with contextlib.suppress(StoreFull):
        while n < 1000:
            chain.append([record(n)])
            n += 1
    assert n < 1000
    assert contents(chain) == {k: payload(k) for k in range(1, n)}
    for _ in range(300):
        chain.receipt(chain.last)
        chain.append([record(n)])
        n += 1
    kill(store)
    store, chain = open_chain(tmp_path)
    assert chain.watermark("p", "e") == n - 1
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted)


def test_a_gap_that_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    """Nothing is given up on a disk too full for the record that says so."""
    disk = FailingDisk()
    store, chain = open_chain(tmp_path, disk=disk)
    n = 1
    while not chain.evicted:
        chain.append([record(n)])
        n += 1
    disk.fails = lambda name, _: errno.ENOSPC if name == "create" else 0
    before = chain.evicted
    with pytest.raises(StoreFull):
        fill(chain, n, n + 100)
    assert chain.evicted == before
    disk.fails = lambda *_: 0
    chain.append([record(chain.last + 1)])
    check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=None)
    kill(store)
