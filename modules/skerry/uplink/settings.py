"""What the uplink is told."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from skerry.batches import Compression
from skerry.messages import Lane, Name
from skerry.settings import LIVE, ModuleSettings, Port, Positive, Settings, TlsSettings
from skerry.uplink.hours import span, zone
from skerry.uplink.limits import Bounds, Limits

_OF_BATCHES = {"site", "lane"}
_OF_RULES = {"site", "camera", "rule"}
_OF_EVENTS = _OF_BATCHES | _OF_RULES | {"type"}


def _template(topic: str) -> set[str]:
    """The names of what is put into a topic."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(topic) if name is not None}
    except ValueError as error:
        raise ValueError(f"topic: expected a template, got {topic!r} ({error})") from error
    if any(c in topic for c in "+#\0"):
        raise ValueError(f"topic: expected no wildcard, got {topic!r}")
    return names


class FileLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """The far end is a file: one CloudEvent a line, each of them once."""

    path: Annotated[str, Meta(min_length=1)]
    """The file; made if missing, with its folder."""


class HomeAssistant(Settings, frozen=True, kw_only=True):
    """The rules as entities of a Home Assistant that is at the same broker."""

    discovery_prefix: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$(?!\n)", max_length=128)
    ] = "homeassistant"
    """As Home Assistant has it; its birth message is at `status` below it."""
    availability_topic: Annotated[str, Meta(min_length=1, max_length=200)] = "skerry/{site}/availability"
    """`online` while the link is, else `offline`; retained, and the link's last will."""

    def __post_init__(self) -> None:
        if not _template(self.availability_topic) <= {"site"}:
            raise ValueError(f"availability_topic: expected only {{site}}, got {self.availability_topic!r}")


class MqttLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="mqtt"):
    """The far end is an MQTT 3.1.1 broker: CloudEvents as JSON, one a message or a batch of them, QoS 1."""

    host: Annotated[str, Meta(min_length=1)]
    port: Port = 1883
    tls: TlsSettings | None = None
    user: str = ""
    password_file: str = ""
    """File that holds the password; secrets are references."""
    client_id: Annotated[str, Meta(max_length=128)] = ""
    """Empty: `skerry-SITE-LINK-far`, which is not the name that the uplink has on the site's own bus."""
    topic: Annotated[str, Meta(min_length=1, max_length=512)] = "skerry/{site}/far/{lane}"
    """`{site}`, `{lane}` and, with one event a message, `{type}`, `{camera}` and `{rule}` are put in."""
    format: Literal["event", "batch", "plain"] = "event"
    """One CloudEvent a message; a CloudEvents JSON batch, all of one lane; or one event a message as a flat
    object for dashboards, which cannot tell what is missing from it."""
    compression: Compression = "none"
    """Of batches: zstd (the smallest, needs the extra `uplink`) or gzip."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """To connect (20 s at most), and without any confirmation while messages are on their way: above the
    time that the largest message takes on the slowest day."""
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 15
    """MQTT keep-alive; also the bound of a TLS handshake."""
    max_payload_bytes: Annotated[int, Meta(ge=1024)] = 256 * 1024
    """What would be larger is refused here: a broker would drop the connection over it, for ever."""
    retain_last: bool = False
    """Keep the last state of each rule as a retained message."""
    state_topic: Annotated[str, Meta(min_length=1, max_length=512)] = "skerry/{site}/state/{camera}/{rule}"
    """Where, with `retain_last`."""
    home_assistant: HomeAssistant | None = None
    """Tell Home Assistant of each rule; needs `retain_last`."""
    remote_topic: Annotated[str, Meta(max_length=200)] = "skerry/{site}/remote"
    """The desired state comes from `desired` below it, the reported one goes to `reported`, both retained;
    commands come to `requests/NAME`, answers go to `responses`. Empty: none of it."""

    def __post_init__(self) -> None:
        names = _template(self.topic)
        if not names <= _OF_EVENTS:
            wanted = "{site}, {lane}, {type}, {camera} and {rule}"
            raise ValueError(f"topic: expected only {wanted}, got {self.topic!r}")
        if self.format == "batch" and not names <= _OF_BATCHES:
            raise ValueError("topic: expected only {site} and {lane}, a batch holds events of several rules")
        if self.format != "batch" and self.compression != "none":
            raise ValueError(f"compression: expected none with one event a message, got {self.compression}")
        names = _template(self.state_topic)
        if not {"camera", "rule"} <= names <= _OF_RULES:
            wanted = "{camera}, {rule} and perhaps {site}"
            raise ValueError(f"state_topic: expected {wanted}, got {self.state_topic!r}")
        if self.home_assistant is not None and not self.retain_last:
            raise ValueError("retain_last: expected true with home_assistant, got false")
        _check_remote_topic(self.remote_topic)


class HttpLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="http"):
    """The far end is an HTTP/1.1 server that takes CloudEvents: a POST an event, or a batch of them."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    """Where to POST: `https://host[:port]/path`; `http` too. No login in it; a query is never shown."""
    format: Literal["event", "batch"] = "event"
    """One event a request (structured mode), or a CloudEvents JSON batch, all of one lane."""
    compression: Compression = "none"
    """The content encoding; the far end must know it. zstd (smallest, needs the extra `uplink`) or gzip."""
    token_file: str = ""
    """File that holds the bearer token; read again when it changes."""
    tls: TlsSettings | None = None
    """Authorities and a client certificate (mutual TLS), read again when they change. None: the system's."""
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    """More headers, each as it is. No secrets here."""
    header_files: dict[str, str] = msgspec.field(default_factory=dict)
    """More headers, each with the file that holds its value; read again when it changes."""
    proxy: str = ""
    """`http://host:port` of a proxy; empty: none, whatever the environment says."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 30.0
    """Of a whole request, from connecting (20 s at most) to the end of the answer."""
    max_payload_bytes: Annotated[int, Meta(ge=1024)] = 1024 * 1024
    """What would be larger is refused here: many a server drops the connection over it and says nothing."""

    def __post_init__(self) -> None:
        secure = _checked_url(self.url, "url", ("https", "http")) == "https"
        if self.proxy:
            _checked_url(self.proxy, "proxy", ("http",))
        if self.tls is not None and not secure:
            raise ValueError("tls: expected an https url with it, got an http one")
        if self.tls is not None and self.tls.key and not self.tls.certificate:
            raise ValueError("tls.certificate: expected a file with the key's certificate, got nothing")
        seen = {"authorization"} if self.token_file else set()
        for where, values in (("headers", self.headers), ("header_files", self.header_files)):
            for name, value in values.items():
                _check_header(f"{where}.{name}", name, seen)
                if where == "headers" and _SECRET.search(name):
                    raise ValueError(f"headers.{name}: expected no secret (put it into header_files)")
                if where == "headers" and not _VALUE.fullmatch(value):
                    raise ValueError(f"headers.{name}: expected one line of visible ASCII")
                if where == "header_files" and not value:
                    raise ValueError(f"header_files.{name}: expected a file, got nothing")


_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, section 5.6.2."""
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
_OURS = frozenset({
    "host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection",
    "idempotency-key", "accept-encoding", "expect", "te", "trailer", "upgrade", "proxy-authorization",
})  # fmt: skip
_SECRET = re.compile(r"authorization|cookie|api[-_]?key|token|secret|password", re.IGNORECASE)


def _checked_url(text: str, where: str, schemes: tuple[str, ...]) -> str:
    """The scheme of an address. Its text is not repeated in errors: people put logins there."""
    wanted = f"{where}: expected {schemes[0]}://host[:port]"
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(f"{wanted}, got something that is no ASCII or has spaces (percent-encode it)")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{wanted} ({error})") from error
    if parts.scheme not in schemes or not parts.hostname or port == 0:
        raise ValueError(f"{wanted}, got no {' or '.join(schemes)} address")
    if "@" in parts.netloc:
        raise ValueError(f"{wanted} without a login (secrets are files: token_file, header_files)")
    if parts.fragment or (where == "proxy" and (parts.path.strip("/") or parts.query)):
        raise ValueError(f"{wanted} and nothing behind it that is not sent")
    return parts.scheme


