"""Secrets by reference: files that are read whenever they are needed, so that none needs a restart."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

from skerry.errors import ConfigError, Unavailable
from skerry.mqtt import tls_context
from skerry.secret_file import line
from skerry.settings import TlsSettings


class Headers:
    """Headers with secrets in them, read anew for each request.

    Args:
        token_file: sent as `Authorization: Bearer`; empty: none.
        header_files: by name, each with the file of its value.

    Raises:
        ConfigError: a file cannot be read or is not one line.
    """

    def __init__(self, token_file: str = "", header_files: Mapping[str, str] | None = None) -> None:
        self._token_file = token_file
        self._files = dict(header_files or {})
        self._read()

    def __call__(self) -> dict[str, str]:
        try:
            return self._read()
        except ConfigError as error:  # it was there when this began: an exchange may be under way
            raise Unavailable(str(error)) from error

    def _read(self) -> dict[str, str]:
        found = {name: line(f"header_files.{name}", file) for name, file in self._files.items()}
        if self._token_file:
            found["Authorization"] = f"Bearer {line('token_file', self._token_file)}"
        return found

    def __bool__(self) -> bool:
        return bool(self._token_file or self._files)


def context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """Whom to trust, and who we are.

    Raises:
        ConfigError: a file cannot be read or does not hold what it should.
    """
    return tls_context(TlsSettings(ca=ca, certificate=certificate, key=key))
