"""Small disks that somebody else fills: a tmpfs, or ext4 in a file under a loop device."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Kind = Literal["tmpfs", "ext4"]
_STEP = 64 * 1024


@contextmanager
def small_disk(folder: Path, mib: int, kind: Kind = "tmpfs") -> Iterator[Path]:
    """A disk of that size, mounted at a folder that is made here. Needs root."""
    folder.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    else:
        image = folder.parent / f"{folder.name}.ext4"
        with image.open("wb") as file:
            file.truncate(mib << 20)
        subprocess.run(
            ["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True, timeout=60
        )
        command = ["mount", "-o", "loop", str(image), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def fill(path: Path, leave: int = 0) -> None:
    """Take all the room there is in a file, but `leave` bytes."""
    with path.open("ab", buffering=0) as file:
        step = _STEP
        while step:
            try:
                file.write(b"\xff" * step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step = 0 if step == 1 else step // 16 or 1
        file.flush()
        if leave:
            os.ftruncate(file.fileno(), max(os.fstat(file.fileno()).st_size - leave, 0))


class Glutton:
    """Takes all the room on a disk, and any that becomes free, until it is told to let go."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "glutton"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def eat(self, leave: int = 0) -> None:
        """Begin; at first `leave` bytes are left."""
        fill(self._path, leave)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def let_go(self) -> None:
        """All of it is free again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            fill(self._path)


def wait_free(folder: Path, free: int, within_s: float = 10.0) -> None:
    """Until that many bytes are free: a file system may take its time after an unlink."""
    deadline = time.monotonic() + within_s
    while os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize < free:
        assert time.monotonic() < deadline, "the disk did not become free"
        time.sleep(0.02)