def _check_header(where: str, name: str, seen: set[str]) -> None:
    lower = name.lower()
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{where}: expected the name of a header")
    if lower in _OURS:
        raise ValueError(f"{where}: expected a header that the link does not set itself")
    if lower in seen:
        raise ValueError(f"{where}: expected each header once")
    seen.add(lower)


ShadowName = Annotated[str, Meta(pattern=r"^[$a-zA-Z0-9:_-]{0,64}$(?!\n)")]
"""AWS IoT Device Shadow service: the name of a shadow."""
ThingName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9:_-]{0,128}$(?!\n)")]


class Provisioning(Settings, frozen=True, kw_only=True):
    """Fleet provisioning by claim: a certificate that many devices share gets one of the device's own."""

    template: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-]{1,36}$(?!\n)")]
    """The name of the provisioning template."""
    claim_certificate: Annotated[str, Meta(min_length=1)]
    """PEM file of the claim certificate."""
    claim_key: Annotated[str, Meta(min_length=1)]
    """PEM file of its private key."""
    parameters: dict[str, str] = msgspec.field(default_factory=dict)
    """What the template asks for, such as a serial number. No secrets here."""


class AwsLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="aws"):
    """The far end is AWS IoT Core: MQTT 5 over mutual TLS, CloudEvents JSON batches, QoS 1."""

    endpoint: Annotated[str, Meta(min_length=1, max_length=253)]
    """The host: `aws iot describe-endpoint --endpoint-type iot:Data-ATS` says it."""
    port: Port = 8883
    """443 works as well, where a firewall wants it."""
    tls: TlsSettings = TlsSettings()
    """The device's certificate and key; with `ca` empty the system's authorities, which know Amazon's."""
    client_id: Annotated[str, Meta(max_length=128)] = ""
    """Empty: `skerry-SITE-LINK`. The policy must allow it; many want the name of the thing."""
    topic: Annotated[str, Meta(min_length=1, max_length=256)] = "skerry/{site}/far/{lane}"
    """`{site}` and `{lane}` are put in; the policy must allow the result."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """To connect (20 s at most), and for the confirmation of a batch."""
    keepalive_s: Annotated[int, Meta(ge=5, le=1200)] = 60
    """MQTT keep-alive; IoT Core takes less than 30 for 30."""
    shadow: ShadowName = "skerry"
    """The named shadow that holds the desired and the reported state; empty: none."""
    thing: ThingName = ""
    """Whose shadow. Empty: the thing that was provisioned, else `client_id`."""
    remote_topic: Annotated[str, Meta(max_length=200)] = "skerry/{site}/remote"
    """Commands come to `requests/NAME` below it, answers go to `responses`; empty: none."""
    provisioning: Provisioning | None = None
    """How to get a certificate of our own when there is none yet; it is kept in the state folder."""

    def __post_init__(self) -> None:
        for name in ("certificate", "key"):
            has = bool(getattr(self.tls, name))
            if self.provisioning is None and not has:
                raise ValueError(f"tls.{name}: expected a file, got nothing (IoT Core wants mutual TLS)")
            if self.provisioning is not None and has:
                raise ValueError(f"tls.{name}: expected none with provisioning, which keeps its own")
        if not _template(self.topic) <= {"site", "lane"}:
            raise ValueError(f"topic: expected only {{site}} and {{lane}}, got {self.topic!r}")
        _check_remote_topic(self.remote_topic)


class GreengrassLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="greengrass"):
    """The far end is IoT Core, through the Greengrass nucleus that runs us as a component."""

    topic: Annotated[str, Meta(min_length=1, max_length=256)] = "skerry/{site}/far/{lane}"
    """`{site}` and `{lane}` are put in; the recipe's accessControl must allow the result."""
    confirm: Literal["nucleus", "echo"] = "nucleus"
    """What confirms a batch: the nucleus' answer while it is connected, or the batch as IoT Core sends it
    back, which costs as much traffic again."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """To connect (20 s at most), and for the confirmation of a batch."""
    max_payload_bytes: Annotated[int, Meta(ge=1024, le=128 * 1024)] = 128 * 1024
    """Of a message. Greengrass lite takes packets of 10,000 bytes, so 7000 there."""
    desired: Literal["configuration", "shadow", "none"] = "configuration"
    """What holds the desired state: the component's configuration, below the key `desired`, or a shadow."""
    reported: Literal["topic", "configuration", "shadow", "none"] = "topic"
    """Where the state is told: the topic `reported` below `remote_topic`, retained in IoT Core; the
    component's own configuration, below the key `reported`; or the shadow."""
    shadow: ShadowName = "skerry"
    """The named shadow, where `desired` or `reported` is one."""
    thing: ThingName = ""
    """Whose shadow. Empty: the core device's own, which the nucleus names to its components."""
    remote_topic: Annotated[str, Meta(max_length=200)] = "skerry/{site}/remote"
    """Commands come to `requests/NAME` below it, answers go to `responses`; empty: none."""
    commands: tuple[Literal["local", "iot-core"], ...] = ("local", "iot-core")
    """Where they may come from: the core device's local publish/subscribe, and IoT Core."""

    def __post_init__(self) -> None:
        if not _template(self.topic) <= {"site", "lane"}:
            raise ValueError(f"topic: expected only {{site}} and {{lane}}, got {self.topic!r}")
        _check_remote_topic(self.remote_topic)
        if "shadow" in (self.desired, self.reported) and not self.shadow:
            raise ValueError("shadow: expected a name with desired or reported: shadow, got nothing")
        if self.reported == "topic" and not self.remote_topic:
            raise ValueError("remote_topic: expected a topic with reported: topic, got nothing")


