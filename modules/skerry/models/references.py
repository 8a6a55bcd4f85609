"""How a repository of a registry, and something in it, is written down: HOST[:PORT]/NAME[:TAG|@DIGEST]."""

from __future__ import annotations

from typing import NamedTuple

from skerry.errors import ConfigError
from skerry.models.oci import HEX

TAG = "latest"


class Reference(NamedTuple):
    """A place in a registry.

    Attributes:
        url: of the registry.
        repository: its name there.
        tag: what was asked for, where it is no digest.
        digest: `sha256:` and 64 hexadecimal digits; or empty.
    """

    url: str
    repository: str
    tag: str
    digest: str = ""

    @property
    def wanted(self) -> str:
        """The tag or digest."""
        return self.digest or self.tag

    def __str__(self) -> str:
        host = self.url.removeprefix("https://")
        return f"{host}/{self.repository}{f'@{self.digest}' if self.digest else f':{self.tag}'}"


def parse(text: str) -> Reference:
    """A reference as people write it. https, unless it begins with `http://`.

    Raises:
        ConfigError: it is none. A login in it is not repeated.
    """
    scheme, told, rest = text.rpartition("://")
    host, slash, name = rest.partition("/")
    if (told and scheme not in ("http", "https")) or not host or not slash or "@" in host:
        raise ConfigError("expected REGISTRY/NAME[:TAG] with the name of a registry, got something else")
    name, at, digest = name.partition("@")
    if at and not HEX.fullmatch(digest.removeprefix("sha256:")):
        raise ConfigError(f"{host}/{name}: expected @sha256: and 64 hexadecimal digits, got {digest[:80]!r}")
    name, colon, tag = name.partition(":")
    if not name or (colon and not tag):
        raise ConfigError(f"{host}/{name}: expected NAME[:TAG], got a part of it")
    full = f"sha256:{digest.removeprefix('sha256:')}" if at else ""
    return Reference(f"{scheme or 'https'}://{host}", name, tag or TAG, full)
