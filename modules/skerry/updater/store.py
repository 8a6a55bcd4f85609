"""The packages on this device: complete, verified, and fallen back from, whatever happens meanwhile.

    STORE/lock                       one process at a time
    STORE/blobs/sha256/HEX           content, by its sha256; manifests and configs too
    STORE/partial/HEX                what of a blob has come so far
    STORE/packages/HEX/              a package folder as inference loads it: hard links to blobs
    STORE/slots/SLOT/current         a link to the package that serves; beside it previous and trial
    STORE/states/                    what the links of `slots` lead to

Each step is flushed before the next one relies on it: content before its name, names before the package,
the package before the slot, the slot before anything it led to is removed. So after a crash at any moment
a slot names one package that is whole; `Store.open` removes what was under way.

Source: rename(2), link(2), fsync(2) with its note on folders.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import structlog

from skerry.errors import PackageError, Unavailable
from skerry.messages import NAME
from skerry.models import oci
from skerry.models import package as packages
from skerry.models.layout import check_folder
from skerry.models.oci import HEX, Blob, Config, Listing
from skerry.models.package import MANIFEST
from skerry.updater.blobs import Blobs, Feed, Pace, size_of, unpaced
from skerry.updater.disk import Disk, StoreFull, guarded, remove
from skerry.updater.settings import StoreSettings
from skerry.updater.slots import Slots, SlotTable

log = structlog.get_logger()

_FOLDERS = ("blobs", "blobs/sha256", "partial", "packages", "slots", "states")


class Finding(NamedTuple):
    """Something that was wrong in the store, and what was done about it.

    Attributes:
        action: `rebuilt` from good blobs; `dropped`, nothing served with it; `fell_back`, a slot was
            changed; `not_written`, the disk would not take the change, and reading goes on around it.
        model: whose slot it was; empty where it was in none.
        digest: of the package or blob.
        text: what was wrong.
    """

    action: Literal["rebuilt", "dropped", "fell_back", "not_written"]
    model: str
    digest: str
    text: str


class Serving(NamedTuple):
    """The package to serve with.

    Attributes:
        folder: of the package.
        digest: of the package; empty for the bundled one.
        origin: where it was found.
        passed_over: why not those before it in the order current, previous, bundled.
    """

    folder: Path
    digest: str
    origin: Literal["current", "previous", "bundled"]
    passed_over: tuple[str, ...] = ()


class Store:
    """A store that this process has to itself. `open` makes one.

    Attributes:
        folder: where it is.
        found: what was wrong when it was opened.
        pace: is told of what is read where packages are proved.
    """

    def __init__(
        self, folder: Path, settings: StoreSettings, bundled: Mapping[str, Path], disk: Disk, lock: int
    ) -> None:
        self.folder = folder
        self.found: tuple[Finding, ...] = ()
        self.pace: Pace = unpaced
        self._settings = settings
        self._bundled = bundled
        self._disk = disk
        self._lock = lock
        self._blobs = Blobs(folder, disk)
        self._table = SlotTable(folder, disk)
        self._packages = folder / "packages"

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: StoreSettings = StoreSettings(),  # noqa: B008 - frozen
        *,
        bundled: Mapping[str, Path] | None = None,
        disk: Disk | None = None,
    ) -> Store:
        """Open a store, or make one; remove what a crash left, and fall back from what is damaged.

        Args:
            folder: on a file system with hard and symbolic links.
            settings: how much room it may take.
            bundled: by model, the package folder that came with the image: the last to fall back to.
            disk: what it is on.

        Raises:
            Unavailable: another process has it, or the disk failed.
        """
        disk = disk or Disk()
        with guarded(folder):
            if not folder.is_dir():
                folder.mkdir(parents=True)
                disk.sync_folder(folder.parent)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise Unavailable(f"{folder}: another process has this store (end it first)") from error
        store = cls(folder, settings, bundled or {}, disk, lock)
        try:
            store._recover()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let another process have it. Nothing needs to be written."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What there is

    def packages(self) -> tuple[str, ...]:
        """Digests of the packages that are here, those that came first, first."""
        with guarded(self._packages):
            there = [
                (p.stat().st_mtime_ns, p.name) for p in self._packages.iterdir() if HEX.fullmatch(p.name)
            ]
        return tuple(name for _, name in sorted(there))

    def models(self) -> tuple[str, ...]:
        """Models that have slots, or a bundled package."""
        return tuple(sorted({*self._table.models(), *self._bundled}))

    def slots(self, model: str) -> Slots:
        """The packages of a model."""
        return self._table.read(model)

    def listing(self, digest: str) -> Listing:
        """What a package that is here consists of, from its manifest, whose sha256 is compared.

        Raises:
            PackageError: the manifest is not here, or damaged.
        """
        return oci.read_listing(self._document(digest, oci.MANIFEST_BYTES), digest, f"package {digest[:16]}")

    def config(self, digest: str) -> Config:
        """What a package that is here says of itself.

        Raises:
            PackageError: it is not here, or damaged.
        """
        return self._config(self.listing(digest))[0]

    def open_package(self, digest: str) -> Path:
        """The folder of a package, all of whose files have their sizes.

        Raises:
            PackageError: something is missing, or has another size.
        """
        folder = self._packages / digest
        with guarded(folder):
            found = check_folder(folder, self.listing(digest))
        if found:
            raise PackageError("\n".join(found))
        return folder

    def resolve(self, model: str) -> Serving:
        """The package to serve with: the first of current, previous and bundled that is whole.

        Raises:
            PackageError: none is.
        """
        slots = self.slots(model)
        why: list[str] = []
        order: tuple[tuple[Literal["current", "previous"], str | None], ...]
        order = ("current", slots.current), ("previous", slots.previous)
        for origin, digest in order:
            if digest is None:
                continue
            try:
                return Serving(self.open_package(digest), digest, origin, tuple(why))
            except (PackageError, Unavailable) as error:
                why.append(f"{origin}: {error}")
        if model in self._bundled:
            try:
                return Serving(packages.load(self._bundled[model]).folder, "", "bundled", tuple(why))
            except PackageError as error:
                why.append(f"bundled: {error}")
        raise PackageError("\n".join((f"{self.folder}: expected a package of {model}, got none", *why)))

    def used(self) -> int:
        """Bytes of all packages and half fetched files; a file with two names counts once."""
        with guarded(self.folder):
            return sum(size for size, _ in self._files().values())

    # Taking a package in

    def document(self, blob: Blob, feed: Feed) -> bytes:
        """Receive a small blob, and what it holds.

        Raises:
            As `receive`.
        """
        self.receive(blob, feed)
        if self._blobs.read(blob.digest, blob.size) is None:  # it was damaged after it had come
            with guarded(self._blobs.whole):
                remove(self._disk, self._blobs.path(blob.digest))
            self.receive(blob, feed)
        return self._document(blob.digest, blob.size)

    def receive(self, blob: Blob, feed: Feed) -> None:
        """Take in a blob, from where an earlier attempt ended; see `Blobs.receive`."""
        self._blobs.receive(blob, feed)

    def missing(self, blobs: Collection[Blob]) -> int:
        """Bytes of these blobs that are still to come."""
        return sum(self._blobs.missing(b) for b in blobs)

    def make_room(self, need: int, keep: Collection[str] = ()) -> None:
        """See that so many bytes fit within quota and floor; what no slot needs goes, the oldest first.

        Args:
            need: bytes.
            keep: digests of blobs and packages that are about to be used.

        Raises:
            StoreFull: they do not fit, even so.
            StoreFault: the disk failed.
        """
        with guarded(self.folder):
            if self._fits(need):
                return
            for give_up in self._garbage(frozenset(keep)):
                give_up()
                if self._fits(need):
                    return
            free, used = self._disk.free(self.folder), self.used()
        quota, above = self._settings.quota_bytes - used, free - self._settings.floor_bytes
        raise StoreFull(
            f"{self.folder}: expected room for {need} bytes, got {max(quota, 0)} of the quota and "
            f"{max(above, 0)} of the disk above its floor (give it more)"
        )

    def publish(self, listing: Listing) -> None:
        """Make the package folder of blobs that are all here; the package appears as a whole.

        Raises:
            PackageError: a blob is missing.
            StoreFull, StoreFault: it is not here.
        """
        for blob in (listing.manifest, *listing.blobs):
            if not self._blobs.has(blob):
                raise PackageError(
                    f"package {listing.digest[:16]}: expected blob {blob.digest[:16]}, got none"
                )
        target = self._packages / listing.digest
        with guarded(target):
            if not check_folder(target, listing):
                return
            self._disk.sync_folder(self._blobs.whole)
            self._discard(target)
            self._build(listing, target)

    # Slots

    def offer(self, slot: str, digest: str, model: str = "") -> Path:
        """Prove a package and put it on trial in a slot; returns its folder.

        Args:
            slot: its name.
            digest: of the package.
            model: that it must be of; empty: the one that is called as the slot is.

        Raises:
            PackageError: it is damaged, not good, or of another model. The slots are as they were.
        """
        self._prove(slot, digest, model or slot)
        old = self.slots(slot)
        self._table.write(slot, Slots(old.current, old.previous, digest))
        return self._packages / digest

    def activate(self, slot: str, digest: str, model: str = "") -> None:
        """Prove a package and make it current; the one that was is previous.

        Args:
            slot: its name.
            digest: of the package.
            model: that it must be of; empty: the one that is called as the slot is.

        Raises:
            PackageError: it is damaged, not good, or of another model. The slots are as they were.
        """
        self._prove(slot, digest, model or slot)
        old = self.slots(slot)
        previous = old.previous if old.current == digest else old.current
        self._table.write(slot, Slots(digest, previous, None))

    def confirm(self, slot: str, model: str = "") -> None:
        """The trial becomes current, after it was proved again.

        Args:
            slot: its name.
            model: as it was offered for.

        Raises:
            PackageError: there is none, or it is damaged. The slots are as they were.
        """
        trial = self.slots(slot).trial
        if trial is None:
            raise PackageError(f"{slot}: expected a package on trial, got none")
        self.activate(slot, trial, model)

    def withdraw(self, model: str) -> None:
        """End a trial; nothing else changes."""
        old = self.slots(model)
        if old.trial is not None:
            self._table.write(model, Slots(old.current, old.previous, None))

    def roll_back(self, model: str) -> str | None:
        """The previous package serves again, or the bundled one; what was current is in no slot.

        Returns:
            The digest of the new current; None where it is the bundled one.
        """
        old = self.slots(model)
        self._table.write(model, Slots(old.previous, None, old.trial))
        return old.previous

    def forget_previous(self, slot: str) -> None:
        """There is nothing to go back to but the bundled package: what was before is too old for that."""
        old = self.slots(slot)
        if old.previous is not None:
            self._table.write(slot, Slots(old.current, None, old.trial))

    def clear(self, slot: str) -> None:
        """The bundled package serves; the packages stay until the room is needed."""
        if self.slots(slot) != Slots():
            self._table.write(slot, Slots())

    def _prove(self, slot: str, digest: str, model: str) -> None:
        """Compare every hash, and see that it is a good package of this model."""
        if not re.search(NAME, slot):
            raise PackageError(f"expected a slot's name, got {slot[:80]!r}")
        listing = self.listing(digest)
        config, raw = self._config(listing)
        if config.name != model:
            raise PackageError(f"package {digest[:16]}: expected one of {model}, got one of {config.name}")
        folder = self._packages / digest
        proofs = _Proofs(self._blobs, self.pace)
        with guarded(folder):
            found = check_folder(folder, listing, proofs.read)
        if found:
            _told(self._mend_package(digest, proofs) + self._mend_slots())
            raise PackageError("\n".join(found))
        with guarded(folder):
            manifest = (folder / MANIFEST).read_bytes()
        oci.check_same(manifest, raw, str(folder / MANIFEST))
        packages.load(folder, proofs.read)

    # Damage

    def scrub(self, pace: Pace = unpaced) -> tuple[Finding, ...]:
        """Compare every hash in the store; rebuild what can be rebuilt, fall back from what cannot.

        Args:
            pace: is told of every piece that was read, and may wait.

        Returns:
            What was wrong; the packages that it names as dropped are to be fetched again.
        """
        proofs, found = _Proofs(self._blobs, pace), list[Finding]()
        for digest in self.packages():
            found += self._mend_package(digest, proofs)
        found += self._mend_slots()
        with guarded(self._blobs.whole):
            for path in list(self._blobs.whole.iterdir()):
                if proofs.digest(path) != path.name:
                    found.append(Finding("dropped", "", path.name, f"{path}: expected that sha256"))
                    remove(self._disk, path)
            self._disk.sync_folder(self._blobs.whole)
        return _told(found)

    def _recover(self) -> None:
        """Remove what was under way, and fall back from what is not whole."""
        with guarded(self.folder):
            self._make_folders()
        found: list[Finding] = []
        try:
            self._tidy()
        except Unavailable as error:  # what is in the way stays; what serves is not touched by it
            found.append(Finding("not_written", "", "", str(error)))
        self.found = _told(found + self._mend_slots())

    def _tidy(self) -> None:
        self._table.tidy()
        with guarded(self.folder):
            for folder in (self._blobs.whole, self._packages):
                self._disk.sync_folder(folder)
            for folder in (self._packages, self._blobs.whole, self._blobs.partial):
                for path in list(folder.iterdir()):
                    if not HEX.fullmatch(path.name):
                        remove(self._disk, path)

    def _make_folders(self) -> None:
        for name in _FOLDERS:
            path = self.folder / name
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise OSError(None, "expected a folder, got something else", str(path))
            if not path.exists():
                self._disk.make_folder(path)
            self._disk.sync_folder(path.parent)

    def _mend_slots(self) -> list[Finding]:
        """See that slots name packages that are whole, by their sizes; by their hashes once one is not."""
        found: list[Finding] = []
        proofs = _Proofs(self._blobs, self.pace)
        bad: dict[str, str] = {}
        for model in self._table.models():
            digests = self.slots(model).digests
            damaged = {d: why for d in digests if (why := self._damage(d))}
            for digest in sorted(digests) if damaged else ():
                found += self._mend_package(digest, proofs)
                if why := self._damage(digest):
                    bad[digest] = damaged.get(digest, why)
        for model in self._table.models():
            found += self._fall_back(model, bad)
        return found

    def _fall_back(self, model: str, bad: Mapping[str, str]) -> list[Finding]:
        old = self.slots(model)
        left = [d for d in (old.current, old.previous) if d is not None and d not in bad]
        trial = old.trial if old.trial not in bad else None
        new = Slots(left[0] if left else None, left[1] if len(left) > 1 else None, trial)
        if new == old:
            return []
        gone = ((name, d) for name in ("current", "previous", "trial") if (d := getattr(old, name)) in bad)
        texts = [(d, f"{name}: {bad[d]}") for name, d in gone]
        try:
            self._table.write(model, new)
        except Unavailable as error:
            return [Finding("not_written", model, d, f"{text}; {error}") for d, text in texts]
        return [Finding("fell_back", model, d, text) for d, text in texts]

    def _damage(self, digest: str) -> str:
        """What is wrong with the sizes of a package; empty when nothing is."""
        try:
            self.open_package(digest)
        except (PackageError, Unavailable) as error:
            return str(error)
        return ""

    def _mend_package(self, digest: str, proofs: _Proofs) -> list[Finding]:
        """Compare all hashes of a package; rebuild it from good blobs, or drop it."""
        folder = self._packages / digest
        try:
            listing = self.listing(digest)
            self._config(listing)
            with guarded(folder):
                found = check_folder(folder, listing, proofs.digest)
                if not found and all(self._sound(b, proofs) for b in listing.blobs):
                    return []
                lost = [f.title for f in listing.files if not self._restore(f.blob, folder / f.title, proofs)]
                if not lost:
                    self._disk.sync_folder(self._blobs.whole)
                    if found:
                        self._discard(folder)
                        self._build(listing, folder)
                    return [Finding("rebuilt", "", digest, "; ".join(found) or "a blob was damaged")]
        except PackageError as error:
            found = [str(error)]
        except Unavailable as error:
            return [Finding("not_written", "", digest, str(error))]
        try:
            with guarded(folder):
                self._drop_document(digest)
                self._discard(folder)
        except Unavailable as error:
            return [Finding("not_written", "", digest, f"{'; '.join(found)}; {error}")]
        return [Finding("dropped", "", digest, "; ".join(found))]

    def _sound(self, blob: Blob, proofs: _Proofs) -> bool:
        return self._blobs.has(blob) and proofs.digest(self._blobs.path(blob.digest)) == blob.digest

    def _restore(self, blob: Blob, copy: Path, proofs: _Proofs) -> bool:
        """See that a blob is good, or make it of a package's file that is; else it goes."""
        if self._sound(blob, proofs):
            return True
        path = self._blobs.path(blob.digest)
        remove(self._disk, path)
        if size_of(copy) != blob.size or proofs.digest(copy) != blob.digest:
            return False
        self._disk.link(copy, path)
        return True

    def _drop_document(self, digest: str) -> None:
        """Remove a manifest or config that is damaged, so that it is fetched again."""
        for name, most in ((digest, oci.MANIFEST_BYTES), (self._config_digest(digest), oci.CONFIG_BYTES)):
            if name and self._blobs.read(name, most) is None:
                remove(self._disk, self._blobs.path(name))

    def _config_digest(self, digest: str) -> str:
        try:
            return self.listing(digest).config.digest
        except PackageError:
            return ""

    # Files

    def _document(self, digest: str, most: int) -> bytes:
        content = self._blobs.read(digest, most)
        if content is None:
            raise PackageError(f"{self._blobs.path(digest)}: expected it, got nothing or something else")
        return content

    def _config(self, listing: Listing) -> tuple[Config, bytes]:
        raw = self._document(listing.config.digest, oci.CONFIG_BYTES)
        return oci.read_config(raw, listing, f"package {listing.digest[:16]}: config"), raw

    def _build(self, listing: Listing, target: Path) -> None:
        """Link the files beside and rename the folder into place."""
        draft = self._packages / f".{listing.digest}"
        remove(self._disk, draft)
        self._disk.make_folder(draft)
        folders = sorted({p for f in listing.files for p in Path(f.title).parents if p != Path()})
        for folder in folders:
            self._disk.make_folder(draft / folder)
        for file in listing.files:
            self._disk.link(self._blobs.path(file.blob.digest), draft / file.title)
        for folder in reversed(folders):
            self._disk.sync_folder(draft / folder)
        self._disk.sync_folder(draft)
        self._disk.rename(draft, target)
        self._disk.sync_folder(self._packages)

    def _discard(self, package: Path) -> None:
        """Remove a package folder, its name first: no half of it is ever seen under it."""
        if not package.is_dir() or package.is_symlink():
            remove(self._disk, package)
            return
        aside = package.with_name(f".old-{package.name}")
        remove(self._disk, aside)
        self._disk.rename(package, aside)
        self._disk.sync_folder(self._packages)
        remove(self._disk, aside)

    def _files(self) -> dict[tuple[int, int], tuple[int, Path]]:
        """Size and a name of every file, by device and inode."""
        found = {}
        for base, _, names in os.walk(self.folder):
            for name in names:
                path = Path(base) / name
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    found[status.st_dev, status.st_ino] = status.st_size, path
        return found

    def _fits(self, need: int) -> bool:
        free = self._disk.free(self.folder)
        return self.used() + need <= self._settings.quota_bytes and free - need >= self._settings.floor_bytes

    def _garbage(self, keep: frozenset[str]) -> Iterator[Callable[[], None]]:
        """What can be given up: half fetched files, then blobs of no package, then packages of no slot."""
        self._table.pin()
        for path in sorted(self._blobs.partial.iterdir()):
            if path.name not in keep:
                yield lambda path=path: self._disk.unlink(path)  # type: ignore[misc]  # bound now, not later
        yield lambda: self._sweep(keep)
        held = frozenset(d for model in self._table.models() for d in self.slots(model).digests)
        for digest in self.packages():
            if digest not in keep | held:
                yield lambda digest=digest: self._give_up(digest, keep)  # type: ignore[misc]  # as above

    def _give_up(self, digest: str, keep: frozenset[str]) -> None:
        log.info("store.collected", digest=digest)
        self._discard(self._packages / digest)
        self._sweep(keep)

    def _sweep(self, keep: frozenset[str]) -> None:
        """Remove blobs that no package consists of."""
        used = set(keep)
        for digest in self.packages():
            with suppress(PackageError):  # damaged: a scrub tells, and its blobs are of no use
                listing = self.listing(digest)
                used |= {digest, *(b.digest for b in listing.blobs)}
        for path in sorted(self._blobs.whole.iterdir()):
            if path.name not in used:
                self._disk.unlink(path)


class _Proofs:
    """Hashes of one pass over the store: a file with two names is read once."""

    def __init__(self, blobs: Blobs, pace: Pace) -> None:
        self._blobs = blobs
        self._pace = pace
        self._known: dict[tuple[int, int], str] = {}

    def read(self, path: Path) -> str:
        """sha256 of a file.

        Raises:
            OSError: it cannot be read.
        """
        status = path.lstat()
        key = status.st_dev, status.st_ino
        if key not in self._known:
            self._known[key] = self._blobs.digest_of(path, self._pace)
        return self._known[key]

    def digest(self, path: Path) -> str:
        """sha256 of a file; empty where there is no file, or it cannot be read twice."""
        if size_of(path) is None:
            return ""
        for _ in range(2):
            try:
                return self.read(path)
            except OSError as error:
                log.warning("store.unreadable", path=str(path), error=error.strerror)
        return ""


def _told(found: list[Finding]) -> tuple[Finding, ...]:
    for each in found:
        log.warning(
            "store.damaged", action=each.action, model=each.model, digest=each.digest, reason=each.text
        )
    return tuple(found)
