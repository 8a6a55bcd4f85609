"""Packages of a layout, and a repository's signed metadata, into a registry; on an operator's machine.

What is there already is not sent again, and what others see changes last: the index that the tag leads to.
Whoever asks meanwhile gets what was there before, whole.

Source: OCI Distribution Specification 1.1, "Push".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models import artifacts, layout, oci
from skerry.models.artifacts import METADATA_NAME, METADATA_TYPE
from skerry.models.attempts import Wait, again
from skerry.models.layout import Layout, Packed
from skerry.models.oci import Blob
from skerry.trust.sources import METADATA
from skerry.updater.fetch import NotThere
from skerry.updater.registry import Registry, RegistryMetadata, as_index
from skerry.updater.web import PIECE, Address

CHUNK = 16 * 1024 * 1024
"""Bytes that are sent in one request; what breaks in between goes on there, where the registry can."""
_SMALL = 64 * 1024
"""Bytes of an answer to a request that sends something."""
_METADATA_BYTES = 8 * 1024 * 1024
T = TypeVar("T")
Told = Callable[[str, int, int], None]
"""Told what is sent, how many bytes of it are there, and how many it has."""
Read = Callable[[int, int], Iterator[bytes]]
"""Bytes of a blob: from one on, so many."""


@dataclass(frozen=True)
class Pushed:
    """What is in the registry now.

    Attributes:
        packages: those of the layout, each with its tag.
        metadata: files of signed metadata; 0: the layout has none.
        index: digest of the index, `sha256:` and 64 hexadecimal digits.
        sent: bytes that had to be sent.
        there: bytes that were there already.
    """

    packages: tuple[tuple[str, Packed], ...]
    metadata: int
    index: str
    sent: int
    there: int


def tag_of(packed: Packed) -> str:
    """Name and version as a tag may be; a tag has no plus, and Helm's underscore is what people know."""
    return f"{packed.config.name}-{packed.config.version}".replace("+", "_")[:128]


def push(
    folder: Path, registry: Registry, tag: str, *, digest: str | None = None, force: bool = False,
    chunk: int = CHUNK, told: Told = lambda *_: None, wait: Wait = time.sleep,
) -> Pushed:  # fmt: skip
    """Send a layout's packages, and its signed metadata where it has some, and name them.

    Args:
        folder: of the layout.
        registry: the repository to send to.
        tag: of the index that lists all of them; what it listed before stays listed.
        digest: of the one package to send; None: all.
        force: take a version's tag, or newer metadata, from what is there.
        chunk: bytes that are sent in one request, 2 or more.
        told: of progress.
        wait: between two attempts, in seconds.

    Raises:
        PackageError: the layout is damaged.
        ConfigError: the registry has something else under that version, or newer metadata.
        LinkDown: it could not be reached in so many attempts; what is there is not sent again.
        Unavailable: it wants another login, or takes none of this.
    """
    try:
        digests = [e.hexadecimal for e in Layout(folder).entries()] if digest is None else [
            layout.select(folder, digest).hexadecimal
        ]  # fmt: skip
        metadata = _metadata(folder)
        statements = _statements(folder, metadata)
    except OSError as error:
        raise PackageError(
            f"{error.filename or folder}: expected an image layout, got {error.strerror}"
        ) from error
    packages = [layout.verify(folder, each) for each in digests]
    if not packages and not metadata:
        raise ConfigError(f"{folder}: expected packages or signed metadata, got neither")
    sender = _Sender(registry, told, wait, chunk)
    before = sender.index(tag)
    entries = _merged(before, packages, registry.where, force=force)
    if not force:
        for packed in packages:
            sender.check_free(tag_of(packed), packed)
        if metadata:
            _check_newer(sender.timestamp(tag), metadata, registry.where)
    for packed in packages:
        for blob in packed.listing.blobs:
            sender.blob(packed.config.title, blob, _of_layout(folder, blob))
        (raw,) = Layout(folder).blob(packed.listing.manifest)
        sender.manifest(tag_of(packed), raw, oci.MANIFEST_TYPE)
    if metadata:
        entries = [e for e in entries if e["artifactType"] != METADATA_TYPE]
        entries.append(
            artifacts.make_metadata_entry(sender.metadata(f"{tag}.metadata"[:128], metadata, statements))
        )
    index = sender.manifest(tag, oci.make_index(entries), oci.INDEX_TYPE)
    return Pushed(
        tuple((tag_of(p), p) for p in packages), len(metadata), f"sha256:{index.digest}", sender.sent,
        sender.there,
    )  # fmt: skip


