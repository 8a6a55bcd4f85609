"""Packages, and a repository's signed metadata, from a registry into a layout; on an operator's machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from skerry import durable
from skerry.errors import PackageError
from skerry.models import artifacts, layout, oci
from skerry.models.attempts import Wait, again
from skerry.models.layout import Packed
from skerry.models.oci import Blob, Entry, Limits
from skerry.models.references import Reference
from skerry.trust.sources import METADATA
from skerry.updater.blobs import Blobs, Feed
from skerry.updater.disk import Disk
from skerry.updater.fetch import NotThere
from skerry.updater.registry import Registry, RegistryMetadata, as_index

_METADATA_BYTES = 8 * 1024 * 1024
_ORDER = ("root", "targets", "snapshot", "timestamp")
T = TypeVar("T")
Told = Callable[[str, int, int], None]
"""Told what comes, how many bytes of it are here, and how many it has."""


@dataclass(frozen=True)
class Pulled:
    """What is in the layout now.

    Attributes:
        packages: those that were asked for.
        metadata: files of signed metadata.
        received: bytes that came.
        there: bytes that were there already, whole.
    """

    packages: tuple[Packed, ...]
    metadata: int
    received: int
    there: int


def pull(
    registry: Registry, reference: Reference, out: Path, *, limits: Limits = Limits(),  # noqa: B008 - frozen
    told: Told = lambda *_: None, wait: Wait = time.sleep,
) -> Pulled:  # fmt: skip
    """Fetch what a tag or digest leads to; what was interrupted goes on where it ended.

    Args:
        registry: the repository.
        reference: what of it.
        out: the layout; made if it is not there.
        limits: the most that is taken of one package.
        told: of progress.
        wait: between two attempts, in seconds.

    Raises:
        PackageError: something is not what its digest says, or no good package.
        ConfigError: the layout is something else, or has another package of that name and version.
        NotThere: the registry has no such thing.
        LinkDown: it could not be reached in so many attempts; what came is kept.
        OSError: the layout cannot be written.
    """
    receiver = _Receiver(registry, out, told, wait)
    where = f"{registry.where}: {reference.wanted}"
    raw = receiver.again(lambda: registry.manifest(reference.wanted, oci.INDEX_BYTES))
    if reference.digest:
        oci.check_digest(raw, reference.digest.removeprefix("sha256:"), where)
    index = as_index(raw, where)
    entries = oci.read_index(index, where)
    signed = oci.read_index(index, where, artifacts.METADATA_TYPE)
    if not entries and not signed:
        raise NotThere(f"{where}: expected packages, got none")
    layout.begin(out)
    packages = tuple(receiver.package(entry, limits) for entry in entries)
    files = receiver.metadata(signed[0]) if signed else 0
    receiver.close()
    return Pulled(packages, files, receiver.received, receiver.there)


class _Receiver:
    """What is fetched in the course of one pull."""

    def __init__(self, registry: Registry, out: Path, told: Told, wait: Wait) -> None:
        self._registry = registry
        self._out = out
        self._blobs = Blobs(out, Disk())
        self._told = told
        self._wait = wait
        self.received = self.there = 0

    def package(self, entry: Entry, limits: Limits) -> Packed:
        """A package, proved and named."""
        where = f"{self._registry.where}@{entry.digest[:23]}"
        if entry.size > oci.MANIFEST_BYTES:
            raise PackageError(
                f"{where}: expected a manifest of at most {oci.MANIFEST_BYTES} bytes, got {entry.size}"
            )
        raw = self._document(Blob(entry.hexadecimal, entry.size), entry.name or "manifest")
        listing = oci.read_listing(raw, entry.hexadecimal, where, limits)
        content = self._document(listing.config, "config")
        packed = Packed(listing, oci.read_config(content, listing, f"{where}: config"))
        for file in listing.files:
            self._take(file.blob, f"{packed.config.title} {file.title}")
        layout.enlist(self._out, packed)
        return layout.verify(self._out, listing.digest)

    def metadata(self, entry: Entry) -> int:
        """Signed metadata, as files; the timestamp last. Whether it may be trusted is for devices to say."""
        source = RegistryMetadata(self._registry, entry.digest)
        where = f"{self._registry.where}: metadata"
        raw = self.again(lambda: self._registry.manifest(entry.digest, oci.INDEX_BYTES))
        oci.check_digest(raw, entry.hexadecimal, where)
        files = artifacts.read_metadata(raw, where)
        for blob in artifacts.read_statements(raw, where):
            self._document(blob, "statement")
        folder = self._out / METADATA
        folder.mkdir(exist_ok=True)
        for name in sorted(files, key=_place):
            content = self.again(lambda name=name: source.read(name, _METADATA_BYTES))  # type: ignore[misc]  # bound now
            if content is None or len(content) > _METADATA_BYTES:
                raise PackageError(
                    f"{self._registry.where}: {name}: expected at most {_METADATA_BYTES} bytes"
                )
            durable.replace(folder / name, content, 0o644)
            self._told(f"metadata {name}", len(content), len(content))
        return len(files)

    def close(self) -> None:
        """Leave nothing of our own behind that has nothing in it."""
        with suppress(OSError):
            self._blobs.partial.rmdir()

    def again(self, ask: Callable[[], T]) -> T:
        """As often as it makes sense."""
        return again(ask, self._wait, lambda: self.received)

    def _document(self, blob: Blob, what: str) -> bytes:
        if blob.size > oci.CONFIG_BYTES:
            raise PackageError(f"{self._registry.where}: {what}: expected at most {oci.CONFIG_BYTES} bytes")
        self._take(blob, what)
        return self._blobs.path(blob.digest).read_bytes()

    def _take(self, blob: Blob, what: str) -> None:
        path = self._blobs.path(blob.digest)
        if self._blobs.has(blob) and self._blobs.digest_of(path) != blob.digest:
            path.unlink()  # a layout is no store: nobody proved it when it came
        if self._blobs.has(blob):
            self.there += blob.size
            self._told(what, blob.size, blob.size)
            return
        self._blobs.partial.mkdir(exist_ok=True)
        self.again(lambda: self._blobs.receive(blob, self._feed(blob, what)))

    def _feed(self, blob: Blob, what: str) -> Feed:
        def feed(start: int) -> Generator[bytes, None, None]:
            at = start
            with closing(self._registry.blob(blob, start)) as chunks:
                for chunk in chunks:
                    at += len(chunk)
                    self.received += len(chunk)
                    yield chunk
                    self._told(what, at, blob.size)

        return feed


def _place(name: str) -> tuple[int, str]:
    """Roots first, the timestamp last: until then a reader sees the state before, whole."""
    role = name.removesuffix(".json").rpartition(".")[2]
    return (_ORDER.index(role) if role in _ORDER else 0), name
