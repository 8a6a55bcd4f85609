"""A file of lines that only grows: durable when `sync` returns, whole after any kill."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path


class Journal:
    """JSON lines. Not thread-safe.

    A line that was torn by a kill or a power cut has no newline; it is cut off when the file is
    opened. After a failed write or flush the file is cut back to what is known to be durable, so
    that what is read from it is never only in the page cache.

    Args:
        path: the file; made if missing, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._durable = -1  # bytes known to be on disk; -1 before the first `open`
        self._end = 0  # bytes written, durable or not

    def open(self) -> Iterator[bytes]:
        """Open for appending, and yield every line there is, without its newline.

        The file can be appended to once all were taken.

        Raises:
            OSError: it cannot be opened, read or cut.
        """
        self.close()
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if new:
            _sync_folder(self.path.parent)
        if self._durable >= 0:
            os.ftruncate(self._file, min(self._durable, os.fstat(self._file).st_size))
        whole = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    whole += len(line)
                    yield line[:-1]
        os.ftruncate(self._file, whole)
        os.fdatasync(self._file)
        self._durable = self._end = whole

    def write(self, lines: Sequence[bytes]) -> int:
        """Add lines, without a line feed in them; they are on disk after `sync`. Returns their bytes.

        Raises:
            OSError: none of what was added since the last `sync` counts. Open the journal again.
        """
        if self._file < 0:
            raise OSError("journal is not open")
        content = b"\n".join(lines) + b"\n"
        view = memoryview(content)
        try:
            while view:
                written = os.pwrite(self._file, view, self._end)
                self._end += written
                view = view[written:]
        except OSError:
            self.close()
            raise
        return len(content)

    def sync(self) -> None:
        """Make what was written durable.

        Raises:
            OSError: none of what was added since the last `sync` counts. Open the journal again.
        """
        if self._file < 0:
            raise OSError("journal is not open")
        try:
            os.fdatasync(self._file)
        except OSError:
            self.close()
            raise
        self._durable = self._end

    def close(self) -> None:
        """Close the file; it can be opened again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