class _Sender:
    """What is sent in the course of one push."""

    def __init__(self, registry: Registry, told: Told, wait: Wait, chunk: int) -> None:
        self._registry = registry
        self._told = told
        self._chunk = chunk
        self._wait = wait
        self.sent = self.there = 0

    # What is there

    def index(self, tag: str) -> bytes:
        """What the tag leads to now, as an index."""
        where = f"{self._registry.where}:{tag}"

        def ask() -> bytes:
            try:
                return as_index(self._registry.manifest(tag, oci.INDEX_BYTES), where)
            except NotThere:
                return oci.make_index([])

        try:
            return self._again(ask)
        except PackageError as error:
            raise ConfigError(f"{error} (choose another tag)") from error

    def check_free(self, tag: str, packed: Packed) -> None:
        """That a version's tag leads nowhere yet, or to this very package."""
        try:
            raw = self._again(lambda: self._registry.manifest(tag, oci.INDEX_BYTES))
        except NotThere:
            return
        if (seen := oci.sha256(raw)) != packed.listing.digest:
            raise ConfigError(
                f"{self._registry.where}:{tag}: expected a new version, got one that is there as {seen[:16]} "
                "with other content (raise the version, or --force)"
            )

    def timestamp(self, tag: str) -> bytes | None:
        """The metadata's timestamp that is there."""
        with suppress(NotThere, PackageError):
            return self._again(
                lambda: RegistryMetadata(self._registry, tag).read("timestamp.json", _METADATA_BYTES)
            )
        return None

    # What is sent

    def blob(self, what: str, blob: Blob, read: Read) -> None:
        """A blob, unless it is there."""
        if self._again(lambda: self._has(blob)):
            self.there += blob.size
            self._told(what, blob.size, blob.size)
            return
        upload = _Upload(
            self._registry, blob, read, self._chunk, lambda done: self._told(what, done, blob.size)
        )
        again(upload.go_on, self._wait, lambda: upload.reached)
        self.sent += blob.size

    def content(self, what: str, content: bytes) -> Blob:
        """A small blob out of memory."""
        blob = Blob(oci.sha256(content), len(content))
        self.blob(what, blob, lambda at, size: iter([content[at : at + size]]))
        return blob

    def manifest(self, tag: str, raw: bytes, media_type: str) -> Blob:
        """A manifest or index, under a tag."""
        blob = Blob(oci.sha256(raw), len(raw))
        headers = {"Content-Type": media_type, "Content-Length": str(len(raw))}

        def put() -> None:
            where = self._registry.at(f"manifests/{tag}")
            with self._registry.ask(
                "PUT", where, _SMALL, good=(200, 201, 202), headers=headers, body=lambda: [raw]
            ) as (answer, _):
                seen = answer.headers.get("Docker-Content-Digest", f"sha256:{blob.digest}")
            if seen != f"sha256:{blob.digest}":
                raise Unavailable(f"{where.shown}: expected it kept as it is, got {seen[:80]} of it")

        self._again(put)
        self._told(tag, len(raw), len(raw))
        return blob

    def metadata(self, tag: str, files: dict[str, bytes], statements: list[bytes]) -> Blob:
        """Signed metadata, and the statements that it names, as an artifact."""
        self.content("metadata", artifacts.EMPTY)
        listed = {name: self.content(f"metadata {name}", raw) for name, raw in sorted(files.items())}
        named = [self.content("statement", raw) for raw in statements]
        return self.manifest(tag, artifacts.make_metadata(listed, named), oci.MANIFEST_TYPE)

    def _has(self, blob: Blob) -> bool:
        where = self._registry.at(f"blobs/sha256:{blob.digest}")
        try:
            with self._registry.ask("HEAD", where, 0):
                return True
        except NotThere:
            return False

    def _again(self, ask: Callable[[], T]) -> T:
        return again(ask, self._wait)


