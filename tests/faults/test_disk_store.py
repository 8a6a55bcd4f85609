"""The store on a real disk that others fill: at every moment, to the last page."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from oracle import check_ledger
from skerry.buffer.disk import Disk
from skerry.buffer.store import Store
from skerry.errors import Unavailable
from skerry.messages import LANES, Lane
from small_disks import fill, small_disk, wait_free
from unit.buffer.stores import contents, kill, open_store, payload, record

PAGE = 4096
LIMIT = 512 * 1024


class Kept:
    """A store that is appended to, and all that it accepted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seq: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self.refused = 0
        self.store = self._open()

    def _open(self) -> Store:
        return open_store(self.folder, limit=LIMIT, segment=16 * 1024, disk=Disk())

    def append(self, lane: Lane, count: int, size: int) -> bool:
        first = self.seq[lane] + 1
        try:
            self.store.append(lane, [record(first + n, lane, size=size) for n in range(count)])
        except Unavailable:
            self.refused += 1
            return False
        self.seq[lane] += count
        return True

    def drain(self, lane: Lane, share: float) -> None:
        """Read all that waits, see that nothing is missing, and receipt some of it."""
        chain = self.store.chain(lane)
        found = contents(chain)
        wanted = range(chain.upto + 1, self.seq[lane] + 1)
        assert chain.last == self.seq[lane], "offsets and seq go together in this test"
        assert found == {n: payload(n, lane, size=len(found[n]) - 2) for n in wanted}
        upto = chain.upto + int(len(wanted) * share)
        try:
            chain.receipt(upto)
        except Unavailable:
            self.refused += 1
        assert chain.upto == upto, "it counts although the disk is full"

    def check(self) -> None:
        store = self.store
        check_ledger(store.accepted, store.delivered, store.waiting, store.evicted)
        assert store.accepted == sum(self.seq.values())
        assert all(chain.waiting == chain.recount() for chain in store.chains)

    def restart(self, *, killed: bool) -> None:
        if killed:
            kill(self.store)
        else:
            self.store.close()
        self.store = self._open()


def lives(kind: str) -> Iterator[int]:
    """Bytes that are left when the disk is filled."""
    pages = 48 if kind == "tmpfs" else 16
    yield from (n * PAGE * (1 if kind == "tmpfs" else 3) for n in range(pages))


@needs.small_disks
@pytest.mark.parametrize("kind", ["tmpfs", pytest.param("ext4", marks=needs.loop_devices)])
def test_whatever_is_left_on_a_full_disk_nothing_accepted_is_lost_and_draining_goes_on(
    tmp_path: Path, kind
) -> None:
    draw = random.Random(kind)
    refused = 0
    with small_disk(tmp_path / "disk", 4, kind) as disk:
        for number, leave in enumerate(lives(kind)):
            kept = Kept(disk / f"store-{number}")
            for n in range(draw.randrange(0, 24)):
                assert kept.append(LANES[n % 4], draw.randint(1, 8), 300)
            fill(disk / "filler", leave)
            for n in range(40):
                kept.append(LANES[n % 4], draw.randint(1, 8), draw.choice((100, 600, 3000)))
                if n % 10 == 9:
                    kept.drain(draw.choice(LANES), draw.choice((0.0, 0.5, 1.0)))
            for lane in LANES:
                kept.drain(lane, draw.choice((0.0, 0.3, 1.0)))
            kept.check()
            kept.restart(killed=draw.random() < 0.7)
            kept.check()
            (disk / "filler").unlink()
            wait_free(disk, 1 << 20)
            for lane in LANES:
                kept.drain(lane, 0.0)
                assert kept.append(lane, 5, 300), "there is room again"
                kept.drain(lane, 1.0)
            kept.check()
            refused += kept.refused
            kept.store.close()
            for path in kept.folder.iterdir():
                path.unlink()
    assert refused > 100, "the disk was full"
