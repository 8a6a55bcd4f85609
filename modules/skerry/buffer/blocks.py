"""How records lie in a segment file: commit blocks, each of which proves itself.

A segment is a sequence of blocks, and behind the last one whatever the file held before: zeros, or blocks
of a segment that used the file earlier. Little-endian:

    magic    4 bytes  F5 53 4B 42; F5 never occurs in UTF-8, so no JSON text contains it
    version  u8       2
    kind     u8       1 checkpoint (first block of every segment), 2 records
    flags    u8       1 compressed, 2 encrypted (`skerry.buffer.seal`), 4 times in it want correction
    part     u8       of a commit of several blocks, which one, from 0; 255 stands for all after the 254th
    length   u32      bytes of the body
    records  u32      records in the body
    first    u64      offset of the first record (checkpoint: of the next record)
    segment  u64      number of the segment; a block left over from an earlier use has another
    body     u32      CRC-32 of the body
    header   u32      CRC-32 of the bytes before it

The header has its own CRC so that a body that has rotted still says how many records are lost, and
where the next block begins. A reader skips kinds it does not know.

The body of a checkpoint is JSON. The body of a block of records: length of the preface (u32), the preface
(JSON), the length of each payload (u32), the payloads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from skerry.buffer.seal import MAX_BODY, Seal

try:  # the same numbers, seven times as fast: at 50 KB a block a third of an append's CPU time
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

MAGIC = b"\xf5SKB"
VERSION = 2
CHECKPOINT, RECORDS = 1, 2
TIMES = 4
"""Flag: the clock was not synchronised, or jumped, when these were committed."""

_HEADER = struct.Struct("<4sBBBBIIQQI")
_CRC = struct.Struct("<I")
_SIZE = struct.Struct("<I")
_ABOUT = struct.Struct("<BBBIQQ")
HEADER_SIZE = _HEADER.size + _CRC.size
_CHUNK = 64 * 1024
_encode = msgspec.json.Encoder().encode


class Header(NamedTuple):
    """What the first 40 bytes of a block say."""

    kind: int
    flags: int
    part: int
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
    """A whole block at byte `at` of its segment; `body` as it was before it was sealed."""

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
    synchronised: bool = False
    """Whether the wall time could be believed."""


class Preface(msgspec.Struct, frozen=True):
    """What a block of records says before them."""

    at: Stamp
    runs: list[Run]


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Everything of `(producer, epoch)` up to `seq` has been accepted."""

    producer: str
    epoch: str
    seq: int


class Names(msgspec.Struct, array_like=True):
    """Events of one epoch: from and to, and how many of them."""

    producer: str
    epoch: str
    first: int
    last: int
    count: int


class Summary(msgspec.Struct, frozen=True):
    """What a closed segment holds, so that nobody has to read it to know."""

    number: int
    first: int
    end: int
    """Offset after its last record."""
    size: int
    """Bytes of its blocks."""
    index: list[int]
    """Of some blocks: offset of the first record, byte; ascending."""
    names: list[Names]
    payload_bytes: int
    from_ns: int
    """Wall time of the first and of the last commit."""
    to_ns: int


class Checkpoint(msgspec.Struct, frozen=True):
    """What a segment's readers need of all that came before it."""

    at: Stamp
    marks: list[Mark]
    delivered: int
    evicted: dict[str, int]
    stated: int = 0
    """Records that the buffer itself added."""
    before: Summary | None = None
    """The segment before this one: what would be its footer, made durable by the same flush."""


def frame(
    seal: Seal, kind: int, *, segment: int, first: int, count: int, body: bytes, flags: int = 0, part: int = 0
) -> bytes:
    """A block, ready to be written.

    Args:
        seal: how.
        kind: of block.
        segment: number of the segment.
        first: offset of the first record.
        count: records.
        body: its content.
        flags: `TIMES` or 0.
        part: which block of its commit.
    """
    part = min(part, 255)
    if not seal.plain:
        sealed, body = seal.close(body, _ABOUT.pack(kind, flags, part, count, first, segment))
        flags |= sealed
    head = _HEADER.pack(MAGIC, VERSION, kind, flags, part, len(body), count, first, segment, crc32(body))
    return head + _CRC.pack(crc32(head)) + body


def checkpoint(seal: Seal, segment: int, first: int, content: Checkpoint) -> bytes:
    """The first block of a segment."""
    return frame(seal, CHECKPOINT, segment=segment, first=first, count=0, body=msgspec.json.encode(content))


