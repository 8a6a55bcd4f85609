"""What the uplink is told."""

from __future__ import annotations

import string
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.batches import Compression
from skerry.messages import Lane, Name
from skerry.settings import ModuleSettings, Port, Positive, Settings, TlsSettings
from skerry.uplink.hours import span, zone
from skerry.uplink.limits import Limits

_FIELDS = {"site", "lane", "type"}


class FileLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """The far end is a file: one CloudEvent a line, each of them once."""

    path: Annotated[str, Meta(min_length=1)]
    """The file; made if missing, with its folder."""


class MqttLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="mqtt"):
    """The far end is an MQTT 3.1.1 broker: CloudEvents as JSON, one a message or a batch of them, QoS 1."""

    host: Annotated[str, Meta(min_length=1)]
    port: Port = 1883
    tls: TlsSettings | None = None
    user: str = ""
    password_file: str = ""
    """File that holds the password; secrets are references."""
    client_id: Annotated[str, Meta(max_length=128)] = ""
    """Empty: `skerry-SITE-LINK`."""
    topic: Annotated[str, Meta(min_length=1, max_length=512)] = "skerry/{site}/far/{lane}"
    """`{site}`, `{lane}` and, with one event a message, `{type}` (the event's) are put in."""
    format: Literal["event", "batch"] = "event"
    """One event a message, or a CloudEvents JSON batch, all of one lane."""
    compression: Compression = "none"
    """Of batches: zstd (the smallest, needs the extra `uplink`) or gzip."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """To connect (20 s at most), and without any confirmation while messages are on their way: above the
    time that the largest message takes on the slowest day."""
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 15
    """MQTT keep-alive; also the bound of a TLS handshake."""
    max_payload_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024
    """What would be larger is refused here: a broker would drop the connection over it, for ever."""

    def __post_init__(self) -> None:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(self.topic) if name is not None}
        except ValueError as error:
            raise ValueError(f"topic: expected a template, got {self.topic!r} ({error})") from error
        if not names <= _FIELDS:
            raise ValueError(f"topic: expected only {{site}}, {{lane}} and {{type}}, got {self.topic!r}")
        if any(c in self.topic for c in "+#\0"):
            raise ValueError(f"topic: expected no wildcard, got {self.topic!r}")
        if self.format == "batch" and "type" in names:
            raise ValueError("topic: expected no {type}, a batch holds events of several types")
        if self.format == "event" and self.compression != "none":
            raise ValueError(f"compression: expected none with one event a message, got {self.compression}")


Link = FileLink | MqttLink


class BackoffSettings(Settings, frozen=True, kw_only=True):
    """How long to wait before a far end that did not confirm is tried again."""

    first_s: Positive = 0.5
    """The longest wait after the first failure; it doubles with each one."""
    last_s: Positive = 30.0
    """The longest wait ever."""


class Sending(Settings, frozen=True, kw_only=True):
    """How records are sent: the key `uplink` of a site file."""

    limits: Limits = Limits()
    """Of rate, bandwidth and size."""
    live_share: Annotated[float, Meta(ge=0.05, le=0.95)] = 0.3
    """Share of the bytes for lanes that are up to date while others have a backlog."""
    schedules: dict[Lane, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """Lane to the hours in which it may be sent, like `22:00-06:00`; others are sent at any hour."""
    timezone: str = "UTC"
    """Of the hours: a name of the IANA database, such as Europe/Oslo."""
    window: Annotated[int, Meta(ge=1, le=64)] = 16
    """Batches that may be on their way, at most; the last place is kept for an alarm."""
    queue_s: Positive = 0.2
    """When batches queue on the way for longer, fewer are sent ahead: an alarm would wait behind them."""
    batch_events: Annotated[int, Meta(ge=1, le=1000)] = 100
    batch_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] = 128 * 1024
    """Bytes of events in one batch, before compression; an event that is larger goes alone."""

    def __post_init__(self) -> None:
        for lane, spans in self.schedules.items():
            if lane == "alarm":
                raise ValueError("schedules.alarm: expected no hours: an alarm is sent at once, always")
            if not spans:
                raise ValueError(f"schedules.{lane}: expected hours like 22:00-06:00, got an empty list")
            for n, text in enumerate(spans):
                try:
                    span(text)
                except ValueError as error:
                    raise ValueError(f"schedules.{lane}[{n}]: {error}") from error
        try:
            zone(self.timezone)
        except ValueError as error:
            raise ValueError(f"timezone: {error}") from error


class UplinkSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the uplink module."""

    name: Name = "uplink"
    """The link's name: the key of `outbound`, `receipts` and `delivered`."""
    link: Link
    sending: Sending = Sending()
    backoff: BackoffSettings = BackoffSettings()
    inbox_bytes: Annotated[int, Meta(ge=64 * 1024, le=16 * 1024 * 1024)] = 2 * 1024 * 1024
    """Of each lane, what may be in memory, waiting or on its way; the buffer repeats what finds no room."""
