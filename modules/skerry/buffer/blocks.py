"""How records lie in a segment file: commit blocks, each of which proves itself.

A segment is a sequence of blocks and nothing else. Little-endian:

    magic    4 bytes  F5 53 4B 42; F5 never occurs in UTF-8, so no JSON text contains it
    version  u8       1
    kind     u8       1 checkpoint (first block of every segment), 2 records
    flags    u16      0; bits for compression and encryption are to come
    length   u32      bytes of the body
    records  u32      records in the body
    first    u64      offset of the first record (checkpoint: of the next record)
    segment  u64      number of the segment; a block left over from a reused file has another
    body     u32      CRC-32 of the body
    header   u32      CRC-32 of the bytes before it

The header has its own CRC so that a body that has rotted still says how many records are lost, and
where the next block begins. A reader skips kinds it does not know.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

MAGIC = b"\xf5SKB"
VERSION = 1
CHECKPOINT, RECORDS = 1, 2
MAX_BODY = 32 * 1024 * 1024
"""A header that claims more is damaged; four times what one message on the bus may hold, and more."""

_HEADER = struct.Struct("<4sBBHIIQQI")
_CRC = struct.Struct("<I")
_SIZE = struct.Struct("<I")
HEADER_SIZE = _HEADER.size + _CRC.size
_CHUNK = 64 * 1024


class Header(NamedTuple):
    """What the first 40 bytes of a block say."""

    kind: int
    flags: int
    length: int
    records: int
    first: int
    segment: int
    crc: int

    @property
    def stop(self) -> int:
        """The offset after the last record."""
        return self.first + self.records


class Block(NamedTuple):
    """A whole block at byte `at` of its segment."""

    at: int
    header: Header
    body: bytes

    @property
    def end(self) -> int:
        """The byte after the block."""
        return self.at + HEADER_SIZE + self.header.length


class Damage(NamedTuple):
    """Bytes `at` to `end` of a segment that are no block."""

    at: int
    end: int


class Run(msgspec.Struct, frozen=True, array_like=True):
    """`count` records of one producer, dense in seq from `seq`."""

    producer: str
    epoch: str
    seq: int
    count: int


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """When a commit was made, on both clocks."""

    boot: str
    mono_ns: int
    wall_ns: int


class Preface(msgspec.Struct, frozen=True):
    """What a block of records says before them."""

    at: Stamp
    runs: list[Run]


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Everything of `(producer, epoch)` up to `seq` has been accepted."""

    producer: str
    epoch: str
    seq: int


class Checkpoint(msgspec.Struct, frozen=True):
    """What a segment's readers need of all that came before it."""

    at: Stamp
    marks: list[Mark]
    delivered: int
    evicted: dict[str, int]


def frame(kind: int, segment: int, first: int, count: int, body: bytes) -> bytes:
    """A block, ready to be written."""
    head = _HEADER.pack(MAGIC, VERSION, kind, 0, len(body), count, first, segment, zlib.crc32(body))
    return head + _CRC.pack(zlib.crc32(head)) + body


def checkpoint(segment: int, first: int, content: Checkpoint) -> bytes:
    """The first block of a segment."""
    return frame(CHECKPOINT, segment, first, 0, msgspec.json.encode(content))


def records(segment: int, first: int, preface: Preface, payloads: Sequence[bytes]) -> bytes:
    """A block of records: a preface (JSON), then each payload, each with its length (u32) before it."""
    parts = [msgspec.json.encode(preface), *payloads]
    body = b"".join(piece for part in parts for piece in (_SIZE.pack(len(part)), part))
    return frame(RECORDS, segment, first, len(payloads), body)


def preface_of(body: bytes) -> Preface:
    """The preface of a block of records.

    Raises:
        ValueError: the body is not what `records` writes.
    """
    return msgspec.json.decode(_parts(body, 1)[0], type=Preface)


def checkpoint_of(body: bytes) -> Checkpoint:
    """The content of a checkpoint.

    Raises:
        ValueError: the body is not what `checkpoint` writes.
    """
    return msgspec.json.decode(body, type=Checkpoint)


def payloads_of(block: Block) -> list[bytes]:
    """The payloads of a block of records, in order.

    Raises:
        ValueError: the body is not what `records` writes.
    """
    return _parts(block.body, block.header.records + 1)[1:]


def _parts(body: bytes, count: int) -> list[bytes]:
    parts: list[bytes] = []
    at = 0
    for _ in range(count):
        if at + _SIZE.size > len(body):
            raise ValueError(f"block: expected {count} parts, got {len(parts)}")
        (length,) = _SIZE.unpack_from(body, at)
        parts.append(body[at + _SIZE.size : at + _SIZE.size + length])
        at += _SIZE.size + length
    if at > len(body):
        raise ValueError(f"block: expected {at} bytes of body, got {len(body)}")
    return parts


def header_of(raw: bytes, segment: int) -> Header | None:
    """The header at the start of `raw`, or None where there is none of this segment."""
    if len(raw) < HEADER_SIZE or raw[: len(MAGIC)] != MAGIC:
        return None
    if zlib.crc32(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        return None
    _, _, kind, flags, length, count, first, number, crc = _HEADER.unpack_from(raw)
    if number != segment or length > MAX_BODY:
        return None
    return Header(kind, flags, length, count, first, number, crc)


def sound(header: Header, body: bytes) -> bool:
    """Whether a body is the one that its header was written for."""
    return len(body) == header.length and zlib.crc32(body) == header.crc


def scan(file: BinaryIO, size: int, segment: int) -> Iterator[Block | Damage]:
    """Everything in a segment, in order: what is not a sound block is named as damage and passed over.

    Args:
        file: open for reading, buffered.
        size: bytes to look at.
        segment: the segment's number.
    """
    at = 0
    while at < size:
        file.seek(at)
        header = header_of(file.read(HEADER_SIZE), segment)
        if header is None or at + HEADER_SIZE + header.length > size:
            end = _next_header(file, at + 1, size, segment)
            yield Damage(at, end)
            at = end
            continue
        body = file.read(header.length)
        end = at + HEADER_SIZE + header.length
        yield Block(at, header, body) if sound(header, body) else Damage(at, end)
        at = end


def _next_header(file: BinaryIO, start: int, size: int, segment: int) -> int:
    """Where the next header at or after `start` stands; `size` when there is none."""
    at = start
    while at < size:
        file.seek(at)
        chunk = file.read(_CHUNK + HEADER_SIZE)
        found = chunk.find(MAGIC)
        while found != -1 and found < _CHUNK:
            if at + found < size and header_of(chunk[found : found + HEADER_SIZE], segment) is not None:
                return at + found
            found = chunk.find(MAGIC, found + 1)
        at += _CHUNK
    return size
