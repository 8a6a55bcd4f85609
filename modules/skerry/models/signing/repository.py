"""A repository that is signed: an OCI image layout with `metadata/` beside its blobs, on any disk or stick.

What is written last is the timestamp: until then a reader sees the state before, whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from skerry import durable
from skerry.errors import ConfigError, Unavailable
from skerry.models import oci
from skerry.models.signing import metadata as making
from skerry.models.signing.metadata import Lasting, RoleName, Signed, well_signed
from skerry.settings import parse_json
from skerry.trust import workflow
from skerry.trust.documents import read, signed_at, time_text
from skerry.trust.packages import MOST_ATTESTATIONS, Attested, TrustedPackage
from skerry.trust.refusals import Untrusted
from skerry.trust.sources import METADATA

SETTINGS = "signing.json"
KEPT = 3
"""Versions of targets and snapshot that stay, for who is just copying them."""
_VERSIONED = re.compile(r"(\d+)\.(root|targets|snapshot)\.json")


class Repository:
    """One that has a root.

    Args:
        folder: of the repository.

    Raises:
        ConfigError: it has no root, or metadata that does not parse.
        Unavailable: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = folder / METADATA
        self.lasting = _lasting(folder)
        version = _newest(self._metadata, "root")
        if version is None:
            raise ConfigError(f"{self._metadata}: expected a repository, got none (skerry model sign init)")
        self.root = self._load(Root, f"{version}.root.json").signed
        self.targets = self._latest(Targets, "targets")
        self.snapshot = self._latest(Snapshot, "snapshot")
        there = (self._metadata / "timestamp.json").exists()
        self.timestamp = self._load(Timestamp, "timestamp.json") if there else None

    @property
    def packages(self) -> tuple[TrustedPackage, ...]:
        """Those listed."""
        return () if self.targets is None else workflow.packages(self.targets.signed)

    def add(self, package: TrustedPackage, signers: Sequence[Signer], now_s: float) -> None:
        """List a package; its blobs must be there.

        Raises:
            ConfigError: it is there already, or its name and version stand for another; or keys are missing.
            Unavailable: the folder cannot be written.
        """
        for other in self.packages:
            overlap = not other.classes or not package.classes or {*other.classes} & {*package.classes}
            if other.digest == package.digest:
                raise ConfigError(f"{package.title}: expected a new package, got one that is listed already")
            if overlap and (other.name, other.version) == (package.name, package.version):
                raise ConfigError(
                    f"{package.title}: expected a new version, got one that is listed already, as "
                    f"{other.digest[:23]} (raise the version, or remove the other)"
                )
        listed = {} if self.targets is None else dict(self.targets.signed.targets)
        added = making.target(package)
        self._settle({**listed, added.path: added}, signers, now_s)

    def attest(
        self, digest: str, attested: Sequence[Attested], signers: Sequence[Signer], now_s: float
    ) -> TrustedPackage:
        """Say of a package that is listed what was measured of it; of a class that was measured, anew.

        Args:
            digest: of the package, whole.
            attested: the statements' summaries.
            signers: keys at hand.
            now_s: POSIX seconds.

        Raises:
            ConfigError: it is not listed, more than fit, or keys are missing.
            Unavailable: the folder cannot be written.
        """
        found = [p for p in self.packages if p.digest == digest]
        if len(found) != 1 or self.targets is None:
            raise ConfigError(f"{digest}: expected one of the packages listed, got {len(found)}")
        every = {a.device_class: a for a in (*found[0].attestations, *attested)}
        if len(every) > MOST_ATTESTATIONS:
            raise ConfigError(f"{digest}: expected at most {MOST_ATTESTATIONS} classes, got {len(every)}")
        package = msgspec.structs.replace(found[0], attestations=tuple(every[name] for name in sorted(every)))
        changed = making.target(package)
        self._settle({**self.targets.signed.targets, changed.path: changed}, signers, now_s)
        return package

    def remove(self, digest: str, signers: Sequence[Signer], now_s: float) -> TrustedPackage:
        """List a package no more: devices that have it keep it, no other takes it.

        Raises:
            ConfigError: it is not listed, or keys are missing.
            Unavailable: the folder cannot be written.
        """
        wanted = digest.removeprefix("sha256:")
        found = [p for p in self.packages if wanted and p.digest.removeprefix("sha256:").startswith(wanted)]
        if len(found) != 1 or self.targets is None:
            raise ConfigError(f"{digest}: expected one of the packages listed, got {len(found)}")
        gone = making.target(found[0]).path
        left = {path: each for path, each in self.targets.signed.targets.items() if path != gone}
        self._settle(left, signers, now_s)
        return found[0]

    def renew(self, signers: Sequence[Signer], now_s: float) -> None:
        """Sign a new timestamp, and whatever else is about to end, or was signed by keys that are gone.

        Raises:
            ConfigError: keys are missing.
            Unavailable: the folder cannot be written.
        """
        self._settle(None, signers, now_s)

    def publish(self, draft: Metadata[Root], signers: Sequence[Signer], now_s: float) -> None:
        """Put a root in place that enough have approved, and sign anew what its changes touch.

        Raises:
            ConfigError: too few approved it, or keys that it introduces are missing; nothing was changed.
            Unavailable: the folder cannot be written.
        """
        content = draft.to_bytes()
        try:
            root = workflow.next_root(self.root, content)
        except Untrusted as error:
            raise ConfigError(f"{error} (skerry model sign approve)") from error
        before, self.root = self.root, root
        try:
            files = self._settled(None, signers, now_s)
        except ConfigError:
            self.root = before
            raise
        self._write({f"{root.version}.root.json": content, **files})

    def _settle(
        self, targets: Mapping[str, TargetFile] | None, signers: Sequence[Signer], now_s: float
    ) -> None:
        self._write(self._settled(targets, signers, now_s))

    def _settled(
        self, targets: Mapping[str, TargetFile] | None, signers: Sequence[Signer], now_s: float
    ) -> dict[str, bytes]:
        """What is to be written so that everything is signed, lasts, and names the rest; in that order.

        Args:
            targets: those to list; None leaves them.
            signers: all keys at hand.
            now_s: POSIX seconds.
        """
        self._check_clock(now_s)
        files: dict[str, bytes] = {}
        root, lasting, old, before, last = (
            self.root,
            self.lasting,
            self.targets,
            self.snapshot,
            self.timestamp,
        )
        if targets is not None or old is None or self._due(old, lasting.targets, now_s):
            listed = targets if targets is not None else old.signed.targets if old is not None else {}
            new = making.make_targets(old.signed if old else None, listed, lasting, now_s)
            files[_name(new)] = making.sign(new, root, signers)
        else:
            new = old
        names_it = before is not None and before.signed.meta["targets.json"].version == new.signed.version
        if before is None or not names_it or self._due(before, lasting.snapshot, now_s):
            content = files.get(_name(new)) or self._bytes(_name(new))
            snapshot = making.make_snapshot(before.signed if before else None, new, content, lasting, now_s)
            files[_name(snapshot)] = making.sign(snapshot, root, signers)
        else:
            snapshot = before
        content = files.get(_name(snapshot)) or self._bytes(_name(snapshot))
        timestamp = making.make_timestamp(last.signed if last else None, snapshot, content, lasting, now_s)
        files["timestamp.json"] = making.sign(timestamp, root, signers)
        self.targets, self.snapshot, self.timestamp = new, snapshot, timestamp
        return files

    def _due(self, document: Metadata[Any], days: int, now_s: float) -> bool:
        """Whether it has to be signed anew: the last third of its life, or other keys."""
        left = document.signed.expires.timestamp() - now_s
        return left < days * 86400 / 3 or not well_signed(document, self.root)

    def _check_clock(self, now_s: float) -> None:
        """Devices take the time of signing for a floor under theirs, so it must not go back."""
        if self.timestamp is None:
            return
        last = signed_at(self.timestamp.signed, "timestamp.json")
        if now_s < last:
            raise ConfigError(
                f"clock: expected {time_text(last)} or later, when this repository was last signed, "
                f"got {time_text(now_s)} (set the clock of this machine)"
            )

    def _write(self, files: Mapping[str, bytes]) -> None:
        write(self._metadata, files)
        for role in ("targets", "snapshot"):
            newest = _newest(self._metadata, role) or 0
            for version in _versions(self._metadata, role):
                if version <= newest - KEPT:
                    (self._metadata / f"{version}.{role}.json").unlink(missing_ok=True)

    def _latest(self, kind: type[Signed], role: str) -> Metadata[Signed] | None:
        version = _newest(self._metadata, role)
        return None if version is None else self._load(kind, f"{version}.{role}.json")

    def _load(self, kind: type[Signed], name: str) -> Metadata[Signed]:
        try:
            return read(kind, self._bytes(name), str(self._metadata / name))
        except Untrusted as error:
            raise ConfigError(str(error)) from error

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._metadata / name).read_bytes()
        except OSError as error:
            raise Unavailable(f"{self._metadata / name}: {error.strerror}") from error