class _Upload:
    """One blob on its way; `go_on` may be called again when it was interrupted."""

    def __init__(
        self, registry: Registry, blob: Blob, read: Read, chunk: int, told: Callable[[int], None]
    ) -> None:
        self._registry = registry
        self._blob = blob
        self._chunk = chunk
        self._read = read
        self._told = told
        self._session: Address | None = None
        self.reached = 0
        """Bytes that the registry had at most."""

    def go_on(self) -> None:
        """Send what is missing, and have it compared."""
        at = self._begin()
        while self._blob.size - at > self._chunk or 0 < at < self._blob.size:
            at = self._patch(at)
            self.reached = max(self.reached, at)
            self._told(at)
        self._finish(at)
        self._told(self._blob.size)

    def _begin(self) -> int:
        """Where to go on: what an earlier attempt left, if the registry can say so."""
        if self._session is not None:
            with suppress(NotThere, Unavailable):
                # Without a login, or away: the next request says so.
                return self._state(self._session)
        with self._registry.ask(
            "POST", self._registry.at("blobs/uploads/"), _SMALL, good=(202,), headers={"Content-Length": "0"},
            body=list,
        ) as (answer, where):  # fmt: skip
            self._session = where.elsewhere(_location(answer.headers, where))
        return 0

    def _state(self, session: Address) -> int:
        self._session = None  # unless it is good, begin anew
        with self._registry.ask("GET", session, _SMALL, good=(204,)) as (answer, where):
            at = _received(answer.headers)
            if at > self._blob.size:
                raise Unavailable(f"{where.shown}: expected at most {self._blob.size} bytes there, got {at}")
            self._session = where.elsewhere(_location(answer.headers, where))
        return at

    def _patch(self, at: int) -> int:
        assert self._session is not None
        size = min(self._chunk, self._blob.size - at)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
            "Content-Range": f"{at}-{at + size - 1}",
        }
        session, self._session = self._session, None
        try:
            with self._registry.ask(
                "PATCH", session, _SMALL, good=(202,), headers=headers, body=lambda: self._read(at, size)
            ) as (answer, where):
                after = where.elsewhere(_location(answer.headers, where))
                received = _received(answer.headers)
        except NotThere as error:
            raise LinkDown(f"{error}: the upload is begun anew") from error
        except LinkDown:
            self._session = session  # to be asked how much of it came
            raise
        if received != at + size:
            raise LinkDown(f"{where.shown}: expected {at + size} bytes there, got {received} (try again)")
        self._session = after
        return received

    def _finish(self, at: int) -> None:
        """Have it compared; what is small goes along."""
        assert self._session is not None
        glue = "&" if "?" in self._session.target else "?"
        where = self._session.joined(f"{self._session.target}{glue}digest=sha256:{self._blob.digest}")
        self._session = None
        size = self._blob.size - at
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            with self._registry.ask(
                "PUT", where, _SMALL, good=(201, 204), headers=headers, body=lambda: self._read(at, size)
            ):
                pass
        except NotThere as error:
            raise LinkDown(f"{error}: the upload is begun anew") from error


def _location(headers: Any, where: Address) -> str:
    found = headers.get("Location", "")
    if not found:
        raise Unavailable(f"{where.shown}: expected where to send it, got no Location")
    return str(found)


