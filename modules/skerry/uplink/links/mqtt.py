"""The far end is an MQTT 3.1.1 broker, on paho-mqtt 1.6.1 and 2.x.

One message an event (the CloudEvent as structured JSON), or one message a batch (`skerry.batches`); QoS
1, not retained. A batch is confirmed when every PUBACK of it is there; the messages of later batches go
out meanwhile. The session is clean and each connection has a client of its own, so nothing that an
earlier one left in a queue is ever sent: what is sent again, the uplink sends again.

Source: CloudEvents 1.0.2, MQTT protocol binding, section 3.2 (structured content mode).
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

from skerry.batches import compressor, encode
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.mqtt import tls_context
from skerry.uplink import settings as given
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link
from skerry.uplink.record import Record

_TOPIC_BYTES = 65_535
"""MQTT 3.1.1, section 1.5.3."""
_UNACKED = 1000
"""Messages that paho has on the wire; more wait in this connection's own queue."""
_CONNECT_S = 20.0
_WHOLE_WINDOW, _EVENT_WINDOW = 64, 8
"""Batches. With one event a message few are sent ahead: paho takes 20 ms for a hundred of them."""


class MqttLink(Link):
    """One connection to a broker.

    Args:
        settings: where it is and how to prove who we are.
        site: put into the topic and the client's name.
        name: the link's, put into the client's name.
        stop: once set, nothing waits any more.
        bounds: of the size of a message and of unconfirmed ones; the rest is for others to keep.

    Raises:
        ConfigError: a file cannot be read, or the package for the compression is missing.
    """

    def __init__(
        self, settings: given.MqttLink, site: str, name: str, stop: threading.Event,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        self._settings = settings
        self._site = site
        self._id = settings.client_id or f"skerry-{site}-{name}"
        self._stop = stop
        self.whole = settings.format == "batch"
        self.window = _WHOLE_WINDOW if self.whole else _EVENT_WINDOW
        self._max_payload = int(min(settings.max_payload_bytes, bounds.message_bytes))
        self.max_bytes = self._max_payload - 2 if self.whole else math.inf
        self._max_unacked = int(min(_UNACKED, bounds.unacked_messages))
        self._compress = compressor(settings.compression)
        self._changed = threading.Condition()
        self._client: mqtt.Client | None = None
        self._up = False
        self._why = ""
        self._under_way: deque[set[int]] = deque()  # message identifiers of each batch without a PUBACK
        self._owner: dict[int, set[int]] = {}  # the same, by message identifier
        self._early: set[int] = set()  # with a PUBACK before we knew them
        self._moved = 0.0
        self._where = f"{settings.host}:{settings.port}"
        self._tls = tls_context(settings.tls) if settings.tls is not None else None
        self._password = _secret(settings.password_file)

    def open(self) -> None:
        self.close()
        patience_s = min(self._settings.timeout_s, _CONNECT_S)
        deadline = time.monotonic() + patience_s
        client = self._make_client()
        with self._changed:
            self._client, self._up, self._why = client, False, ""
            self._under_way.clear()
            self._owner.clear()
            self._early.clear()
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
            client.loop_start()
            self._wait_up(deadline, patience_s)
        except (OSError, ValueError) as error:
            self.close()
            raise LinkDown(f"{self._where}: cannot connect: {error} (check address and network)") from error
        except LinkDown:
            self.close()
            raise

    def start(self, batch: Sequence[Record]) -> Cost:
        messages = self._messages(batch)
        with self._changed:
            client = self._client if self._up else None
            why = self._why or "the link is closed"
        if client is None:
            raise LinkDown(f"{self._where}: {why} (open the link again)")
        try:
            # Without our lock: paho calls back under locks of its own, which publish takes as well.
            sent = {self._publish(client, topic, payload) for topic, payload in messages}
        except LinkDown:
            self.close()
            raise
        with self._changed:
            if not self._under_way:
                self._moved = time.monotonic()
            left = sent - self._early
            self._early -= sent
            self._under_way.append(left)
            self._owner.update(dict.fromkeys(left, left))
        return Cost(len(messages), sum(len(payload) for _, payload in messages))

    def finish(self, timeout_s: float = math.inf) -> bool:
        until = time.monotonic() + timeout_s
        try:
            with self._changed:
                if not self._under_way:
                    self._check(self._moved)
                    return False
                while self._under_way[0]:
                    now = time.monotonic()
                    self._check(now)
                    if now >= until:
                        return False
                    self._changed.wait(min(until - now, 0.1))
                self._under_way.popleft()
                return True
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

    def _check(self, now: float) -> None:
        """Whether what is under way may still be confirmed. Needs the lock.

        Raises:
            LinkDown: the connection broke, nothing is confirmed any more, or the process stops.
        """
        if self._why:
            raise LinkDown(f"{self._where}: {self._why}")
        if now - self._moved > self._settings.timeout_s:
            raise LinkDown(f"{self._where}: did not confirm within {self._settings.timeout_s:g} s")
        if self._stop.is_set():
            raise LinkDown(f"{self._where}: stopping")

    def _wait_up(self, deadline: float, patience_s: float) -> None:
        """Wait for the CONNACK.

        Raises:
            LinkDown: the connection broke, the time is over, or the process stops.
        """
        with self._changed:
            while not self._up:
                left = deadline - time.monotonic()
                if self._why:
                    raise LinkDown(f"{self._where}: {self._why}")
                if left <= 0:
                    raise LinkDown(f"{self._where}: did not connect within {patience_s:g} s")
                if self._stop.is_set():
                    raise LinkDown(f"{self._where}: stopping")
                self._changed.wait(min(left, 0.1))

    def _publish(self, client: mqtt.Client, topic: str, payload: bytes) -> int:
        info = client.publish(topic, payload, qos=1)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            raise LinkDown(f"{self._where}: not sent: {mqtt.error_string(info.rc)}")
        return info.mid

    def _messages(self, batch: Sequence[Record]) -> list[tuple[str, bytes]]:
        """Topic and payload of each message that a batch makes.

        Raises:
            Rejected: one would be too large.
        """
        if self.whole:
            payload = self._compress(encode([record.raw for record in batch]))
            return [(self._topic(batch[0]), self._fitting(payload, batch[0]))]
        return [(self._topic(record), self._fitting(record.raw, record)) for record in batch]

    def _topic(self, record: Record) -> str:
        event = record.envelope
        kind = event.type.replace("/", "_").replace("+", "_").replace("#", "_").replace("\0", "_")
        topic = self._settings.topic.format(site=self._site, lane=event.lane, type=kind)
        if len(topic.encode()) > _TOPIC_BYTES:
            raise Rejected(f"{event.id}: expected a topic of at most {_TOPIC_BYTES} bytes")
        return topic

    def _fitting(self, payload: bytes, record: Record) -> bytes:
        if len(payload) > self._max_payload:
            raise Rejected(
                f"{record.envelope.id}: expected at most {self._max_payload} bytes, got {len(payload)}"
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
        client.max_inflight_messages_set(self._max_unacked)
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
            if client is not self._client:
                return
            self._moved = time.monotonic()
            batch = self._owner.pop(mid, None)
            if batch is None:
                self._early.add(mid)
                return
            batch.discard(mid)
            if not batch:
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