def _check_remote_topic(topic: str) -> None:
    if not _template(topic) <= {"site"}:
        raise ValueError(f"remote_topic: expected only {{site}}, got {topic!r}")


HubName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,253}$(?!\n)")]
"""A host, by name or by address."""
DeviceId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9.:_%#*?!(),=@$'+-]{1,128}$(?!\n)")]
"""IoT Hub, identity registry: the name of a device or of a module."""


class EdgeIdentity(Settings, frozen=True, kw_only=True, tag_field="kind", tag="auto"):
    """What IoT Edge says: the environment of the module's container, and the workload API behind it.

    Microsoft's client reads it by itself, the one thing here that `service.load` does not.
    """


class CertificateIdentity(Settings, frozen=True, kw_only=True, tag_field="kind", tag="x509"):
    """A certificate whose thumbprint or authority IoT Hub knows."""

    hub: HubName
    """The hub's host: `NAME.azure-devices.net`."""
    device: DeviceId
    """Its common name must be this, where an authority signed it."""
    module: Annotated[str, Meta(max_length=128)] = ""
    """A module of the device; empty: the device itself."""
    certificate: Annotated[str, Meta(min_length=1)]
    """PEM file, with the chain up to the authority that the hub knows."""
    key: Annotated[str, Meta(min_length=1)]
    """PEM file of its private key."""


class ConnectionStringIdentity(
    Settings, frozen=True, kw_only=True, tag_field="kind", tag="connection-string"
):
    """The connection string of a device or of a module."""

    connection_string_file: Annotated[str, Meta(min_length=1)]
    """File that holds it: `HostName=...;DeviceId=...;SharedAccessKey=...`, with `ModuleId` for a module."""


