"""The rules by which metadata follows metadata: pure functions, no clock, no file.

Source: The Update Framework Specification 1.0.34, section 5, "Detailed client workflow",
whose steps the numbers are.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from skerry.models.oci import MANIFEST_BYTES
from skerry.trust.documents import public, read, require, signed_at, time_text
from skerry.trust.packages import Described, TrustedPackage, newest_first
from skerry.trust.refusals import (
    Altered,
    Frozen,
    Malformed,
    MixedUp,
    PostDated,
    RolledBack,
    RootExpired,
    Untrusted,
)

Named = TypeVar("Named", Snapshot, Targets)

BLOBS = "blobs/sha256/"
"""A target's path is that of the package's manifest in the repository's OCI image layout."""
SLACK_S = 86400.0
"""How far the clocks of signer and device may differ before a signature is from the future."""
_TARGET = re.compile(rf"{BLOBS}([0-9a-f]{{64}})")


def anchor(data: bytes, where: str) -> Root:
    """The root that a device was given: believed because of where it was found, so only its form is judged.

    Raises:
        Untrusted: it is no root that its own keys have signed.
    """
    document = read(Root, data, where)
    require(document.signed, document, where)
    signed_at(document.signed, where)
    return document.signed


def next_root(trusted: Root, data: bytes) -> Root:
    """The root after a trusted one (5.3.4 to 5.3.7); whether it has expired is judged for the last one only.

    Raises:
        Untrusted: it is not.
    """
    where = f"{trusted.version + 1}.root.json"
    document = read(Root, data, where)
    root = document.signed
    require(trusted, document, where)
    require(root, document, where)
    if root.version <= trusted.version:
        raise RolledBack(where, f"expected root {trusted.version + 1}, got {root.version}")
    if root.version != trusted.version + 1:
        raise MixedUp(where, f"expected root {trusted.version + 1}, got {root.version}")
    signed_at(root, where)
    return root


def same_keys(one: Root, other: Root, role: str) -> bool:
    """Whether a role has the same keys in both."""
    return _keys(one, role) == _keys(other, role)


def _keys(root: Root, role: str) -> set[bytes | None]:
    return {public(root.keys[k]) for k in root.roles[role].keyids if k in root.keys}


def require_living_root(root: Root, time_s: float) -> None:
    """5.3.10: a root that has ended vouches for nobody.

    Raises:
        RootExpired: it has.
    """
    if time_s >= root.expires.timestamp():
        raise RootExpired(
            f"{root.version}.root.json",
            f"expected it to last beyond {time_text(time_s)}, got {root.expires:%F}",
        )


def next_timestamp(root: Root, data: bytes, before: Timestamp | None) -> Timestamp:
    """5.4.2 and 5.4.3; its expiry is judged by `require_fresh`.

    Args:
        root: the trusted one.
        data: as it came.
        before: the one trusted so far, if the root's keys have signed that too.

    Raises:
        Untrusted: it is not.
    """
    where = "timestamp.json"
    document = read(Timestamp, data, where)
    require(root, document, where)
    timestamp = document.signed
    _check_meta(timestamp.snapshot_meta, f"{where}: snapshot.json")
    signed_at(timestamp, where)
    if before is None:
        return timestamp
    if timestamp.version < before.version:
        raise RolledBack(where, f"expected timestamp {before.version} or later, got {timestamp.version}")
    if timestamp.version == before.version and timestamp != before:
        raise MixedUp(where, f"expected one timestamp {before.version}, got another of that version")
    if timestamp.snapshot_meta.version < before.snapshot_meta.version:
        raise RolledBack(
            where,
            f"expected snapshot {before.snapshot_meta.version} or later, "
            f"got {timestamp.snapshot_meta.version}",
        )
    return timestamp


def require_past(signed_s: float, root: Root, believed_s: float | None) -> None:
    """A time of signing is believed only if it can be true.

    Args:
        signed_s: POSIX seconds.
        root: the one whose keys signed it: had it expired by then, they could not have.
        believed_s: a clock that can be believed; None where there is none.

    Raises:
        PostDated: it cannot.
    """
    latest = root.expires.timestamp()
    if believed_s is not None:
        latest = min(latest, believed_s + SLACK_S)
    if signed_s >= latest:
        raise PostDated(
            "timestamp.json",
            f"expected it to be signed before {time_text(latest)}, got {time_text(signed_s)}",
        )


