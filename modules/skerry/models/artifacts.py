"""What a registry carries beside packages: signed metadata as an artifact, and an index of all. No I/O.

A registry knows no folders, so the metadata of a repository is an artifact of its own: one layer a file,
under the annotation of its name, and one for each statement that the metadata names by its digest. It is
found by a tag, or in an index that a tag leads to. Neither is signed: both are believed as far as to look
there, as the folder `metadata` is.

Source: OCI Image Format Specification 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from skerry.errors import PackageError
from skerry.models import oci
from skerry.models.oci import TITLE, Blob, Digest, Size

METADATA_TYPE = "application/vnd.skerry.metadata.v1"
METADATA_FILE_TYPE = "application/vnd.skerry.metadata.file.v1+json"
STATEMENT_TYPE = "application/vnd.skerry.statement.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
MOST_METADATA = 1000
"""Files of metadata: every root since the first, and a few of each other role."""
METADATA_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


class _Titled(msgspec.Struct, frozen=True, rename={"title": TITLE}):
    title: Annotated[str, Meta(max_length=128)]


class _Layer(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: Digest
    size: Size
    annotations: _Titled | None = None

    @property
    def blob(self) -> Blob:
        return Blob(self.digest.removeprefix("sha256:"), self.size)


class _Artifact(msgspec.Struct, frozen=True, rename="camel"):
    layers: Annotated[tuple[_Layer, ...], Meta(max_length=MOST_METADATA)]


class _Head(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""
    artifact_type: str = ""


def kind(raw: bytes, where: str) -> tuple[str, str]:
    """Media type and artifact type that a document says it has; empty where it says none.

    Raises:
        PackageError: it is no JSON object.
    """
    head = _read(_Head, raw, where)
    return head.media_type, head.artifact_type


def make_metadata(files: Mapping[str, Blob], statements: Iterable[Blob] = ()) -> bytes:
    """The manifest of a repository's metadata, by the names of its files, and of statements that it names."""
    return oci.canonical(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": METADATA_TYPE,
            "config": _descriptor(EMPTY_TYPE, Blob(oci.sha256(EMPTY), len(EMPTY))),
            "layers": [
                {**_descriptor(METADATA_FILE_TYPE, blob), "annotations": {TITLE: name}}
                for name, blob in sorted(files.items())
            ]
            + [_descriptor(STATEMENT_TYPE, blob) for blob in sorted(set(statements))],
        }
    )


def read_metadata(raw: bytes, where: str) -> dict[str, Blob]:
    """The files that such a manifest lists.

    Raises:
        PackageError: it is none.
    """
    found: dict[str, Blob] = {}
    for layer in _layers(raw, where):
        if layer.media_type != METADATA_FILE_TYPE:
            continue
        name = layer.annotations.title if layer.annotations is not None else ""
        if not METADATA_NAME.fullmatch(name) or name in found:
            raise PackageError(f"{where}: expected names of files, each once, got {name[:80]!r}")
        found[name] = layer.blob
    return found


def read_statements(raw: bytes, where: str) -> tuple[Blob, ...]:
    """The statements that such a manifest lists.

    Raises:
        PackageError: it is none.
    """
    return tuple(layer.blob for layer in _layers(raw, where) if layer.media_type == STATEMENT_TYPE)


def _layers(raw: bytes, where: str) -> tuple[_Layer, ...]:
    if kind(raw, where) != (oci.MANIFEST_TYPE, METADATA_TYPE):
        raise PackageError(f"{where}: expected signed metadata ({METADATA_TYPE}), got something else")
    return _read(_Artifact, raw, where).layers


def make_metadata_entry(manifest: Blob) -> dict[str, Any]:
    """What an index says of metadata."""
    return {**_descriptor(oci.MANIFEST_TYPE, manifest), "artifactType": METADATA_TYPE}


def _descriptor(media_type: str, blob: Blob) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{blob.digest}", "size": blob.size}


def _read(kind: type[oci.T], raw: bytes, where: str) -> oci.T:
    try:
        return msgspec.convert(json.loads(raw.decode()), kind)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise PackageError(f"{where}: expected a manifest of a registry ({str(error)[:200]})") from error
