"""Blobs that come in pieces, from where they ended, or not at all."""

import errno
from collections.abc import Generator
from pathlib import Path

import pytest

from model_folders import weights
from skerry.errors import LinkDown, PackageError
from skerry.models.oci import Blob, sha256
from skerry.updater.blobs import Blobs
from skerry.updater.disk import StoreFault, StoreFull
from store_disks import FailingDisk, QuickDisk

CONTENT = weights("blob", 10_000)
BLOB = Blob(sha256(CONTENT), len(CONTENT))


class Feed:
    """Gives the content from a byte on, in pieces of 1000, up to a byte; and remembers what was asked."""

    def __init__(self, content: bytes = CONTENT, until: int | None = None) -> None:
        self.content = content[:until]
        self.asked: list[int] = []
        self.closed = 0

    def __call__(self, start: int) -> Generator[bytes, None, None]:
        self.asked.append(start)
        try:
            for at in range(start, len(self.content), 1000):
                yield self.content[at : at + 1000]
        finally:
            self.closed += 1


def blobs(tmp_path: Path, disk: QuickDisk | None = None) -> Blobs:
    made = Blobs(tmp_path, disk or QuickDisk())
    made.whole.mkdir(parents=True, exist_ok=True)
    made.partial.mkdir(exist_ok=True)
    return made


def test_a_blob_has_its_name_once_it_is_complete_and_proven(tmp_path: Path) -> None:
    there = blobs(tmp_path)
    assert there.missing(BLOB) == 10_000
    there.receive(BLOB, Feed())
    assert there.path(BLOB.digest).read_bytes() == CONTENT
    assert list(there.partial.iterdir()) == []
    assert there.missing(BLOB) == 0
    there.receive(BLOB, Feed(b""))


def test_what_came_is_kept_and_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    there = blobs(tmp_path)
    asked = []
    for until in (0, 1, 999, 5500, 9999):
        feed = Feed(until=until)
        with pytest.raises(LinkDown, match=f"expected 10000 bytes, got {until}"):
            there.receive(BLOB, feed)
        asked += feed.asked
        assert there.missing(BLOB) == 10_000 - until
        assert not there.has(BLOB)
        there = blobs(tmp_path)  # another process goes on
    feed = Feed()
    there.receive(BLOB, feed)
    assert [*asked, *feed.asked] == [0, 0, 1, 999, 5500, 9999]
    assert there.path(BLOB.digest).read_bytes() == CONTENT


def test_an_empty_blob_needs_no_feed(tmp_path: Path) -> None:
    empty, feed = Blob(sha256(b""), 0), Feed()
    blobs(tmp_path).receive(empty, feed)
    assert feed.asked == []


@pytest.mark.parametrize(
    "left", [b"torn" * 100, CONTENT[:4000] + bytes(1000), CONTENT + b"more", bytes(10_000)]
)
def test_what_a_power_cut_left_torn_is_begun_anew_once(tmp_path: Path, left: bytes) -> None:
    there, feed = blobs(tmp_path), Feed()
    (there.partial / BLOB.digest).write_bytes(left)
    there.receive(BLOB, feed)
    assert feed.asked[-1] == 0
    assert len(feed.asked) <= 2
    assert there.path(BLOB.digest).read_bytes() == CONTENT


@pytest.mark.parametrize("begun", [False, True])
def test_wrong_content_is_refused_and_nothing_of_it_kept(tmp_path: Path, begun: bool) -> None:
    there, wrong = blobs(tmp_path), CONTENT[:-1] + b"?"
    if begun:
        (there.partial / BLOB.digest).write_bytes(wrong[:3000])
    feed = Feed(wrong)
    with pytest.raises(PackageError, match="expected that sha256"):
        there.receive(BLOB, feed)
    assert list(there.partial.iterdir()) == list(there.whole.iterdir()) == []
    assert len(feed.asked) == 1 + begun, "a source that lies is not asked for ever"


def test_a_source_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    there, feed = blobs(tmp_path), Feed(CONTENT * 1000)
    with pytest.raises(PackageError, match="expected 10000 bytes, got more"):
        there.receive(BLOB, feed)
    assert feed.closed == 1
    assert list(there.partial.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "code", "kind"),
    [("write", errno.ENOSPC, StoreFull), ("write", errno.EIO, StoreFault), ("sync", errno.EIO, StoreFault)],
)
def test_a_disk_that_fails_leaves_nothing_half_written(
    tmp_path: Path, call: str, code: int, kind: type[Exception]
) -> None:
    disk = FailingDisk(lambda name, nth: code if name == call and nth > 3 else 0)
    there, feed = blobs(tmp_path, disk), Feed()
    with pytest.raises(kind):
        there.receive(BLOB, feed)
    assert feed.closed == 1
    assert list(there.partial.iterdir()) == list(there.whole.iterdir()) == []


def test_a_small_blob_is_read_only_where_it_is_right(tmp_path: Path) -> None:
    there = blobs(tmp_path)
    assert there.read(BLOB.digest, 20_000) is None
    there.receive(BLOB, Feed())
    assert there.read(BLOB.digest, 10_000) == CONTENT
    assert there.read(BLOB.digest, 9_999) is None, "it is larger than it may be"
    there.path(BLOB.digest).write_bytes(CONTENT[:-1] + b"?")
    assert there.read(BLOB.digest, 10_000) is None


def test_hashing_tells_of_each_piece_and_can_be_stopped(tmp_path: Path) -> None:
    there, told = blobs(tmp_path), list[int]()
    there.receive(BLOB, Feed())
    assert there.digest_of(there.path(BLOB.digest), told.append) == BLOB.digest
    assert told == [10_000]

    def stop(_size: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        there.digest_of(there.path(BLOB.digest), stop)
