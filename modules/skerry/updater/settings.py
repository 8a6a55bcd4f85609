"""Settings of the updater, and of its parts."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from skerry.messages import Name
from skerry.settings import LIVE, ModuleSettings, Positive, Settings

Bytes = Annotated[int, Meta(ge=0, le=1 << 50)]


class StoreSettings(Settings, frozen=True, kw_only=True):
    """How much room models may take on this device."""

    quota_bytes: Bytes = 4 * 1024**3
    """All packages and half fetched files together; what no slot needs goes first, the oldest of it."""
    floor_bytes: Bytes = 256 * 1024**2
    """Room on the disk that is left for everything else, whatever the quota."""


class FetchSettings(Settings, frozen=True, kw_only=True):
    """How models are fetched."""

    bytes_per_s: Annotated[int, Meta(ge=1024)] | None = None
    """Bandwidth budget, in bytes a second; null takes what there is."""
    timeout_s: Positive = 15.0
    """How long to wait for a connection, and for each piece."""
    least_bytes_per_s: Annotated[int, Meta(ge=0)] = 256
    """A far end that sends less than this over `patience_s` is given up, however busy it looks."""
    patience_s: Positive = 60.0
    """See `least_bytes_per_s`."""
    file_bytes: Bytes = 2 * 1024**3
    """The largest file of a package."""
    total_bytes: Bytes = 4 * 1024**3
    """The largest package."""


class SourceOf(Settings, frozen=True, kw_only=True, tag_field="kind"):
    """Where copies of a repository are: its metadata and its packages. None is believed for where it is."""


class FolderSourceSettings(SourceOf, frozen=True, kw_only=True, tag="folder"):
    """A folder: a stick, a share. It need not be there all the time."""

    path: Annotated[str, Meta(min_length=1)]
    """Folder of the repository, where it is or will be mounted."""


class HttpSourceSettings(SourceOf, frozen=True, kw_only=True, tag="http"):
    """A folder behind a web server."""

    url: Annotated[str, Meta(min_length=1)]
    """Of the repository's folder, http or https, without a login in it."""
    ca: str = ""
    """PEM file of the authorities to trust; empty: the system's."""
    certificate: str = ""
    """PEM file of the client certificate, with `key`, where the server wants one."""
    key: str = ""
    """PEM file of the client certificate's private key."""
    token_file: str = ""
    """File of a token that is sent as `Authorization: Bearer`; secrets are references."""
    header_files: dict[str, str] = msgspec.field(default_factory=dict)
    """Headers to send, by name, each with the file that holds its value."""

    def __post_init__(self) -> None:
        _check_url(self.url, login=bool(self.token_file or self.header_files))


class RegistrySourceSettings(SourceOf, frozen=True, kw_only=True, tag="registry"):
    """An OCI registry."""

    url: Annotated[str, Meta(min_length=1)]
    """Of the registry, http or https, without a path."""
    repository: Annotated[str, Meta(min_length=1)]
    """Name of the repository in it."""
    tag: str = "latest"
    """Tag of what was pushed: an index of packages and signed metadata, or the metadata alone."""
    ca: str = ""
    """PEM file of the authorities to trust; empty: the system's."""
    certificate: str = ""
    """PEM file of the client certificate, with `key`, where the registry wants one."""
    key: str = ""
    """PEM file of the client certificate's private key."""
    username: str = ""
    password_file: str = ""
    """File of the password or token of `username`; secrets are references."""
    token_file: str = ""
    """File of a token that the registry itself takes, in place of a username."""

    def __post_init__(self) -> None:
        _check_url(self.url, login=bool(self.token_file or self.username))
        if urlsplit(self.url).path.strip("/"):
            raise ValueError("url: expected the registry alone, got a path (name it as repository)")
        if bool(self.username) != bool(self.password_file):
            raise ValueError("username: expected it together with password_file, got one of them")


def _check_url(url: str, *, login: bool) -> None:
    """What can be said of an address before anybody is asked. It is not repeated: people put logins there."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise ValueError("url: expected http or https://host[:port]/..., without a login in it")
    if parts.query or parts.fragment:
        raise ValueError("url: expected an address without ? and #")
    here = host == "localhost" or host.startswith("127.") or host == "::1"
    if login and parts.scheme == "http" and not here:
        raise ValueError("url: expected https where there is a login, got http")


SourceSettings = FolderSourceSettings | HttpSourceSettings | RegistrySourceSettings


class SlotSettings(Settings, frozen=True, kw_only=True):
    """What is to serve in one slot of the model store."""

    model: Name
    """Name of the model, as its packages have it."""
    version: Annotated[str, Meta(pattern=r"^$(?!\n)|^[0-9A-Za-z.+-]{5,64}$(?!\n)")] = ""
    """Exactly this version, be it older than what serves; empty: the newest one."""
    force: Annotated[str, Meta(pattern=r"^([0-9a-f]{8,64})?$(?!\n)")] = ""
    """Digest, or its first digits, of a package that failed here and is to be tried all the same."""
    rollback_on_drift: bool = False
    """Go back to the package before when drift begins soon after one was confirmed."""
    drift_within_s: Positive = 86_400.0
    """How soon that is, and for how long a package that fails after it was confirmed is gone back from.
    Later, both are more likely the site's than the model's."""


class UpdaterSettings(ModuleSettings, frozen=True, kw_only=True):
    """`SKERRY_SETTINGS` of `python -m skerry.updater`."""

    store: Annotated[str, Meta(min_length=1)]
    """Folder of the model store; inference reads it, nobody else writes it."""
    root: Annotated[str, Meta(min_length=1)]
    """File of the root metadata that the device was given: who signs for it in the end."""
    sources: tuple[SourceSettings, ...] = ()
    """Where packages come from, the preferred one first. All of them are asked for what is newest."""
    slots: Annotated[dict[Name, SlotSettings], LIVE]
    """What is to serve in each slot."""
    inference: Name = "inference"
    """Name of the inference module that has the slots."""
    device_class: str = ""
    """Of this device; packages that are signed for other classes only are not for it."""
    require_attestation: bool = False
    """Take only packages that were attested to keep within the budgets of this device's class."""
    check_s: Annotated[float, Meta(ge=0.1), LIVE] = 300.0
    """How often the sources are asked."""
    scrub_s: Positive = 86_400.0
    """How often every hash in the store is compared."""
    fetch: Annotated[FetchSettings, LIVE] = FetchSettings()
    """Bandwidth, patience and sizes."""
    room: StoreSettings = StoreSettings()
    """How much of the disk models may take."""
    audit_bytes: Annotated[int, Meta(ge=64 * 1024)] = 4 * 1024 * 1024
    """Bound of the audit log; the oldest part goes, and says so."""
    grace_s: Positive = 4.0
    watchdog_s: Positive = 180.0
    """A far end may take its time between two signs of life; a name that does not resolve, half a minute."""

    def __post_init__(self) -> None:
        if not self.slots:
            raise ValueError("slots: expected at least one, got none")