def records_body(preface: Preface, payloads: Sequence[bytes], lengths: Sequence[int]) -> bytes:
    """The body of a block of records."""
    said = _encode(preface)
    sizes = struct.pack(f"<{len(lengths)}I", *lengths)
    return b"".join((_SIZE.pack(len(said)), said, sizes, *payloads))


def plain_run(
    run: Run, payloads: Sequence[bytes], lengths: Sequence[int], *, segment: int, first: int, stamp: Stamp,
    flags: int,
) -> bytes:  # fmt: skip
    """A block of one run that is not sealed: the same as `records_body` and `frame` make of it."""
    count = len(lengths)
    said = _encode(Preface(stamp, [run]))
    body = b"".join((_SIZE.pack(len(said)), said, struct.pack(f"<{count}I", *lengths), *payloads))
    head = _HEADER.pack(MAGIC, VERSION, RECORDS, flags, 0, len(body), count, first, segment, crc32(body))
    return b"".join((head, _CRC.pack(crc32(head)), body))


def preface_of(body: bytes) -> Preface:
    """The preface of a block of records.

    Raises:
        ValueError: the body is not what `records_body` writes.
    """
    if len(body) < _SIZE.size:
        raise ValueError("block: expected a preface, got nothing")
    (length,) = _SIZE.unpack_from(body)
    return msgspec.json.decode(body[_SIZE.size : _SIZE.size + length], type=Preface)


def checkpoint_of(body: bytes) -> Checkpoint:
    """The content of a checkpoint.

    Raises:
        ValueError: the body is not what `checkpoint` writes.
    """
    return msgspec.json.decode(body, type=Checkpoint)


def payloads_of(block: Block) -> list[bytes]:
    """The payloads of a block of records, in order.

    Raises:
        ValueError: the body is not what `records_body` writes.
    """
    body, count = block.body, block.header.records
    try:
        at = _SIZE.size + _SIZE.unpack_from(body)[0]
        lengths = struct.unpack_from(f"<{count}I", body, at)
    except struct.error as error:
        raise ValueError(f"block: {error}") from error
    at += 4 * count
    if at + sum(lengths) != len(body):
        raise ValueError(f"block: expected {at + sum(lengths)} bytes of body, got {len(body)}")
    payloads = []
    for length in lengths:
        payloads.append(body[at : at + length])
        at += length
    return payloads


def header_of(raw: bytes, segment: int) -> Header | None:
    """The header at the start of `raw`, or None where there is none of this segment."""
    if len(raw) < HEADER_SIZE or raw[: len(MAGIC)] != MAGIC:
        return None
    if crc32(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        return None
    _, version, kind, flags, part, length, count, first, number, crc = _HEADER.unpack_from(raw)
    if version != VERSION or number != segment or length > MAX_BODY:
        return None
    return Header(kind, flags, part, length, count, first, number, crc)


def number_in(raw: bytes) -> int:
    """The number of the segment whose header stands at the start of `raw`; 0 where there is none."""
    if len(raw) < HEADER_SIZE or raw[: len(MAGIC)] != MAGIC:
        return 0
    if crc32(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        return 0
    return int(_HEADER.unpack_from(raw)[8])


def opened(seal: Seal, header: Header, body: bytes) -> bytes | None:
    """What was sealed in a body that was read; None when it is not the one that the header was written for.

    Raises:
        ConfigError: it is encrypted, and the key was not given.
    """
    if len(body) != header.length or crc32(body) != header.crc:
        return None
    sealed = header.flags & ~TIMES
    if not sealed:
        return body
    about = _ABOUT.pack(
        header.kind, header.flags & TIMES, header.part, header.records, header.first, header.segment
    )
    try:
        return seal.open(header.flags, body, about)
    except ValueError:
        return None


def scan(file: BinaryIO, size: int, segment: int, seal: Seal) -> Iterator[Block | Damage]:
    """Everything in a segment, in order: what is not a sound block is named as damage and passed over.

    Args:
        file: open for reading, buffered.
        size: bytes to look at.
        segment: the segment's number.
        seal: how blocks are read.
    """
    at = 0
    while at < size:
        file.seek(at)
        header = header_of(file.read(HEADER_SIZE), segment)
        if header is None or at + HEADER_SIZE + header.length > size:
            end = next_header(file, at + 1, size, segment)
            yield Damage(at, end)
            at = end
            continue
        body = opened(seal, header, file.read(header.length))
        end = at + HEADER_SIZE + header.length
        yield Damage(at, end) if body is None else Block(at, header, body)
        at = end


def next_header(file: BinaryIO, start: int, size: int, segment: int) -> int:
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
