"""Secrets and certificates by reference: files that are read again when they change."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from skerry.errors import ConfigError
from skerry.mqtt import tls_context
from skerry.secret_file import line
from skerry.settings import TlsSettings

T = TypeVar("T")
Stamp = tuple[int, int, int, int]
"""What changes when a file does."""

log = structlog.get_logger()


class Watched(Generic[T]):
    """What is made of files, and made anew when one of them has changed.

    While the new content is no good, as in the middle of an exchange of two files, the old one stays.

    Args:
        files: their paths.
        make: what is made of them.

    Raises:
        ConfigError: of `make`, the first time.
    """

    def __init__(self, files: Sequence[str], make: Callable[[], T]) -> None:
        self._files = tuple(files)
        self._make = make
        self._stamps = self._look()
        self._value = make()
        self.version = 1
        """Goes up with each exchange."""

    def get(self) -> T:
        """The newest that is good."""
        # Looked at before it is read: what changes in between is noticed the next time.
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._value = self._make()
            except ConfigError as error:
                log.warning("credentials.not_read", error=str(error))
            else:
                self.version += 1
                log.info("credentials.read", files=self._files)
        return self._value

    def doubt(self) -> None:
        """Read it again the next time, changed or not."""
        self._stamps = ()

    def _look(self) -> tuple[Stamp | None, ...]:
        return tuple(map(stamp, self._files))


def secret(where: str, file: str) -> Watched[str]:
    """The value of a header that is in a file.

    Raises:
        ConfigError: it cannot be read, or is not one line of visible ASCII. It is never shown.
    """
    return Watched([file], lambda: line(where, file))


def context(settings: TlsSettings) -> Watched[ssl.SSLContext]:
    """Whom to trust, and who we are.

    Raises:
        ConfigError: a file cannot be read or does not hold what it should.
    """
    files = [file for file in (settings.ca, settings.certificate, settings.key) if file]
    return Watched(files, lambda: _context(settings))


def _context(settings: TlsSettings) -> ssl.SSLContext:
    try:
        made = tls_context(settings)
    except ConfigError as error:
        raise ConfigError([f"link.{problem}" for problem in error.problems]) from error
    made.set_alpn_protocols(["http/1.1"])
    return made


def stamp(file: str) -> Stamp | None:
    """What tells the content of a file from another; None: it is not there."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
