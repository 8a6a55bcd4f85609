"""What a store or a log asks of a file system, each call with its durability spelled out.

One class, so that tests can stand between its users and the disk: to fail a call, to kill the process at
it, or to record every call and replay what a power cut could have left.
"""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """The real file system."""

    def make_folder(self, path: Path) -> None:
        """A new folder. Its name is durable after `sync_folder` of the one it is in."""
        path.mkdir(mode=0o755)

    def create(self, path: Path) -> int:
        """A new empty file, open for reading and writing. Its name is durable after `sync_folder`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def open(self, path: Path, *, writing: bool = False) -> int:
        """An existing file; never through a link, never waiting for a pipe."""
        flags = os.O_RDWR if writing else os.O_RDONLY
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

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
        view = memoryview(content)
        while view:
            written = os.pwrite(file, view, at)
            at += written
            view = view[written:]

    def truncate(self, file: int, size: int) -> None:
        """Cut the file to `size` bytes. Not durable before `sync`."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Make content and size durable.

        Raises:
            OSError: what was written since the last `sync` may be lost, and a second call would not say so.
        """
        os.fsync(file)

    def link(self, old: Path, new: Path) -> None:
        """Another name for a file. Durable after `sync_folder` of the new name's."""
        os.link(old, new, follow_symlinks=False)

    def symlink(self, target: str, path: Path) -> None:
        """A new symbolic link. Durable after `sync_folder`."""
        path.symlink_to(target)

    def rename(self, old: Path, new: Path) -> None:
        """Replace `new` by `old`, at once. Durable after `sync_folder` of the new name's."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file or link that may be gone already. Durable after `sync_folder`."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder. Durable after `sync_folder` of the one it was in."""
        path.rmdir()

    def sync_folder(self, folder: Path) -> None:
        """Make every name that came, went or changed in `folder` durable."""
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def free(self, folder: Path) -> int:
        """Bytes that an ordinary user may still write."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize


def remove(disk: Disk, path: Path) -> None:
    """Remove whatever is there, with all that is in it; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(disk, inner)
        disk.remove_folder(path)
    else:
        disk.unlink(path)
