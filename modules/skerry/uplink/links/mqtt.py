"""The far end is an MQTT 3.1.1 broker, on paho-mqtt 1.6.1 and 2.x.

One message an event (the CloudEvent as structured JSON, or a flat object), or one message a batch
(`skerry.batches`); QoS 1, not retained. A batch is confirmed when every PUBACK of it is there, also those
of the retained states that it changes; the messages of later batches go out meanwhile. The session is clean
and each connection has a client of its own, so nothing that an earlier one left in a queue is ever sent:
what is sent again, the uplink sends again.

Source: CloudEvents 1.0.2, MQTT protocol binding, section 3.2 (structured content mode).
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import structlog

from skerry.batches import compressor, encode
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.mqtt import tls_context
from skerry.uplink import settings as given
from skerry.uplink.credentials import Watched
from skerry.uplink.downlink import Downlink
from skerry.uplink.home_assistant import OFFLINE, ONLINE
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link, handshake
from skerry.uplink.links.mqtt_remote import Remote
from skerry.uplink.links.mqtt_states import States
from skerry.uplink.plain import flat, level, place, told
from skerry.uplink.record import Record

_TOPIC_BYTES = 65_535
"""MQTT 3.1.1, section 1.5.3."""
_UNACKED = 1000
"""Messages that paho has on the wire; more wait in this connection's own queue."""
_CONNECT_S = 20.0
_WHOLE_WINDOW, _EVENT_WINDOW = 64, 8
"""Batches. With one event a message few are sent ahead: paho takes 20 ms for a hundred of them."""
_LOOK_S = 1.0
"""How often files are looked at while connected."""
_PATIENCE_S = 10.0
"""How long a connection with old credentials may go on with what is under way."""
_STRIKES, _SKIP_S = 2, 600.0
"""Connections in a row that the broker ended over a subscription; then it is left alone for a while."""
_BIRTHS_S = 10.0
"""Home Assistant's birth is answered no more often than this."""
_SHAKE_S = 2.0
_LOGIN = (4, 5, 134, 135)
"""Refusals of a CONNECT that are about user and password: of MQTT 3.1.1, and as paho 2 numbers them."""
_FAILED = 128
"""A SUBACK of it or above refuses."""

log = structlog.get_logger()


