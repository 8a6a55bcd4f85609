"""A power cut at any step of the store leaves all that was promised.

The disk of these tests remembers every write, flush, rename and removal, and shows what POSIX allows
to be left after any of them: unflushed writes gone or torn at a sector, names as they were. A kill -9
cannot show this: the page cache outlives it. The classic mistakes below prove that the test can fail.
"""

import random
from pathlib import Path
from typing import Any

import pytest

from disks import RecordedDisk
from oracle import check_ledger
from skerry.buffer.store import Store
from unit.buffer.stores import contents, kill, open_store, payload, record

CUTS = 400


def work(store: Store, disk: RecordedDisk, draw: random.Random, steps: int) -> None:
    """Appends and receipts, each noted once it is promised."""
    for _ in range(steps):
        seq = (store.watermark("p", "e") or 0) + 1
        if draw.random() < 0.75:
            count = draw.choice((1, 1, 5, 20))
            store.append([record(n, size=draw.choice((60, 60, 400))) for n in range(seq, seq + count)])
        elif store.waiting:
            store.receipt(draw.choice((store.last, draw.randint(store.upto + 1, store.last))))
        disk.note((store.last, store.watermark("p", "e")))


def check(folder: Path, facts: list[Any]) -> Store:
    """Nothing promised is lost."""
    store = open_store(folder)
    last, watermark = facts[-1] if facts else (0, None)
    found = contents(store)
    assert store.last >= last, f"{last} were accepted, {store.last} are known"
    assert (store.watermark("p", "e") or 0) >= (watermark or 0)
    assert all(_same(found[n], n) for n in found)
    assert list(found) == list(range(store.upto + 1, store.last + 1)), "there is a hole"
    assert "corrupt" not in store.evicted
    check_ledger(
        store.accepted, store.delivered, store.waiting, store.evicted, lost=store.evicted.get("capacity", 0)
    )
    return store


def _same(content: bytes, seq: int) -> bool:
    return content in (payload(seq), payload(seq, size=400))


def search(tmp_path: Path, kind: type[RecordedDisk], cuts: int, seed: int) -> None:
    """Cut at random steps, twice in a row: recovery can be cut as well."""
    draw = random.Random(seed)
    first = tmp_path / "first"
    first.mkdir()
    disk = kind(first)
    store = open_store(first, disk=disk, limit=48 * 1024)
    work(store, disk, draw, 120)
    kill(store)
    for n in range(cuts):
        folder = tmp_path / f"cut-{n}"
        facts = disk.cut(draw.randint(0, len(disk.steps)), draw, folder)
        if n % 3:
            kill(check(folder, facts))
            continue
        again = kind(folder)
        store = open_store(folder, disk=again, limit=48 * 1024)
        work(store, again, draw, 10)
        kill(store)
        twice = tmp_path / f"cut-{n}-again"
        facts += again.cut(draw.randint(0, len(again.steps)), draw, twice)
        kill(check(twice, facts))


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_loses_nothing_accepted(tmp_path: Path, seed: int) -> None:
    search(tmp_path, RecordedDisk, CUTS, seed)


class Killed(BaseException):
    """The process ends here."""


class KillBeforeFlush(RecordedDisk):
    """Kills the process between a write and its flush, once `armed`."""

    armed = False

    def sync(self, file: int) -> None:
        if self.armed:
            raise Killed
        super().sync(file)


def test_what_a_killed_process_left_in_the_page_cache_is_flushed_before_it_counts(tmp_path: Path) -> None:
    """Its successor finds a sound block that may be nowhere else; then the power is cut."""
    first = tmp_path / "first"
    first.mkdir()
    disk = KillBeforeFlush(first)
    store = open_store(first, disk=disk)
    store.append([record(1)])
    disk.armed = True
    with pytest.raises(Killed):
        store.append([record(2)])
    kill(store)
    disk.armed = False
    store = open_store(first, disk=disk)
    assert store.watermark("p", "e") == 2
    disk.note((store.last, 2))
    kill(store)
    draw = random.Random(1)
    for n in range(20):
        folder = tmp_path / f"{n}"
        kill(check(folder, disk.cut(len(disk.steps), draw, folder)))


class NoFlush(RecordedDisk):
    """Accepts before the disk has it."""

    def sync(self, file: int) -> None:
        pass


class NoFolderFlush(RecordedDisk):
    """Forgets that a new name is not durable with its content."""

    def sync_folder(self, folder: Path) -> None:
        pass


class RenameBeforeFlush(RecordedDisk):
    """Gives a file its name before its content is durable."""

    def write_file(self, path: Path, content: bytes) -> int:
        draft = path.with_name(f"{path.name}.tmp")
        self.unlink(draft)
        file = self.create(draft)
        self.write(file, content, 0)
        self.rename(draft, path)
        self.sync_folder(path.parent)
        return file


@pytest.mark.parametrize("mistake", [NoFlush, NoFolderFlush, RenameBeforeFlush])
def test_the_classic_mistakes_are_caught(tmp_path: Path, mistake: type[RecordedDisk]) -> None:
    with pytest.raises(AssertionError, match=r"were accepted|is a hole|corrupt|assert"):
        search(tmp_path, mistake, CUTS, 0)
