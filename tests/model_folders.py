"""Model packages, small and without any runtime, as folders and in layouts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from skerry.models import layout
from skerry.models.layout import Packed

NAME = "tiny"
LABELS = "good\nbad\n"


def weights(version: str, size: int = 3000) -> bytes:
    """Different for each version."""
    return hashlib.shake_256(version.encode()).digest(size)


def package_folder(folder: Path, version: str = "1.0.0", *, size: int = 3000, **changes: Any) -> Path:
    """A package that `skerry.models.package.load` takes; no runtime would."""
    folder.mkdir(parents=True)
    content = weights(version, size)
    (folder / "model.onnx").write_bytes(content)
    (folder / "labels.txt").write_text(LABELS)
    manifest = {
        "schema": 1, "name": NAME, "version": version,
        "artifact": {"sha256": hashlib.sha256(content).hexdigest()},
        "input": {"name": "in", "width": 8, "height": 6},
        "outputs": [{"name": "out", "shape": [1, 2]}],
        "decoder": {"kind": "classification"},
        **changes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder


def packed(room: Path, version: str = "1.0.0", *, size: int = 3000, **changes: Any) -> Packed:
    """The same, put into the layout `room/layout`; the folder is `room/VERSION`."""
    return layout.pack(package_folder(room / version, version, size=size, **changes), room / "layout")
