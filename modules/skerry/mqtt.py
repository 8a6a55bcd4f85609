"""The bus over MQTT 3.1.1, on paho-mqtt 1.6.1 and 2.x.

paho is used as a codec with a socket, not as a runtime. One thread of ours owns the connection: it
connects, subscribes, reads, and hands messages over. Three things follow from that:

* Every call into paho is made under one lock, and handlers run outside it and outside paho's own
  callback mutex, so a handler may publish or subscribe, and a module's lock never meets ours.
* `publish` writes to the socket on the caller's thread. Waking another thread for it would cost up to
  the interpreter's switch interval (5 ms) whenever the caller goes on computing.
* Each connection has a client of its own. Whatever was in flight when a connection broke is gone with
  it, as it is when a broker dies after its PUBACK; nothing stale is ever sent after a reconnect.

See docs/adr/0002-mqtt-3.1.1-and-both-paho-majors.md.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as mqtt
import structlog

from skerry.bus import Decoder, Done, Handler, Settlement, SettlingHandler, encode, matches
from skerry.channels import Channel
from skerry.errors import ConfigError
from skerry.settings import BusSettings, TlsSettings

T = TypeVar("T")
Will = tuple[Channel[T], T]
Route = tuple[Channel[Any], SettlingHandler[Any], bool]
"""A channel, its handler, and whether that settles its messages itself."""

MAX_UNACKED = 1000
"""QoS 1 messages that may wait for their PUBACK; paho's own default of 20 caps throughput."""

MAX_BACKLOG = 8 * 1024 * 1024
"""Bytes that may wait for a broker that reads too slowly; beyond it `publish` says False."""

_FIRST_DELAY_S = 0.1
_LAST_DELAY_S = 2.0
_HANDSHAKE_S = 5.0
"""How long a broker may take to answer CONNECT and SUBSCRIBE; a frozen one accepts TCP and no more."""
_SHORT_LIVED_S = 5.0
_CONTESTED_AFTER = 3
_SAY_AGAIN_AFTER = 20
_CLOSED = "closed by the broker"
_NO_REASON = ("Unspecified error", "The connection was lost.")  # what paho 2 and 1.6 say of an end of stream
_FLUSH_S = 1.0
_LEAVE_S = 0.3
_REMEMBERED_TOPICS = 1024

log = structlog.get_logger()


