"""Finds blocks in the segments of a chain, forward and one segment at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from skerry.buffer import blocks, segment
from skerry.buffer.blocks import Block, Checkpoint
from skerry.buffer.disk import Disk
from skerry.buffer.seal import Seal
from skerry.buffer.segment import Segment


class Found(NamedTuple):
    """A block of records that was read, and where the next one begins."""

    number: int
    first: int
    payloads: list[bytes]
    times: bool
    next_at: int


class Reader:
    """Remembers the file and the block read last. Not thread-safe.

    Args:
        disk: the file system.
        seal: how blocks are read.
    """

    def __init__(self, disk: Disk, seal: Seal) -> None:
        self._disk = disk
        self._seal = seal
        self._open = -1, -1  # (number of a segment, its file)
        self._last: Found | None = None

    def find(self, part: Segment, offset: int) -> Found | None:
        """The block of a segment that holds a record; None when it cannot be read.

        Raises:
            OSError: the disk failed.
        """
        last = self._last
        at = part.seek(offset)
        if last is not None and last.number == part.number:
            if last.first <= offset < last.first + len(last.payloads):
                return last
            if offset == last.first + len(last.payloads):
                at = last.next_at
        block = self._walk(part, at, offset)
        try:
            payloads = [] if block is None else blocks.payloads_of(block)
        except ValueError:
            block = None
        if block is None:
            return None
        times = bool(block.header.flags & blocks.TIMES)
        self._last = Found(part.number, block.header.first, payloads, times, block.end)
        return self._last

    def forget(self, number: int | None = None) -> None:
        """Close the file of a segment, or of any, and remember nothing of it."""
        if number in {None, self._open[0]} and self._open[1] >= 0:
            self._disk.close(self._open[1])
            self._open = -1, -1
        if self._last is not None and number in {None, self._last.number}:
            self._last = None

    def _walk(self, part: Segment, at: int, offset: int) -> Block | None:
        """The sound block with the record `offset`, reading forward from byte `at`."""
        file = self._file(part)
        while at < part.size:
            header = blocks.header_of(self._disk.read(file, blocks.HEADER_SIZE, at), part.number)
            if header is None:
                return self._search(part, offset)
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                raw = self._disk.read(file, header.length, at + blocks.HEADER_SIZE)
                body = blocks.opened(self._seal, header, raw)
                return None if body is None else Block(at, header, body)
            at += blocks.HEADER_SIZE + header.length
        return None

    def _search(self, part: Segment, offset: int) -> Block | None:
        """The slow way: look at the whole segment, past whatever is damaged."""
        for block in segment.blocks(part.path, part.number, part.size, self._seal):
            header = block.header
            if header.kind == blocks.RECORDS and header.first <= offset < header.stop:
                return block
        return None

    def _file(self, part: Segment) -> int:
        if self._open[0] != part.number:
            if self._open[1] >= 0:
                self._disk.close(self._open[1])
            self._open = -1, -1
            self._open = part.number, self._disk.open(part.path)
        return self._open[1]


def checkpoint_in(path: Path, number: int, seal: Seal) -> Checkpoint | None:
    """What stands at the beginning of a segment file, when it can be read."""
    with path.open("rb") as file:
        header = blocks.header_of(file.read(blocks.HEADER_SIZE), number)
        if header is None or header.kind != blocks.CHECKPOINT:
            return None
        body = blocks.opened(seal, header, file.read(header.length))
    try:
        return None if body is None else blocks.checkpoint_of(body)
    except ValueError:
        return None
