"""The files of evidence, put into the folder of a package."""

from __future__ import annotations

from pathlib import Path

from skerry.models import package as packages
from skerry.models.building.record import BuildRecord
from skerry.models.evidence.bom import bom
from skerry.models.evidence.card import card
from skerry.models.evidence.provenance import provenance
from skerry.models.package import digest
from skerry.models.provenance import BOM, CARD, PROVENANCE


def add(folder: Path, record: BuildRecord) -> None:
    """Write `MODEL_CARD.md`, `bom.json` and, over all that is there then, `provenance.json`.

    Args:
        folder: of the package; everything else that belongs into it, `build.json` too, is there.
        record: what the build did.

    Raises:
        PackageError: the package is not what it says.
        OSError: a file cannot be written.
    """
    package = packages.load(folder)
    (folder / CARD).write_text(card(package, record), encoding="utf-8")
    (folder / BOM).write_bytes(bom(package, record))
    (folder / PROVENANCE).unlink(missing_ok=True)
    subjects = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    hashes = {name: digest(path) for name, path in subjects.items()}
    (folder / PROVENANCE).write_bytes(provenance(record, hashes))