class MqttBus:
    """A `Bus` over any MQTT 3.1.1 broker.

    Subscribe to a channel either whole or by key, not both: a broker may then deliver twice
    (MQTT 3.1.1, section 3.3.5).

    A QoS 1 message is acknowledged after its handlers, or when they have settled it. Section 4.6 wants
    acknowledgements in the order of arrival; those of messages that are settled later come later, so that
    none waits for another. Brokers find the message by its packet identifier.

    Args:
        settings: where the broker is and how to prove who we are.
        site: the site's name.
        client: this client's name; one connection per site and name. A newcomer of the same name
            takes over, which is right after kill -9; two that live at once are noticed and logged.
        will: what the broker publishes, keyed by `client`, when this client vanishes.

    Raises:
        ConfigError: the address, a TLS file or the password file is wrong.
    """

    def __init__(self, settings: BusSettings, site: str, client: str, will: Will[Any] | None = None) -> None:
        self._settings = settings
        self._site = site
        self._name = client
        self._will = will
        self._decoder = Decoder()
        self._handlers: list[tuple[str, Route]] = []
        self._routes: dict[str, list[Route]] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._arrived: deque[mqtt.MQTTMessage] = deque()
        self._lock = threading.Lock()  # guards paho's client and the fields below
        self._client: mqtt.Client | None = None
        self._connected = False
        self._lost = ""
        self._subscribed: set[str] = set()
        self._unacked: deque[mqtt.MQTTMessageInfo] = deque()
        self._backlog = 0
        self._acks = 0
        self._misc_at = 0.0
        self._closing = threading.Event()
        self._make_client()  # what is wrong with the settings is said now, not on the thread
        self._woken, self._waker = socket.socketpair()  # sockets, not a pipe: safe to use once closed
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def rejected(self) -> Counter[str]:
        return self._decoder.rejected

    def connect(self) -> None:
        """Connect in the background, for ever; returns at once."""
        self._thread.start()

    def publish(self, channel: Channel[T], message: T, key: str = "") -> bool:
        payload = encode(channel, message)
        topic = channel.topic(self._site, key)
        if not self._decoder.fits(channel, topic, payload):
            return False
        with self._lock:
            if not self._connected or self._client is None or not self._room(self._client):
                return False
            info = self._client.publish(topic, payload, channel.qos, channel.retain)
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                return False
            if channel.qos:
                self._unacked.append(info)
            self._backlog += len(payload)
            self._write(self._client)
        return True

    def subscribe(self, channel: Channel[T], handler: Handler[T], key: str = "") -> None:
        self._add((channel, lambda message, _: handler(message), False), key)

    def subscribe_settling(self, channel: Channel[T], handler: SettlingHandler[T], key: str = "") -> None:
        self._add((channel, handler, True), key)

    def _add(self, route: Route, key: str) -> None:
        channel = route[0]
        pattern = channel.topic(self._site, key) if key else channel.filter(self._site)
        with self._lock:
            self._handlers.append((pattern, route))
            self._routes = {}
            if self._connected and self._client is not None:
                self._subscribed.add(pattern)
                self._client.subscribe(pattern, channel.qos)
                self._write(self._client)

    def on_connect(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.append(callback)
            if self._connected:
                self._calls.append(callback)
        self._wake()

    def close(self) -> None:
        self._closing.set()
        self._wake()
        if self._thread.ident is None:
            self._forget()
        elif self._thread is not threading.current_thread():
            # Without a connection there is nothing to flush, and looking a name up can take half a minute.
            self._thread.join(_FLUSH_S + 1.0 if self._connected else _LEAVE_S)

    def _room(self, client: mqtt.Client) -> bool:
        """Whether one more message may be handed to paho."""
        while self._unacked and self._unacked[0].is_published():
            self._unacked.popleft()
        if not client.want_write():
            self._backlog = 0
        return len(self._unacked) < MAX_UNACKED and self._backlog < MAX_BACKLOG

    def _write(self, client: mqtt.Client) -> None:
        """Send what is queued as far as the socket takes it; the thread sends the rest. Needs the lock."""
        try:
            client.loop_write()
        except OSError as error:  # paho 1.6 lets those through that are not ConnectionError
            self._lose(str(error) or type(error).__name__)
        if client.want_write() or self._lost:
            self._wake()

    def _lose(self, reason: str) -> None:
        self._connected = False
        self._lost = self._lost or reason

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it is gone
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            self._keep_connected()
        finally:
            self._forget()

    def _keep_connected(self) -> None:
        """Connect, serve, wait, again; until closed."""
        attempt = short_lived = 0
        said = ""
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                came_up = self._serve()
            except Exception as error:  # noqa: BLE001 - whatever a broker does, this thread goes on
                came_up, self._lost = self._connected, f"{type(error).__name__}: {error}"
            finally:
                self._drop()
            if self._closing.is_set():
                return
            lasted_s = time.monotonic() - began
            if came_up:
                log.warning("bus.disconnected", reason=self._lost, after_s=round(lasted_s, 3))
                short_lived = short_lived + 1 if lasted_s < _SHORT_LIVED_S else 0
                attempt = attempt if short_lived > 1 else 0
            elif attempt % _SAY_AGAIN_AFTER == 0 or self._lost != said:
                said = self._lost
                log.warning(
                    "bus.unreachable", host=self._settings.host, port=self._settings.port, reason=said
                )
            if short_lived and short_lived % _CONTESTED_AFTER == 0:
                log.error("bus.contested", client=self._id, hint="does another module have this name?")
            self._closing.wait(backoff_s(attempt, random.random()))  # noqa: S311 - jitter is no secret
            attempt += 1

    def _serve(self) -> bool:
        """One connection from CONNECT to its end. Returns whether it ever was up."""
        client = self._make_client()
        with self._lock:
            self._client, self._lost = client, ""
            self._arrived.clear()
            self._subscribed.clear()
            self._unacked.clear()
            self._backlog = 0
        # Not under the lock: it blocks, and nobody else touches the client before we are connected.
        client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        deadline = time.monotonic() + min(_HANDSHAKE_S, self._settings.keepalive_s)
        if not (
            self._pump_until(client.is_connected, client, deadline) and self._resubscribe(client, deadline)
        ):
            self._lost = self._lost or "no answer in time"
            if self._lost == _CLOSED and self._settings.tls is not None:
                self._lost += " before it let us in (does it want a certificate?)"
            return False
        log.info("bus.connected", host=self._settings.host, port=self._settings.port)
        while not self._lost:
            self._hand_over(client)
            if self._closing.is_set():
                self._finish(client)
                break
            self._pump(client, 1.0)
        self._hand_over(client)
        return True

    def _resubscribe(self, client: mqtt.Client, deadline: float) -> bool:
        """Subscribe to all that is wanted and wait for the SUBACKs; then, and only then, be connected."""
        while True:
            with self._lock:
                wanted = {pattern: channel.qos for pattern, (channel, _, _) in self._handlers}
                missing: list[tuple[str, int]] = [
                    (pattern, qos) for pattern, qos in wanted.items() if pattern not in self._subscribed
                ]
                if not missing:
                    self._calls.clear()
                    self._calls.extend(self._callbacks)
                    self._connected = not self._lost
                    return self._connected
                self._acks = 0
                client.subscribe(missing)
                self._subscribed.update(pattern for pattern, _ in missing)
            if not self._pump_until(lambda: self._acks > 0, client, deadline):
                return False

    def _pump_until(self, fact: Callable[[], bool], client: mqtt.Client, deadline: float) -> bool:
        while not fact():
            left = deadline - time.monotonic()
            if self._lost or self._closing.is_set() or left <= 0:
                return False
            self._pump(client, left)
        return True

    def _pump(self, client: mqtt.Client, timeout_s: float) -> None:
        """Wait for the socket or a wake-up, then read, write and keep alive once."""
        with self._lock:
            sock = client.socket()
            if sock is None or sock.fileno() < 0:
                self._lose(_CLOSED)
                return
            poller = select.poll()
            poller.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            poller.register(self._woken, select.POLLIN)
            # TLS may hold decrypted bytes that no poll will ever report.
            held = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            fd = sock.fileno()
        ready = dict(poller.poll(0 if held else min(timeout_s, 1.0) * 1000))
        if self._woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(4096)
        with self._lock:
            if held or fd in ready:
                client.loop_read()
            if client.want_write():
                client.loop_write()
            now = time.monotonic()
            if now >= self._misc_at:
                self._misc_at = now + 0.5
                client.loop_misc()

    def _hand_over(self, client: mqtt.Client) -> None:
        """Run callbacks, then handlers, holding no lock."""
        while self._calls:
            self._decoder.call(self._calls.popleft(), "on_connect")
        while self._arrived:
            message = self._arrived.popleft()
            try:
                topic = message.topic
            except UnicodeDecodeError as error:
                self._decoder.reject("malformed", repr(message), str(error))
                self._acknowledge(client, message)
                continue
            settlement = Settlement(partial(self._acknowledge, client, message))
            handed_over = settlement.hold()
            for channel, handler, settles in self._route(topic):
                done = settlement.hold()
                call = partial(_call, handler, done)
                taken = self._decoder.deliver(channel, topic, bytes(message.payload), call)
                if not (settles and taken):
                    done()
            handed_over()

    def _acknowledge(self, client: mqtt.Client, message: mqtt.MQTTMessage) -> None:
        """Tell the broker that a message is settled, unless that connection is gone."""
        ack = getattr(client, "ack", None)  # paho 1.6 has acknowledged it already
        if message.qos == 0 or ack is None:
            return
        with self._lock:
            if client is self._client and self._connected:
                ack(message.mid, message.qos)
                self._write(client)

    def _route(self, topic: str) -> list[Route]:
        routes = self._routes
        found = routes.get(topic)
        if found is None:
            if len(routes) >= _REMEMBERED_TOPICS:
                routes.clear()
            found = [route for pattern, route in list(self._handlers) if matches(pattern, topic)]
            routes[topic] = found
        return found

    def _finish(self, client: mqtt.Client) -> None:
        """Say goodbye behind all that is queued, so that the will is not sent; for at most a second."""
        deadline = time.monotonic() + _FLUSH_S
        client.on_socket_close = partial(_drain, deadline)
        with self._lock:
            self._connected = False
            client.disconnect()
        while client.socket() is not None and not self._lost and time.monotonic() < deadline:
            self._pump(client, deadline - time.monotonic())
            self._arrived.clear()

    def _drop(self) -> None:
        """Leave nothing of a connection behind."""
        with self._lock:
            client, self._client = self._client, None
            self._connected = False
            sock = client.socket() if client else None
        if sock is not None:
            sock.close()

    def _forget(self) -> None:
        self._woken.close()
        self._waker.close()

    @property
    def _id(self) -> str:
        return f"skerry-{self._site}-{self._name}"

    def _make_client(self) -> mqtt.Client:
        """A paho client, of whichever major version is installed."""
        settings = self._settings
        if not settings.host or not settings.port:
            raise ConfigError(f"bus: expected a host and a port above 0, got {settings.host}:{settings.port}")
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):  # paho 2 wants to be told which; 1.6 does not know it
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        client = mqtt.Client(
            client_id=self._id, clean_session=True, protocol=mqtt.MQTTv311, reconnect_on_failure=False,
            **options,
        )  # fmt: skip
        if settings.user:
            client.username_pw_set(settings.user, _password(settings.password_file))
        if settings.tls is not None:
            client.tls_set_context(tls_context(settings.tls))
        if self._will is not None:
            channel, message = self._will
            topic = channel.topic(self._site, self._name if channel.key else "")
            client.will_set(topic, encode(channel, message), channel.qos, channel.retain)
        acknowledge_ourselves = getattr(client, "manual_ack_set", None)  # paho 1.6 cannot leave it to us
        if acknowledge_ourselves is not None:
            acknowledge_ourselves(True)
        client.max_inflight_messages_set(MAX_UNACKED)
        client.max_queued_messages_set(MAX_UNACKED)
        client.on_socket_open = _send_at_once
        client.on_socket_register_write = _ignore  # tells paho that the writing is ours to do
        client.on_connect = self._on_connack
        client.on_subscribe = self._on_suback
        client.on_disconnect = self._on_lost
        client.on_message = self._on_message
        return client

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self._arrived.append(message)

    def _on_connack(self, _client: mqtt.Client, _data: object, _flags: object, code: Any, *_: object) -> None:
        if _number(code):
            self._lose(f"refused: {code if hasattr(code, 'value') else mqtt.connack_string(code)}")

    def _on_suback(self, _client: mqtt.Client, _data: object, _mid: int, codes: Any, *_: object) -> None:
        self._acks += 1
        if any(_number(code) >= 0x80 for code in codes):
            log.error("bus.subscription_refused", client=self._id, codes=[_number(c) for c in codes])

    def _on_lost(self, _client: mqtt.Client, _data: object, *args: Any) -> None:
        code = args[0] if len(args) == 1 else args[1]  # paho 1.6: (rc); 2.x: (flags, reason, properties)
        text = str(code) if hasattr(code, "value") else mqtt.error_string(code)
        self._lose(_CLOSED if text in _NO_REASON else text)


