"""A life of the model store: everything it does, what it promises, and what must hold after any crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_folders import NAME, package_folder, packed
from skerry.models import layout
from skerry.models import package as packages
from skerry.models.layout import Packed
from skerry.models.package import digest as digest_of
from skerry.updater.disk import Disk
from skerry.updater.fetch import FolderSource, fetch
from skerry.updater.settings import StoreSettings
from skerry.updater.store import Serving, Store

VERSIONS = "1.0.0", "2.0.0", "3.0.0", "4.0.0"
BUNDLED = "0.1.0"
NARROW = StoreSettings(quota_bytes=17_000, floor_bytes=0)
"""Three packages fit, and not four."""

Promise = Callable[[list[str]], None]
"""Told which package serves from now on: its digest, empty for the bundled one."""


class Far:
    """Four versions in a layout, and one that came with the image.

    Args:
        room: an empty folder.
    """

    def __init__(self, room: Path) -> None:
        self.room = room
        self.bundled = package_folder(room / "bundled", BUNDLED)
        self.packed: list[Packed] = [packed(room, version) for version in VERSIONS]
        self.source = FolderSource(room / "layout")

    @property
    def digests(self) -> list[str]:
        return [p.listing.digest for p in self.packed]

    @property
    def order(self) -> list[str]:
        """What serves in a life, one after the other."""
        one, two, three, _ = self.digests
        return [one, two, one, three]

    def open(self, folder: Path, disk: Disk) -> Store:
        return Store.open(folder, NARROW, bundled={NAME: self.bundled}, disk=disk)


def live(far: Far, folder: Path, disk: Disk, promise: Callable[[Any], None] = lambda _fact: None) -> None:
    """Install, try, confirm, roll back, collect, open again: from wherever an earlier life ended."""
    one, two, three, four = (p.listing.manifest for p in far.packed)
    with far.open(folder, disk) as store:
        fetch(store, far.source, one)
        store.activate(NAME, one.digest)
        promise(one.digest)
        fetch(store, far.source, two)
        store.offer(NAME, two.digest)
        store.confirm(NAME)
        promise(two.digest)
        store.roll_back(NAME)
        promise(one.digest)
    with far.open(folder, disk) as store:
        fetch(store, far.source, three)
        store.activate(NAME, three.digest)
        promise(three.digest)
        fetch(store, far.source, four)  # the second one has to go for it
        store.offer(NAME, four.digest)
        store.withdraw(NAME)
        store.scrub()


def check(far: Far, store: Store, allowed: set[str]) -> Serving:
    """That exactly one package serves, that it is whole by its hashes, and one of these."""
    serving = store.resolve(NAME)
    assert serving.digest in allowed, f"{serving} is none of {allowed}"
    package = packages.load(serving.folder)
    assert package.manifest.name == NAME
    slots = store.slots(NAME)
    if serving.digest:
        assert serving.origin == "current", serving
        assert not serving.passed_over, serving
        listing = store.listing(serving.digest)
        assert layout.check_folder(serving.folder, listing, digest_of) == []
        link = store.folder / "slots" / NAME / "current"
        assert link.resolve() == serving.folder.resolve(), "inference sees the same"
    else:
        assert slots.current is None, slots
    assert slots.previous != slots.current or slots.current is None, slots
    assert slots.digests <= set(store.packages()), slots
    left = {p.name for p in (store.folder / "packages").iterdir()}
    assert left <= set(far.digests), left
    for digest in left:
        store.open_package(digest)  # a package is there as a whole, or not at all
    states = [p.name for p in (store.folder / "states").iterdir()]
    assert len(states) == len(list((store.folder / "slots").iterdir())), states
    return serving