def create(
    folder: Path,
    keys: Mapping[RoleName, Sequence[Key]],
    signers: Sequence[Signer],
    now_s: float,
    *,
    thresholds: Mapping[RoleName, int],
    lasting: Lasting,
) -> Repository:
    """Make a repository with no package in it, and the root that devices are given: `metadata/1.root.json`.

    Args:
        folder: made if missing.
        keys: public keys by role.
        signers: keys at hand; enough of each role.
        now_s: POSIX seconds.
        thresholds: how many have to sign.
        lasting: kept with it.

    Raises:
        ConfigError: there is one, or keys are missing.
        Unavailable: the folder cannot be written.
    """
    if _newest(folder / METADATA, "root") is not None:
        raise ConfigError(f"{folder}: expected a folder without a repository, got one (choose another)")
    draft = making.new_root(keys, thresholds, lasting, now_s)
    root = making.sign(draft, draft.signed, signers)
    for role in ("targets", "snapshot", "timestamp"):
        at_hand = {s.public_key.keyid for s in signers}
        missing = draft.signed.roles[role].threshold - len(at_hand & {*draft.signed.roles[role].keyids})
        if missing > 0:
            raise ConfigError(f"{role}: expected {missing} more of its keys (--keys FOLDER)")
    if not (folder / oci.LAYOUT_FILE).exists():
        write(folder, {oci.INDEX_FILE: oci.make_index(()), oci.LAYOUT_FILE: oci.LAYOUT})
    settings = msgspec.json.format(msgspec.json.encode(lasting)) + b"\n"
    write(folder, {SETTINGS: settings})
    write(folder / METADATA, {"1.root.json": root})
    repository = Repository(folder)
    repository.renew(signers, now_s)
    return repository


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, in their order, each whole.

    Raises:
        Unavailable: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            durable.replace(folder / name, content, 0o644)
    except OSError as error:
        raise Unavailable(f"{error.filename or folder}: {error.strerror}") from error


def _name(document: Metadata[Any]) -> str:
    return f"{document.signed.version}.{document.signed.type}.json"


def _lasting(folder: Path) -> Lasting:
    path = folder / SETTINGS
    try:
        return parse_json(Lasting, path.read_bytes(), str(path))
    except FileNotFoundError:
        return Lasting()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _versions(folder: Path, role: str) -> list[int]:
    try:
        names = [p.name for p in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}") from error
    found = (_VERSIONED.fullmatch(name) for name in names)
    return sorted(int(m.group(1)) for m in found if m and m.group(2) == role)


def _newest(folder: Path, role: str) -> int | None:
    return max(_versions(folder, role), default=None)
