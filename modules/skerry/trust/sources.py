"""Where a repository's metadata comes from: a folder (disk, USB stick, mirror), or memory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from skerry.errors import Unavailable
from skerry.trust.refusals import Malformed

METADATA = "metadata"
"""The folder of a repository that has the metadata; the packages are beside it, an OCI image layout."""


class Source(Protocol):
    """A copy of a repository, kept by anybody: nothing it says is believed for coming from it."""

    def read(self, name: str, most: int) -> bytes | None:
        """One metadata file.

        Args:
            name: e.g. `timestamp.json` or `3.root.json`, never with a folder.
            most: stop reading after one byte more than this.

        Returns:
            At most `most` + 1 bytes; None where the source has no such file.

        Raises:
            Unavailable: the source cannot be read now.
            Untrusted: what has that name is no file.
        """


class Memory:
    """For tests, and for metadata that came some other way."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def read(self, name: str, most: int) -> bytes | None:
        content = self.files.get(name)
        return None if content is None else content[: most + 1]


class Folder:
    """A repository's folder, e.g. on a USB stick; links, pipes and devices in it are refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / METADATA

    def read(self, name: str, most: int) -> bytes | None:
        path = self.folder / name
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Malformed(str(path), "expected a file, got a symbolic link") from error
            raise Unavailable(f"{path}: expected a file, got {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Malformed(str(path), "expected a file, got something else")
            with open(file, "rb", closefd=False) as opened:
                return opened.read(most + 1)
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        finally:
            os.close(file)
