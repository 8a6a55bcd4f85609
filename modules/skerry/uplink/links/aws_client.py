"""AWS's own MQTT 5 client (awsiotsdk, awscrt), held so that it sends nothing that it was not just told to.

It is a client that reconnects for ever and keeps, in memory and without a bound, what is not confirmed.
Here one client is one connection: the wait before it would reconnect is a day, its session is clean and
ends with the connection, and what it holds when the connection ends it fails.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from skerry.batches import CONTENT_TYPE
from skerry.errors import ConfigError
from skerry.mqtt import tls_context
from skerry.settings import TlsSettings
from skerry.uplink.settings import AwsLink

_NEVER_MS = 24 * 3600 * 1000
"""Until the client would reconnect by itself: it is stopped long before."""
_SECOND_MS = 1000
_TOO_LARGE = 149
"""Packet too large. MQTT 5.0, section 3.14.2.1."""


class Told(Protocol):
    """Who is told of what comes down a connection; on the client's thread."""

    def message(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Something came."""

    def lost(self) -> None:
        """The connection is no more, or never was."""


class Identity(NamedTuple):
    """Who we are, and whom to trust, as PEM."""

    ca: bytes
    """Empty: the system's authorities."""
    certificate: bytes
    key: bytes


def identity(tls: TlsSettings) -> Identity:
    """What is in the files.

    Raises:
        ConfigError: a file cannot be read, or certificate and key are not each other's.
    """
    try:
        tls_context(tls)  # says which file is wrong; the client only that one is
    except ConfigError as error:
        raise ConfigError([f"link.{problem}" for problem in error.problems]) from error
    try:
        found = [Path(file).read_bytes() if file else b"" for file in (tls.ca, tls.certificate, tls.key)]
    except OSError as error:
        raise ConfigError(f"link.tls: {error.filename}: cannot read it: {error.strerror}") from error
    return Identity(*found)


class Heard:
    """What the client has told of its connection. Written on its thread, read on ours; knows no client.

    Attributes:
        changed: notified on every change.
        up: the CONNACK was there, and said yes.
        refused: the far end answered the CONNECT, with a no.
        lost: why the connection is no more, or never was; "" as long as it may be.
        too_large: the far end hung up over the size of a message.
        stopped: the client is at rest.
    """

    def __init__(self) -> None:
        self._told: weakref.ref[Told] | None = None
        self.changed = threading.Condition()
        self.up = False
        self.refused = False
        self.lost = ""
        self.too_large = False
        self.stopped = False

    def tell(self, told: Told) -> None:
        """Whom to tell. Not kept alive: it holds the client, which holds us, where no collector looks."""
        self._told = weakref.ref(told)

    def lose(self, why: str) -> None:
        """The connection is no more; the first reason counts."""
        with self.changed:
            self.lost = self.lost or why
            self.changed.notify_all()

    def on_message(self, data: Any) -> None:
        """A message came."""
        packet = data.publish_packet
        told = self._told() if self._told is not None else None
        if told is not None:
            told.message(packet.topic, packet.payload or b"", retained=bool(packet.retain))

    def woken(self, _future: object) -> None:
        """A message is confirmed, refused or failed."""
        with self.changed:
            self.changed.notify_all()

    def on_success(self, _data: object) -> None:
        with self.changed:
            self.up = True
            self.changed.notify_all()

    def on_failure(self, data: Any) -> None:
        connack = data.connack_packet
        with self.changed:
            self.refused = connack is not None
            self.lose(f"refused: {_reason(connack)}" if connack else f"cannot connect: {data.exception}")

    def on_disconnection(self, data: Any) -> None:
        packet = data.disconnect_packet
        with self.changed:
            self.too_large = packet is not None and packet.reason_code == _TOO_LARGE
            self.lose(
                f"connection lost: {data.exception}" if packet is None else f"hung up: {_reason(packet)}"
            )
        told = self._told() if self._told is not None else None
        if told is not None:
            told.lost()

    def on_stopped(self, _data: object) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


class Sdk:
    """The package, with one thread for all clients of a link.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            self._io: Any = importlib.import_module("awscrt.io")
            self._mqtt: Any = importlib.import_module("awscrt.mqtt5")
            self._builder: Any = importlib.import_module("awsiot.mqtt5_client_builder")
        except ImportError as error:
            raise ConfigError(
                f"link.kind: aws: expected the package awsiotsdk, got: {error} (pip install 'skerry[aws]')"
            ) from error
        loops = self._io.EventLoopGroup(1)
        self._bootstrap = self._io.ClientBootstrap(loops, self._io.DefaultHostResolver(loops))

    def client(
        self, link: AwsLink, who: Identity, client_id: str, heard: Heard, patience_s: float, *, paced: bool
    ) -> Any:
        """A client of one connection, not started.

        Args:
            link: where it is.
            who: we are.
            client_id: our name.
            heard: what it tells.
            patience_s: for TCP, and for the CONNACK.
            paced: whether the client keeps to IoT Core's rates as well: alarms may be ahead of our own.

        Raises:
            Exception: of many types; something in the identity is wrong.
        """
        mqtt = self._mqtt
        sockets = self._io.SocketOptions()
        sockets.connect_timeout_ms = int(patience_s * _SECOND_MS)
        authorities = {"ca_bytes": who.ca} if who.ca else {}
        return self._builder.mtls_from_bytes(
            who.certificate,
            who.key,
            **authorities,
            endpoint=link.endpoint,
            port=link.port,
            client_bootstrap=self._bootstrap,
            socket_options=sockets,
            client_id=client_id,
            keep_alive_interval_sec=link.keepalive_s,
            ping_timeout_ms=link.keepalive_s * _SECOND_MS // 2,
            connack_timeout_ms=int(patience_s * _SECOND_MS),
            # Ours is shorter, and decides.
            ack_timeout_sec=int(link.timeout_s) + 60,
            session_behavior=mqtt.ClientSessionBehaviorType.CLEAN,
            session_expiry_interval_sec=0,
            offline_queue_behavior=mqtt.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
            retry_jitter_mode=mqtt.ExponentialBackoffJitterMode.NONE,
            min_reconnect_delay_ms=_NEVER_MS,
            max_reconnect_delay_ms=_NEVER_MS,
            on_publish_received=heard.on_message,
            on_lifecycle_connection_success=heard.on_success,
            on_lifecycle_connection_failure=heard.on_failure,
            on_lifecycle_disconnection=heard.on_disconnection,
            on_lifecycle_stopped=heard.on_stopped,
            extended_validation_and_flow_control_options=getattr(
                mqtt.ExtendedValidationAndFlowControlOptions, "AWS_IOT_CORE_DEFAULTS" if paced else "NONE"
            ),
            # Else it tells its version and platform in a user name.
            enable_metrics_collection=False,
        )

    def publish(
        self, client: Any, topic: str, payload: bytes, properties: Sequence[tuple[str, str]]
    ) -> Future[Any]:
        """Hand a message over, at QoS 1; its future ends with the PUBACK, or fails."""
        mqtt = self._mqtt
        future: Future[Any] = client.publish(
            mqtt.PublishPacket(
                topic=topic,
                payload=payload,
                qos=mqtt.QoS.AT_LEAST_ONCE,
                content_type=CONTENT_TYPE,
                payload_format_indicator=mqtt.PayloadFormatIndicator.AWS_MQTT5_PFI_UTF8,
                user_properties=[mqtt.UserProperty(name, value) for name, value in properties],
            )
        )
        return future

    def say(self, client: Any, topic: str, payload: bytes) -> Future[Any]:
        """Hand over a message that is no batch, at QoS 1; its future ends with the PUBACK, or fails."""
        mqtt = self._mqtt
        future: Future[Any] = client.publish(
            mqtt.PublishPacket(topic=topic, payload=payload, qos=mqtt.QoS.AT_LEAST_ONCE)
        )
        return future

    def subscribe(self, client: Any, filters: Sequence[str]) -> Future[Any]:
        """Subscribe at QoS 1, to 8 filters at most; the future ends with the SUBACK, or fails."""
        mqtt = self._mqtt
        wanted = [mqtt.Subscription(topic_filter=name, qos=mqtt.QoS.AT_LEAST_ONCE) for name in filters]
        future: Future[Any] = client.subscribe(mqtt.SubscribePacket(subscriptions=wanted))
        return future

    def hang_up(self, client: Any) -> None:
        """Say goodbye and stop; `Heard.stopped` follows. It ends with its last reference in any case."""
        client.stop(self._mqtt.DisconnectPacket())


def _reason(packet: Any) -> str:
    """What a CONNACK or a DISCONNECT says, in words."""
    code = packet.reason_code
    name = code.name.lower().replace("_", " ") if hasattr(code, "name") else f"reason {code}"
    return f"{name}: {packet.reason_string}" if packet.reason_string else name