def require_fresh(signed: Timestamp | Snapshot | Targets, time_s: float, where: str) -> None:
    """5.4.4, 5.5.6 and 5.6.5.

    Raises:
        Frozen: it has expired.
    """
    if time_s >= signed.expires.timestamp():
        raise Frozen(
            where,
            f"expected it to last beyond {time_text(time_s)}, got {time_text(signed.expires.timestamp())}",
        )


def next_snapshot(root: Root, data: bytes, timestamp: Timestamp, before: Snapshot | None) -> Snapshot:
    """5.5.2 to 5.5.5.

    Args:
        root: the trusted one.
        data: as it came.
        timestamp: the trusted one, which names it.
        before: the one trusted so far, if the root's keys have signed that too.

    Raises:
        Untrusted: it is not.
    """
    meta = timestamp.snapshot_meta
    where = f"{meta.version}.snapshot.json"
    snapshot = _named(Snapshot, data, root, meta, where=where, by=f"timestamp {timestamp.version}")
    new = targets_of(snapshot, where)
    if before is not None:
        old = targets_of(before, where)
        if new.version < old.version:
            raise RolledBack(where, f"expected targets {old.version} or later, got {new.version}")
    return snapshot


def targets_of(snapshot: Snapshot, where: str) -> MetaFile:
    """What a snapshot says of the targets.

    Raises:
        Malformed: nothing that can be used.
    """
    meta = snapshot.meta.get("targets.json")
    if meta is None:
        raise Malformed(where, "expected targets.json in it, got none")
    _check_meta(meta, f"{where}: targets.json")
    return meta


def next_targets(root: Root, data: bytes, snapshot: Snapshot) -> Targets:
    """5.6.2 to 5.6.4.

    Raises:
        Untrusted: they are not those that the snapshot names.
    """
    meta = targets_of(snapshot, f"{snapshot.version}.snapshot.json")
    where = f"{meta.version}.targets.json"
    targets = _named(Targets, data, root, meta, where=where, by=f"snapshot {snapshot.version}")
    if targets.delegations is not None:
        raise Malformed(where, "expected no delegations, which nobody here follows, got some")
    return targets


def _named(kind: type[Named], data: bytes, root: Root, meta: MetaFile, *, where: str, by: str) -> Named:
    """Metadata of which other metadata says version, length and hash."""
    try:
        meta.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        other = _version(kind, data, root, where)
        if other is not None and other != meta.version:
            raise MixedUp(where, f"expected version {meta.version}, which {by} names, got {other}") from error
        raise Altered(where, f"expected {meta.length} bytes of the hash in {by}, got others") from error
    document = read(kind, data, where)
    require(root, document, where)
    if document.signed.version != meta.version:
        raise MixedUp(
            where, f"expected version {meta.version}, which {by} names, got {document.signed.version}"
        )
    return document.signed


def _version(kind: type[Named], data: bytes, root: Root, where: str) -> int | None:
    """Of what is signed well but is not what was named; None if it is not even signed."""
    try:
        document = read(kind, data, where)
        require(root, document, where)
    except Untrusted:
        return None
    return document.signed.version


def _check_meta(meta: MetaFile, where: str) -> None:
    """Version, length and sha256 must all be there: optional ones would leave parts unbound."""
    if type(meta.version) is not int or type(meta.length) is not int or "sha256" not in (meta.hashes or {}):
        raise Malformed(where, "expected version, length and sha256, got less")


def packages(targets: Targets) -> tuple[TrustedPackage, ...]:
    """Every package that targets list: by name, of one name the newest first.

    Raises:
        Malformed: one of them is no package.
    """
    where = f"{targets.version}.targets.json"
    listed = newest_first(_package(path, target, where) for path, target in targets.targets.items())
    return tuple(sorted(listed, key=lambda package: package.name))


def _package(path: str, target: TargetFile, where: str) -> TrustedPackage:
    found = _TARGET.fullmatch(path)
    if not found or target.hashes.get("sha256") != found.group(1):
        raise Malformed(where, f"expected {BLOBS} and the sha256 of it, got {path[:90]!r}")
    if type(target.length) is not int or not 0 < target.length <= MANIFEST_BYTES:
        raise Malformed(where, f"{path}: expected 1 to {MANIFEST_BYTES} bytes, got {str(target.length)[:20]}")
    try:
        said = msgspec.convert(target.custom, Described)
    except msgspec.ValidationError as error:
        raise Malformed(where, f"{path}: {error}") from error
    return TrustedPackage(
        digest=f"sha256:{found.group(1)}",
        length=target.length,
        name=said.name,
        version=said.version,
        security_epoch=said.security_epoch,
        classes=said.classes,
        attestations=said.attestations,
    )