class MqttLink(Link):
    """One connection to a broker.

    Args:
        settings: where it is and how to prove who we are.
        site: put into the topic and the client's name.
        name: the link's, put into the client's name.
        stop: once set, nothing waits any more.
        bounds: of the size of a message and of unconfirmed ones; the rest is for others to keep.
        downlink: where desired states and commands go; None: none come down.
        state: a folder that outlives the process; None: the states of rules do not.

    Raises:
        ConfigError: a file cannot be read, or the package for the compression is missing.
    """

    def __init__(
        self, settings: given.MqttLink, site: str, name: str, stop: threading.Event,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        *, downlink: Downlink | None = None, state: Path | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._site = site
        self._id = settings.client_id or f"skerry-{site}-{name}-far"
        self._stop = stop
        self._prefix = settings.remote_topic.format(site=site)
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
        self._tls = _context(settings)
        self._password = _secret(settings.password_file)
        self._versions = (0, 0)
        self._look_at = 0.0
        self._changed_at: float | None = None  # files were exchanged, and this connection is of the old ones
        # Beside the batches: what to call at the PUBACK of each other message.
        self._aside: dict[int, Callable[[], None]] = {}
        self._plain = settings.format == "plain"
        self._states = States(settings, site, state, self._max_payload) if settings.retain_last else None
        assistant = settings.home_assistant
        self._available = assistant.availability_topic.format(site=site) if assistant is not None else ""
        self._birth = f"{assistant.discovery_prefix}/status" if assistant is not None else ""
        self._born_at = -math.inf
        self._downlink = downlink
        self.steered = downlink is not None and bool(settings.remote_topic)
        self._remote: Remote | None = None
        self._unasked: list[str] = []  # what is to be subscribed to
        self._asking = False  # a subscription without its SUBACK
        self._strikes = 0
        self._skip_until = -math.inf
        self._refused_filters = ""

    @property
    def trouble(self) -> str:
        remote = self._remote.trouble if self._remote is not None else ""
        return self._refused_filters or remote or (self._states.trouble if self._states is not None else "")

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
            self._aside.clear()
            self._asking = False
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
            client.loop_start()
            self._wait_up(deadline, patience_s)
            self._begin(client)
        except (OSError, ValueError) as error:
            self.close()
            why = self._tls_trouble() or f"cannot connect: {error} (check address and network)"
            raise LinkDown(f"{self._where}: {why}") from error
        except LinkDown as error:
            refused = "refused: " in self._why
            self.close()
            why = "" if refused else self._tls_trouble()
            if refused or why:  # a file may have changed although nothing shows it
                self._tls.doubt()
                self._password.doubt()
            if why:
                raise LinkDown(f"{self._where}: {why}") from error
            raise

    def _tls_trouble(self) -> str:
        """What is wrong with TLS, once a connection has failed; paho does not say."""
        tls = self._settings.tls
        if tls is None or self._stop.is_set():
            return ""
        patience_s = min(self._settings.timeout_s, _SHAKE_S)
        return handshake.reason(self._settings.host, self._settings.port, tls, patience_s)

    def _begin(self, client: mqtt.Client) -> None:
        """What every connection begins with: subscriptions, and what is retained.

        Raises:
            LinkDown: it is lost already.
        """
        self._unasked = [*(self._remote.filters if self._remote is not None else ())]
        self._unasked += [self._birth] if self._birth else []
        self._ask(client)
        if self._available:
            self._tell(client, self._available, ONLINE, retain=True)
        for topic, payload in self._states.all() if self._states is not None else ():
            self._tell(client, topic, payload, retain=True)

    def _ask(self, client: mqtt.Client) -> None:
        """Subscribe, unless the broker seems to hang up over it."""
        if self._unasked and time.monotonic() >= self._skip_until:
            filters, self._unasked, self._asking = self._unasked, [], True
            client.subscribe([(one, 1) for one in filters])

    def start(self, batch: Sequence[Record]) -> Cost:
        messages = self._messages(batch)
        client = self._connection()
        states = self._states.changed_by(batch) if self._states is not None else []
        try:
            self._look()
            # Without our lock: paho calls back under locks of its own, which publish takes as well.
            sent = {self._publish(client, topic, payload) for topic, payload in messages}
            sent |= {self._publish(client, topic, payload, retain=True) for topic, payload in states}
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
        sizes = [len(payload) for _, payload in [*messages, *states]]
        return Cost(len(sizes), sum(sizes))

    def finish(self, timeout_s: float = math.inf) -> bool:
        until = time.monotonic() + timeout_s
        try:
            self._look()
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

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        if not self.steered:
            return
        deadline = time.monotonic() + timeout_s
        client = self._connection()
        payload, told = msgspec.json.encode(document), threading.Event()
        topic = f"{self._prefix}/reported"
        self._tell(client, topic, payload, retain=True, then=told.set)
        while not told.wait(min(0.1, max(deadline - time.monotonic(), 0.0))):
            if client is not self._client or self._stop.is_set():
                raise LinkDown(f"{self._where}: lost before it confirmed {topic}")
            if time.monotonic() >= deadline:
                raise LinkDown(f"{self._where}: did not confirm {topic} within {timeout_s:g} s")

    def close(self) -> None:
        with self._changed:
            client, self._client, was_up, self._up = self._client, None, self._up, False
            self._why = self._why or "closed"
            self._changed.notify_all()
        if client is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if self._available and was_up:  # a DISCONNECT takes the will back
                client.publish(self._available, OFFLINE, qos=1, retain=True)
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

    def _connection(self) -> mqtt.Client:
        """The client that is connected.

        Raises:
            LinkDown: there is none.
        """
        with self._changed:
            client = self._client if self._up else None
            why = self._why or "the link is closed"
        if client is None:
            raise LinkDown(f"{self._where}: {why} (open the link again)")
        return client

    def _look(self) -> None:
        """Notice that files were exchanged: then a new connection is needed.

        Raises:
            LinkDown: it is time for that. What is under way may end first, if that does not take long.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._tls.get()
            self._password.get()
            if self._changed_at is None and (self._tls.version, self._password.version) != self._versions:
                self._changed_at = now
            if self._unasked and self._client is not None:
                self._ask(self._client)
        if self._changed_at is None or self._client is None:
            return
        if not self._under_way or now - self._changed_at > _PATIENCE_S:
            raise LinkDown(f"{self._where}: connecting anew with the credentials that were exchanged")

    def _publish(self, client: mqtt.Client, topic: str, payload: bytes, *, retain: bool = False) -> int:
        info = client.publish(topic, payload, qos=1, retain=retain)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            raise LinkDown(f"{self._where}: not sent: {mqtt.error_string(info.rc)}")
        return info.mid

    def _tell(
        self, client: mqtt.Client, topic: str, payload: bytes, *, retain: bool,
        then: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Send a message that is of no batch; from any thread.

        Raises:
            LinkDown: it cannot be sent.
        """
        mid = self._publish(client, topic, payload, retain=retain)
        with self._changed:
            if client is not self._client:
                raise LinkDown(f"{self._where}: the connection is gone")
            there = mid in self._early
            if there:
                self._early.discard(mid)
            else:
                self._aside[mid] = then
        if there:
            then()

    def _messages(self, batch: Sequence[Record]) -> list[tuple[str, bytes]]:
        """Topic and payload of each message that a batch makes.

        Raises:
            Rejected: one would be too large, or cannot be made flat.
        """
        if self.whole:
            payload = self._compress(encode([record.raw for record in batch]))
            return [(self._topic(batch[0]), self._fitting(payload, batch[0]))]
        return [(self._topic(record), self._fitting(self._payload(record), record)) for record in batch]

    def _payload(self, record: Record) -> bytes:
        if not self._plain:
            return record.raw
        try:
            return msgspec.json.encode(flat(told(record.raw)))
        except ValueError as error:
            raise Rejected(f"{record.envelope.id}: {error}") from error

    def _topic(self, record: Record) -> str:
        event = record.envelope
        camera, rule = place(event.subject)
        topic = self._settings.topic.format(
            site=self._site, lane=event.lane, type=level(event.type), camera=camera, rule=rule
        )
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
        password, tls = self._password.get(), self._tls.get()
        self._versions, self._changed_at = (self._tls.version, self._password.version), None
        if self._settings.user:
            client.username_pw_set(self._settings.user, password)
        if tls is not None:
            client.tls_set_context(tls)
        if self._available:
            client.will_set(self._available, OFFLINE, 1, retain=True)
        self._remote = None
        if self.steered and self._downlink is not None:

            def answer(payload: bytes, then: Callable[[], None]) -> None:
                # Over the connection of now: a command may last longer than the one that brought it.
                topic = f"{self._prefix}/responses"
                self._tell(self._connection(), topic, payload, retain=False, then=then)

            self._remote = Remote(self._prefix, self._downlink, answer)
        client.on_message = self._on_message
        client.on_subscribe = self._on_suback
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
                if number in _LOGIN:
                    self._why += " (check link.user and link.password_file)"
            else:
                self._up = True
            self._changed.notify_all()

    def _on_puback(self, client: mqtt.Client, _data: object, mid: int, *_: object) -> None:
        with self._changed:
            if client is not self._client:
                return
            self._moved = time.monotonic()
            then = self._aside.pop(mid, None)
            batch = self._owner.pop(mid, None) if then is None else None
            if batch is not None:
                batch.discard(mid)
                if not batch:
                    self._changed.notify_all()
            elif then is None:
                self._early.add(mid)
        if then is not None:
            then()

    def _on_suback(self, client: mqtt.Client, _data: object, _mid: int, codes: Any, *_: object) -> None:
        with self._changed:
            if client is not self._client:
                return
            self._asking, self._strikes = False, 0
        refused = any(int(getattr(code, "value", code)) >= _FAILED for code in codes)
        where = f"{self._prefix}/desired and {self._prefix}/requests/+"
        self._refused_filters = f"{where}: the broker refuses the subscription (allow it)" if refused else ""

    def _on_message(self, client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        if client is not self._client:
            return
        payload = bytes(message.payload)
        if message.topic == self._birth:
            self._on_birth(client, payload)
        elif self._remote is not None:
            self._remote.take(message.topic, payload, retained=bool(message.retain))

    def _on_birth(self, client: mqtt.Client, payload: bytes) -> None:
        """Home Assistant has started: it may have forgotten us."""
        now = time.monotonic()
        if payload != ONLINE or now - self._born_at < _BIRTHS_S:
            return
        self._born_at = now
        with contextlib.suppress(LinkDown):  # told to whoever sends next, and all is told anew then
            for topic, config in list(self._states.discovered.items()) if self._states is not None else ():
                self._tell(client, topic, config, retain=True)

    def _on_lost(self, client: mqtt.Client, *_: object) -> None:
        with self._changed:
            if client is self._client:
                self._up = False
                self._why = self._why or "connection lost"
                if self._asking:
                    self._hung_up()
                self._changed.notify_all()

    def _hung_up(self) -> None:
        """The connection ended with a subscription not answered; once is chance."""
        self._asking = False
        self._strikes += 1
        if self._strikes >= _STRIKES:
            self._strikes, self._skip_until = 0, time.monotonic() + _SKIP_S
            self._refused_filters = f"{self._prefix}: the broker hangs up over the subscription (allow it)"
            log.warning("steering.left_alone", topic=self._prefix, seconds=_SKIP_S)


def _context(settings: given.MqttLink) -> Watched[ssl.SSLContext | None]:
    tls = settings.tls
    if tls is None:
        return Watched((), lambda: None)
    return Watched([file for file in (tls.ca, tls.certificate, tls.key) if file], lambda: tls_context(tls))


def _secret(file: str) -> Watched[str | None]:
    return Watched([file] if file else (), lambda: _password(file))


def _password(file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"link.password_file: {file}: cannot read it: {error}") from error
