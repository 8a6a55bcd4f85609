"""Files that were written in full ahead of use, so that a commit changes no metadata of the file system.

A file that grows costs its file system a second flush a commit, for the journal; `fallocate` does not
help, because the first write of each block changes the block's state. Overwriting blocks costs one.

A file that has served comes back here and is used again, as it is: its old blocks have another number.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from skerry.buffer import blocks
from skerry.buffer.disk import Disk

KEEP = 2
"""Files that are kept for use: one for the next segment, and one for the moment when the disk is full."""
_STEP = 1024 * 1024
_ZEROS = bytes(_STEP)

log = structlog.get_logger()


class Pool:
    """The free files of a store, `free-N` in its folder. Not thread-safe.

    Args:
        folder: of the store.
        disk: the file system.
        size: of each file in bytes.
    """

    def __init__(self, folder: Path, disk: Disk, size: int) -> None:
        self.size = size
        self._folder = folder
        self._disk = disk
        self._free: list[Path] = []
        self._next = 1
        self._draft: tuple[Path, int, int] | None = None  # (path, file, bytes written)

    @property
    def space(self) -> int:
        """Bytes that the free files take at most."""
        return KEEP * self.size

    def load(self) -> None:
        """Take what an earlier life left, and remove what does not fit.

        Raises:
            OSError: the folder cannot be read, or changed.
        """
        for path in sorted(self._folder.glob("free-*")):
            number = path.name.removeprefix("free-")
            if number.isdecimal() and path.stat().st_size == self.size and len(self._free) < KEEP:
                self._free.append(path)
                self._next = max(self._next, int(number) + 1)
            else:
                self._disk.unlink(path)

    def highest(self) -> int:
        """The highest number of a segment that a free file begins with.

        A power cut may have stopped a segment from getting its name, after its blocks were written.

        Raises:
            OSError: a file cannot be read.
        """
        heads = (path.open("rb") for path in self._free)
        found = 0
        for head in heads:
            with head:
                found = max(found, blocks.number_in(head.read(blocks.HEADER_SIZE)))
        return found

    def begin(self, path: Path, content: bytes) -> int:
        """Make a file durable under `path` that begins with `content`, as one step; returns it open.

        Raises:
            OSError: there is no such file; ENOSPC when the disk is full and nothing was kept for that.
        """
        free = self._take()
        file = self._disk.open(free)
        try:
            self._disk.write(file, content, 0)
            self._disk.sync(file)
            self._disk.rename(free, path)
            self._disk.sync_folder(self._folder)
        except BaseException:
            self._disk.close(file)
            self._disk.unlink(free)
            self._disk.unlink(path)
            raise
        return file

    def give(self, path: Path, *, fit: bool) -> None:
        """A file that nobody needs any more: kept for use, or removed. Durable after `sync_folder`.

        Args:
            path: where it is.
            fit: it is sound and of the right size.
        """
        if fit and len(self._free) < KEEP:
            free = self._named()
            self._disk.rename(path, free)
            self._free.append(free)
        else:
            self._disk.unlink(path)

    def prepare(self) -> bool:
        """Write a little of the next free file, if one is wanted; whether there is more to do.

        A full disk is no error: what is kept serves for that.
        """
        if len(self._free) >= KEEP:
            return False
        try:
            self._write(_STEP)
        except OSError as error:
            self._give_up()
            log.warning("store.no_spare", error=error.strerror)
            return False
        return len(self._free) < KEEP

    def close(self) -> None:
        """Let go of a file that is not finished."""
        self._give_up()

    def _take(self) -> Path:
        if not self._free:
            try:
                self._write(self.size)
            except OSError:
                self._give_up()
                raise
        return self._free.pop(0)

    def _write(self, most: int) -> None:
        """Write and flush up to `most` more bytes of a draft, and make it a free file when it is whole."""
        if self._draft is None:
            path = self._folder / "free.tmp"
            self._disk.unlink(path)
            self._draft = path, self._disk.create(path), 0
        path, file, at = self._draft
        stop = min(at + most, self.size)
        while at < stop:
            step = min(_STEP, stop - at)
            self._disk.write(file, _ZEROS[:step], at)
            at += step
        self._disk.sync(file)
        self._draft = path, file, at
        if at == self.size:
            self._disk.close(file)
            self._draft = None
            free = self._named()
            self._disk.rename(path, free)
            self._free.append(free)

    def _give_up(self) -> None:
        if self._draft is None:
            return
        path, file, _ = self._draft
        self._draft = None
        self._disk.close(file)
        try:
            self._disk.unlink(path)
        except OSError as error:
            log.warning("store.draft_left", path=path.name, error=error.strerror)

    def _named(self) -> Path:
        self._next += 1
        return self._folder / f"free-{self._next - 1}"
