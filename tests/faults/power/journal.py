"""What a recorded disk was asked to do, in order: the file between the recorder and the replay."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<BQI")
_WRITE, _FLUSH, _MARK = 1, 2, 3


class Write(NamedTuple):
    """`content` was written at this byte; it may be in the cache of the disk only."""

    at: int
    content: bytes


class Flush(NamedTuple):
    """All writes before this are durable."""


class Mark(NamedTuple):
    """The workload was promised this; it never is None."""

    fact: object


Entry = Write | Flush | Mark


class Journal:
    """Appends entries to a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def write(self, at: int, content: bytes) -> None:
        os.writev(self._file, (_HEADER.pack(_WRITE, at, len(content)), content))

    def flush(self) -> None:
        os.write(self._file, _HEADER.pack(_FLUSH, 0, 0))

    def mark(self, text: bytes) -> None:
        os.writev(self._file, (_HEADER.pack(_MARK, 0, len(text)), text))


def entries(path: Path) -> Iterator[Entry]:
    """All of them, in order, up to a mark of None: what came later was not the workload's."""
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            kind, at, size = _HEADER.unpack(header)
            content = file.read(size)
            assert len(content) == size
            if kind == _WRITE:
                yield Write(at, content)
            elif kind == _FLUSH:
                yield Flush()
            elif (fact := json.loads(content)) is not None:
                yield Mark(fact)
            else:
                return
