"""Small stores for tests."""

import os
from collections.abc import Mapping
from pathlib import Path

from disks import QuickDisk
from skerry.buffer.blocks import Stamp
from skerry.buffer.chain import Chain
from skerry.buffer.disk import Disk
from skerry.buffer.gaps import Hole
from skerry.buffer.seal import Seal
from skerry.buffer.settings import LaneSettings
from skerry.buffer.store import Record, Store
from skerry.messages import Lane

opened: list[Store] = []
"""Not closed so far; `conftest.py` sees to it."""
SEGMENT = 4096
LIMIT = 256 * 1024


def open_store(
    folder: Path, *, limit: int = LIMIT, segment: int = SEGMENT, committed: Mapping[Lane, int] | None = None,
    disk: Disk | None = None, lanes: Mapping[Lane, LaneSettings] | None = None, seal: Seal | None = None,
    synchronised: bool = True,
) -> Store:  # fmt: skip
    """A store whose segments hold a few dozen records."""
    store = Store.open(
        folder, limit_bytes=limit, segment_bytes=segment, committed=committed, lanes=lanes, seal=seal,
        disk=disk or QuickDisk(),
        stamp=lambda: Stamp("boot", 1, 2, synchronised),
    )  # fmt: skip
    opened.append(store)
    return store


def open_chain(folder: Path, *, committed: int = 0, **options) -> tuple[Store, Chain]:
    """A store, and its chain for events."""
    store = open_store(folder, committed={"event": committed}, **options)
    return store, store.chain("event")


def record(seq: int, producer: str = "p", epoch: str = "e", size: int = 60) -> Record:
    """A record whose payload says which it is."""
    return Record(producer, epoch, seq, payload(seq, producer, epoch, size))


def payload(seq: int, producer: str = "p", epoch: str = "e", size: int = 60) -> bytes:
    return f'{{"{producer}/{epoch}":{seq},"x":"'.encode().ljust(size, b"x") + b'"}'


def fill(chain: Chain, first: int, last: int, batch: int = 1) -> None:
    """Append the records `first` to `last` of one producer."""
    for start in range(first, last + 1, batch):
        chain.append([record(n) for n in range(start, min(start + batch, last + 1))])


def contents(chain: Chain, first: int = 1) -> dict[int, bytes]:
    """Everything that can be read, by offset."""
    found: dict[int, bytes] = {}
    while (batch := chain.read(first, 7, 1000)) is not None:
        if not isinstance(batch, Hole):
            found.update({batch.first + n: content for n, content in enumerate(batch.payloads)})
        first = batch.last + 1
    return found


def holes(chain: Chain) -> list[tuple[int, int, str]]:
    """(first, last, reason) of everything that is told to be missing."""
    found, first = [], 1
    while (batch := chain.read(first, 7, 1000)) is not None:
        if isinstance(batch, Hole):
            found.append((batch.first, batch.last, batch.reason))
        first = batch.last + 1
    return found


def kill(store: Store) -> None:
    """Let go of every file without writing anything, as a killed process does."""
    if store._lock < 0:
        return
    files = [store._lock, store.pool._draft[1] if store.pool._draft else None]
    for chain in store.chains:
        chain._reader.forget()
        files += [chain._file, chain._cursor._file]
        chain._file, chain._cursor._file = -1, None
    for file in files:
        if file is not None and file >= 0:
            os.close(file)
    store._lock = -1
