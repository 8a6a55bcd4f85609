"""The device's side of delivery: what is trusted, kept on its disk, moved on by what a source offers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import structlog
from msgspec.structs import replace
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import MetaFile, Root, Snapshot, Targets, Timestamp

from skerry.errors import PackageError, Unavailable
from skerry.trust import state as states
from skerry.trust import workflow
from skerry.trust.documents import LIMITS, read, require, signed_at
from skerry.trust.packages import TrustedPackage, order
from skerry.trust.refusals import RolledBack, Untrusted, WrongSoftware
from skerry.trust.sources import Source
from skerry.trust.state import State
from skerry.trust.times import Floor, Running, later, raised, reference

MOST_ROOTS = 64
"""Roots that one refresh follows; the next goes on from there (5.3.3)."""
Kept = TypeVar("Kept", Timestamp, Snapshot, Targets)

log = structlog.get_logger()


class NotKept(Unavailable):
    """This device's own disk does not take what is trusted: what was trusted stays."""


class Trust:
    """What this device trusts. One process at a time may have it open.

    Args:
        folder: of its own, for what must survive a power cut; made if missing.
        root: root metadata that came with the device, by a way that is trusted. Another one than last time
            starts anew from that, which is what to do when too many root keys were lost.

    Raises:
        Untrusted: `root` is none.
        Unavailable: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, root: bytes) -> None:
        self._folder = folder
        self._listed: tuple[tuple[str, str], tuple[TrustedPackage, ...]] | None = None
        """Root, targets, and the packages that they vouch for: whoever asks, asks often."""
        given = workflow.anchor(root, "root.json")
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise Unavailable(f"{folder}: {error.strerror}") from error
        kept, self._whole = states.load(folder)
        name = hashlib.sha256(root).hexdigest()
        if kept is None:
            lost = any((folder / each).exists() for each in states.FILES)
            if lost:
                log.error("trust.state_lost", folder=str(folder), started_from=f"root {given.version}")
            floor = Floor(signed_at(given, "root.json"))
            self._state = State(anchor=name, root=root.decode(), floor=floor)
        elif kept.anchor != name:
            log.warning("trust.anchor_changed", folder=str(folder), started_from=f"root {given.version}")
            self._state = replace(_adopted(kept, given, root), anchor=name)
            self._whole = False
        else:
            self._state = kept

    @property
    def root_version(self) -> int:
        """Of the newest root that was followed."""
        return self._root().version

    @property
    def targets_version(self) -> int:
        """Of the newest targets that were trusted; 0 where there are none, or their keys were exchanged."""
        targets = _kept(Targets, self._state.targets, self._root())
        return 0 if targets is None else targets.version

    @property
    def floor_s(self) -> float:
        """The least that the time can be, in POSIX seconds, as last noted."""
        return self._state.floor.utc_s

    @property
    def packages(self) -> tuple[TrustedPackage, ...]:
        """What the last good refresh trusted; nothing, if the targets' keys were exchanged since."""
        known = self._state.root, self._state.targets
        if self._listed is None or self._listed[0] != known:
            targets = _kept(Targets, self._state.targets, self._root())
            self._listed = known, () if targets is None else workflow.packages(targets)
        return self._listed[1]

    def epoch(self, name: str) -> int:
        """The least security epoch that a model of this name may have."""
        return self._state.epochs.get(name, 0)

    def refresh(
        self, source: Source, now: float, clock_trusted: bool, running: Running | None = None
    ) -> tuple[TrustedPackage, ...]:
        """Take what a source has, if it may be trusted; it is on disk before it is returned.

        Args:
            source: any copy of the repository.
            now: the wall clock, POSIX seconds.
            clock_trusted: whether it can be believed (`clock.synchronised`); an error of it would at worst
                refuse for as long as it lasts, since nothing that it says is kept.
            running: how long this boot has lasted; without it, on a device without a clock, time passes only
                when somebody signs, and a frozen repository would never be noticed.

        Returns:
            Every package that is vouched for now, for whatever device.

        Raises:
            Untrusted: the class and the text say why. What was trusted stays; only a newer root, which the
                one before vouches for, and the time that went by are kept.
            NotKept: the folder cannot be written.
            Unavailable: the source lacks a file or cannot be read.
        """
        moved = replace(self._state, floor=later(self._state.floor, running))
        try:
            for each in _followed(moved, source):
                moved = each
            new, packages = _judged(moved, source, now, clock_trusted)
        except (PackageError, Unavailable):
            self._keep(moved)
            raise
        self._keep(new)
        return packages

    def admit(
        self, package: TrustedPackage, serving: TrustedPackage | None = None, back: bool = False
    ) -> None:
        """Say whether a package may be installed in the place of the one that serves.

        Args:
            package: must be among `packages`.
            serving: the one it replaces, if any.
            back: an older version was asked for by name.

        Raises:
            WrongSoftware: it is not vouched for now, or is another model.
            RolledBack: its epoch is over, or it is older than `serving` and nobody asked for that.
        """
        where = package.title
        if package not in self.packages:
            raise WrongSoftware(where, f"expected a package that is vouched for now, got {package.digest}")
        least = self.epoch(package.name)
        if package.security_epoch < least:
            raise RolledBack(where, f"expected security epoch {least} or later, got {package.security_epoch}")
        if serving is None:
            return
        if package.name != serving.name:
            raise WrongSoftware(where, f"expected a package of model {serving.name}, got {package.name}")
        older = order(package.version) < order(serving.version)
        if older and package.security_epoch == serving.security_epoch and not back:
            raise RolledBack(where, f"expected version {serving.version} or later, got {package.version}")

    def confirm(self, package: TrustedPackage) -> None:
        """Note that a package has proved itself: nothing of an earlier epoch of its model is admitted again.

        Not before, so that one that fails on the device can be taken back whatever its epoch.

        Raises:
            WrongSoftware: it is not vouched for now.
            NotKept: the folder cannot be written.
        """
        self.admit(package)
        if package.security_epoch > self.epoch(package.name):
            epochs = {**self._state.epochs, package.name: package.security_epoch}
            self._keep(replace(self._state, epochs=epochs))

    def _root(self) -> Root:
        return read(Root, self._state.root.encode(), "root.json").signed

    def _keep(self, state: State) -> None:
        if state == self._state and self._whole:
            return
        new = replace(state, generation=self._state.generation + 1)
        try:
            states.keep(self._folder, new)
        except OSError as error:
            raise NotKept(f"{self._folder}: cannot keep what is trusted: {error.strerror}") from error
        self._state, self._whole = new, True


