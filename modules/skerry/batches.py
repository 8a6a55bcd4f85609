"""Several events as one message: a CloudEvents JSON batch, compressed or not, told apart by its first bytes.

Source: CloudEvents 1.0.2, JSON event format, section 4 (JSON batch format); RFC 8878 (zstd), section
3.1.1; RFC 1952 (gzip), section 2.3.1. `docs/batch-format.md` describes it for those who decode it.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from skerry.errors import ConfigError, SkerryError

Compression = Literal["none", "zstd", "gzip"]

CONTENT_TYPE = "application/cloudevents-batch+json"
MAX_BYTES = 64 * 1024 * 1024
"""Default bound of a batch once it is decompressed."""

_ZSTD = b"\x28\xb5\x2f\xfd"
_GZIP = b"\x1f\x8b"
_SPACE = b" \t\r\n"
_ZSTD_LEVEL = 3
_GZIP_LEVEL = 1
_STEP = 1024
"""Bytes that a decompressor is given at a time, so that a hostile batch is noticed early."""


class BatchError(SkerryError):
    """What was read is not a batch of events."""

    exit_code = 65


def encode(events: Sequence[bytes]) -> bytes:
    """A batch of events, each given as JSON."""
    return b"[%b]" % b",".join(events)


def compressor(compression: Compression) -> Callable[[bytes], bytes]:
    """What compresses a batch; one that would only grow is left as it is.

    Raises:
        ConfigError: zstd without the package `zstandard`.
    """
    if compression == "zstd":
        squeeze = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL).compress
    elif compression == "gzip":
        squeeze = lambda content: gzip.compress(content, _GZIP_LEVEL, mtime=0)  # noqa: E731 - one of three
    else:
        return lambda content: content

    def smaller(content: bytes) -> bytes:
        squeezed: bytes = squeeze(content)
        return squeezed if len(squeezed) < len(content) else content

    return smaller


def decode(payload: bytes, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """The events of a message: a batch, or a single event.

    Raises:
        BatchError: it is neither, is larger than `max_bytes`, or something follows it.
        ConfigError: zstd without the package `zstandard`.
    """
    found = list(split(payload, max_bytes))
    if len(found) != 1:
        raise BatchError(f"expected one batch, got {len(found)}")
    return found[0]


def split(content: bytes, max_bytes: int = MAX_BYTES) -> Iterator[list[bytes]]:
    """The events of each of several messages, one behind the other, of any kinds.

    Args:
        content: batches or single events, each compressed or not; white space between them.
        max_bytes: of one of them, decompressed.

    Raises:
        BatchError: at the first thing that is none of these; the text names its place, in bytes.
        ConfigError: zstd without the package `zstandard`.
    """
    at, end = _skip_space(content, 0), len(content)
    while at < end:
        try:
            if content.startswith(_ZSTD, at):
                text, after = _inflate(
                    _zstandard().ZstdDecompressor().decompressobj(), content, at, max_bytes
                )
                yield from split_text(text)
            elif content.startswith(_GZIP, at):
                text, after = _inflate(zlib.decompressobj(wbits=31), content, at, max_bytes)
                yield from split_text(text)
            else:
                after = _next_magic(content, at)
                yield from split_text(content[at:after])
        except BatchError as error:
            raise BatchError(f"byte {at}: {error}") from error
        at = _skip_space(content, after)


def split_text(text: bytes) -> Iterator[list[bytes]]:
    """The events of each of several messages that are JSON.

    Raises:
        BatchError: at the first thing that is neither an array of objects nor an object.
    """
    try:
        yield _events(text)
        return
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # several, or none: look closer
    try:
        characters = text.decode()
    except UnicodeDecodeError as error:
        raise BatchError(f"expected JSON, zstd or gzip, got {text[:16]!r}") from error
    decoder, at = json.JSONDecoder(), 0
    while (at := _skip(characters, at)) < len(characters):
        try:
            _, after = decoder.raw_decode(characters, at)
            yield _events(characters[at:after].encode())
        except (ValueError, msgspec.DecodeError, RecursionError) as error:
            raise BatchError(
                f"expected a batch of events, got {characters[at : at + 40]!r} ({error})"
            ) from error
        at = after


def _events(text: bytes) -> list[bytes]:
    """The events of one JSON document.

    Raises:
        msgspec.DecodeError: it is no JSON, or neither an object nor an array of objects.
    """
    text = text.strip(_SPACE)
    if text.startswith(b"{"):
        msgspec.json.decode(text)
        return [text]
    msgspec.json.decode(text, type=list[dict[str, Any]])
    return [bytes(raw).strip(_SPACE) for raw in msgspec.json.decode(text, type=list[msgspec.Raw])]


def _inflate(decompressor: Any, content: bytes, at: int, max_bytes: int) -> tuple[bytes, int]:
    """One compressed batch, and where it ends.

    Raises:
        BatchError: it is damaged, torn, or too large.
    """
    parts: list[bytes] = []
    size = 0
    view = memoryview(content)
    while not decompressor.eof:
        step = view[at : at + _STEP]
        if not step:
            raise BatchError("expected a whole batch, got a part of one (is it torn?)")
        try:
            part = decompressor.decompress(step)
        except Exception as error:  # zlib.error, and ZstdError of a package that may be missing
            raise BatchError(f"cannot decompress: {error}") from error
        parts.append(part)
        size += len(part)
        at += len(step)
        if size > max_bytes:
            raise BatchError(f"expected at most {max_bytes} bytes once decompressed, got more")
    return b"".join(parts), at - len(decompressor.unused_data)


def _next_magic(content: bytes, at: int) -> int:
    """Where the next compressed batch begins. JSON holds neither of the magics: they are not UTF-8."""
    found = [n for magic in (_ZSTD, _GZIP) if (n := content.find(magic, at)) >= 0]
    return min(found, default=len(content))


def _skip_space(content: bytes, at: int) -> int:
    while at < len(content) and content[at] in _SPACE:
        at += 1
    return at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415 - 5 MB of memory, and only where it is used
    except ImportError as error:
        raise ConfigError(
            "zstd: expected the package zstandard, which is missing (pip install 'skerry[uplink]')"
        ) from error
    return zstandard
