"""The disk under the model store, and what the store says when it fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skerry.disk import Disk, remove
from skerry.errors import Unavailable

__all__ = ["Disk", "StoreFault", "StoreFull", "guarded", "remove"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class StoreFull(Unavailable):
    """There is no room; what was active is active still."""


class StoreFault(Unavailable):
    """The disk failed; what was active is active still."""


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Errors of the disk, in the words of the store."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in _FULL:
            raise StoreFull(
                f"{where}: the disk is full (make room; the active model is untouched)"
            ) from error
        raise StoreFault(
            f"{where}: the disk failed: {error.strerror} (check it; the active model is untouched)"
        ) from error
