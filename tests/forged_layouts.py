"""Layouts that lie consistently: every digest is right, and what is said is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_folders import packed
from skerry.models import oci
from skerry.models.oci import Blob


class Forger:
    """A layout whose documents are changed and named consistently, as whoever controls a source could."""

    def __init__(self, room: Path) -> None:
        self.there = room / "layout"
        self.packed = packed(room)
        self.manifest = json.loads(self._blob(self.packed.listing.digest))
        self.config = json.loads(self._blob(self.packed.listing.config.digest))

    def _blob(self, digest: str) -> bytes:
        return (self.there / "blobs" / "sha256" / digest).read_bytes()

    def put(self, content: bytes) -> Blob:
        blob = Blob(oci.sha256(content), len(content))
        (self.there / "blobs" / "sha256" / blob.digest).write_bytes(content)
        return blob

    def layer(self, title: str) -> dict[str, Any]:
        return next(each for each in self.manifest["layers"] if each["annotations"][oci.TITLE] == title)

    def name(self, raw: bytes | None = None, config: bytes | None = None) -> None:
        """Put everything under its digest again, and name it in the index."""
        blob = self.put(config if config is not None else oci.canonical(self.config))
        self.manifest["config"].update(digest=f"sha256:{blob.digest}", size=blob.size)
        manifest = self.put(raw if raw is not None else oci.canonical(self.manifest))
        (self.there / "index.json").write_bytes(oci.make_index([oci.make_entry(manifest, "tiny")]))
