"""Metadata as it came: parsed, and signed by enough of those who may.

`tuf` parses, and knows the canonical form that is signed. What counts as a signature is decided here:
only that of an Ed25519 key, which needs no other library; each key once, however often and under however
many names it is there; and with the same verdict whether `cryptography` is installed or not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from skerry.trust.refusals import Endless, Forged, Malformed

Signed = TypeVar("Signed", Root, Timestamp, Snapshot, Targets)

LIMITS = {"root": 256 * 1024, "timestamp": 16 * 1024, "snapshot": 64 * 1024, "targets": 2 * 1024 * 1024}
"""The longest metadata of a role that is looked at, in bytes; about 5,000 packages fit."""
SIGNED_AT = "signed_at"
"""A field of ours in what is signed: when it was, in the form of `expires`."""
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_MOST_VERSION = 2**53
_GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519. Source: RFC 8032, section 5.1."""


def read(kind: type[Signed], data: bytes, where: str) -> Metadata[Signed]:
    """Parse metadata of one role. Who signed it is not looked at.

    Args:
        kind: the role's type.
        data: at most one byte more than the role's limit.
        where: names it in messages.

    Raises:
        Endless: it is longer than the role's limit.
        Malformed: it is something else.
    """
    most = LIMITS[kind.type]
    if len(data) > most:
        raise Endless(where, f"expected at most {most} bytes, got more")
    try:
        document: Metadata[Signed] = Metadata.from_bytes(data)
        _ = document.signed_bytes
    except RepositoryError as error:
        cause = str(error.__cause__ or error)[:120]
        raise Malformed(
            where, f"expected {kind.type} metadata, got what does not parse: {cause!r}"
        ) from error
    if not isinstance(document.signed, kind):
        raise Malformed(where, f"expected {kind.type} metadata, got {document.signed.type}")
    version = document.signed.version
    if type(version) is not int or version >= _MOST_VERSION:
        raise Malformed(where, f"expected a version below {_MOST_VERSION}, got {str(version)[:40]!r}")
    if isinstance(document.signed, Root):
        _check_keys(document.signed, where)
    return document


def _check_keys(root: Root, where: str) -> None:
    """Keys that can be used here, and enough of them for each role, or nothing could ever follow."""
    for keyid, key in root.keys.items():
        if (key.keytype, key.scheme) != ("ed25519", "ed25519") or public(key) is None:
            raise Malformed(
                where, f"expected Ed25519 keys only, got key {keyid[:16]!r} of {key.scheme[:40]!r}"
            )
    for name, role in root.roles.items():
        there = {public(root.keys[k]) for k in role.keyids if k in root.keys}
        if type(role.threshold) is not int or role.threshold > len(there):
            raise Malformed(
                where, f"{name}: expected at least {role.threshold} different keys, got {len(there)}"
            )


def public(key: Key) -> bytes | None:
    """The 32 bytes of an Ed25519 key; None if they are something else."""
    try:
        content = bytes.fromhex(key.keyval["public"])
    except (KeyError, TypeError, ValueError):
        return None
    return content if len(content) == 32 else None


def require(root: Root, document: Metadata[Any], where: str) -> None:
    """Accept a document only if enough different keys of its role, as `root` has them, signed it.

    Raises:
        Forged: too few.
    """
    name = document.signed.type
    role, payload = root.roles[name], document.signed_bytes
    found: set[bytes | None] = set()
    for keyid in role.keyids:
        key, signature = root.keys.get(keyid), document.signatures.get(keyid)
        if key is None or signature is None or public(key) in found:
            continue
        if _holds(key, signature, payload):
            found.add(public(key))
    if len(found) < role.threshold:
        raise Forged(
            where,
            f"expected signatures of {role.threshold} {name} keys of root {root.version}, got {len(found)}",
        )


def _holds(key: Key, signature: Signature, payload: bytes) -> bool:
    """Whether this signature is this key's, in the one form that every implementation takes.

    Source: RFC 8032, section 5.1.7: the second half is a number below the group's order.
    """
    try:
        content = bytes.fromhex(signature.signature)
    except (TypeError, ValueError):
        return False
    if len(content) != 64 or int.from_bytes(content[32:], "little") >= _GROUP_ORDER:
        return False
    try:
        key.verify_signature(signature, payload)
    except UnverifiedSignatureError:
        return False
    return True


def signed_at(signed: Root | Timestamp, where: str) -> float:
    """When it says that it was signed, in POSIX seconds.

    Raises:
        Malformed: it says nothing, or a time when it had expired already.
    """
    text = str(signed.unrecognized_fields.get(SIGNED_AT))
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise Malformed(where, f"expected the time of signing in {SIGNED_AT}, got {text[:40]!r}") from error
    if moment >= signed.expires:
        raise Malformed(where, f"expected it to be signed before it expires, got {text}")
    return moment.timestamp()


def time_text(utc_s: float) -> str:
    """A POSIX time in the form that metadata has."""
    return datetime.fromtimestamp(utc_s, UTC).strftime(_TIME)
