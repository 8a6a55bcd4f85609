"""What is done to the body of a block before it is written: compress it, encrypt it, both or neither.

An encrypted body is: key id (4 bytes), nonce (12 bytes), ciphertext and tag. The block's header is
authenticated with it, so that no block can be moved to another place. The key id is the beginning of the
key's SHA-256: it tells keys apart and says nothing about them.

Source: NIST SP 800-38D (GCM; random nonces of 96 bits serve for 2**32 blocks of one key).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skerry.errors import ConfigError

COMPRESSED, ENCRYPTED = 1, 2
"""Bits of a block's flags."""
MAX_BODY = 32 * 1024 * 1024
"""A header that claims more is damaged, and so is what would unpack to more."""
_KEY_ID, _NONCE = 4, 12
_LEAST = 256
"""Bytes: a smaller body is not worth compressing."""
_LEVEL = 3
"""Of zstd: five times smaller JSON at several hundred MB/s; higher levels cost more than they save."""


class Seal:
    """How blocks are written and read. `Seal()` leaves them as they are.

    Args:
        compress: with zstd.
        key: 32 bytes; None: blocks are not encrypted.
        old_keys: further keys that blocks may be read with.

    Raises:
        ConfigError: what is asked for is not installed.
    """

    def __init__(
        self, *, compress: bool = False, key: bytes | None = None, old_keys: Sequence[bytes] = ()
    ) -> None:
        self._compress = compress
        self._zstd: Any = _zstandard() if compress else None
        self._ciphers: dict[bytes, Any] = {}
        for known in [*old_keys, *([key] if key else [])]:
            self._ciphers[_id_of(known)] = _cipher(known)
        self._key_id = _id_of(key) if key else b""

    @property
    def plain(self) -> bool:
        """Whether bodies are written as they are."""
        return not self._compress and not self._key_id

    def close(self, body: bytes, about: bytes) -> tuple[int, bytes]:
        """Flags, and the body as it is written.

        Args:
            body: at most `MAX_BODY` bytes.
            about: what the header says of the block.
        """
        flags = 0
        if self._compress and len(body) >= _LEAST:
            packed = self._zstd.ZstdCompressor(level=_LEVEL).compress(body)
            if len(packed) < len(body):
                flags, body = COMPRESSED, packed
        if self._key_id:
            nonce = os.urandom(_NONCE)
            flags |= ENCRYPTED
            sealed = self._ciphers[self._key_id].encrypt(nonce, body, about)
            body = self._key_id + nonce + sealed
        return flags, body

    def open(self, flags: int, body: bytes, about: bytes) -> bytes:
        """The body as it was.

        Raises:
            ValueError: it was changed.
            ConfigError: the key that it was written with was not given.
        """
        if flags & ENCRYPTED:
            body = self._decrypt(body, about)
        if flags & COMPRESSED:
            self._zstd = self._zstd or _zstandard()
            try:
                return bytes(self._zstd.ZstdDecompressor().decompress(body, max_output_size=MAX_BODY))
            except self._zstd.ZstdError as error:
                raise ValueError(f"block: {error}") from error
        return body

    def _decrypt(self, body: bytes, about: bytes) -> bytes:
        key_id = body[:_KEY_ID]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            known = ", ".join(k.hex() for k in self._ciphers) or "none"
            raise ConfigError(
                f"key_file: expected key {key_id.hex()}, got {known}"
                " (give the key that the store was written with in key_file or old_key_files)"
            )
        nonce = body[_KEY_ID : _KEY_ID + _NONCE]
        try:
            return bytes(cipher.decrypt(nonce, body[_KEY_ID + _NONCE :], about))
        except Exception as error:
            raise ValueError("block: authentication failed") from error


def read_key(path: str) -> bytes:
    """The key in a file: 32 bytes, or 64 hexadecimal digits.

    Raises:
        ConfigError: it cannot be read, or is no key.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"key_file: {path}: cannot read it: {error.strerror}") from error
    if len(content) == 32:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError(
            f"key_file: {path}: expected 32 bytes or 64 hexadecimal digits, got {len(content)} bytes"
            " (openssl rand -hex 32)"
        )
    return key


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_KEY_ID]


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415 - only where it is asked for
            AESGCM,
        )
    except ImportError as error:
        raise ConfigError(
            "key_file: expected the package cryptography (pip install skerry[buffer])"
        ) from error
    return AESGCM(key)


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415 - only where it is asked for
    except ImportError as error:
        raise ConfigError(
            "compression: expected the package zstandard (pip install skerry[buffer])"
        ) from error
    return zstandard
