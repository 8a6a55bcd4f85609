"""A disk whose process can be killed between any two of its calls: the page cache then outlives it."""

from __future__ import annotations

from math import inf
from pathlib import Path

from skerry.buffer.disk import Disk


class Killed(BaseException):
    """The process ends here."""


class Mortal(Disk):
    """After so many more calls, its process is killed: before the call or right after it."""

    def __init__(self) -> None:
        self.calls_left: float = inf

    def _live(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed

    def write(self, file: int, content: bytes, at: int) -> None:
        self._live()
        super().write(file, content, at)
        self._live()

    def sync(self, file: int) -> None:
        self._live()
        super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        self._live()
        super().rename(old, new)
        self._live()

    def unlink(self, path: Path) -> None:
        self._live()
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self._live()
        super().sync_folder(folder)
