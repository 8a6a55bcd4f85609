"""Settings of the updater's parts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from skerry.settings import Positive, Settings

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
