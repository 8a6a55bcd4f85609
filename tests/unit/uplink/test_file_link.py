"""The file link under faults: one flush for many batches, and no line lost, torn or twice."""

import errno
import os
from pathlib import Path

import msgspec
import pytest

from records import records
from skerry.errors import LinkDown
from skerry.uplink.links.file import FileLink


def seqs(path: Path) -> list[int]:
    return [msgspec.json.decode(line)["seq"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def link(tmp_path: Path) -> FileLink:
    link = FileLink(tmp_path / "far.jsonl")
    link.open()
    return link


def test_batches_under_way_share_one_flush(
    tmp_path: Path, link: FileLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = []
    real = os.fdatasync
    monkeypatch.setattr("os.fdatasync", lambda file: (flushes.append(file), real(file)))
    for first in (1, 11, 21):
        link.start(records(first, first + 9))
    assert [link.finish() for _ in range(4)] == [True, True, True, False]
    assert len(flushes) == 1
    assert seqs(tmp_path / "far.jsonl") == list(range(1, 31))


def test_a_batch_started_after_a_flush_waits_for_the_next(
    link: FileLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes = []
    monkeypatch.setattr("os.fdatasync", flushes.append)
    link.start(records(1, 10))
    link.start(records(11, 20))
    assert link.finish()
    link.start(records(21, 30))
    assert link.finish()
    assert len(flushes) == 1
    assert link.finish()
    assert len(flushes) == 2


@pytest.mark.parametrize("room", [0, 1, 100, 1500])
def test_a_full_disk_leaves_whole_lines_and_loses_nothing(
    tmp_path: Path, link: FileLink, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    link.send(records(1, 10))
    real, left = os.pwrite, [room]

    def full(file: int, content: memoryview, at: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(file, content[: left[0]], at)
        left[0] -= written
        return written

    def fill() -> None:
        for first in (11, 21, 31):
            link.start(records(first, first + 9))

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(LinkDown, match="No space left on device"):
            fill()
        with pytest.raises(LinkDown, match="the link is closed"):
            link.finish()
    link.open()
    assert seqs(tmp_path / "far.jsonl") == list(range(1, 11))  # no more than what was confirmed
    for first in (11, 21, 31):
        link.send(records(first, first + 9))
    assert seqs(tmp_path / "far.jsonl") == list(range(1, 41))


def test_what_a_killed_uplink_had_written_is_not_written_again(tmp_path: Path, link: FileLink) -> None:
    link.start(records(1, 10))  # never finished
    again = FileLink(tmp_path / "far.jsonl")
    again.open()
    again.send(records(1, 20))
    assert seqs(tmp_path / "far.jsonl") == list(range(1, 21))
