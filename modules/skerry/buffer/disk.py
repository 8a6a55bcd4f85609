"""The few things that the store asks of a file system, each with its durability spelled out.

One class, so that tests can stand between the store and the disk: to fail a call (full disk, EIO), or
to record every call and replay what a power cut could have left.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from skerry.errors import Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreFull(Unavailable):
    """There is no room: nothing of this append is kept, all that was accepted before is."""


class StoreFault(Unavailable):
    """The disk failed: nothing of this append is kept, all that was accepted before is."""


def fault(folder: Path, error: OSError) -> Unavailable:
    """An error of the disk, in the words of the store."""
    if error.errno in _FULL:
        return StoreFull(f"{folder}: the disk is full (make room; nothing accepted is lost)")
    return StoreFault(f"{folder}: the disk failed: {error.strerror} (check it; nothing accepted is lost)")


class Disk:
    """The real file system."""

    def create(self, path: Path) -> int:
        """A new empty file, open for reading and writing. Its name is durable after `sync_folder`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)

    def open(self, path: Path) -> int:
        """An existing file, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, file: int) -> None:
        """Close without making anything durable."""
        os.close(file)

    def read(self, file: int, size: int, at: int) -> bytes:
        """Up to `size` bytes from byte `at`; fewer only at the end of the file."""
        return os.pread(file, size, at)

    def write(self, file: int, content: bytes, at: int) -> None:
        """All of `content` from byte `at`. Not durable before `sync`.

        Raises:
            OSError: part of it may have been written.
        """
        written = os.pwrite(file, content, at)
        view = memoryview(content)[written:] if written < len(content) else b""
        while view:
            at += written
            written = os.pwrite(file, view, at)
            view = view[written:]

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to `size` bytes. Not durable before `sync`."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Make content and size durable.

        Raises:
            OSError: what was written since the last `sync` may be lost, and a second call would not say so.
        """
        os.fdatasync(file)

    def rename(self, old: Path, new: Path) -> None:
        """Replace `new` by `old`, at once. Durable after `sync_folder`."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file that may be gone already. Durable after `sync_folder`."""
        path.unlink(missing_ok=True)

    def sync_folder(self, folder: Path) -> None:
        """Make every create, rename and unlink in `folder` durable."""
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def write_file(self, path: Path, content: bytes) -> int:
        """Make `content` durable under `path` as one step: all of it or nothing. Returns the open file.

        Raises:
            OSError: `path` is as it was.
        """
        draft = path.with_name(f"{path.name}.tmp")
        self.unlink(draft)
        file = self.create(draft)
        try:
            self.write(file, content, 0)
            self.sync(file)
            self.rename(draft, path)
            self.sync_folder(path.parent)
        except BaseException:
            self.close(file)
            self._forget(draft)
            raise
        return file

    def _forget(self, path: Path) -> None:
        """Remove a draft after a failure; what cannot be removed is removed at the next start."""
        try:
            self.unlink(path)
        except OSError:
            return
