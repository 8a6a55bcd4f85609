"""The disk under the buffer's store, and what the store says when it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from skerry import disk
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


class Disk(disk.Disk):
    """The real file system."""

    def open(self, path: Path, *, writing: bool = True) -> int:
        """An existing file, open for reading and writing."""
        return super().open(path, writing=writing)

    def sync(self, file: int) -> None:
        """Make content and size durable, and no more: it is what every append waits for.

        Raises:
            OSError: what was written since the last `sync` may be lost, and a second call would not say so.
        """
        os.fdatasync(file)

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
