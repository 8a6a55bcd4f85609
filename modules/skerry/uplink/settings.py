"""What the uplink is told."""

from __future__ import annotations

import string
from typing import Annotated

from msgspec import Meta

from skerry.messages import Name
from skerry.settings import ModuleSettings, Port, Positive, Settings, TlsSettings

_FIELDS = {"site", "lane", "type"}


class FileLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """The far end is a file: one CloudEvent a line, each of them once."""

    path: Annotated[str, Meta(min_length=1)]
    """The file; made if missing, with its folder."""


class MqttLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="mqtt"):
    """The far end is an MQTT 3.1.1 broker: one CloudEvent (structured JSON) a message, QoS 1."""

    host: Annotated[str, Meta(min_length=1)]
    port: Port = 1883
    tls: TlsSettings | None = None
    user: str = ""
    password_file: str = ""
    """File that holds the password; secrets are references."""
    client_id: Annotated[str, Meta(max_length=128)] = ""
    """Empty: `skerry-SITE-LINK`."""
    topic: Annotated[str, Meta(min_length=1, max_length=512)] = "skerry/{site}/far/{lane}"
    """`{site}`, `{lane}` and `{type}` (the event's) are put in."""
    timeout_s: Annotated[float, Meta(gt=0, le=20)] = 10.0
    """To connect, and for the broker to confirm a whole batch."""
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 15
    """MQTT keep-alive; also the bound of a TLS handshake."""
    max_payload_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024
    """An event that is larger is refused here: a broker would drop the connection over it, for ever."""

    def __post_init__(self) -> None:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(self.topic) if name is not None}
        except ValueError as error:
            raise ValueError(f"topic: expected a template, got {self.topic!r} ({error})") from error
        if not names <= _FIELDS:
            raise ValueError(f"topic: expected only {{site}}, {{lane}} and {{type}}, got {self.topic!r}")
        if any(c in self.topic for c in "+#\0"):
            raise ValueError(f"topic: expected no wildcard, got {self.topic!r}")


Link = FileLink | MqttLink


class BackoffSettings(Settings, frozen=True, kw_only=True):
    """How long to wait before a far end that did not confirm is tried again."""

    first_s: Positive = 0.5
    """The longest wait after the first failure; it doubles with each one."""
    last_s: Positive = 30.0
    """The longest wait ever."""


class UplinkSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the uplink module."""

    name: Name = "uplink"
    """The link's name: the key of `outbound`, `receipts` and `delivered`."""
    link: Link
    backoff: BackoffSettings = BackoffSettings()
    inbox_bytes: Annotated[int, Meta(ge=64 * 1024)] = 4 * 1024 * 1024
    """Batches that may wait in memory for the link; the buffer repeats what finds no room."""
    quarantine_bytes: Annotated[int, Meta(ge=64 * 1024)] = 16 * 1024 * 1024
    """Bound of the quarantine's file; a full one becomes the old one, of which there is one."""
