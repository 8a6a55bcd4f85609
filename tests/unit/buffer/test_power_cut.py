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
from skerry.buffer.chain import Chain
from skerry.buffer.store import Store
from unit.buffer.stores import contents, holes, kill, open_chain, payload, record

CUTS = 400
LIMIT = 160 * 1024
"""Six segments or so: some are evicted."""


def work(chain: Chain, disk: RecordedDisk, draw: random.Random, steps: int) -> None:
    """Appends and receipts, each noted once it is promised."""
    for _ in range(steps):
        seq = (chain.watermark("p", "e") or 0) + 1
        if draw.random() < 0.75:
            count = draw.choice((1, 1, 5, 20))
            chain.append([record(n, size=draw.choice((60, 60, 400))) for n in range(seq, seq + count)])
        elif chain.waiting:
            chain.receipt(draw.choice((chain.last, draw.randint(chain.upto + 1, chain.last))))
        disk.note((chain.last, chain.watermark("p", "e")))


def check(folder: Path, facts: list[Any]) -> Store:
    """Nothing promised is lost."""
    store, chain = open_chain(folder, limit=LIMIT)
    last, watermark = facts[-1] if facts else (0, None)
    found = contents(chain)
    assert chain.last >= last, f"{last} were accepted, {chain.last} are known"
    assert (chain.watermark("p", "e") or 0) >= (watermark or 0)
    assert all(_same(found[n], n) for n in found)
    told = [n for a, b, _ in holes(chain) for n in range(max(a, chain.upto + 1), b + 1)]
    assert sorted([*told, *found]) == list(range(chain.upto + 1, chain.last + 1)), "there is a hole"
    assert "corrupt" not in chain.evicted
    check_ledger(
        chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=chain.evicted.get("capacity", 0)
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
    store, chain = open_chain(first, disk=disk, limit=LIMIT)
    work(chain, disk, draw, 120)
    kill(store)
    for n in range(cuts):
        folder = tmp_path / f"cut-{n}"
        facts = disk.cut(draw.randint(0, len(disk.steps)), draw, folder)
        if n % 3:
            kill(check(folder, facts))
            continue
        again = kind(folder)
        store, chain = open_chain(folder, disk=again, limit=LIMIT)
        work(chain, again, draw, 10)
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
    store, chain = open_chain(first, disk=disk, limit=LIMIT)
    chain.append([record(1)])
    disk.armed = True
    with pytest.raises(Killed):
        chain.append([record(2)])
    kill(store)
    disk.armed = False
    store, chain = open_chain(first, disk=disk, limit=LIMIT)
    assert chain.watermark("p", "e") == 2
    disk.note((chain.last, 2))
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

    def sync(self, file: int) -> None:
        name = next(name for name, number in self._names.items() if number == self._files[file])
        if not name.startswith("free") and not name.endswith(".tmp"):
            super().sync(file)


@pytest.mark.parametrize("mistake", [NoFlush, NoFolderFlush, RenameBeforeFlush])
def test_the_classic_mistakes_are_caught(tmp_path: Path, mistake: type[RecordedDisk]) -> None:
    with pytest.raises(AssertionError, match=r"were accepted|is a hole|corrupt|assert"):
        search(tmp_path, mistake, CUTS, 0)
