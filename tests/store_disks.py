"""Disks under the model store: one that fails, one that kills, and one that remembers every step."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from skerry.updater.disk import Disk


class QuickDisk(Disk):
    """Flushes nothing: a test that does not cut the power cannot tell, and is many times faster."""

    def sync(self, file: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class WatchedDisk(QuickDisk):
    """Tells of every call before it is made.

    Args:
        before: gets the call's name; it may raise. A write that it stops has left half of its content.
    """

    def __init__(self, before: Callable[[str], None]) -> None:
        self._before = before

    def make_folder(self, path: Path) -> None:
        self._before("make_folder")
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._before("create")
        return super().create(path)

    def open(self, path: Path, *, writing: bool = False) -> int:
        self._before("open")
        return super().open(path, writing=writing)

    def read(self, file: int, size: int, at: int) -> bytes:
        self._before("read")
        return super().read(file, size, at)

    def write(self, file: int, content: bytes, at: int) -> None:
        half = len(content) // 2
        super().write(file, content[:half], at)
        self._before("write")
        super().write(file, content[half:], at + half)

    def truncate(self, file: int, size: int) -> None:
        self._before("truncate")
        super().truncate(file, size)

    def sync(self, file: int) -> None:
        self._before("sync")

    def link(self, old: Path, new: Path) -> None:
        self._before("link")
        super().link(old, new)

    def symlink(self, target: str, path: Path) -> None:
        self._before("symlink")
        super().symlink(target, path)

    def rename(self, old: Path, new: Path) -> None:
        self._before("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._before("unlink")
        super().unlink(path)

    def remove_folder(self, path: Path) -> None:
        self._before("remove_folder")
        super().remove_folder(path)

    def sync_folder(self, folder: Path) -> None:
        self._before("sync_folder")

    def free(self, folder: Path) -> int:
        self._before("free")
        return super().free(folder)


class FailingDisk(WatchedDisk):
    """Fails the calls that `fails` says, with that error number.

    Args:
        fails: gets the call's name and its number, from 1; 0 lets it pass.
    """

    def __init__(self, fails: Callable[[str, int], int] = lambda _name, _nth: 0) -> None:
        super().__init__(self._call)
        self.fails = fails
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if code := self.fails(name, len(self.calls)):
            raise OSError(code, os.strerror(code))


class MortalDisk(WatchedDisk):
    """Kills its own process, with -9, at one of its calls.

    Args:
        at: number of the call, from 1.
    """

    def __init__(self, at: int) -> None:
        super().__init__(self._call)
        self._left = at

    def _call(self, _name: str) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


Mode = Literal["dropped", "kept", "drawn"]


@dataclass
class _File:
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(byte, content), or (size, None) for a truncation."""


@dataclass
class _Folder:
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[Any, ...]] = field(default_factory=list)


