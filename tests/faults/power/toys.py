"""Small engines, right and wrong: what the recorder must see, and what it must not see where it is not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = 64
PER_FILE = 16
RECORDS = 320


class Toy:
    """Records of one size, `PER_FILE` to a file; a file is full of zeros before it has its name."""

    options = "noauto_da_alloc"  # or ext4 would rescue some who rename too early

    def __init__(self) -> None:
        self.promised = 0

    def note(self, fact: Any) -> None:
        self.promised = fact

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        written = 0
        while written < RECORDS:
            file = self.begin(folder, written)
            at = 0
            while at < PER_FILE:
                count = draw.randint(1, PER_FILE - at)
                content = b"".join(record(written + n) for n in range(count))
                os.pwrite(file, content, at * RECORD)
                self.flush(file)
                at += count
                written += count
                promise(written)
            os.close(file)

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        lost = 0
        for n in range(self.promised):
            path = folder / f"{n // PER_FILE}"
            content = path.read_bytes() if path.exists() else b""
            at = n % PER_FILE * RECORD
            lost += content[at : at + RECORD] != record(n)
        return lost

    # What can be got wrong

    def begin(self, folder: Path, first: int) -> int:
        """A file of zeros under its name."""
        draft, path = folder / "draft", folder / f"{first // PER_FILE}"
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.pwrite(file, bytes(PER_FILE * RECORD), 0)
        self.flush(file)
        draft.rename(path)
        self.flush_folder(folder)
        return file

    def flush(self, file: int) -> None:
        os.fdatasync(file)

    def flush_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


class Correct(Toy):
    """Loses nothing."""


class NoFlush(Toy):
    """Promises before the disk has it."""

    def flush(self, file: int) -> None:
        pass


class NoFolderFlush(Toy):
    """Forgets that a name is durable only with its folder."""

    def flush_folder(self, folder: Path) -> None:
        pass


class Whole(Toy):
    """Replaces one file, as a cursor is saved: a draft, its flush, its new name, the folder's flush."""

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        for n in range(1, 120):
            draft = folder / "draft"
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.pwrite(file, whole(n), 0)
            self.replace(draft, folder / "whole", file)
            self.flush_folder(folder)
            os.close(file)
            promise(n)

    def replace(self, draft: Path, path: Path, file: int) -> None:
        self.flush(file)
        draft.rename(path)

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        path = folder / "whole"
        content = path.read_bytes() if path.exists() else b""
        if not self.promised and not content:
            return 0
        found = int(content[:8] or b"-1")
        return 0 if content == whole(found) and found >= self.promised else 1


class RenameBeforeFlush(Whole):
    """Gives the draft its name while its content is nowhere yet."""

    def replace(self, draft: Path, path: Path, file: int) -> None:
        draft.rename(path)
        self.flush_folder(path.parent)
        self.flush(file)


class Growing(Toy):
    """Right, and slow: appends to a file that grows, with a flush of the file and its size."""

    def begin(self, folder: Path, first: int) -> int:
        file = os.open(folder / f"{first // PER_FILE}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.flush_folder(folder)
        return file


def record(n: int) -> bytes:
    return f"{n:>8}".encode().ljust(RECORD, b"r")


def whole(n: int) -> bytes:
    return f"{n:>8}".encode() + bytes([65 + n % 26]) * (2000 + n * 97 % 9000)
