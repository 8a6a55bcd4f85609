"""The loss ledger: counts that survive kill -9, and the equations that must hold.

For every camera:  captured = inferred + failed + sum(dropped)
For events:        decided + stated = accepted + unaccepted
                   accepted = delivered + waiting + sum(evicted)

Each term is counted by the module that decides it, in its own `Tally`; no term is computed from the
others. That is why the balance can fail, and why it means something when it does not.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from skerry.errors import Unavailable

_SLOT = 128 * 1024
_HEADER = struct.Struct("<QII")  # generation, payload length, crc32 of generation and payload

_TRIES = 100

log = structlog.get_logger()


class Tally:
    """Named counts in a memory-mapped file; each `add` is atomic with respect to kill -9.

    Two slots are written alternately, each with a generation and a CRC: a process killed in the
    middle of a write leaves the other slot whole. The page cache keeps the file; there is no fsync,
    so counts (not events) may be up to some seconds old after a power cut. Thread-safe.

    Args:
        path: the file; made if missing, with its folder. One whose two slots are both damaged (a
            disk fault, a power cut) is started again from zero, which is logged.

    Raises:
        Unavailable: the file cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._map = _mapped(path)
        except OSError as error:
            raise Unavailable(
                f"{path}: cannot keep the tally: {error.strerror} (make room, or make it writable)"
            ) from error
        self._lock = threading.Lock()
        self._generation, self._counts = _newest(self._map)
        if not self._generation and _written(self._map):
            log.error("tally.unreadable", path=str(path), consequence="its counts start at zero")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, name: str) -> int:
        """The count, 0 when it was never added to."""
        return self._counts.get(name, 0)

    def add(self, changes: Mapping[str, int]) -> None:
        """Change several counts as one: after a kill all of them are there, or none."""
        with self._lock:
            for name, amount in changes.items():
                self._counts[name] = self._counts.get(name, 0) + amount
            self._save()

    def set(self, values: Mapping[str, int]) -> None:
        """Replace several values as one."""
        with self._lock:
            self._counts.update(values)
            self._save()

    def snapshot(self) -> dict[str, int]:
        """A copy of all counts."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Unmap the file; the counts stay in it."""
        with self._lock:
            self._map.close()

    def _save(self) -> None:
        self._generation += 1
        payload = msgspec.json.encode(self._counts)
        if _HEADER.size + len(payload) > _SLOT:
            raise ValueError(f"tally: expected at most {_SLOT} bytes of counts, got {len(payload)}")
        at = (self._generation % 2) * _SLOT
        crc = _crc(self._generation, payload)
        self._map[at : at + _HEADER.size + len(payload)] = (
            _HEADER.pack(self._generation, len(payload), crc) + payload
        )


def read_tally(path: Path) -> dict[str, int]:
    """The counts in a tally's file, without opening it for writing; empty when it is not there.

    A writer at full speed can change both slots during one read, so a read that makes no sense is
    made again.
    """
    try:
        for _ in range(_TRIES):
            content = path.read_bytes()
            generation, counts = _newest(content)
            if generation or not _written(content):
                return counts
    except FileNotFoundError:
        return {}
    log.error("tally.unreadable", path=str(path), consequence="its counts are taken for zero")
    return {}


def _mapped(path: Path) -> mmap.mmap:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.posix_fallocate(descriptor, 0, 2 * _SLOT)
        return mmap.mmap(descriptor, 2 * _SLOT)
    finally:
        os.close(descriptor)


def _written(content: bytes | mmap.mmap) -> bool:
    """Whether anything was ever written."""
    return any(any(content[at : at + _HEADER.size]) for at in (0, _SLOT))


def _crc(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, generation & 0xFFFFFFFF)


def _newest(content: bytes | mmap.mmap) -> tuple[int, dict[str, int]]:
    """The valid slot with the highest generation."""
    best: tuple[int, dict[str, int]] = (0, {})
    for at in (0, _SLOT):
        if len(content) < at + _HEADER.size:
            continue
        generation, length, crc = _HEADER.unpack(content[at : at + _HEADER.size])
        payload = content[at + _HEADER.size : at + _HEADER.size + min(length, _SLOT)]
        if generation > best[0] and len(payload) == length and _crc(generation, payload) == crc:
            with contextlib.suppress(msgspec.DecodeError):  # a whole slot of another program
                best = generation, msgspec.json.decode(payload, type=dict[str, int])
    return best


class CameraLedger(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the frames of one camera."""

    captured: int
    inferred: int
    failed: int
    dropped: dict[str, int]
    fps: float = 0.0

    @property
    def missing(self) -> int:
        """Frames that no term accounts for; 0 when balanced, negative when counted twice."""
        return self.captured - self.inferred - self.failed - sum(self.dropped.values())


class EventLedger(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of one site.

    `carried_over` were accepted in an earlier run and still waiting when this one began;
    `unaccepted` are held by producers; `waiting` are on the buffer's disk; `stated` are records that the
    buffer itself added: what it had to say of losses, and what an operator let it send again.
    """

    decided: int
    accepted: int
    delivered: int
    waiting: int
    evicted: dict[str, int]
    unaccepted: int = 0
    refused: int = 0
    """Events that a full outbox did not take."""
    carried_over: int = 0
    unaccepted_before: int = 0
    stated: int = 0

    @property
    def missing(self) -> int:
        """Events lost between producers and buffer, 0 when balanced."""
        made = self.unaccepted_before + self.decided - self.refused + self.stated
        return made - self.accepted - self.unaccepted

    @property
    def missing_after(self) -> int:
        """Accepted events that no term accounts for, 0 when balanced."""
        return self.carried_over + self.accepted - self.delivered - self.waiting - sum(self.evicted.values())


def balanced(cameras: Mapping[str, CameraLedger], events: EventLedger) -> bool:
    """Whether every equation of the ledger holds."""
    return all(c.missing == 0 for c in cameras.values()) and events.missing == 0 and events.missing_after == 0