def _received(headers: Any) -> int:
    """Bytes that a session has; `0-0` is what Distribution says of none, and of one, which we never send."""
    _, _, last = str(headers.get("Range", "")).rpartition("-")
    return int(last) + 1 if last.isdecimal() and len(last) < 19 and last != "0" else 0


def _of_layout(folder: Path, blob: Blob) -> Read:
    def read(at: int, size: int) -> Iterator[bytes]:
        left = size
        for chunk in Layout(folder).blob(blob, at):
            for start in range(0, min(len(chunk), left), PIECE):
                yield chunk[start : min(start + PIECE, left)]
            left -= len(chunk)
            if left <= 0:
                return

    return read


def _metadata(folder: Path) -> dict[str, bytes]:
    """The files of a repository's metadata; none where it is a layout alone."""
    there = folder / METADATA
    if not there.is_dir():
        return {}
    names = [name for name in sorted(p.name for p in there.iterdir()) if METADATA_NAME.fullmatch(name)]
    if len(names) > artifacts.MOST_METADATA:
        raise PackageError(f"{there}: expected at most {artifacts.MOST_METADATA} files, got {len(names)}")
    return {name: Layout(folder).document(f"{METADATA}/{name}", _METADATA_BYTES) for name in names}


def _statements(folder: Path, metadata: dict[str, bytes]) -> list[bytes]:
    """What the newest targets name among the blobs, beside packages: attestations of what was measured."""
    numbered = [name.partition(".")[0] for name in metadata if name.endswith(".targets.json")]
    newest = max((int(number) for number in numbered if number.isdecimal()), default=0)
    if not newest:
        return []
    try:
        targets = json.loads(metadata[f"{newest}.targets.json"])["signed"]["targets"].values()
        said = [each["statement"] for t in targets for each in t.get("custom", {}).get("attestations", ())]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{folder}: {newest}.targets.json: expected signed metadata") from error
    digests = sorted({str(digest).removeprefix("sha256:") for digest in said})
    found = []
    for digest in digests:
        raw = (
            Layout(folder).document(f"blobs/sha256/{digest}", oci.CONFIG_BYTES)
            if oci.HEX.fullmatch(digest)
            else b""
        )
        oci.check_digest(raw, digest, f"{folder}: a statement")
        found.append(raw)
    return found


def _merged(before: bytes, packages: list[Packed], where: str, *, force: bool) -> list[dict[str, Any]]:
    """What the index is to list: what it listed, and these."""
    new = {p.listing.digest: p for p in packages}
    names = {f"{p.config.name}-{p.config.version}": p.listing.digest for p in packages}
    kept = []
    for entry in oci.read_index(before, where):
        if entry.hexadecimal in new:
            continue
        if entry.name in names:
            if not force:
                raise ConfigError(
                    f"{where}: expected another version than {entry.name}, which is listed as "
                    f"{entry.hexadecimal[:16]} with other content (raise the version, or --force)"
                )
            continue
        kept.append(oci.make_entry(Blob(entry.hexadecimal, entry.size), entry.name))
    kept += [
        artifacts.make_metadata_entry(Blob(e.hexadecimal, e.size))
        for e in oci.read_index(before, where, METADATA_TYPE)
    ]
    return kept + [
        oci.make_entry(p.listing.manifest, f"{p.config.name}-{p.config.version}") for p in packages
    ]


def _check_newer(there: bytes | None, files: dict[str, bytes], where: str) -> None:
    """That no newer metadata would go: devices that have seen it refuse what is older."""
    if there is None or "timestamp.json" not in files:
        return
    seen, own = _version(there), _version(files["timestamp.json"])
    if seen > own:
        raise ConfigError(
            f"{where}: expected metadata that is newer than timestamp {seen}, which is there, got {own} "
            "(push the newest copy of the repository, or --force)"
        )


def _version(timestamp: bytes) -> int:
    """0 where it says none."""
    try:
        found = json.loads(timestamp)["signed"]["version"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return 0
    return found if isinstance(found, int) else 0
