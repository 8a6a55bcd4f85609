"""The store: a chain of records a lane, in one folder, within one bound.

The files, besides those of the chains (`skerry.buffer.chain`):

    lock       held (flock) by the process that has the store open
    free-N     files for the segments to come (`skerry.buffer.pool`)
    *.tmp      drafts, removed at the next start
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from skerry.buffer import segment
from skerry.buffer.blocks import Stamp
from skerry.buffer.chain import Batch, Chain
from skerry.buffer.disk import Disk, StoreFault, StoreFull, fault
from skerry.buffer.gaps import Hole
from skerry.buffer.pool import Pool
from skerry.buffer.records import Record
from skerry.buffer.seal import Seal
from skerry.buffer.settings import LaneSettings
from skerry.errors import Unavailable
from skerry.messages import LANES, Lane

__all__ = ["SEGMENT_BYTES", "Batch", "Chain", "Hole", "Record", "Store", "StoreFault", "StoreFull"]

SEGMENT_BYTES = 8 * 1024 * 1024
_SHARE = 16
"""A segment is at most this part of the limit, so that every lane can have its two and some are left."""
_RESERVE = 2
"""Segments that each lane finds room for, whatever the lower lanes hold."""
_SMALL = 128 * 1024
"""Bytes of cursors, gap files and drafts, generously."""


class Store:
    """Four chains in a folder. Made by `Store.open`; not thread-safe."""

    def __init__(
        self, folder: Path, *, limit_bytes: int, segment_bytes: int, lanes: Mapping[Lane, LaneSettings],
        seal: Seal, disk: Disk, stamp: Callable[[], Stamp], draw: Callable[[], str], lock: int,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.disk = disk
        self.seal = seal
        self.stamp = stamp
        self.draw = draw
        self.pool = Pool(folder, disk, segment_bytes)
        self._limit = limit_bytes
        self._lanes = {lane: lanes.get(lane, LaneSettings()) for lane in LANES}
        self._lock = lock
        self._number = 0  # of the segment begun last
        self._chains = {lane: Chain(self, lane) for lane in LANES}

    @classmethod
    def open(
        cls, folder: Path, *, limit_bytes: int, stamp: Callable[[], Stamp],
        segment_bytes: int = SEGMENT_BYTES, lanes: Mapping[Lane, LaneSettings] | None = None,
        seal: Seal | None = None, committed: Mapping[Lane, int] | None = None, disk: Disk | None = None,
        draw: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> Store:  # fmt: skip
        """Open a store, or make one; whatever is damaged in it is skipped, counted and named in the log.

        Args:
            folder: holds the store and nothing else; made if missing.
            limit_bytes: bound of the bytes on disk.
            stamp: the clocks, kept with each commit.
            segment_bytes: size of a file; at most a sixteenth of `limit_bytes` is used.
            lanes: what is particular to a lane.
            seal: how blocks are written and read; as they are when None.
            committed: last offsets known from elsewhere; records up to them that are missing count as lost.
            disk: the file system.
            draw: a fresh identity.

        Raises:
            Unavailable: the folder cannot be used, or another process has the store open.
            ConfigError: it is encrypted, and the key was not given.
        """
        lock = _locked(folder)
        store = cls(
            folder, limit_bytes=limit_bytes, segment_bytes=min(segment_bytes, limit_bytes // _SHARE),
            lanes=lanes or {}, seal=seal or Seal(), disk=disk or Disk(), stamp=stamp, draw=draw, lock=lock,
        )  # fmt: skip
        try:
            store._recover(committed or {})
        except OSError as error:
            store.close()
            raise fault(folder, error) from error
        except BaseException:
            store.close()
            raise
        return store

    def _recover(self, committed: Mapping[Lane, int]) -> None:
        for draft in self.folder.glob("*.tmp"):
            self.disk.unlink(draft)
        self.pool.load()
        self._number = max(segment.highest(self.folder), self.pool.highest())
        for lane, chain in self._chains.items():
            chain.recover(committed.get(lane, 0))
        self._keep_limits()

    def adjust(self, lanes: Mapping[Lane, LaneSettings]) -> None:
        """Go by other settings of the lanes. Where a limit is lower now, what is beyond it is given up.

        Raises:
            OSError: the disk failed before all of it was; the next `append` goes on with it.
        """
        self._lanes = {lane: lanes.get(lane, LaneSettings()) for lane in LANES}
        self._keep_limits()

    def _keep_limits(self) -> None:
        """Have all lanes within limits that may be lower than they were."""
        for lane in LANES:
            try:
                self._keep_limit(lane, 0)
                self._keep_total(LANES, self._limit)
            except StoreFull:
                continue  # what blocks keeps what it has

    def close(self) -> None:
        """Make the cursors durable and let go of the folder."""
        if self._lock < 0:
            return
        for chain in self._chains.values():
            chain.close()
        self.pool.close()
        os.close(self._lock)
        self._lock = -1

    # What it holds

    def chain(self, lane: Lane) -> Chain:
        """The chain of a lane."""
        return self._chains[lane]

    @property
    def chains(self) -> tuple[Chain, ...]:
        """All of them, the highest lane first."""
        return tuple(self._chains[lane] for lane in LANES)

    @property
    def accepted(self) -> int:
        """Records ever taken."""
        return sum(c.accepted for c in self.chains)

    @property
    def delivered(self) -> int:
        """Records that the far end confirmed, ever."""
        return sum(c.delivered for c in self.chains)

    @property
    def waiting(self) -> int:
        """Records on disk that it has not confirmed."""
        return sum(c.waiting for c in self.chains)

    @property
    def stated(self) -> int:
        """Records that the buffer itself added, ever."""
        return sum(c.stated for c in self.chains)

    @property
    def evicted(self) -> dict[str, int]:
        """Records lost, ever, by reason."""
        total: Counter[str] = Counter()
        for chain in self.chains:
            total.update(chain.evicted)
        return dict(total)

    @property
    def bytes_on_disk(self) -> int:
        """Of all files of the store, at most."""
        return sum(c.space for c in self.chains) + self.pool.space + _SMALL

    # What it does

    def append(self, lane: Lane, records: Sequence[Record], *, times: bool = False) -> int:
        """Keep records in a lane; see `Chain.append`."""
        return self._chains[lane].append(records, times=times)

    def number(self) -> int:
        """A number for a segment, which no block in any file of the store has."""
        self._number += 1
        return self._number

    def prepare(self) -> bool:
        """Use a free moment to write files ahead; whether there is more to do."""
        return self.pool.prepare()

    def make_room(self, lane: Lane, space: int) -> None:
        """Have `space` bytes more for a lane within its limit and the store's.

        Older records are given up for it: the lane's own where its limit is reached, else those of the
        lowest lane that holds any, as far as these lanes evict. A lower lane leaves room for two
        segments of each higher one.

        Raises:
            StoreFull: there is none.
            OSError: the disk failed, or is too full to keep a gap record.
        """
        self._keep_limit(lane, space)
        rank = LANES.index(lane)
        kept = sum(max(_RESERVE * self.pool.size - self._chains[above].space, 0) for above in LANES[:rank])
        self._keep_total(LANES[rank:], self._limit - kept - space)

    def _keep_limit(self, lane: Lane, space: int) -> None:
        """Have a lane, and `space` bytes more, within its own limit."""
        chain, limit = self._chains[lane], self._lanes[lane].limit_bytes
        while limit and chain.space + space > max(limit, _RESERVE * self.pool.size):
            self._evict([lane], f"the lane {lane} has reached its limit of {limit} bytes")

    def _keep_total(self, lanes: Sequence[Lane], limit: int) -> None:
        """Have the store within a limit, at the cost of these lanes, the last one first."""
        while self.bytes_on_disk > limit:
            self._evict(lanes[::-1], f"the limit of {self._limit} bytes is reached")

    def _evict(self, lanes: Sequence[Lane], why: str) -> None:
        for lane in lanes:
            if self._lanes[lane].when_full == "evict" and self._chains[lane].evictable:
                self._chains[lane].evict()
                return
        raise StoreFull(
            f"{self.folder}: {why} (nothing accepted is lost; it goes on when some was delivered)"
        )


def _locked(folder: Path) -> int:
    """The folder, made if missing, and the lock on it.

    Raises:
        Unavailable: it cannot be made, or another process holds it.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise fault(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise Unavailable(
            f"{folder}: the store is open in another process (stop it, or use another folder)"
        ) from error
    return lock
