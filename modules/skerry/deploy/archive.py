"""Files on their way into a volume: an archive, the same for the same files, and a name for its content."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from skerry.deploy.contained import USER

_CHUNK = 1024 * 1024
_DIGITS = 12
"""Of a content's name: 48 bits tell the handful of contents apart that one site ever has."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file or a folder of an archive."""

    name: str
    """With `/` between its folders; those come before it."""
    content: bytes | Path | None
    """What is in it, or the file that has it; None: a folder."""
    private: bool = False
    """Whether its owner alone may read it."""

    @property
    def mode(self) -> int:
        """As chmod takes it."""
        if self.content is None:
            return 0o700 if self.private else 0o755
        return 0o600 if self.private else 0o644


def entries(name: str, path: Path, *, private: bool = False) -> Iterator[Entry]:
    """A file by this name, or a folder with all that is in it, in an order that does not change.

    A link counts as what it leads to: where the archive goes there is nothing else.

    Raises:
        OSError: something cannot be read.
    """
    if not path.is_dir():
        with path.open("rb"):
            yield Entry(name=name, content=path, private=private)
        return
    yield Entry(name=name, content=None, private=private)
    for below in sorted(path.iterdir(), key=lambda found: found.name):
        yield from entries(f"{name}/{below.name}", below, private=private)


def content_name(files: Iterable[Entry], salt: str) -> str:
    """Twelve digits that say what is in an archive: other files, other digits.

    They are seen by whoever lists volumes, so those of a private file come from a function that is slow on
    purpose (scrypt): a short password cannot be tried out by the million.

    Args:
        files: whose order counts.
        salt: the site, so that two sites with one password do not show it.

    Raises:
        OSError: a file cannot be read.
    """
    digest, private = hashlib.sha256(), False
    for entry in files:
        digest.update(f"{entry.name}\0{entry.mode:o}\0".encode())
        digest.update(_digest(entry.content))
        private = private or entry.private
    if private:
        slow = hashlib.scrypt(digest.digest(), salt=salt.encode(), n=2**14, r=8, p=1, dklen=32)
        return slow.hex()[:_DIGITS]
    return digest.hexdigest()[:_DIGITS]


def write(files: Iterable[Entry], out: IO[bytes]) -> None:
    """The archive, with the user of the containers as the owner of everything.

    Raises:
        OSError: a file cannot be read, or the archive cannot be written.
    """
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in files:
            info = tarfile.TarInfo(entry.name)
            info.uid = info.gid = USER
            info.mode = entry.mode
            match entry.content:
                case None:
                    info.type = tarfile.DIRTYPE
                    archive.addfile(info)
                case bytes() as content:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                case path:
                    with path.open("rb") as file:
                        info.size = path.stat().st_size
                        archive.addfile(info, file)


def _digest(content: bytes | Path | None) -> bytes:
    if content is None:
        return b""
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
        return digest.digest()
    with content.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
