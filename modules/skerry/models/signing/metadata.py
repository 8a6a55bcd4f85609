"""Metadata as its signers make it: pure functions of documents, keys and a time.

What is written here is what `skerry.trust` reads; the field names and limits are taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from skerry.errors import ConfigError
from skerry.settings import Settings
from skerry.trust.documents import SIGNED_AT, public, read, require, time_text
from skerry.trust.packages import Described, TrustedPackage
from skerry.trust.refusals import Untrusted
from skerry.trust.workflow import BLOBS

RoleName = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: tuple[RoleName, ...] = ("root", "targets", "snapshot", "timestamp")
Days = Annotated[int, Meta(ge=1, le=7300)]
Signed = TypeVar("Signed", Root, Timestamp, Snapshot, Targets)


class Lasting(Settings, frozen=True, kw_only=True):
    """How long what is signed lasts, in days."""

    root: Days = 730
    """Until all root keys have to meet again."""
    targets: Days = 365
    """Until who releases packages has to sign again, whether there is a new one or not."""
    snapshot: Days = 90
    timestamp: Days = 30
    """How long a repository can be frozen unnoticed; and how long a copy on a stick can be used."""


def new_root(
    keys: Mapping[RoleName, Sequence[Key]], thresholds: Mapping[RoleName, int], lasting: Lasting, now_s: float
) -> Metadata[Root]:
    """The first root of a repository, unsigned.

    Args:
        keys: by role; each role needs some.
        thresholds: how many of its keys have to sign; 1 where nothing is said.
        lasting: see there.
        now_s: POSIX seconds.

    Raises:
        ConfigError: a role has fewer keys than have to sign.
    """
    roles: dict[str, Role] = {
        name: Role([k.keyid for k in keys[name]], thresholds.get(name, 1)) for name in ROLES
    }
    root = Root(
        expires=_ends(now_s, lasting.root),
        keys={k.keyid: k for each in keys.values() for k in each},
        roles=roles,
        unrecognized_fields=_said(now_s),
    )
    _check(root)
    return Metadata(root)


def next_root(
    before: Root,
    *,
    lasting: Lasting,
    now_s: float,
    add: Sequence[tuple[RoleName, Key]] = (),
    drop: Sequence[tuple[RoleName, str]] = (),
    thresholds: Mapping[RoleName, int] | None = None,
) -> Metadata[Root]:
    """The root after `before`, unsigned.

    Args:
        before: stays as it is.
        lasting: see there.
        now_s: POSIX seconds.
        add: keys that roles get.
        drop: keys that roles lose, by the first characters of their ids.
        thresholds: how many have to sign, where that changes.

    Raises:
        ConfigError: a key to drop is not there, or a role would have fewer keys than have to sign.
    """
    root: Root = Metadata[Root].from_bytes(Metadata(before).to_bytes()).signed
    root.version += 1
    root.expires = _ends(now_s, lasting.root)
    root.unrecognized_fields |= _said(now_s)
    for name, key in add:
        root.add_key(key, name)
    for name, start in drop:
        found = [k for k in root.roles[name].keyids if start and k.startswith(start)]
        if len(found) != 1:
            raise ConfigError(f"drop {name}={start}: expected one key of this role, got {len(found)}")
        root.revoke_key(found[0], name)
    for name, threshold in (thresholds or {}).items():
        root.roles[name].threshold = threshold
    _check(root)
    return Metadata(root)


def changes(before: Root, after: Root) -> list[str]:
    """What a root changes, one a line: whoever approves it should have read it."""
    said = [f"root {before.version} -> {after.version}, ends {after.expires:%Y-%m-%d}"]
    for name in ROLES:
        old, new = before.roles[name], after.roles[name]
        said += [f"{name}: gets key {keyid}" for keyid in new.keyids if keyid not in old.keyids]
        said += [f"{name}: loses key {keyid}" for keyid in old.keyids if keyid not in new.keyids]
        said += [
            f"{name}: key {keyid} becomes another key"
            for keyid in new.keyids
            if keyid in old.keyids and before.keys[keyid] != after.keys.get(keyid)
        ]
        if old.threshold != new.threshold:
            said.append(f"{name}: {old.threshold} -> {new.threshold} of {len(new.keyids)} keys have to sign")
    return said


def approve(draft: Metadata[Root], before: Root | None, signers: Sequence[Signer]) -> list[str]:
    """Sign a root with those keys that it or the root before knows; returns their ids.

    Args:
        draft: gets the signatures.
        before: the root it follows; None if it is the first.
        signers: all those at hand.
    """
    known = {k for root in (draft.signed, before) if root is not None for k in root.roles["root"].keyids}
    signed = []
    for signer in signers:
        if signer.public_key.keyid in known:
            draft.sign(signer, append=True)
            signed.append(signer.public_key.keyid)
    return signed


def make_targets(
    before: Targets | None, targets: Mapping[str, TargetFile], lasting: Lasting, now_s: float
) -> Metadata[Targets]:
    """Targets after `before`, unsigned."""
    return Metadata(
        Targets(
            version=_next(before),
            expires=_ends(now_s, lasting.targets),
            targets=dict(targets),
            unrecognized_fields=_said(now_s),
        )
    )


def make_snapshot(
    before: Snapshot | None, targets: Metadata[Targets], content: bytes, lasting: Lasting, now_s: float
) -> Metadata[Snapshot]:
    """A snapshot after `before` that names targets by what they hold, unsigned."""
    return Metadata(
        Snapshot(
            version=_next(before),
            expires=_ends(now_s, lasting.snapshot),
            meta={"targets.json": MetaFile.from_data(targets.signed.version, content, ["sha256"])},
            unrecognized_fields=_said(now_s),
        )
    )


def make_timestamp(
    before: Timestamp | None, snapshot: Metadata[Snapshot], content: bytes, lasting: Lasting, now_s: float
) -> Metadata[Timestamp]:
    """A timestamp after `before` that names a snapshot by what it holds, unsigned."""
    return Metadata(
        Timestamp(
            version=_next(before),
            expires=_ends(now_s, lasting.timestamp),
            snapshot_meta=MetaFile.from_data(snapshot.signed.version, content, ["sha256"]),
            unrecognized_fields=_said(now_s),
        )
    )


def target(package: TrustedPackage) -> TargetFile:
    """What targets say of a package."""
    hexadecimal = package.digest.removeprefix("sha256:")
    said = msgspec.convert(msgspec.to_builtins(package), Described)
    custom: dict[str, Any] = msgspec.to_builtins(said)
    if not said.attestations:  # as it was signed before there were any
        del custom["attestations"]
    return TargetFile(package.length, {"sha256": hexadecimal}, BLOBS + hexadecimal, {"custom": custom})


def sign(document: Metadata[Any], root: Root, signers: Sequence[Signer]) -> bytes:
    """Sign with every key at hand that may; returns what to publish.

    Raises:
        ConfigError: too few of them are at hand.
    """
    name = document.signed.type
    may = root.roles[name].keyids
    document.signatures.clear()
    for signer in signers:
        if signer.public_key.keyid in may:
            document.sign(signer, append=True)
    content: bytes = document.to_bytes()
    try:
        require(root, document, name)
    except Untrusted as error:
        raise ConfigError(
            f"{name}: expected {root.roles[name].threshold} of its keys, got {len(document.signatures)} "
            "(--keys FOLDER, and --passphrase-file where they have one)"
        ) from error
    return content


def well_signed(document: Metadata[Any], root: Root) -> bool:
    """Whether the root's keys have signed this."""
    try:
        require(root, document, document.signed.type)
    except Untrusted:
        return False
    return True


def _check(root: Root) -> None:
    """A root that a device could not read is not made."""
    for name, role in root.roles.items():
        there = {public(root.keys[k]) for k in role.keyids}
        if role.threshold > len(there):
            raise ConfigError(f"{name}: expected at least {role.threshold} keys, got {len(there)}")
    try:
        read(Root, Metadata(root).to_bytes(), "root")
    except Untrusted as error:
        raise ConfigError(str(error)) from error


def _next(before: Targets | Snapshot | Timestamp | None) -> int:
    return 1 if before is None else before.version + 1


def _ends(now_s: float, days: int) -> datetime:
    return datetime.fromtimestamp(now_s, UTC).replace(microsecond=0) + timedelta(days=days)


def _said(now_s: float) -> dict[str, Any]:
    return {SIGNED_AT: time_text(now_s)}
