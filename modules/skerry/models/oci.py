"""A package as OCI documents: what its manifest lists and its config says, parsed and bounded. No I/O.

An image manifest has one digest, and through it the package has: the config blob says what the package
is, and each layer is one file of its folder, as it is, under the annotation of its path. Documents are
accepted in one form only (`canonical`), so that no two readers can find different things in them.

Source: OCI Image Format Specification 1.1, manifest.md, descriptor.md, image-layout.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from skerry.errors import ConfigError, PackageError
from skerry.messages import Name
from skerry.models.manifest import Manifest, files_of
from skerry.models.package import MANIFEST
from skerry.settings import Settings, convert, problems

T = TypeVar("T")

LAYOUT_FILE, INDEX_FILE = "oci-layout", "index.json"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
PACKAGE_TYPE = "application/vnd.skerry.package.v1"
CONFIG_TYPE = "application/vnd.skerry.package.config.v1+json"
FILE_TYPE = "application/vnd.skerry.package.file.v1"
TITLE = "org.opencontainers.image.title"
REF = "org.opencontainers.image.ref.name"

INDEX_BYTES = 1024 * 1024
MANIFEST_BYTES = 256 * 1024
CONFIG_BYTES = 1024 * 1024
MOST_FILES = 256
MOST_PACKAGES = 1000
"""In one index."""
_DEEPEST = 4
_LONGEST = 255
_NAMED = 200
"""Characters of a problem that are told: a name in a hostile document can be as long as the document."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +-]{0,126}(?<![. ])")

HEX = re.compile(r"[0-9a-f]{64}")

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)")]
Size = Annotated[int, Meta(ge=0, le=1 << 53)]
Semver = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
        r"(-(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*)?"
        r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$(?!\n)",
        max_length=64,
    ),
]
"""Source: Semantic Versioning 2.0.0, semver.org."""
Epoch = Annotated[int, Meta(ge=0, le=1 << 31)]


@dataclass(frozen=True)
class Limits:
    """The most that is taken from somewhere that is not trusted; nothing in a package is compressed.

    Attributes:
        file_bytes: of one file.
        total_bytes: of all of them and the config.
    """

    file_bytes: int = 2 * 1024**3
    total_bytes: int = 4 * 1024**3


class Blob(NamedTuple):
    """Content by its sha256 (64 hexadecimal digits) and size in bytes."""

    digest: str
    size: int


class File(NamedTuple):
    """A file of a package.

    Attributes:
        title: its path inside the package's folder, with `/`.
        blob: its content.
    """

    title: str
    blob: Blob


@dataclass(frozen=True)
class Listing:
    """What a manifest lists; it had the digest when it was read.

    Attributes:
        digest: of the manifest, and so of the package; 64 hexadecimal digits.
        size: of the manifest, in bytes.
        config: the config blob.
        files: sorted by title.
    """

    digest: str
    size: int
    config: Blob
    files: tuple[File, ...]

    @property
    def manifest(self) -> Blob:
        return Blob(self.digest, self.size)

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything but the manifest, each once, the config first."""
        return tuple(dict.fromkeys((self.config, *(f.blob for f in self.files))))

    @property
    def total(self) -> int:
        """Bytes of all blobs and the manifest."""
        return self.size + sum(b.size for b in self.blobs)


class Config(Settings, frozen=True, kw_only=True):
    """The config blob."""

    schema: Literal[1] = 1
    name: Name
    version: Semver
    security_epoch: Epoch = 0
    """Of two packages of one name, the one with the lower number must not replace the other."""
    manifest: Manifest
    """`manifest.json`, the same value for value."""

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"


class _ConfigDescriptor(Settings, frozen=True, kw_only=True, rename="camel"):
    media_type: Literal["application/vnd.skerry.package.config.v1+json"]
    digest: Digest
    size: Size


class _Titled(Settings, frozen=True, kw_only=True, rename={"title": TITLE}):
    title: str


class _Layer(Settings, frozen=True, kw_only=True, rename="camel"):
    media_type: Literal["application/vnd.skerry.package.file.v1"]
    digest: Digest
    size: Size
    annotations: _Titled


class _Manifest(Settings, frozen=True, kw_only=True, rename="camel"):
    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.skerry.package.v1"]
    config: _ConfigDescriptor
    layers: Annotated[tuple[_Layer, ...], Meta(min_length=1, max_length=MOST_FILES)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What an index says of one manifest: it is not signed, and believed as far as to look there."""

    media_type: str
    digest: Digest
    size: Size
    artifact_type: str = ""
    annotations: dict[str, str] = {}

    @property
    def hexadecimal(self) -> str:
        """64 hexadecimal digits."""
        return self.digest.partition(":")[2]

    @property
    def name(self) -> str:
        """What a person calls it; name-version where we wrote it."""
        return self.annotations.get(REF, "")


