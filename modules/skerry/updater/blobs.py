"""Content by its sha256: complete under `blobs/sha256`, half fetched under `partial`.

A blob has its name only once its content was hashed and flushed. What is half there is hashed again when
it goes on: it may be torn, and then it is begun anew, once.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.errors import LinkDown, PackageError
from skerry.models.oci import Blob
from skerry.updater.disk import Disk, StoreFault, StoreFull, guarded

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

CHUNK = 1024 * 1024

Feed = Callable[[int], Generator[bytes, None, None]]
"""The content of one blob from a byte on, in pieces; made anew for each attempt."""
Pace = Callable[[int], None]
"""Told how many bytes were read; it may wait, or raise to stop."""


def unpaced(_size: int) -> None:
    """As fast as it goes."""


class Blobs:
    """The blobs of a store.

    Args:
        folder: of the store; the folders in it are there.
        disk: what it is on.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._disk = disk
        self.whole = folder / "blobs" / "sha256"
        self.partial = folder / "partial"

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        return self.whole / digest

    def has(self, blob: Blob) -> bool:
        """Whether there is a file of that name and size; its content was proven when it came."""
        return size_of(self.path(blob.digest)) == blob.size

    def missing(self, blob: Blob) -> int:
        """Bytes that are still to come."""
        if self.has(blob):
            return 0
        return blob.size - min(size_of(self.partial / blob.digest) or 0, blob.size)

    def read(self, digest: str, most: int) -> bytes | None:
        """A small blob whose content is right; None where it is not there or not right."""
        if (size_of(self.path(digest)) or most + 1) > most:
            return None
        with guarded(self.whole):
            file = self._disk.open(self.path(digest))
            try:
                content = self._disk.read(file, most + 1, 0)
            finally:
                self._disk.close(file)
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def digest_of(self, path: Path, pace: Pace = unpaced) -> str:
        """sha256 of a file as the disk has it, not the page cache; 64 hexadecimal digits.

        Raises:
            OSError: it cannot be read.
        """
        hashed, at = hashlib.sha256(), 0
        file = self._disk.open(path)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := self._disk.read(file, CHUNK, at):
                hashed.update(chunk)
                at += len(chunk)
                pace(len(chunk))
        finally:
            self._disk.close(file)
        return hashed.hexdigest()

    def receive(self, blob: Blob, feed: Feed) -> None:
        """Complete a blob, from where an earlier attempt ended.

        Args:
            blob: what it must be; there already, nothing is done.
            feed: gives its content.

        Raises:
            PackageError: what came is not it. Nothing of it is kept.
            Unavailable: it ended early. What came is kept.
            StoreFull: there is no room. Nothing of it is kept.
            StoreFault: the disk failed. Nothing of it is kept.
        """
        if self.has(blob):
            return
        path = self.partial / blob.digest
        try:
            self._fill(blob, feed, path, resume=True)
        except _Torn:
            self._fill(blob, feed, path, resume=False)
        with guarded(self.whole):
            self._disk.rename(path, self.path(blob.digest))
            self._disk.sync_folder(self.whole)

    def _fill(self, blob: Blob, feed: Feed, path: Path, *, resume: bool) -> None:
        """Write what is missing, compare the hash of all of it, and flush it."""
        begun = 0
        try:
            with guarded(path):
                file, hashed, begun = self._begin(path, resume=resume)
            try:
                at = begun
                if at < blob.size:
                    with closing(feed(at)) as chunks:
                        for chunk in chunks:
                            if at + len(chunk) > blob.size:
                                raise PackageError(f"{_name(blob)}: expected {blob.size} bytes, got more")
                            with guarded(path):
                                self._disk.write(file, chunk, at)
                            hashed.update(chunk)
                            at += len(chunk)
                if at < blob.size:
                    raise LinkDown(f"{_name(blob)}: expected {blob.size} bytes, got {at} (it goes on there)")
                if (seen := hashed.hexdigest()) != blob.digest:
                    raise PackageError(f"{_name(blob)}: expected that sha256, got {seen[:16]}...")
                with guarded(path):
                    self._disk.sync(file)
            finally:
                self._disk.close(file)
        except (PackageError, StoreFull, StoreFault) as error:
            # After a failed flush nobody knows what the file holds, and a full disk needs the room.
            with suppress(OSError):  # what cannot be removed now is removed when it is begun anew
                self._disk.unlink(path)
            if begun and isinstance(error, PackageError):
                raise _Torn from error
            raise

    def _begin(self, path: Path, *, resume: bool) -> tuple[int, Hash, int]:
        """The file to write to, the hash of what is in it, and how many bytes these are."""
        if not (resume and size_of(path)):
            self._disk.unlink(path)
            return self._disk.create(path), hashlib.sha256(), 0
        file, hashed, at = self._disk.open(path, writing=True), hashlib.sha256(), 0
        try:
            while chunk := self._disk.read(file, CHUNK, at):
                hashed.update(chunk)
                at += len(chunk)
        except BaseException:
            self._disk.close(file)
            raise
        return file, hashed, at


class _Torn(Exception):  # noqa: N818 - a state, handled where it is raised
    """What an earlier attempt left is not the beginning of the blob."""


def size_of(path: Path) -> int | None:
    """Bytes of a plain file; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _name(blob: Blob) -> str:
    return f"blob {blob.digest[:16]}..."
