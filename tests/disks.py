"""Disks that fail, and a disk that remembers: what could be left of it after a power cut."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.buffer.disk import Disk

SECTOR = 512


class QuickDisk(Disk):
    """Flushes nothing: a test that does not cut the power cannot tell, and is many times faster."""

    def sync(self, file: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class FailingDisk(QuickDisk):
    """Fails the calls that `fails` says, with that error number, before they do anything.

    A failed write leaves half of its content behind, as a full disk does. `target` is the name of the
    file that the call under way is about.
    """

    def __init__(self, fails: Callable[[str, int], int] = lambda _name, _nth: 0) -> None:
        self.fails = fails
        self.calls: dict[str, int] = {}
        self.target = ""

    def _call(self, name: str, target: Path | int) -> None:
        path = target if isinstance(target, Path) else Path(f"/proc/self/fd/{target}").readlink()
        self.target = path.name
        self.calls[name] = self.calls.get(name, 0) + 1
        code = self.fails(name, self.calls[name])
        if code:
            raise OSError(code, os.strerror(code))

    def create(self, path: Path) -> int:
        self._call("create", path)
        return super().create(path)

    def write(self, file: int, content: bytes, at: int) -> None:
        try:
            self._call("write", file)
        except OSError:
            super().write(file, content[: len(content) // 2], at)
            raise
        super().write(file, content, at)

    def truncate(self, file: int, size: int) -> None:
        self._call("truncate", file)
        super().truncate(file, size)

    def sync(self, file: int) -> None:
        self._call("sync", file)
        super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        self._call("rename", old)
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._call("unlink", path)
        super().unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self._call("sync_folder", folder)
        super().sync_folder(folder)


@dataclass
class _Inode:
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(byte, content), or (size, None) for a truncation."""


class RecordedDisk(Disk):
    """Does everything, and remembers every step; `cut` shows what a power cut could have left.

    What it promises is the least that POSIX does: content is durable after a sync of its file, a name
    after a sync of its folder. Until then any of the writes may be missing or torn at a sector, and
    names may be as they were at any moment since (in order, as in a journal).

    Args:
        folder: what is in it now is durable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[tuple[Any, ...]] = []
        self._files: dict[int, int] = {}
        self._inodes = 0
        self._names: dict[str, int] = {}
        self._start: dict[str, tuple[int, bytes]] = {}
        for path in folder.iterdir():
            if path.name != "lock":
                self._inodes += 1
                self._names[path.name] = self._inodes
                self._start[path.name] = self._inodes, path.read_bytes()

    def note(self, fact: object) -> None:
        """Remember that something was promised at this moment."""
        self.steps.append(("fact", fact))

    def create(self, path: Path) -> int:
        file = super().create(path)
        self._inodes += 1
        self._names[path.name] = self._inodes
        self._files[file] = self._inodes
        self.steps.append(("create", path.name, self._inodes))
        return file

    def open(self, path: Path) -> int:
        file = super().open(path)
        self._files[file] = self._names[path.name]
        return file

    def close(self, file: int) -> None:
        self._files.pop(file, None)
        super().close(file)

    def write(self, file: int, content: bytes, at: int) -> None:
        super().write(file, content, at)
        self.steps.append(("write", self._files[file], at, content))

    def truncate(self, file: int, size: int) -> None:
        super().truncate(file, size)
        self.steps.append(("write", self._files[file], size, None))

    def sync(self, file: int) -> None:
        self.steps.append(("sync", self._files[file]))

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self._names[new.name] = self._names.pop(old.name)
        self.steps.append(("rename", old.name, new.name))

    def unlink(self, path: Path) -> None:
        if path.exists():
            super().unlink(path)
            self._names.pop(path.name, None)
            self.steps.append(("unlink", path.name))

    def sync_folder(self, folder: Path) -> None:
        self.steps.append(("sync_folder",))

    def cut(self, after: int, draw: random.Random, into: Path) -> list[Any]:
        """Write into a new folder what a power cut after that many steps could have left.

        Returns:
            The facts noted before the cut.
        """
        facts: list[Any] = []
        inodes = {number: _Inode(content) for number, content in self._start.values()}
        names = {name: number for name, (number, _) in self._start.items()}
        pending: list[tuple[Any, ...]] = []
        for step in self.steps[:after]:
            match step:
                case ("fact", fact):
                    facts.append(fact)
                case ("write", number, at, content):
                    inodes[number].pending.append((at, content))
                case ("sync", number):
                    inode = inodes[number]
                    inode.durable = _apply(inode.durable, inode.pending)
                    inode.pending = []
                case ("sync_folder",):
                    for change in pending:
                        _rename(names, change)
                    pending = []
                case ("create", _, number):
                    inodes[number] = _Inode()
                    pending.append(step)
                case _:
                    pending.append(step)
        for change in pending[: draw.randint(0, len(pending))]:
            _rename(names, change)
        into.mkdir()
        for name, number in names.items():
            inode = inodes[number]
            (into / name).write_bytes(_apply(inode.durable, _survivors(inode.pending, draw)))
        return facts


def _rename(names: dict[str, int], change: tuple[Any, ...]) -> None:
    match change:
        case ("create", name, number):
            names[name] = number
        case ("rename", old, new):
            names[new] = names.pop(old)
        case ("unlink", name):
            names.pop(name, None)


def _apply(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    data = bytearray(content)
    for at, piece in changes:
        if piece is None:
            data[:] = data[:at].ljust(at, b"\0")
        else:
            data[:] = data.ljust(at, b"\0")
            data[at : at + len(piece)] = piece
    return bytes(data)


def _survivors(
    pending: list[tuple[int, bytes | None]], draw: random.Random
) -> list[tuple[int, bytes | None]]:
    """All of it, none of it, or some sectors of some of it."""
    mode = draw.choice(("all", "none", "some", "some"))
    if mode != "some":
        return pending if mode == "all" else []
    kept: list[tuple[int, bytes | None]] = []
    for at, piece in pending:
        if piece is None:
            if draw.random() < 0.5:
                kept.append((at, None))
            continue
        start = at
        while start < at + len(piece):
            end = min((start // SECTOR + 1) * SECTOR, at + len(piece))
            if draw.random() < 0.5:
                kept.append((start, piece[start - at : end - at]))
            start = end
    return kept
