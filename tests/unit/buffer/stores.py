"""Small stores for tests."""

import os
from pathlib import Path

from disks import QuickDisk
from skerry.buffer.blocks import Stamp
from skerry.buffer.disk import Disk
from skerry.buffer.store import Record, Store

opened: list[Store] = []
"""Not closed so far; `conftest.py` sees to it."""
SEGMENT = 4096
SPARE = 4096
LIMIT = 64 * 1024


def open_store(
    folder: Path, *, limit: int = LIMIT, segment: int = SEGMENT, spare: int = SPARE,
    committed: int = 0, disk: Disk | None = None,
) -> Store:  # fmt: skip
    """A store whose segments hold a few dozen records."""
    store = Store.open(
        folder, limit_bytes=limit, segment_bytes=segment, spare_bytes=spare, committed=committed,
        disk=disk or QuickDisk(),
        stamp=lambda: Stamp("boot", 1, 2),
    )  # fmt: skip
    opened.append(store)
    return store


def record(seq: int, producer: str = "p", epoch: str = "e", size: int = 60) -> Record:
    """A record whose payload says which it is."""
    return Record(producer, epoch, seq, payload(seq, producer, epoch, size))


def payload(seq: int, producer: str = "p", epoch: str = "e", size: int = 60) -> bytes:
    return f'{{"{producer}/{epoch}":{seq},"x":"'.encode().ljust(size, b"x") + b'"}'


def fill(store: Store, first: int, last: int, batch: int = 1) -> None:
    """Append the records `first` to `last` of one producer."""
    for start in range(first, last + 1, batch):
        store.append([record(n) for n in range(start, min(start + batch, last + 1))])


def contents(store: Store, first: int = 1) -> dict[int, bytes]:
    """Everything that can be read, by offset."""
    found: dict[int, bytes] = {}
    while (batch := store.read(max(first, store.upto + 1), 7, 1000)) is not None:
        for n, content in enumerate(batch.payloads):
            found[batch.first + n] = content
        first = batch.first + len(batch.payloads)
    return found


def kill(store: Store) -> None:
    """Let go of every file without writing anything, as a killed process does."""
    if store._lock < 0:
        return
    for file in (store._lock, store._file, store._reader[1], store._cursor._file):
        if file is not None and file >= 0:
            os.close(file)
    store._lock = -1