class DpsKeyIdentity(Settings, frozen=True, kw_only=True, tag_field="kind", tag="dps-key"):
    """The Device Provisioning Service says which hub and device, for a symmetric key."""

    scope: Annotated[str, Meta(pattern=r"^[0-9A-Za-z]{1,32}$(?!\n)")]
    """The ID scope: `0ne...`."""
    registration: Annotated[str, Meta(pattern=r"^[0-9A-Za-z._:-]{1,128}$(?!\n)")]
    """The registration ID."""
    key_file: Annotated[str, Meta(min_length=1)]
    """File that holds the key, in base64."""
    group: bool = False
    """Whether that is the key of an enrolment group, from which the device's own is derived."""
    host: HubName = "global.azure-devices-provisioning.net"


class DpsCertificateIdentity(Settings, frozen=True, kw_only=True, tag_field="kind", tag="dps-x509"):
    """The Device Provisioning Service says which hub and device, for a certificate."""

    scope: Annotated[str, Meta(pattern=r"^[0-9A-Za-z]{1,32}$(?!\n)")]
    registration: Annotated[str, Meta(pattern=r"^[0-9A-Za-z._:-]{1,128}$(?!\n)")]
    """The registration ID, which is the certificate's common name."""
    certificate: Annotated[str, Meta(min_length=1)]
    key: Annotated[str, Meta(min_length=1)]
    host: HubName = "global.azure-devices-provisioning.net"


AzureIdentity = (
    EdgeIdentity | CertificateIdentity | ConnectionStringIdentity | DpsKeyIdentity | DpsCertificateIdentity
)


class AzureLink(Settings, frozen=True, kw_only=True, tag_field="kind", tag="azure"):
    """The far end is an Azure IoT Hub, directly or through the edgeHub of IoT Edge: CloudEvents, QoS 1."""

    identity: AzureIdentity = EdgeIdentity()
    """Who we are, and how that is proved."""
    gateway: Annotated[str, Meta(max_length=253)] = ""
    """The host of an edgeHub to go through, outside of IoT Edge. A connection string says its own."""
    ca: str = ""
    """PEM file of the authorities to trust. Empty: the workload API's with `auto`, else the system's."""
    format: Literal["event", "batch"] = "batch"
    """One event a message, or a CloudEvents JSON batch, all of one lane. The hub counts messages."""
    content_type: Literal["application/json", "cloudevents"] = "application/json"
    """What is said of the body: only in application/json can the hub's routes look. The other one is
    application/cloudevents-batch+json, or application/cloudevents+json."""
    outputs: bool | None = None
    """Whether each lane goes to the output of its name, for the routes of edgeHub. Null: with `auto`."""
    websockets: bool = False
    """MQTT over WebSockets, on port 443 in the place of 8883."""
    proxy: str = ""
    """`http://host:port` of a proxy that knows CONNECT; empty: none, whatever the environment says."""
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 20.0
    """To connect (20 s at most; twice that where a provisioning service is asked first), and without any
    confirmation while messages are on their way."""
    keepalive_s: Annotated[int, Meta(ge=5, le=1740)] = 60
    """MQTT keep-alive; also the bound of a TLS handshake."""
    token_s: Annotated[int, Meta(ge=300, le=365 * 86_400)] = 3600
    """How long a token of a shared key is good for; it is renewed 2 minutes before."""

    def __post_init__(self) -> None:
        if self.proxy:
            _checked_url(self.proxy, "proxy", ("http",))
        edge = isinstance(self.identity, EdgeIdentity)
        if edge and (self.gateway or self.ca):
            raise ValueError("gateway, ca: expected neither with identity: auto (IoT Edge says both)")
        if self.outputs and not edge and not self.gateway and not self._by_string:
            raise ValueError("outputs: expected a gateway with it (IoT Hub itself has no outputs)")
        if self._by_string and self.gateway:
            raise ValueError("gateway: expected GatewayHostName in the connection string, got it here")

    @property
    def _by_string(self) -> bool:
        return isinstance(self.identity, ConnectionStringIdentity)

    @property
    def edge(self) -> bool:
        """Whether an edgeHub is between us and the hub, as far as the settings say."""
        return bool(self.gateway) or isinstance(self.identity, EdgeIdentity)