class _Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: Literal[2]
    manifests: Annotated[tuple[Entry, ...], Meta(max_length=MOST_PACKAGES)]


def canonical(value: Any) -> bytes:
    """JSON in the one form that has a digest: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def make_config(raw: Any, security_epoch: int, where: str) -> tuple[Config, bytes]:
    """The config of a package, and its bytes.

    Args:
        raw: what `manifest.json` holds, as plain data.
        security_epoch: 0 or more.
        where: names the package in messages.

    Raises:
        PackageError: with every problem found, one a line.
    """
    about = {"name": raw.get("name"), "version": raw.get("version")} if isinstance(raw, dict) else {}
    value = {"schema": 1, **about, "security_epoch": security_epoch, "manifest": raw}
    return _typed(Config, value, where), canonical(value)


def make_manifest(config: Blob, files: Iterable[File]) -> bytes:
    """The manifest of a package, in its one form."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": PACKAGE_TYPE,
            "config": _descriptor(CONFIG_TYPE, config),
            "layers": [
                {**_descriptor(FILE_TYPE, f.blob), "annotations": {TITLE: f.title}}
                for f in sorted(files, key=lambda f: f.title)
            ],
        }
    )


def make_entry(manifest: Blob, name: str) -> dict[str, Any]:
    """What the index says of a package."""
    return {
        **_descriptor(MANIFEST_TYPE, manifest),
        "artifactType": PACKAGE_TYPE,
        "annotations": {REF: name},
    }


def make_index(entries: Iterable[dict[str, Any]]) -> bytes:
    """An index, sorted by digest."""
    listed = sorted(entries, key=lambda e: str(e["digest"]))
    return canonical({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed})


def read_index(raw: bytes, where: str, artifact_type: str = PACKAGE_TYPE) -> tuple[Entry, ...]:
    """The packages in an index, or all of another type, in its order; what is something else is left out.

    Raises:
        PackageError: it is no index.
    """
    index = _typed(_Index, _parsed(raw, INDEX_BYTES, where), where)
    return tuple(
        e for e in index.manifests if e.media_type == MANIFEST_TYPE and e.artifact_type == artifact_type
    )


def read_listing(raw: bytes, digest: str, where: str, limits: Limits = Limits()) -> Listing:
    """A manifest, distrusted.

    Args:
        raw: its bytes.
        digest: what its sha256 must be; 64 hexadecimal digits.
        where: names it in messages.
        limits: the most that it may list.

    Raises:
        PackageError: with every problem found, one a line.
    """
    check_digest(raw, digest, where)
    value = _parsed(raw, MANIFEST_BYTES, where)
    manifest = _typed(_Manifest, value, where)
    _check_canonical(value, raw, where)
    config = _blob(manifest.config)
    listing = Listing(
        digest, len(raw), config, tuple(File(each.annotations.title, _blob(each)) for each in manifest.layers)
    )
    found = [*_titles([f.title for f in listing.files]), *_sizes(listing, limits)]
    if found:
        raise PackageError("\n".join(f"{where}: {text[:_NAMED]}" for text in found[:20]))
    return listing


def read_config(raw: bytes, listing: Listing, where: str) -> Config:
    """A config blob, distrusted, that has to go with what the manifest lists.

    Raises:
        PackageError: with every problem found, one a line.
    """
    check_digest(raw, listing.config.digest, where)
    value = _parsed(raw, CONFIG_BYTES, where)
    config = _typed(Config, value, where)
    _check_canonical(value, raw, where)
    found = _misfits(config, {f.title: f.blob for f in listing.files})
    if found:
        raise PackageError("\n".join(f"{where}: {text}" for text in found))
    return config


def check_same(raw: bytes, config: bytes, where: str) -> None:
    """That `manifest.json` holds what the config says it does.

    Args:
        raw: the file.
        config: the config blob, which `read_config` took.
        where: names the file in messages.

    Raises:
        PackageError: it does not.
    """
    said = json.loads(config)["manifest"]
    if canonical(_parsed(raw, CONFIG_BYTES, where)) != canonical(said):
        raise PackageError(f"{where}: expected what the package's config says, got something else")