def backoff_s(attempt: int, jitter: float) -> float:
    """How long to wait before attempt number `attempt + 1`.

    Doubles from 0.1 s to 2 s, then half of it is drawn: modules that lost one broker together do not
    come back in step.

    Args:
        attempt: failures in a row so far, 0 or more.
        jitter: drawn from 0 to 1.
    """
    full = min(_LAST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(attempt, 16))
    return full * (0.5 + 0.5 * jitter)


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """A client context that verifies the far end; TLS 1.2 or later.

    Raises:
        ConfigError: a file cannot be read or does not hold what it should.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls.ca: {settings.ca}: expected PEM certificates, got {_why(error)}") from error
    if settings.certificate:
        try:
            # Without the callback an encrypted key would ask for its password on a terminal, for ever.
            context.load_cert_chain(settings.certificate, settings.key or None, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            files = f"{settings.certificate} {settings.key}".strip()
            raise ConfigError(
                f"tls.certificate: {files}: expected a PEM certificate and its unencrypted key, "
                f"got {_why(error)}"
            ) from error
    return context


def _password(file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file: {file}: cannot read it: {_why(error)}") from error


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "no PEM data"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _number(code: Any) -> int:
    """Paho 1.6 gives integers, 2.x ReasonCode objects."""
    return int(getattr(code, "value", code))


def _send_at_once(_client: mqtt.Client, _data: object, sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _drain(deadline: float, _client: mqtt.Client, _data: object, sock: Any) -> None:
    """Read until the broker hangs up, or the deadline, in seconds of the monotonic clock.

    A socket that is closed with unread bytes in it is reset, and a broker that meets the reset before it
    has read our DISCONNECT sends the will all the same (seen with amqtt).
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(65536):
                return


def _call(handler: SettlingHandler[Any], done: Done, message: Any) -> None:
    handler(message, done)


def _ignore(*_: object) -> None:
    """Exists so that paho leaves writing to us."""
