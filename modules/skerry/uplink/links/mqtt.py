"""The far end is an MQTT 3.1.1 broker, on paho-mqtt 1.6.1 and 2.x.

One message an event: the CloudEvent as structured JSON, QoS 1, not retained. A batch is confirmed
when every PUBACK is there. The session is clean and each connection has a client of its own, so
nothing that an earlier one left in a queue is ever sent: what is sent again, the uplink sends again.

Source: CloudEvents 1.0.2, MQTT protocol binding, section 3.2 (structured content mode).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt

from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import Event
from skerry.mqtt import tls_context
from skerry.uplink import settings as given

_TOPIC_BYTES = 65_535
"""MQTT 3.1.1, section 1.5.3."""


class MqttLink:
    """One connection to a broker.

    Args:
        settings: where it is and how to prove who we are.
        site: put into the topic and the client's name.
        name: the link's, put into the client's name.
        stop: once set, nothing waits any more.
    """

    def __init__(self, settings: given.MqttLink, site: str, name: str, stop: threading.Event) -> None:
        self._settings = settings
        self._site = site
        self._id = settings.client_id or f"skerry-{site}-{name}"
        self._stop = stop
        self._changed = threading.Condition()
        self._client: mqtt.Client | None = None
        self._up = False
        self._why = ""
        self._acked: set[int] = set()  # message identifiers with a PUBACK since the last `send` began
        self._where = f"{settings.host}:{settings.port}"
        self._tls = tls_context(settings.tls) if settings.tls is not None else None
        self._password = _secret(settings.password_file)

    def open(self) -> None:
        self.close()
        deadline = time.monotonic() + self._settings.timeout_s
        client = self._make_client()
        with self._changed:
            self._client, self._up, self._why = client, False, ""
            self._acked.clear()
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
            client.loop_start()
            self._wait(lambda: self._up, deadline, "connect")
        except (OSError, ValueError) as error:
            self.close()
            raise LinkDown(f"{self._where}: cannot connect: {error} (check address and network)") from error
        except LinkDown:
            self.close()
            raise

    def send(self, batch: Sequence[Event]) -> None:
        messages = [(self._topic(event), self._payload(event)) for event in batch]
        deadline = time.monotonic() + self._settings.timeout_s
        with self._changed:
            client = self._client if self._up else None
            why = self._why or "the link is closed"
            self._acked.clear()
        if client is None:
            raise LinkDown(f"{self._where}: {why} (open the link again)")
        try:
            # Without our lock: paho calls back under locks of its own, which publish takes as well.
            sent = {self._publish(client, topic, payload) for topic, payload in messages}
            self._wait(lambda: sent <= self._acked, deadline, "confirm")
        except LinkDown:
            self.close()
            raise

    def close(self) -> None:
        with self._changed:
            client, self._client, self._up = self._client, None, False
            self._why = self._why or "closed"
            self._changed.notify_all()
        if client is None:
            return
        with contextlib.suppress(OSError, ValueError):
            client.disconnect()
        sock: Any = client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):  # ends paho's thread, whatever it waits for
                sock.shutdown(socket.SHUT_RDWR)
        client.loop_stop()

    def _publish(self, client: mqtt.Client, topic: str, payload: bytes) -> int:
        info = client.publish(topic, payload, qos=1)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            raise LinkDown(f"{self._where}: not sent: {mqtt.error_string(info.rc)}")
        return info.mid

    def _wait(self, fact: Callable[[], bool], deadline: float, what: str) -> None:
        """Wait for a fact about this connection.

        Raises:
            LinkDown: the connection broke, the time is over, or the process stops.
        """
        with self._changed:
            while not fact():
                left = deadline - time.monotonic()
                if self._why:
                    raise LinkDown(f"{self._where}: {self._why}")
                if left <= 0:
                    raise LinkDown(f"{self._where}: did not {what} within {self._settings.timeout_s:g} s")
                if self._stop.is_set():
                    raise LinkDown(f"{self._where}: stopping")
                self._changed.wait(min(left, 0.1))

    def _topic(self, event: Event) -> str:
        kind = event.type.replace("/", "_").replace("+", "_").replace("#", "_").replace("\0", "_")
        topic = self._settings.topic.format(site=self._site, lane=event.lane, type=kind)
        if len(topic.encode()) > _TOPIC_BYTES:
            raise Rejected(f"{event.id}: expected a topic of at most {_TOPIC_BYTES} bytes")
        return topic

    def _payload(self, event: Event) -> bytes:
        payload = msgspec.json.encode(event)
        if len(payload) > self._settings.max_payload_bytes:
            raise Rejected(
                f"{event.id}: expected at most {self._settings.max_payload_bytes} bytes, got {len(payload)}"
            )
        return payload

    def _make_client(self) -> mqtt.Client:
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):  # paho 2 wants to be told which; 1.6 does not know it
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        client = mqtt.Client(
            client_id=self._id, clean_session=True, protocol=mqtt.MQTTv311, reconnect_on_failure=False,
            **options,
        )  # fmt: skip
        if self._settings.user:
            client.username_pw_set(self._settings.user, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.max_inflight_messages_set(1000)
        client.on_connect = self._on_connack
        client.on_publish = self._on_puback
        client.on_disconnect = self._on_lost
        return client

    def _on_connack(self, client: mqtt.Client, _data: object, _flags: object, code: Any, *_: object) -> None:
        number = int(getattr(code, "value", code))
        with self._changed:
            if client is not self._client:
                return
            if number:
                self._why = f"refused: {code if hasattr(code, 'value') else mqtt.connack_string(number)}"
            else:
                self._up = True
            self._changed.notify_all()

    def _on_puback(self, client: mqtt.Client, _data: object, mid: int, *_: object) -> None:
        with self._changed:
            if client is self._client:
                self._acked.add(mid)
                self._changed.notify_all()

    def _on_lost(self, client: mqtt.Client, *_: object) -> None:
        with self._changed:
            if client is self._client:
                self._up = False
                self._why = self._why or "connection lost"
                self._changed.notify_all()


def _secret(file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"link.password_file: {file}: cannot read it: {error}") from error