Link = FileLink | MqttLink | HttpLink | AwsLink | GreengrassLink | AzureLink


class BackoffSettings(Settings, frozen=True, kw_only=True):
    """How long to wait before a far end that did not confirm is tried again."""

    first_s: Positive = 0.5
    """The longest wait after the first failure; it doubles with each one."""
    last_s: Positive = 30.0
    """The longest wait ever."""
    asked_s: Annotated[float, Meta(ge=0)] = 300.0
    """The longest wait that the far end may ask for (`Retry-After`), on top of ours."""


class Sending(Settings, frozen=True, kw_only=True):
    """How records are sent: the key `uplink` of a site file."""

    limits: Limits = Limits()
    """Of rate, bandwidth and size."""
    live_share: Annotated[float, Meta(ge=0.05, le=0.95), LIVE] = 0.3
    """Share of the bytes for lanes that are up to date while others have a backlog."""
    schedules: Annotated[dict[Lane, tuple[str, ...]], LIVE] = msgspec.field(default_factory=dict)
    """Lane to the hours in which it may be sent, like `22:00-06:00`; others are sent at any hour."""
    timezone: Annotated[str, LIVE] = "UTC"
    """Of the hours: a name of the IANA database, such as Europe/Oslo."""
    window: Annotated[int, Meta(ge=1, le=64), LIVE] = 16
    """Batches that may be on their way, at most; the last place is kept for an alarm."""
    queue_s: Annotated[Positive, LIVE] = 0.2
    """When batches queue on the way for longer, fewer are sent ahead: an alarm would wait behind them."""
    batch_events: Annotated[int, Meta(ge=1, le=1000), LIVE] = 100
    """Events in one batch, at most."""
    batch_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024), LIVE] = 128 * 1024
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


Command = Literal["ping", "snapshot", "flush", "diagnostics", "log_level", "restart"]


class RemoteSettings(Settings, frozen=True, kw_only=True):
    """What may be set and asked from outside: the key `remote` of a site file."""

    desired: Literal["link", "file", "none"] = "link"
    """Where the desired state comes from: the platform behind the link, where it has one, or a file."""
    file: str = ""
    """The JSON file of `desired: file`, read again when it changes. It need not be there."""
    commands: tuple[Command, ...] = ("ping", "snapshot", "flush", "diagnostics", "log_level", "restart")
    """Which are answered; a snapshot only of cameras that allow it."""
    commands_per_min: Annotated[float, Meta(ge=1, le=6000)] = 60.0
    """More are answered with 429."""

    def __post_init__(self) -> None:
        if (self.desired == "file") != bool(self.file):
            raise ValueError("file: expected a file with desired: file, and none otherwise")


class UplinkSettings(ModuleSettings, frozen=True, kw_only=True):
    """Settings of the uplink module."""

    name: Name = "uplink"
    """The link's name: the key of `outbound`, `receipts` and `delivered`."""
    link: Link
    sending: Sending = Sending()
    remote: RemoteSettings = RemoteSettings()
    backoff: Annotated[BackoffSettings, LIVE] = BackoffSettings()
    """How long to wait before a far end that did not confirm is tried again."""
    inbox_bytes: Annotated[int, Meta(ge=64 * 1024, le=16 * 1024 * 1024)] = 2 * 1024 * 1024
    """Of each lane, what may be in memory, waiting or on its way; the buffer repeats what finds no room."""

    @property
    def bounds(self) -> Bounds:
        """What the link must keep to."""
        if isinstance(self.link, AwsLink | GreengrassLink):
            return self.sending.limits.on("aws-iot-core")
        direct = isinstance(self.link, AzureLink) and not self.link.edge
        return self.sending.limits.on("azure-iot-hub-s1" if direct else "none")