class RecordedDisk(Disk):
    """Does everything, and remembers every step; `cut` shows what a power cut could have left.

    What it promises is the least that POSIX does: content is durable after a sync of its file, a name after
    a sync of its folder, folder by folder; names of one folder change in order, as in a journal.

    Args:
        root: an empty folder; what is in it now is not remembered.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.steps: list[tuple[Any, ...]] = []
        self._inodes = 0
        self._tree: dict[int, dict[str, int]] = {0: {}}
        self._open: dict[int, int] = {}

    def note(self, fact: object) -> None:
        """Remember that something was promised at this moment."""
        self.steps.append(("fact", fact))

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        inode = self._new("folder")
        self._tree[inode] = {}
        self._name(path, inode)

    def create(self, path: Path) -> int:
        file = super().create(path)
        inode = self._new("file")
        self._name(path, inode)
        self._open[file] = inode
        return file

    def open(self, path: Path, *, writing: bool = False) -> int:
        file = super().open(path, writing=writing)
        folder, name = self._at(path)
        self._open[file] = self._tree[folder][name]
        return file

    def close(self, file: int) -> None:
        del self._open[file]
        super().close(file)

    def write(self, file: int, content: bytes, at: int) -> None:
        super().write(file, content, at)
        self.steps.append(("write", self._open[file], at, content))

    def truncate(self, file: int, size: int) -> None:
        super().truncate(file, size)
        self.steps.append(("write", self._open[file], size, None))

    def sync(self, file: int) -> None:
        self.steps.append(("sync", self._open[file]))

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        folder, name = self._at(old)
        self._name(new, self._tree[folder][name])

    def symlink(self, target: str, path: Path) -> None:
        super().symlink(target, path)
        self._name(path, self._new("symlink", target))

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        source, before = self._at(old)
        target, after = self._at(new)
        inode = self._tree[source].pop(before)
        self._tree[target][after] = inode
        if source == target:
            self.steps.append(("rename", source, before, after))
        else:
            self.steps.append(("name", target, after, inode))
            self.steps.append(("unname", source, before))

    def unlink(self, path: Path) -> None:
        there = path.is_symlink() or path.exists()
        super().unlink(path)
        if there:
            self._unname(path)

    def remove_folder(self, path: Path) -> None:
        super().remove_folder(path)
        self._unname(path)

    def sync_folder(self, folder: Path) -> None:
        if folder.is_relative_to(self._root):
            parent, name = self._at(folder)
            inode = 0 if folder == self._root else self._tree[parent][name]
            self.steps.append(("sync_folder", inode))

    def _new(self, kind: str, *more: str) -> int:
        self._inodes += 1
        self.steps.append((kind, self._inodes, *more))
        return self._inodes

    def _at(self, path: Path) -> tuple[int, str]:
        """The folder's inode and the name in it."""
        inode, parts = 0, path.relative_to(self._root).parts
        for part in parts[:-1]:
            inode = self._tree[inode][part]
        return inode, parts[-1] if parts else ""

    def _name(self, path: Path, inode: int) -> None:
        folder, name = self._at(path)
        self._tree[folder][name] = inode
        self.steps.append(("name", folder, name, inode))

    def _unname(self, path: Path) -> None:
        folder, name = self._at(path)
        del self._tree[folder][name]
        self.steps.append(("unname", folder, name))

    def cut(self, after: int, mode: Mode, draw: random.Random, into: Path) -> tuple[list[Any], Any]:
        """Write into a new folder what a power cut after that many steps could have left.

        Returns:
            The facts noted before the cut, and the next one after it.
        """
        facts: list[Any] = []
        files: dict[int, _File] = {}
        links: dict[int, str] = {}
        folders = {0: _Folder()}
        for step in self.steps[:after]:
            match step:
                case ("fact", fact):
                    facts.append(fact)
                case ("file", inode):
                    files[inode] = _File()
                case ("folder", inode):
                    folders[inode] = _Folder()
                case ("symlink", inode, target):
                    links[inode] = target
                case ("write", inode, at, content):
                    files[inode].pending.append((at, content))
                case ("sync", inode):
                    files[inode].durable = _apply(files[inode].durable, files[inode].pending)
                    files[inode].pending.clear()
                case ("sync_folder", inode):
                    for change in folders[inode].pending:
                        _change(folders[inode].durable, change)
                    folders[inode].pending.clear()
                case (_, inode, *_):
                    folders[inode].pending.append(step)
        for folder in folders.values():
            for change in folder.pending[: _share(len(folder.pending), mode, draw)]:
                _change(folder.durable, change)
        for file in files.values():
            kept = _survivors(file.pending, mode, draw)
            file.durable = _apply(file.durable, kept)
        _lay_out(into, folders, files, links)
        ahead = next((s[1] for s in self.steps[after:] if s[0] == "fact"), None)
        return facts, ahead


def _lay_out(into: Path, folders: dict[int, _Folder], files: dict[int, _File], links: dict[int, str]) -> None:
    written: dict[int, Path] = {}

    def fill(inode: int, path: Path) -> None:
        path.mkdir()
        for name, inner in folders[inode].durable.items():
            if inner in folders:
                fill(inner, path / name)
            elif inner in links:
                (path / name).symlink_to(links[inner])
            elif inner in written:
                os.link(written[inner], path / name)
            else:
                (path / name).write_bytes(files[inner].durable)
                written[inner] = path / name

    fill(0, into)


def _change(names: dict[str, int], change: tuple[Any, ...]) -> None:
    match change:
        case ("name", _, name, inode):
            names[name] = inode
        case ("unname", _, name):
            names.pop(name, None)
        case ("rename", _, old, new):
            names[new] = names.pop(old)


def _share(count: int, mode: Mode, draw: random.Random) -> int:
    return {"dropped": 0, "kept": count, "drawn": draw.randint(0, count)}[mode]


def _survivors(
    pending: list[tuple[int, bytes | None]], mode: Mode, draw: random.Random
) -> list[tuple[int, bytes | None]]:
    """All, none, or some of the writes; of these, one may be torn."""
    if mode == "drawn":
        kept = [each for each in pending if draw.random() < 0.5]
        return [(at, piece and piece[: draw.randint(0, len(piece))]) for at, piece in kept]
    return pending if mode == "kept" else []


def _apply(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    data = bytearray(content)
    for at, piece in changes:
        if piece is None:
            data[:] = data[:at].ljust(at, b"\0")
        else:
            data[:] = data.ljust(at, b"\0")
            data[at : at + len(piece)] = piece
    return bytes(data)
