"""Blocks: what is whole is found, whatever lies around it."""

import io
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.buffer import blocks
from skerry.buffer.blocks import Block, Damage, Preface, Run, Stamp
from skerry.buffer.seal import Seal, read_key
from skerry.errors import ConfigError

PREFACE = Preface(Stamp("b", 1, 2), [Run("p", "e", 1, 2)])


KEY = bytes(range(32))
SEALS = {
    "plain": Seal(),
    "compressed": Seal(compress=True),
    "encrypted": Seal(key=KEY),
    "both": Seal(compress=True, key=KEY),
}


def framed(first: int, payloads: list[bytes], seal: Seal = SEALS["plain"], segment: int = 1) -> bytes:
    body = blocks.records_body(PREFACE, payloads, [*map(len, payloads)])
    return blocks.frame(
        seal, blocks.RECORDS, segment=segment, first=first, count=len(payloads), body=body, flags=blocks.TIMES
    )


def scan(content: bytes, segment: int = 1, seal: Seal = SEALS["plain"]) -> list[Block | Damage]:
    return list(blocks.scan(io.BytesIO(content), len(content), segment, seal))


def test_what_is_written_is_read() -> None:
    raw = framed(7, [b"one", b""])
    (block,) = scan(raw)
    assert isinstance(block, Block)
    assert (block.header.first, block.header.stop) == (7, 9)
    assert blocks.payloads_of(block) == [b"one", b""]
    assert blocks.preface_of(block.body) == PREFACE


@pytest.mark.parametrize("kind", SEALS)
def test_what_was_sealed_is_read_as_it_was(kind: str) -> None:
    payloads = [b"a secret " * 50, b"another"]
    raw = framed(7, payloads, SEALS[kind])
    (block,) = scan(raw, seal=SEALS[kind])
    assert isinstance(block, Block)
    assert blocks.payloads_of(block) == payloads
    assert block.header.flags & blocks.TIMES
    assert block.end == len(raw)
    assert (b"secret" in raw) == (kind in {"plain", "compressed"})


def test_an_old_key_still_reads(tmp_path: Path) -> None:
    raw = framed(1, [b"one"], SEALS["encrypted"])
    rotated = Seal(key=bytes(32), old_keys=[KEY])
    (block,) = scan(raw, seal=rotated)
    assert isinstance(block, Block)


def test_a_missing_key_is_no_damage() -> None:
    raw = framed(1, [b"one"], SEALS["encrypted"])
    with pytest.raises(ConfigError, match=r"key_file: expected key [0-9a-f]{8}, got none"):
        scan(raw)


def test_an_encrypted_block_cannot_be_moved() -> None:
    """Its header is authenticated with it: the same body under another offset does not open."""
    raw = framed(1, [b"one"], SEALS["encrypted"])
    body = raw[blocks.HEADER_SIZE :]
    header = blocks.header_of(raw, 1)
    assert header is not None
    assert blocks.opened(SEALS["encrypted"], header, body) is not None
    assert blocks.opened(SEALS["encrypted"], header._replace(first=2), body) is None


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"zz" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected 32 bytes or 64 hexadecimal digits"):
        read_key(str(path))
    path.write_text(KEY.hex() + "\n")
    assert read_key(str(path)) == KEY


def test_a_block_of_another_segment_is_not_ours() -> None:
    raw = framed(7, [b"one", b"two"])
    assert scan(raw, segment=2) == [Damage(0, len(raw))]


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    st.binary(max_size=300),
    st.binary(max_size=300),
)
def test_blocks_are_found_between_any_rubbish(payloads: list[bytes], before: bytes, after: bytes) -> None:
    raw = framed(1, payloads)
    found = [b for b in scan(before + raw + after + raw) if isinstance(b, Block)]
    assert [blocks.payloads_of(b) for b in found] == [payloads, payloads]


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    raw = bytearray(framed(1, [b"one", b"two"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert not [b for b in scan(bytes(raw)) if isinstance(b, Block)]


@given(st.binary(max_size=2000))
def test_rubbish_is_damage_from_end_to_end(content: bytes) -> None:
    found = scan(content)
    assert sum(d.end - d.at for d in found if isinstance(d, Damage)) == len(content)


@pytest.mark.parametrize("body", [b"", b"\x09\0\0\0x", b"\xff\xff\xff\xff"])
def test_a_body_that_lies_about_its_parts_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"block: expected|JSON|truncated|Expected"):
        blocks.preface_of(body)


def test_a_block_is_the_same_by_the_short_way_and_the_long_one() -> None:
    run, payloads = Run("p", "e", 1, 2), [b"one", b"two"]
    preface = Preface(PREFACE.at, [run])
    body = blocks.records_body(preface, payloads, [3, 3])
    long = blocks.frame(SEALS["plain"], blocks.RECORDS, segment=4, first=7, count=2, body=body, flags=4)
    short = blocks.plain_run(run, payloads, [3, 3], segment=4, first=7, stamp=PREFACE.at, flags=4)
    assert short == long


@given(st.binary(max_size=5000))
def test_checksums_are_those_of_zlib_whatever_reckons_them(content: bytes) -> None:
    assert blocks.crc32(content) == zlib.crc32(content)
