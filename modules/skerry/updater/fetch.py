"""Packages out of an image layout elsewhere into the store: from a folder (a stick), or over HTTP.

Nothing that a source says is believed: it is asked for content by its sha256, and the store compares it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from skerry.errors import LinkDown, PackageError, Unavailable
from skerry.models import oci
from skerry.models.layout import Layout
from skerry.models.oci import Blob, Entry, Limits, Listing
from skerry.models.package import MANIFEST
from skerry.updater.blobs import Feed
from skerry.updater.store import Store

Wait = Callable[[float], object]
"""Waits so many seconds, or none; called after every piece. What it raises stops the fetch."""


class NotThere(Unavailable):
    """The source is there, and has no such document or blob."""


class Source(Protocol):
    """An image layout somewhere.

    Attributes:
        where: names it in messages, without secrets.
    """

    where: str

    def document(self, name: str, most: int) -> bytes:
        """The whole of a small file, not verified.

        Args:
            name: its path in the layout, with `/`.
            most: bytes it may have.

        Raises:
            NotThere: there is none.
            LinkDown: the source could not be read now.
            PackageError: it is larger, or nothing that a layout has.
        """

    def blob(self, blob: Blob, start: int) -> Generator[bytes, None, None]:
        """The content of a blob from a byte on, in pieces, not verified; it may end early.

        Raises:
            NotThere: there is none.
            LinkDown: the source could not be read now, or not to the end.
            PackageError: its size is another, or it is nothing that a layout has.
        """


class FolderSource:
    """A layout in a folder: a stick, a share.

    Args:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._layout = Layout(folder)

    def document(self, name: str, most: int) -> bytes:
        try:
            return self._layout.document(name, most)
        except OSError as error:
            raise self._fault(name, error) from error

    def blob(self, blob: Blob, start: int) -> Generator[bytes, None, None]:
        try:
            yield from self._layout.blob(blob, start)
        except OSError as error:
            raise self._fault(f"blob {blob.digest[:16]}...", error) from error

    def _fault(self, name: str, error: OSError) -> Unavailable:
        if isinstance(error, FileNotFoundError):
            return NotThere(f"{self.where}: expected {name}, got no such file (is the copy complete?)")
        return LinkDown(f"{self.where}: {name}: {error.strerror} (plug it in again)")


class Budget:
    """So many bytes a second, on average over a second or more.

    Args:
        bytes_per_s: above 0; None is without bounds.
        clock: monotonic seconds.
    """

    def __init__(self, bytes_per_s: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._spent_until = clock()

    def spend(self, size: int) -> float:
        """Seconds to wait, now that so many bytes have come."""
        if self._rate is None:
            return 0.0
        now = self._clock()
        # What was not used within the last second is not saved up.
        self._spent_until = max(self._spent_until, now - 1.0) + size / self._rate
        return max(self._spent_until - now, 0.0)


def entries(source: Source) -> tuple[Entry, ...]:
    """The packages that a source has, as its index says.

    Raises:
        As `Source.document`.
    """
    raw = source.document(oci.INDEX_FILE, oci.INDEX_BYTES)
    return oci.read_index(raw, f"{source.where}: {oci.INDEX_FILE}")


def fetch(
    store: Store, source: Source, wanted: Blob, *, limits: Limits | None = None, budget: Budget | None = None,
    wait: Wait = time.sleep,
) -> Listing:  # fmt: skip
    """Bring a package into the store, from where an earlier attempt ended; it is in no slot yet.

    Args:
        store: takes it in.
        source: has it.
        wanted: digest and size of its manifest, from whom is trusted.
        limits: the most that is taken.
        budget: of bandwidth.
        wait: how to wait where the budget is spent, and whether to go on.

    Raises:
        PackageError: it is not what the digest says, or no good package.
        NotThere: the source does not have it, or not all of it.
        LinkDown: try again; what came is kept.
        StoreFull: it does not fit.
        StoreFault: the disk failed.
    """
    if wanted.size > oci.MANIFEST_BYTES:
        raise PackageError(
            f"package {wanted.digest[:16]}: expected a manifest of at most {oci.MANIFEST_BYTES} bytes, "
            f"got {wanted.size}"
        )
    budget = budget or Budget(None)

    def feed(blob: Blob) -> Feed:
        return lambda start: _paced(source.blob(blob, start), budget, wait)

    where = f"{source.where}: package {wanted.digest[:16]}"
    store.make_room(store.missing([wanted]), keep={wanted.digest})
    raw = store.document(wanted, feed(wanted))
    listing = oci.read_listing(raw, wanted.digest, where, limits or Limits())
    keep = {wanted.digest, *(b.digest for b in listing.blobs)}
    store.make_room(store.missing(listing.blobs), keep=keep)
    content = store.document(listing.config, feed(listing.config))
    oci.read_config(content, listing, f"{where}: config")
    # The manifest goes first: whether it fits the config is known before the weights are fetched.
    for file in sorted(listing.files, key=lambda f: f.title != MANIFEST):
        if file.title == MANIFEST and file.blob.size <= oci.CONFIG_BYTES:
            oci.check_same(store.document(file.blob, feed(file.blob)), content, f"{where}: {MANIFEST}")
        else:
            store.receive(file.blob, feed(file.blob))
    store.publish(listing)
    return listing


def _paced(chunks: Generator[bytes, None, None], budget: Budget, wait: Wait) -> Generator[bytes, None, None]:
    with closing(chunks):
        for chunk in chunks:
            yield chunk
            wait(budget.spend(len(chunk)))
