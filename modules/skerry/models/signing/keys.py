"""Keys of those who sign: Ed25519, one file each, with a passphrase or readable by their owner alone.

A key is two files: `NAME.key` (PEM, PKCS #8) stays where it is used, `NAME.pub` (PEM) travels. Before an
encrypted one stands a line that says how its passphrase was stretched: PKCS #8 as it is written here has 2048
rounds of PBKDF2, which is little against somebody who has the file and time.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from skerry import durable
from skerry.errors import ConfigError, Unavailable

PRIVATE, PUBLIC = ".key", ".pub"
COST = 2**17
"""N of scrypt with r = 8 and p = 1: 128 MiB and half a second. Source: RFC 7914, section 2."""
_MOST_COST = 2**18
_STRETCHED = re.compile(rb"scrypt n=([0-9]{1,7}) salt=([0-9a-f]{32})\n(?=-----BEGIN)")


def make(folder: Path, name: str, passphrase: bytes | None) -> SSlibKey:
    """Make a key.

    Args:
        folder: made if missing, for its owner alone.
        name: of the key, e.g. `root-1`.
        passphrase: what its file is encrypted with; None leaves it plain, with permissions 0600.

    Raises:
        ConfigError: there is one of this name; it is never overwritten.
        Unavailable: the folder cannot be written.
    """
    private, public = folder / f"{name}{PRIVATE}", folder / f"{name}{PUBLIC}"
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"{path}: expected a new key, got one that is there (choose another name)")
    key = Ed25519PrivateKey.generate()
    kept: KeySerializationEncryption = NoEncryption()
    before = b""
    if passphrase is not None:
        salt = _salt(passphrase)
        kept = BestAvailableEncryption(_stretched(passphrase, salt, COST))
        before = f"scrypt n={COST} salt={salt.hex()}\n".encode()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.replace(private, before + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept))
        content = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        durable.replace(public, content, 0o644)
    except OSError as error:
        raise Unavailable(f"{error.filename or folder}: {error.strerror}") from error
    return SSlibKey.from_crypto(key.public_key())


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of a file; None where there is no file to read.

    Raises:
        ConfigError: it is empty, or others may read it.
        Unavailable: it cannot be read.
    """
    if path is None:
        return None
    check_private(path)
    lines = _read(path).splitlines()
    if not lines or not lines[0]:
        raise ConfigError(f"{path}: expected a passphrase in its first line, got nothing")
    return lines[0]


def read_public(path: Path) -> SSlibKey:
    """A public key.

    Raises:
        ConfigError: it is something else.
        Unavailable: it cannot be read.
    """
    content = _read(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: expected a public key in PEM, got something else") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: expected an Ed25519 key, got another kind (make it with model keys new)")
    return SSlibKey.from_crypto(key)


def read_private(path: Path, passphrase: bytes | None) -> CryptoSigner:
    """A key that signs.

    Raises:
        ConfigError: it is something else, is encrypted with something else, or others may read it.
        Unavailable: it cannot be read.
    """
    content = _read(path)
    encrypted = b"BEGIN ENCRYPTED" in content
    if not encrypted:
        check_private(path)
        passphrase = None
    elif passphrase is None:
        raise ConfigError(f"{path}: expected a passphrase for it, got none (--passphrase-file)")
    elif found := _STRETCHED.match(content):
        cost = int(found.group(1))
        if cost > _MOST_COST or cost.bit_count() != 1 or cost < 2:
            raise ConfigError(f"{path}: expected a power of two up to {_MOST_COST}, got n={cost}")
        passphrase = _stretched(passphrase, bytes.fromhex(found.group(2).decode()), cost)
        content = content[found.end() :]
    try:
        key = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        cause = "another passphrase, or something else" if encrypted else "something else"
        raise ConfigError(f"{path}: expected a key in PEM, got {cause}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: expected an Ed25519 key, got another kind (make it with model keys new)")
    return CryptoSigner(key)


def public_keys(folder: Path) -> dict[str, SSlibKey]:
    """Public keys of a folder by name.

    Raises:
        ConfigError: one of them is something else.
        Unavailable: the folder cannot be read.
    """
    return {path.stem: read_public(path) for path in _files(folder, PUBLIC)}


def signers(folder: Path, passphrase: bytes | None) -> tuple[CryptoSigner, ...]:
    """Every key of a folder.

    Raises:
        ConfigError: one of them is something else, is encrypted with something else, or others may read it.
        Unavailable: the folder cannot be read.
    """
    return tuple(read_private(path, passphrase) for path in _files(folder, PRIVATE))


@lru_cache(maxsize=8)
def _salt(passphrase: bytes) -> bytes:  # noqa: ARG001 - of one process, keys with one passphrase share a salt, and its cost
    return os.urandom(16)


@lru_cache(maxsize=8)
def _stretched(passphrase: bytes, salt: bytes, cost: int) -> bytes:
    """What opens a key: a passphrase that is slow and large to try."""
    memory = 128 * 8 * cost
    return hashlib.scrypt(passphrase, salt=salt, n=cost, r=8, p=1, maxmem=2 * memory).hex().encode()


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.suffix == suffix)
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}") from error


def check_private(path: Path) -> None:
    """See that a secret is its owner's alone.

    Raises:
        ConfigError: others may read it.
        Unavailable: it is not there.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: expected permissions 600, got {mode:o} (chmod 600 {path})")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