def _followed(state: State, source: Source) -> Iterator[State]:
    """5.3: the state under each root that follows, vouched for by the one before."""
    root = read(Root, state.root.encode(), "root.json").signed
    for _ in range(MOST_ROOTS):
        data = source.read(f"{root.version + 1}.root.json", LIMITS["root"])
        if data is None:
            return
        root = workflow.next_root(root, data)
        state = _adopted(state, root, data)
        yield state


def _judged(
    state: State, source: Source, now: float, clock_trusted: bool
) -> tuple[State, tuple[TrustedPackage, ...]]:
    """5.3.10 to 5.6: what the source offers under the newest root; nothing is kept here."""
    root = read(Root, state.root.encode(), "root.json").signed
    workflow.require_living_root(root, reference(state.floor, now, clock_trusted))

    data = _need(source, "timestamp.json", "timestamp")
    timestamp = workflow.next_timestamp(root, data, _kept(Timestamp, state.timestamp, root))
    believed = now if clock_trusted and now >= state.floor.utc_s else None
    signed_s = signed_at(timestamp, "timestamp.json")
    workflow.require_past(signed_s, root, believed)
    floor = raised(state.floor, signed_s)
    time_s = reference(floor, now, clock_trusted)
    workflow.require_fresh(timestamp, time_s, "timestamp.json")
    state = replace(state, timestamp=data.decode(), floor=floor)

    name = f"{timestamp.snapshot_meta.version}.snapshot.json"
    before = _kept(Snapshot, state.snapshot, root)
    data = _known(state.snapshot, timestamp.snapshot_meta) or _need(source, name, "snapshot")
    snapshot = workflow.next_snapshot(root, data, timestamp, before)
    workflow.require_fresh(snapshot, time_s, name)
    state = replace(state, snapshot=data.decode())

    meta = workflow.targets_of(snapshot, name)
    name = f"{meta.version}.targets.json"
    data = _known(state.targets, meta) or _need(source, name, "targets")
    targets = workflow.next_targets(root, data, snapshot)
    workflow.require_fresh(targets, time_s, name)
    packages = workflow.packages(targets)
    state = replace(state, targets=data.decode())
    return _recovered(state, packages), packages


def _need(source: Source, name: str, role: str) -> bytes:
    data = source.read(name, LIMITS[role])
    if data is None:
        raise Unavailable(f"{name}: expected it beside the others, got nothing (copy the whole repository)")
    return data


def _known(document: str, meta: MetaFile) -> bytes | None:
    """A kept document, if it is the very one that is named: then nobody need be asked for it."""
    data = document.encode()
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        return None
    return data


def _kept(kind: type[Kept], document: str, root: Root) -> Kept | None:
    """A kept document, if the root's keys have signed it: what exchanged keys said binds nobody (5.3.11)."""
    if not document:
        return None
    try:
        found = read(kind, document.encode(), f"kept {kind.type}")
        require(root, found, f"kept {kind.type}")
    except Untrusted:
        log.info("trust.kept_document_dropped", role=kind.type, root=root.version)
        return None
    return found.signed


def _adopted(state: State, root: Root, data: bytes) -> State:
    """The state under a newer root.

    Where it exchanges the timestamp's keys, the time that the old ones stated is taken back to when the root
    was signed: a thief could have signed a day far ahead. Where it exchanges the targets' keys, so are
    the epochs.
    """
    old = read(Root, state.root.encode(), "root.json").signed
    signed_s = signed_at(root, f"{root.version}.root.json")
    floor = raised(state.floor, signed_s)
    if not workflow.same_keys(old, root, "timestamp"):
        floor = Floor(signed_s, state.floor.running)
    recovering = state.recovering or not workflow.same_keys(old, root, "targets")
    return replace(state, root=data.decode(), floor=floor, recovering=recovering)


def _recovered(state: State, packages: tuple[TrustedPackage, ...]) -> State:
    """The state after the first targets of exchanged keys: no epoch is above what those list."""
    if not state.recovering:
        return state
    listed: dict[str, int] = {}
    for package in packages:
        listed[package.name] = max(listed.get(package.name, 0), package.security_epoch)
    epochs = {name: min(epoch, listed.get(name, 0)) for name, epoch in state.epochs.items()}
    return replace(state, epochs={n: e for n, e in epochs.items() if e}, recovering=False)