def check_digest(raw: bytes, digest: str, where: str) -> None:
    """That these bytes have this sha256.

    Raises:
        PackageError: they have another.
    """
    if (seen := sha256(raw)) != digest:
        raise PackageError(f"{where}: expected sha256 {digest[:16]}..., got {seen[:16]}...")


def title_problem(title: str) -> str:
    """Why a path is not taken as one inside a package; empty when it is."""
    parts = title.split("/")
    if len(title) <= _LONGEST and len(parts) <= _DEEPEST and all(_PART.fullmatch(p) for p in parts):
        return ""
    return (
        f"expected a path inside the package (at most {_DEEPEST} names of letters, digits, spaces and "
        f"_ . + -, none beginning with a dot), got {title[:80]!r}"
    )


def _titles(titles: list[str]) -> list[str]:
    found = [text for title in titles if (text := title_problem(title))]
    if titles != sorted(titles):
        found.append("layers: expected them sorted by title")
    # A stick has a file system that knows no case: there two that differ in it would be one.
    seen = Counter(title.casefold() for title in titles)
    found += [f"layers: expected each title once, got {t!r} {n} times" for t, n in seen.items() if n > 1]
    folders = {"/".join(parts[:n]) for t in seen for parts in [t.split("/")] for n in range(1, len(parts))}
    found += [f"layers: expected a file or a folder, got {t!r} as both" for t in sorted(folders & set(seen))]
    if MANIFEST not in titles:
        found.append(f"layers: expected {MANIFEST} among them")
    return list(dict.fromkeys(found))


def _sizes(listing: Listing, limits: Limits) -> list[str]:
    found = [
        f"layers: expected at most {limits.file_bytes} bytes a file, got {f.blob.size} ({f.title})"
        for f in listing.files
        if f.blob.size > limits.file_bytes
    ]
    if listing.config.size > CONFIG_BYTES:
        found.append(f"config: expected at most {CONFIG_BYTES} bytes, got {listing.config.size}")
    if listing.total > limits.total_bytes:
        found.append(f"expected at most {limits.total_bytes} bytes in all, got {listing.total}")
    sizes = Counter(blob.digest for blob in listing.blobs)
    found += [f"layers: expected one size for sha256 {d[:16]}..., got {n}" for d, n in sizes.items() if n > 1]
    if listing.digest in sizes:
        found.append("layers: expected files, got the manifest itself")
    return found


def _misfits(config: Config, files: dict[str, Blob]) -> list[str]:
    """What of the config does not go with the files."""
    manifest = config.manifest
    found = [
        f"{field}: expected {inner} as in the manifest, got {outer}"
        for field, outer, inner in (
            ("name", config.name, manifest.name),
            ("version", config.version, manifest.version),
        )
        if outer != inner
    ]
    for n, form in enumerate(manifest.forms):
        where = "artifact" if n == 0 else f"variants[{n - 1}]"
        for part, its in zip(("", ".weights"), files_of(form), strict=False):
            there = files.get(its.file)
            if there is None:
                found.append(f"manifest.{where}{part}.file: expected one of the files, got {its.file!r}")
            elif there.digest != its.sha256:
                found.append(
                    f"manifest.{where}{part}.sha256: expected that of the file, {there.digest[:16]}..., "
                    f"got {its.sha256[:16]}..."
                )
    if manifest.labels not in files:
        found.append(f"manifest.labels: expected one of the files, got {manifest.labels!r}")
    return found


def _descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{blob.digest}", "size": blob.size}


def _blob(descriptor: _ConfigDescriptor | _Layer) -> Blob:
    return Blob(descriptor.digest.partition(":")[2], descriptor.size)


def _parsed(raw: bytes, most: int, where: str) -> Any:
    if len(raw) > most:
        raise PackageError(f"{where}: expected at most {most} bytes, got {len(raw)}")
    try:
        return json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where}: expected JSON ({str(error)[:_NAMED]})") from error


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _check_canonical(value: Any, raw: bytes, where: str) -> None:
    try:
        same = canonical(value) == raw
    except (ValueError, RecursionError):  # a lone surrogate, a number beyond 64 bits
        same = False
    if not same:
        raise PackageError(f"{where}: expected sorted JSON without spaces, each key once (pack it again)")


def _typed(kind: type[T], value: Any, where: str) -> T:
    try:
        return convert(kind, value, where)
    except ConfigError as error:
        found = problems(kind, value, most=20)
        told = [f"{where}: {path[:_NAMED]}: {text[:_NAMED]}" for path, text in found]
        raise PackageError("\n".join(told or error.problems)) from error
    except RecursionError as error:
        raise PackageError(f"{where}: expected a manifest, got lists within lists") from error
