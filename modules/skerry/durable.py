"""Small files that are either the old one or the new one, whole, whatever happens meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

T = TypeVar("T")
_MOST_BYTES = 1024 * 1024

log = structlog.get_logger()


def load(path: Path, kind: type[T]) -> T | None:
    """What such a file holds, as JSON; None where it is missing, or no good, which is logged."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MOST_BYTES), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        log.warning("file.unreadable", path=str(path), error=str(error))
        return None


def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file in the place of the one that may be there, and make it outlive a power cut.

    Args:
        path: the file; its folder must exist.
        content: the whole of it.
        mode: its permissions.

    Raises:
        OSError: the old one is there still, or the new one is but may not outlive a power cut.

    Source: rename(2) for the exchange; fsync(2), the note on folders.
    """
    draft = path.with_name(f"{path.name}.new")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(file, "wb", closefd=False) as opened:
            opened.write(content)
        os.fsync(file)
    finally:
        os.close(file)
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
