"""Sources as the settings name them, opened."""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from skerry.errors import ConfigError
from skerry.trust import sources as trust
from skerry.updater import login
from skerry.updater.fetch import FolderSource, Source
from skerry.updater.http_folder import HttpSource
from skerry.updater.metadata import HttpMetadata
from skerry.updater.registry import Login, Registry, RegistryMetadata, RegistrySource
from skerry.updater.settings import (
    FetchSettings,
    FolderSourceSettings,
    HttpSourceSettings,
    RegistrySourceSettings,
    SourceSettings,
)
from skerry.updater.web import Patience, Web, address


def opened(settings: SourceSettings, fetch: FetchSettings) -> tuple[trust.Source, Source]:
    """The two halves of a source: its signed metadata, and its packages. Nothing is asked yet.

    Args:
        settings: where it is.
        fetch: patience with it.

    Raises:
        ConfigError: an address is none, or a file of a login cannot be read.
    """
    match settings:
        case FolderSourceSettings(path=path):
            folder = Path(path)
            return trust.Folder(folder), FolderSource(folder)
        case HttpSourceSettings():
            web = _http(settings, fetch)
            return HttpMetadata(web), web
        case RegistrySourceSettings(tag=tag):
            there = registry(settings, fetch)
            return RegistryMetadata(there, tag), RegistrySource(there, tag)
        case _:
            assert_never(settings)


def _http(settings: HttpSourceSettings, fetch: FetchSettings) -> HttpSource:
    headers = login.Headers(settings.token_file, settings.header_files)
    where = address(settings.url)
    if headers and not where.keeps_secrets:
        raise ConfigError(f"{where.shown}: expected https where there is a login, got http")
    tls = login.context(settings.ca, settings.certificate, settings.key) if where.secure else None
    return HttpSource(settings.url, patience(fetch), tls=tls, headers=headers)


def registry(settings: RegistrySourceSettings, fetch: FetchSettings) -> Registry:
    """The repository that the settings name.

    Raises:
        ConfigError: as `opened`.
    """
    secure = address(settings.url).secure
    tls = login.context(settings.ca, settings.certificate, settings.key) if secure else None
    return Registry(
        settings.url,
        settings.repository,
        Web(patience(fetch), tls),
        Login(settings.username, settings.password_file, settings.token_file),
    )


def patience(fetch: FetchSettings) -> Patience:
    """As the settings have it."""
    return Patience(fetch.timeout_s, fetch.least_bytes_per_s, fetch.patience_s)
