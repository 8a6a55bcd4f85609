"""Blocks: what is whole is found, whatever lies around it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.buffer import blocks
from skerry.buffer.blocks import Block, Damage, Preface, Run, Stamp

PREFACE = Preface(Stamp("b", 1, 2), [Run("p", "e", 1, 2)])


def scan(content: bytes, segment: int = 1) -> list[Block | Damage]:
    return list(blocks.scan(io.BytesIO(content), len(content), segment))


def test_what_is_written_is_read() -> None:
    raw = blocks.records(1, 7, PREFACE, [b"one", b""])
    (block,) = scan(raw)
    assert isinstance(block, Block)
    assert (block.header.first, block.header.stop) == (7, 9)
    assert blocks.payloads_of(block) == [b"one", b""]
    assert blocks.preface_of(block.body) == PREFACE


def test_a_block_of_another_segment_is_not_ours() -> None:
    raw = blocks.records(1, 7, PREFACE, [b"one", b"two"])
    assert scan(raw, segment=2) == [Damage(0, len(raw))]


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    st.binary(max_size=300),
    st.binary(max_size=300),
)
def test_blocks_are_found_between_any_rubbish(payloads: list[bytes], before: bytes, after: bytes) -> None:
    raw = blocks.records(1, 1, PREFACE, payloads)
    found = [b for b in scan(before + raw + after + raw) if isinstance(b, Block)]
    assert [blocks.payloads_of(b) for b in found] == [payloads, payloads]


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    raw = bytearray(blocks.records(1, 1, PREFACE, [b"one", b"two"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert not [b for b in scan(bytes(raw)) if isinstance(b, Block)]


@given(st.binary(max_size=2000))
def test_rubbish_is_damage_from_end_to_end(content: bytes) -> None:
    found = scan(content)
    assert sum(d.end - d.at for d in found if isinstance(d, Damage)) == len(content)


@pytest.mark.parametrize("body", [b"", b"\x09\0\0\0x", b"\xff\xff\xff\xff"])
def test_a_body_that_lies_about_its_parts_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"block: expected|JSON|truncated"):
        blocks.preface_of(body)
