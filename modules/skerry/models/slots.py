"""Which packages a slot of a model store names, for who only reads it; `skerry.updater.store` writes.

    STORE/slots/SLOT/current      a link to STORE/packages/HEX: what serves; beside it `previous` and `trial`

`slots/SLOT` is itself a link, to a folder that never changes: all three are read from one state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from skerry.errors import PackageError
from skerry.models import oci
from skerry.models.layout import check_folder
from skerry.models.oci import HEX

TO_PACKAGES = "../../packages/"
"""What a slot's links lead through, from the folder of its state."""
LINKS = ("current", "previous", "trial")
Origin = Literal["current", "previous", "bundled"]


@dataclass(frozen=True)
class Slots:
    """The packages of one slot, by digest (64 hexadecimal digits).

    Attributes:
        current: serves.
        previous: served before, and serves again where current fails.
        trial: is being tried.
    """

    current: str | None = None
    previous: str | None = None
    trial: str | None = None

    @property
    def digests(self) -> frozenset[str]:
        """Those that there are."""
        return frozenset(filter(None, (self.current, self.previous, self.trial)))


class Candidate(NamedTuple):
    """A package that may serve in a slot.

    Attributes:
        origin: where it was found.
        digest: of the package in the store, 64 hexadecimal digits; empty for the bundled one.
        folder: of the package; not looked at yet.
    """

    origin: Origin
    digest: str
    folder: Path


def state_of(store: Path, slot: str) -> Path | None:
    """The folder that holds a slot's links; None where the slot names none of the store's own."""
    try:
        target = (store / "slots" / slot).readlink()
    except OSError:
        return None
    name, _, number = target.name.rpartition(".")
    ours = name == slot and re.fullmatch(r"[0-9]+", number) and str(target.parent) == "../states"
    return store / "states" / target.name if ours else None


def read_slots(store: Path, slot: str) -> Slots:
    """The packages of a slot; a link that leads elsewhere counts as none."""
    state = state_of(store, slot)
    return Slots(**{name: _target(state, name) for name in LINKS})


def candidates(store: Path, slot: str, bundled: Path) -> Iterator[Candidate]:
    """What may serve in a slot, the best first: current, previous, bundled. One on trial is not among them.

    Args:
        store: folder of the store; need not be there.
        slot: its name.
        bundled: the package folder that came with the site.
    """
    slots = read_slots(store, slot)
    if slots.current is not None:
        yield Candidate("current", slots.current, package_folder(store, slots.current))
    if slots.previous is not None:
        yield Candidate("previous", slots.previous, package_folder(store, slots.previous))
    yield Candidate("bundled", "", bundled)


def package_folder(store: Path, digest: str) -> Path:
    """Where a package of a store is, or would be."""
    return store / "packages" / digest


def check_sizes(store: Path, digest: str) -> None:
    """See that every file of a package is there, and has its size.

    Raises:
        PackageError: one has not, or the package's manifest is not what its digest says.
    """
    path = store / "blobs" / "sha256" / digest
    try:
        with path.open("rb") as file:
            raw = file.read(oci.MANIFEST_BYTES + 1)
    except OSError as error:
        raise PackageError(f"{path}: {error.strerror}") from error
    listing = oci.read_listing(raw, digest, f"package {digest[:16]}")
    found = check_folder(package_folder(store, digest), listing)
    if found:
        raise PackageError("\n".join(found))


def _target(state: Path | None, name: str) -> str | None:
    try:
        target = str((state / name).readlink()) if state is not None else ""
    except OSError:
        return None
    digest = target.removeprefix(TO_PACKAGES)
    return digest if digest != target and HEX.fullmatch(digest) else None
