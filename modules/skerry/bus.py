"""The bus as modules see it, and one in memory.

`Bus` has two implementations, `MemoryBus` here and `skerry.mqtt.MqttBus`; `tests/contract/test_bus.py`
runs over both and over every broker and client version that is supported.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from skerry.channels import Channel

T = TypeVar("T")
Handler = Callable[[T], None]
Done = Callable[[], None]
SettlingHandler = Callable[[T, Done], None]
"""Takes a message and what to call, from any thread and at any time, once it is settled."""

log = structlog.get_logger()


class Bus(Protocol):
    """Typed publish and subscribe within one site.

    Handlers run on the bus's own thread, one at a time, in the order of arrival per topic. They must
    not block: put the message where the module's loop finds it. A handler that raises is logged and
    counted; it never stops the bus. A malformed or oversized payload is counted and dropped before
    any handler sees it.
    """

    @property
    def connected(self) -> bool:
        """Whether a broker is there now."""

    @property
    def rejected(self) -> Counter[str]:
        """Messages dropped unread, by reason: malformed, oversized, handler_failed."""

    def publish(self, channel: Channel[T], message: T, key: str = "") -> bool:
        """Hand a message to the broker, without waiting.

        Returns:
            False when there is no connection, the client's own queue is full, or the message is
            larger than its channel allows (which is counted and logged): it was not sent and will
            not be. True proves nothing about arrival (see `Accepted`): what was in flight when a
            connection broke is not sent again.

        Raises:
            TypeError: the channel carries another type.
        """

    def subscribe(self, channel: Channel[T], handler: Handler[T], key: str = "") -> None:
        """Call `handler` for every message of the channel, or of one `key` of it.

        Holds over reconnects. Retained messages are delivered at once and again after a reconnect.
        """

    def subscribe_settling(self, channel: Channel[T], handler: SettlingHandler[T], key: str = "") -> None:
        """Like `subscribe`, but the broker is told that a message has come only when `done` is called.

        Until then a QoS 1 message is in flight for the broker, which sends no more than it allows at one
        time (Mosquitto's `max_inflight_messages`): what is never settled takes a place for as long as the
        connection lasts, and with all places taken no QoS 1 message comes any more, on any channel. So
        settle each one, and a message that is refused at once. Others do not wait for it: each message
        is acknowledged when it is settled, in whatever order.

        `done` may be called again, or after the connection has ended: that does nothing. A message whose
        connection ended unsettled is not delivered again, as the sessions are clean; its sender must repeat
        it (see `Accepted`). What is malformed, or makes the handler raise, counts as settled.

        On paho-mqtt 1.6 a message is acknowledged when it arrives, and `done` does nothing.
        """

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Call back after each (re)connect, once the subscriptions are in place, on the bus's thread.

        A broker that was restarted has forgotten what was retained: publish it again here.
        """

    def close(self) -> None:
        """Disconnect cleanly. Messages handed over before are sent first, for at most a second."""


def encode(channel: Channel[T], message: T) -> bytes:
    """The payload of a message.

    Raises:
        TypeError: the channel carries another type.
    """
    if not isinstance(message, channel.payload):
        raise TypeError(f"{channel.name}: expected {channel.payload.__name__}, got {type(message).__name__}")
    return msgspec.json.encode(message)


class Decoder:
    """Turns payloads into messages and keeps count of what it refuses. Shared by both buses."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    def deliver(self, channel: Channel[Any], topic: str, payload: bytes, handler: Handler[Any]) -> bool:
        """Decode and hand over; never raises. Returns whether the handler took it."""
        if not self.fits(channel, topic, payload):
            return False
        decoder = self._decoders.get(channel.name)
        if decoder is None:
            decoder = self._decoders[channel.name] = msgspec.json.Decoder(channel.payload)
        try:
            message = decoder.decode(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self.reject("malformed", topic, str(error))
            return False
        return self.call(lambda: handler(message), topic)

    def fits(self, channel: Channel[Any], topic: str, payload: bytes) -> bool:
        """Whether the payload is within the channel's bound; counted and logged when not."""
        if len(payload) <= channel.max_bytes:
            return True
        self.reject("oversized", topic, f"expected at most {channel.max_bytes} bytes, got {len(payload)}")
        return False

    def reject(self, reason: str, topic: str, error: str) -> None:
        """Count and log a message that is dropped."""
        self.rejected[reason] += 1
        log.warning("bus.rejected", reason=reason, topic=topic, error=error)

    def call(self, handler: Callable[[], None], about: str) -> bool:
        """Run a handler or a callback; one that raises is counted and logged. Whether it returned."""
        try:
            handler()
        except Exception as error:
            self.rejected["handler_failed"] += 1
            log.exception("bus.handler_failed", topic=about, error=str(error))
            return False
        return True


class Settlement:
    """One message, and who has yet to settle it. Thread-safe.

    Args:
        then: called once, when all that hold it have let go.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._lock = threading.Lock()
        self._holders: set[object] = set()

    def hold(self) -> Done:
        """Hold it; what lets go of it, once, however often it is called."""
        holder = object()
        with self._lock:
            self._holders.add(holder)
        return lambda: self._let_go(holder)

    def _let_go(self, holder: object) -> None:
        with self._lock:
            last = self._holders == {holder}
            self._holders.discard(holder)
        if last:
            self._then()


class MemoryBroker:
    """Joins the `MemoryBus`es of one process; keeps retained messages. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._routes: list[tuple[str, Callable[[str, bytes], None]]] = []
        self._retained: dict[str, bytes] = {}

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        """Deliver to every matching subscription, now, on the caller's thread."""
        with self._lock:
            if retain:
                self._retained[topic] = payload
            for pattern, route in list(self._routes):
                if matches(pattern, topic):
                    route(topic, payload)

    def subscribe(self, pattern: str, route: Callable[[str, bytes], None]) -> None:
        """Add a subscription and deliver what is retained."""
        with self._lock:
            self._routes.append((pattern, route))
            self.repeat(pattern, route)

    def repeat(self, pattern: str, route: Callable[[str, bytes], None]) -> None:
        """Deliver what is retained."""
        with self._lock:
            for topic, payload in list(self._retained.items()):
                if matches(pattern, topic):
                    route(topic, payload)


class MemoryBus:
    """A `Bus` without a broker: synchronous, in order, through the same encoding as MQTT."""

    def __init__(self, broker: MemoryBroker | None = None, site: str = "test") -> None:
        self.broker = broker or MemoryBroker()
        self.site = site
        self.connected = True
        self.unsettled = 0
        """Messages that a `subscribe_settling` handler has taken and not settled."""
        self._lock = threading.Lock()
        self._decoder = Decoder()
        self._callbacks: list[Callable[[], None]] = []
        self._routes: list[tuple[str, Callable[[str, bytes], None]]] = []

    @property
    def rejected(self) -> Counter[str]:
        return self._decoder.rejected

    def publish(self, channel: Channel[T], message: T, key: str = "") -> bool:
        payload, topic = encode(channel, message), channel.topic(self.site, key)
        if not self.connected or not self._decoder.fits(channel, topic, payload):
            return False
        self.broker.publish(topic, payload, channel.retain)
        return True

    def subscribe(self, channel: Channel[T], handler: Handler[T], key: str = "") -> None:
        def route(topic: str, payload: bytes) -> None:
            if self.connected:
                self._decoder.deliver(channel, topic, payload, handler)

        self._add(channel, key, route)

    def subscribe_settling(self, channel: Channel[T], handler: SettlingHandler[T], key: str = "") -> None:
        def route(topic: str, payload: bytes) -> None:
            if self.connected:
                self._count(1)
                done = Settlement(partial(self._count, -1)).hold()
                if not self._decoder.deliver(channel, topic, payload, lambda m: handler(m, done)):
                    done()

        self._add(channel, key, route)

    def _count(self, more: int) -> None:
        with self._lock:
            self.unsettled += more

    def _add(self, channel: Channel[Any], key: str, route: Callable[[str, bytes], None]) -> None:
        pattern = channel.topic(self.site, key) if key else channel.filter(self.site)
        self._routes.append((pattern, route))
        self.broker.subscribe(pattern, route)

    def on_connect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)
        if self.connected:
            self._decoder.call(callback, "on_connect")

    def disconnect(self) -> None:
        """Pretend that the broker is gone."""
        self.connected = False

    def reconnect(self) -> None:
        """Pretend that the broker is back."""
        self.connected = True
        for pattern, route in list(self._routes):
            self.broker.repeat(pattern, route)
        for callback in list(self._callbacks):
            self._decoder.call(callback, "on_connect")

    def close(self) -> None:
        self.connected = False


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter with `+` (and a last `#`) covers a topic.

    Source: MQTT 3.1.1, section 4.7.
    """
    want, have = pattern.split("/"), topic.split("/")
    if want[-1] == "#":
        return len(have) >= len(want) - 1 and matches("/".join(want[:-1]), "/".join(have[: len(want) - 1]))
    return len(want) == len(have) and all(w in ("+", h) for w, h in zip(want, have, strict=True))
