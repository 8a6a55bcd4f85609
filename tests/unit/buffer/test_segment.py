"""A segment file, every byte of it damaged in turn: what is sound is read, what is not is named."""

from pathlib import Path

import pytest

from skerry.buffer import segment
from skerry.buffer.blocks import RECORDS, Block, payloads_of
from skerry.buffer.seal import Seal
from unit.buffer.stores import fill, kill, open_chain, payload

RECORDS_OF_BLOCK = 3
LAST = 30
SEAL = Seal()


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, bytes]:
    """A segment of ten blocks with three records each, and what the file held before them: nothing."""
    store, chain = open_chain(tmp_path)
    fill(chain, 1, LAST, batch=RECORDS_OF_BLOCK)
    path = chain._segments[-1].path
    kill(store)
    return path, path.read_bytes()


def readable(path: Path, size: int | None, stop: int | None) -> tuple[dict[int, bytes], segment.Contents]:
    """What is read of a segment, by offset, and all that is said of it."""
    found: dict[int, bytes] = {}

    def visit(block: Block) -> None:
        if block.header.kind == RECORDS:
            found.update({block.header.first + n: p for n, p in enumerate(payloads_of(block))})

    return found, segment.inspect(path, 1, 1, seal=SEAL, stop=stop, visit=visit, size=size)


def judge(path: Path, size: int | None, *, most_lost: int) -> None:
    """As a closed segment, of which it is known what it held: nothing wrong is read, all else is a hole."""
    found, contents = readable(path, size, stop=LAST + 1)
    assert all(content == payload(n) for n, content in found.items())
    missing = [n for a, b in contents.holes for n in range(a, b + 1)]
    assert sorted([*found, *missing]) == list(range(1, LAST + 1))
    assert len(missing) <= most_lost


def test_every_flipped_byte_costs_at_most_its_block(whole: tuple[Path, bytes]) -> None:
    path, content = whole
    data = bytearray(content)
    with path.open("r+b", buffering=0) as file:
        for at in range(len(data)):
            for change in (0x01, 0xFF):
                file.seek(at)
                file.write(bytes([data[at] ^ change]))
                judge(path, None, most_lost=RECORDS_OF_BLOCK)
            file.seek(at)
            file.write(data[at : at + 1])


def test_a_segment_cut_at_every_byte_costs_what_was_cut(whole: tuple[Path, bytes]) -> None:
    path, content = whole
    lost = 0
    for size in range(len(content), -1, -1):
        with path.open("r+b") as file:
            file.truncate(size)
        found, contents = readable(path, None, stop=None)
        assert list(found) == list(range(1, len(found) + 1))
        assert not contents.holes, "what is behind the end is no hole that the segment knows of"
        assert LAST - len(found) >= lost, "less was cut, and more is missing"
        lost = LAST - len(found)
    assert lost == LAST


@pytest.mark.parametrize("tail", [b"\0" * 9000, b"\xf5SKB" * 500, b"\xff" * 13, "again"])
def test_whatever_follows_the_last_block_is_not_read(whole: tuple[Path, bytes], tail: bytes | str) -> None:
    """Its own content once more, too: the same blocks a second time are no new records."""
    path, content = whole
    with path.open("ab") as file:
        file.write(content if isinstance(tail, str) else tail)
    judge(path, None, most_lost=0)
