"""A detached signature of a package, as the OpenSSF's model-signing tool makes and takes them.

A file beside the package: a Sigstore bundle with a DSSE envelope over an in-toto statement that lists every
file by its sha256, signed with a bare EC key (the tool's method `key`, which takes no Ed25519). It says who
vouches for these files. It says nothing of newer, older or withheld versions, and it does not end: devices
go by the signed metadata (`skerry.trust`), never by this.

Source: OpenSSF Model Signing Specification 1.0; DSSE 1.0.2 (protocol.md); Sigstore bundle 0.3; in-toto
Attestation Framework, Statement v1. Checked against model-signing 1.1.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from msgspec import Meta

from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models.oci import canonical
from skerry.models.signing.keys import check_private

T = TypeVar("T")

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
MOST_BYTES = 4 * 1024 * 1024
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out oms.key"
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
"""By the name of the curve."""

Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class Descriptor(msgspec.Struct, frozen=True):
    """A file."""

    name: str
    algorithm: Literal["sha256"]
    digest: Hex


class Serialization(msgspec.Struct, frozen=True):
    """How files became the list of them."""

    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: tuple[str, ...] = ()


class Predicate(msgspec.Struct, frozen=True):
    serialization: Serialization
    resources: tuple[Descriptor, ...]


class Subject(msgspec.Struct, frozen=True):
    """The whole."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, rename="camel"):
    """What is signed."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[Subject, ...], Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: Predicate


class Signature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """DSSE's."""

    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=1)]


class PublicKey(msgspec.Struct, frozen=True):
    """Which key: sha256 of its PEM."""

    hint: str = ""


class Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: PublicKey


class Bundle(msgspec.Struct, frozen=True, rename="camel"):
    """Sigstore's."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: Material
    dsse_envelope: Envelope


def sign(files: Mapping[str, str], name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The content of a signature file. Nothing in it depends on the time, but ECDSA draws a number each time.

    Args:
        files: sha256 of every file of the package, by its path there.
        name: of the package, for people.
        key: on one of the curves that are taken.
    """
    payload = statement(files, name)
    public = key.public_key()
    signature = key.sign(_signed(payload), ec.ECDSA(_hash(public)))
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return canonical(bundle) + b"\n"


def statement(files: Mapping[str, str], name: str) -> bytes:
    """What is signed: each file, and over all of their hashes one of the whole."""
    ordered = [(title, files[title]) for title in sorted(files, key=PurePosixPath)]
    value = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": _whole(digest for _, digest in ordered)}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
            "resources": [{"name": n, "algorithm": "sha256", "digest": d} for n, d in ordered],
        },
    }
    return canonical(value)


def verify(content: bytes, files: Mapping[str, str], key: ec.EllipticCurvePublicKey, where: str) -> str:
    """See that a signature is this key's, over these files and no others.

    Stricter than the tool: one signature, sha256, whole files; and what the signature says may be ignored,
    `.git` for one, is not.

    Args:
        content: of the signature file.
        files: sha256 of every file of the package, by its path there.
        key: of whom is believed.
        where: names the signature in messages.

    Returns:
        The name that was signed with it.

    Raises:
        PackageError: it is no such signature, or of something else.
    """
    bundle = _decoded(content, Bundle, f"{where}: expected a Sigstore bundle of a model signature")
    hint = bundle.verification_material.public_key.hint
    if hint and hint != _hint(key):
        raise PackageError(f"{where}: expected a signature of this key, got one of {hint[:16]}")
    payload = _unpacked(bundle.dsse_envelope.payload, where)
    signature = _unpacked(bundle.dsse_envelope.signatures[0].sig, where)
    try:
        key.verify(signature, _signed(payload), ec.ECDSA(_hash(key)))
    except InvalidSignature as error:
        raise PackageError(f"{where}: expected a signature of this key, got another") from error
    said = _decoded(payload, Statement, f"{where}: expected the statement of a model signature")
    resources = said.predicate.resources
    listed = {each.name: each.digest for each in resources}
    whole = _whole(each.digest for each in resources)
    if len(listed) != len(resources) or said.subject[0].digest.get("sha256") != whole:
        raise PackageError(f"{where}: expected each file once, and the hash of all, got something else")
    found = [f"{where}: expected {name}, got no such file" for name in sorted(listed.keys() - files)]
    found += [
        f"{where}: expected the signed files alone, got {name}" for name in sorted(files.keys() - listed)
    ]
    found += [
        f"{where}: {name}: expected sha256 {listed[name][:16]}, got {files[name][:16]}"
        for name in sorted(listed.keys() & files)
        if listed[name] != files[name]
    ]
    if found:
        raise PackageError("\n".join(found))
    return said.subject[0].name


def read_private(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A key that signs.

    Raises:
        ConfigError: it is something else, opens with something else, or others may read it.
        Unavailable: it cannot be read.
    """
    content = _read(path)
    if b"ENCRYPTED" not in content:
        check_private(path)
        passphrase = None
    elif passphrase is None:
        raise ConfigError(f"{path}: expected a passphrase for it, got none (--passphrase-file)")
    try:
        key = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected a private key in PEM, got something else") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise ConfigError(f"{path}: expected an EC key ({', '.join(_HASHES)}), got another kind ({_MAKE})")
    return key


def read_public(path: Path) -> ec.EllipticCurvePublicKey:
    """A key that verifies.

    Raises:
        ConfigError: it is something else.
        Unavailable: it cannot be read.
    """
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected a public key in PEM, got something else") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ConfigError(f"{path}: expected an EC key ({', '.join(_HASHES)}), got another kind")
    return key


def _signed(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _whole(digests: Any) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(each) for each in digests)).hexdigest()


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _hash(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    return _HASHES[key.curve.name]()


def _decoded(content: bytes, kind: type[T], wanted: str) -> T:
    if len(content) > MOST_BYTES:
        raise PackageError(f"{wanted}, got more than {MOST_BYTES} bytes")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{wanted} ({error})") from error


def _unpacked(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise PackageError(f"{where}: expected base64, got something else") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
