"""A chain's cursor: how far the far end has confirmed, in two slots that are written in turn.

A slot is 4,096 bytes: generation (u64), length (u32), CRC-32 of both and the content (u32), content
(JSON). Only the slot that is *not* the last durable one is written, over and over, until it is made
durable itself; then the slots change places. So a power cut in the middle of a write finds the other
slot whole. Losing the newest slot costs repeats, never records.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import msgspec

from skerry.buffer.disk import Disk

_SLOT = 4096
_HEADER = struct.Struct("<QII")
SIZE = 2 * _SLOT


class Position(msgspec.Struct, frozen=True):
    """Where a chain stands."""

    store: str
    """Identity of the chain."""
    upto: int = 0
    """The far end has, or nobody has any more, every record up to here."""
    delivered: int = 0
    """Records confirmed by the far end, ever."""
    committed: int = 0
    """The last record known to be durable when this was written."""
    evicted: dict[str, int] = {}
    """Records lost, ever, by reason; without those that no gap record has told of yet."""
    clean: bool = False
    """The chain was closed: what is behind its last sound block was never a record."""


class Cursor:
    """The file of one chain's position. Not thread-safe.

    Args:
        path: the file; made by the first `save`.
        disk: the file system.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._file: int | None = None
        self._generation = 0
        self.found = False
        self.damaged = False
        """A slot was found that is neither empty nor whole: torn by a power cut, or rotten."""
        self._durable = 0  # generation that is known to be on disk; its slot is never written to

    def load(self) -> Position | None:
        """The newest whole position; None when the file is missing or holds none."""
        try:
            self._file = self._disk.open(self._path)
        except FileNotFoundError:
            return None
        best: Position | None = None
        for slot in range(2):
            raw = self._disk.read(self._file, _SLOT, slot * _SLOT)
            generation, position = _unpack(raw)
            self.damaged = self.damaged or (position is None and any(raw))
            if position is not None and generation > self._generation:
                self._generation, best = generation, position
        self.found = best is not None
        self._settle()
        return best

    def save(self, position: Position, durable: bool = False) -> None:
        """Write the position.

        Args:
            position: what to keep.
            durable: return only when it is on disk; else it survives a kill, perhaps not a power cut.

        Raises:
            OSError: the position may not be on disk.
        """
        generation = self._durable + 1 if self._generation == self._durable else self._generation + 2
        content = _pack(generation, position)
        if self._file is None:
            self._replace(generation, content)
            return
        try:
            self._disk.write(self._file, content, (generation % 2) * _SLOT)
            self._generation = generation
            if durable:
                self._disk.sync(self._file)
                self._durable = generation
        except OSError:
            # An error from sync says nothing about what a second sync would do: start a new file.
            self._disk.close(self._file)
            self._file = None
            self._replace(generation, content)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._disk.close(self._file)
            self._file = None

    def _settle(self) -> None:
        """Make what was read durable: a process killed before may have left it in the page cache."""
        self._durable = self._generation
        if self._file is None:
            return
        try:
            self._disk.sync(self._file)
        except OSError:
            self.close()  # the next save starts a new file

    def _replace(self, generation: int, content: bytes) -> None:
        slots = [bytes(_SLOT), bytes(_SLOT)]
        slots[generation % 2] = content.ljust(_SLOT, b"\0")
        self._file = self._disk.write_file(self._path, b"".join(slots))
        self._generation = self._durable = generation


def _pack(generation: int, position: Position) -> bytes:
    content = msgspec.json.encode(position)
    if _HEADER.size + len(content) > _SLOT:
        raise ValueError(f"cursor: expected at most {_SLOT} bytes, got {len(content)}")
    return _HEADER.pack(generation, len(content), _crc(generation, content)) + content


def _unpack(raw: bytes) -> tuple[int, Position | None]:
    if len(raw) < _HEADER.size:
        return 0, None
    generation, length, crc = _HEADER.unpack_from(raw)
    content = raw[_HEADER.size : _HEADER.size + length]
    if len(content) != length or _crc(generation, content) != crc:
        return 0, None
    try:
        return generation, msgspec.json.decode(content, type=Position)
    except msgspec.DecodeError:
        return 0, None


def _crc(generation: int, content: bytes) -> int:
    return zlib.crc32(content, generation & 0xFFFFFFFF)
