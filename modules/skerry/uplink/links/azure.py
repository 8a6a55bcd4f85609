"""The far end is Azure IoT Hub, or the edgeHub of IoT Edge, on Microsoft's own client (azure-iot-device).

A batch is one message (`skerry.batches`) or a message an event, at QoS 1, confirmed when every PUBACK is
there; later batches go out meanwhile. MQTT 3.1.1 has no refusal and the hub takes a connection's messages
in order, so what is not confirmed is at the end of what was sent, never in the middle.

The client's faults (its calls wait for ever, the first attempt is its only one, what is under way when a
connection breaks is forgotten) end in `azure_client`; each `open` has a client of its own, and what is
sent again, the uplink sends.

Down come the twin's desired state, whole (differences are put together here), and direct methods.

Source: Azure IoT Hub, "Communicate with an IoT hub using the MQTT protocol", "Create and read IoT Hub
messages", "IoT Hub quotas and throttling"; skerry.receiver tells repeats.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from skerry.batches import CONTENT_TYPE, encode
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link
from skerry.uplink.links.azure_client import (
    FEATURES,
    Closed,
    Connection,
    Heard,
    Outgoing,
    Sdk,
    explain,
    unknown,
)
from skerry.uplink.links.azure_identity import Identity
from skerry.uplink.links.twin import Desired, Twin
from skerry.uplink.record import Record

_MESSAGE_BYTES = 256 * 1024
_PROPERTY_BYTES = 8 * 1024
"""Kept free of a message for its properties, which count as well."""
_CONNECT_S = 20.0
_WHOLE_WINDOW, _EVENT_WINDOW = 32, 4
"""Batches. The client takes about 0.3 ms of this machine a message, one by one."""
_LISTED = 8
"""Values that a property names."""
_LONGEST = 128
_EVENT_TYPE = "application/cloudevents+json"
_TWIN_BYTES = 32 * 1024
"""Of the desired state, and of a change of the reported one."""
_DOCUMENT_BYTES = 64 * 1024
"""Of a desired state that is looked at."""
_TWIN_EVERY_S = 3600.0
"""The whole twin is asked for again: a change that was lost leaves no hole when it was the last."""
_ANSWER_BYTES = 120 * 1024
_FAILED = 500
_LOOK_S = 1.0
"""Between two looks at the files of our identity."""

log = structlog.get_logger()


class _Data(msgspec.Struct, frozen=True, gc=False):
    camera: str = ""
    rule: str = ""
    severity: str = ""


class _Said(msgspec.Struct, frozen=True, gc=False):
    """What properties are made of, beside the envelope."""

    time: str = ""
    timequality: str = ""
    data: _Data = _Data()


_SAID = msgspec.json.Decoder(_Said)


class _Sent:
    """A batch under way: messages without their PUBACK, and why one failed."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.error: Exception | None = None


class AzureLink(Link):
    """One connection to a hub.

    Args:
        settings: where it is and how to prove who we are.
        site: put into the properties.
        state: folder for what a provisioning service says.
        stop: once set, nothing waits any more.
        bounds: of the size of a message; the rest is for others to keep.
        downlink: where the twin and methods go; None: they are not asked for.

    Raises:
        ConfigError: the package is missing, or a file is not what it should be.
    """

    def __init__(
        self, settings: given.AzureLink, site: str, state: Path, stop: threading.Event,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        *, downlink: Downlink | None = None,
    ) -> None:  # fmt: skip
        self._sdk = Sdk()
        self._identity = Identity(self._sdk, settings, state)
        self._settings = settings
        self._site = site
        self._stop = stop
        self._downlink = downlink
        self.steered = downlink is not None
        self.whole = settings.format == "batch"
        self.window = _WHOLE_WINDOW if self.whole else _EVENT_WINDOW
        self._max_payload = int(min(_MESSAGE_BYTES - _PROPERTY_BYTES, bounds.message_bytes))
        self.max_bytes = self._max_payload - 2 if self.whole else math.inf
        self._outputs = self._identity.outputs
        if self._outputs and not self._identity.module:
            raise ConfigError("link.outputs: expected the identity of a module with it, got a device's")
        if settings.content_type == "cloudevents":
            self._content_type = CONTENT_TYPE if self.whole else _EVENT_TYPE
        else:
            self._content_type = settings.content_type
        self._heard = Heard()
        self._connection: Connection | None = None
        self._under_way: deque[_Sent] = deque()
        self._moved = 0.0
        self._lost_at: float | None = None
        self._twin = Twin()
        self._asked_at: float | None = None
        self._answered = True
        self._trouble = ""

    @property
    def trouble(self) -> str:
        return self._trouble

    def open(self) -> None:
        self.close()
        patience_s = min(self._settings.timeout_s, _CONNECT_S)
        self._version, self._looked_at = self._identity.version, time.monotonic()
        make = self._identity.ready(patience_s, self._stop)
        deadline = time.monotonic() + patience_s
        heard = Heard()
        connection = Connection(
            self._sdk, make, heard, partial(self._on_patch, heard), partial(self._on_method, heard)
        )
        with heard.changed:
            self._heard, self._connection = heard, connection
            self._under_way = deque()
            self._lost_at = None
            self._twin, self._asked_at, self._answered = Twin(), None, True
        try:
            self._wait(lambda: heard.up, deadline, f"did not connect within {patience_s:g} s")
            if self._downlink is not None:
                self._subscribe(connection, deadline, patience_s)
                self._ask(connection)
        except LinkDown:
            self.close()
            raise

    def start(self, batch: Sequence[Record]) -> Cost:
        messages = self._messages(batch)
        self._look_at_files()
        heard, connection = self._heard, self._connection
        if connection is None or heard.lost is not None:
            why = self._why()
            self.close()
            raise LinkDown(f"{why} (open the link again)")
        sent = _Sent(len(messages))
        with heard.changed:
            if not self._under_way:
                self._moved = time.monotonic()
            self._under_way.append(sent)
        connection.send(messages, partial(self._on_puback, heard, sent))
        return Cost(len(messages), sum(len(message.message.data) for message in messages))

    def finish(self, timeout_s: float = math.inf) -> bool:
        until = time.monotonic() + timeout_s
        heard = self._heard
        try:
            self._steer()
            with heard.changed:
                if not self._under_way:
                    self._check(self._moved)
                    self._look_at_files()
                    return False
                oldest = self._under_way[0]
                while oldest.left or oldest.error is not None:
                    now = time.monotonic()
                    self._check(now)
                    if oldest.error is not None:
                        raise LinkDown(f"{self._where}: not confirmed: {oldest.error}")
                    if now >= until:
                        return False
                    heard.changed.wait(min(until - now, 0.1))
                self._under_way.popleft()
                return True
        except LinkDown:
            self.close()
            raise

    def _look_at_files(self) -> None:
        """Once a second: a new certificate or key wants a new connection.

        Raises:
            LinkDown: a file has changed. What is under way is sent again, over that connection.
        """
        now = time.monotonic()
        if self._connection is None or now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        if self._identity.version != self._version:
            self.close()
            raise LinkDown(f"{self._where}: the files of link.identity or link.ca have changed")

    def close(self) -> None:
        with self._heard.changed:
            connection, self._connection = self._connection, None
            self._under_way = deque()  # a PUBACK that comes now confirms nothing
        if connection is not None:
            connection.close()

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        heard, connection = self._heard, self._connection
        late = f"did not take the reported state within {timeout_s:g} s"
        if connection is None:
            raise LinkDown(f"{self._where}: the link is closed")
        self._wait(lambda: self._twin.known, deadline, late, heard)
        with heard.changed:
            twin = self._twin
            patch = twin.difference(document)
        if not patch:
            return
        size = len(msgspec.json.encode(patch))
        if size > _TWIN_BYTES:
            raise LinkDown(f"reported: expected at most {_TWIN_BYTES} bytes, got {size}")
        over: list[Exception | None] = []

        def done(_result: object, error: Exception | None) -> None:
            with heard.changed:
                over.append(error)
                heard.changed.notify_all()

        connection.patch_twin(patch, done)
        try:
            self._wait(lambda: over, deadline, late, heard)
            if over[0] is not None:
                raise LinkDown(f"{self._where}: reported: not taken: {over[0]}")
        except LinkDown:
            with heard.changed:
                # Nobody knows what it has now: the whole twin says so.
                twin.forget()
                self._asked_at = None
            raise
        with heard.changed:
            twin.told(document)

    # Waiting

    @property
    def _where(self) -> str:
        return self._heard.host or "azure"

    def _why(self) -> str:
        """Why there is no connection, in words."""
        lost = self._heard.lost
        if isinstance(lost, LinkDown):
            return str(lost)
        if lost is None or isinstance(lost, Closed):
            return f"{self._where}: {str(lost or '') or 'the link is closed'}"
        return f"{self._where}: {explain(lost, self._where, self._identity.trust, self._identity.proof)}"

    def _wait(
        self, fact: Callable[[], object], deadline: float, late: str, heard: Heard | None = None
    ) -> None:
        """Wait until something is true.

        Raises:
            LinkDown: the connection broke, the time is over, or the process stops.
        """
        heard = heard or self._heard
        with heard.changed:
            while not fact():
                left = deadline - time.monotonic()
                if heard.lost is not None:
                    self._note(heard.lost)
                    raise LinkDown(self._why() if heard is self._heard else f"{heard.host}: closed")
                if left <= 0:
                    raise LinkDown(f"{self._where}: {late}")
                if self._stop.is_set():
                    raise LinkDown(f"{self._where}: stopping")
                heard.changed.wait(min(left, 0.1))

    def _note(self, lost: Exception) -> None:
        """Whether what a provisioning service said should be asked for again."""
        if not isinstance(lost, Closed | LinkDown) and not self._heard.up:
            self._identity.refused(unknown=unknown(lost))

    def _check(self, now: float) -> None:
        """Whether what is under way may still be confirmed. Needs the lock.

        Raises:
            LinkDown: the connection broke, nothing is confirmed any more, or the process stops.
        """
        heard, connection = self._heard, self._connection
        if connection is None or heard.lost is not None:
            raise LinkDown(self._why())
        timeout_s = self._settings.timeout_s
        if self._under_way and now - self._moved > timeout_s:
            raise LinkDown(f"{self._where}: did not confirm within {timeout_s:g} s")
        if connection.lives and not connection.renewing:
            self._lost_at = None
        elif self._lost_at is None:
            self._lost_at = now
        elif now - self._lost_at > timeout_s:
            raise LinkDown(f"{self._where}: no new token within {timeout_s:g} s")
        if self._stop.is_set():
            raise LinkDown(f"{self._where}: stopping")

    def _on_puback(self, heard: Heard, sent: _Sent, _result: object, error: Exception | None) -> None:
        with heard.changed:
            if error is not None:
                sent.error = sent.error or error
            else:
                sent.left -= 1
                self._moved = time.monotonic()
            if sent.error is not None or not sent.left:
                heard.changed.notify_all()

    # Messages

    def _messages(self, batch: Sequence[Record]) -> list[Outgoing]:
        """The messages that a batch makes.

        Raises:
            Rejected: one would be too large.
        """
        parts = [batch] if self.whole else [[record] for record in batch]
        return [self._message(part) for part in parts]

    def _message(self, part: Sequence[Record]) -> Outgoing:
        payload = encode([record.raw for record in part]) if self.whole else part[0].raw
        event = part[0].envelope
        if len(payload) > self._max_payload:
            raise Rejected(f"{event.id}: expected at most {self._max_payload} bytes, got {len(payload)}")
        message = self._sdk.device.Message(
            payload, message_id=message_id(part), content_encoding="utf-8", content_type=self._content_type
        )
        message.correlation_id = _clean(event.id)
        message.custom_properties = properties(part, self._site, whole=self.whole)
        if message.get_size() > _MESSAGE_BYTES:
            raise Rejected(
                f"{event.id}: expected at most {_MESSAGE_BYTES} bytes with all properties, "
                f"got {message.get_size()}"
            )
        return Outgoing(message, event.lane if self._outputs else "")

    # Down

    def _subscribe(self, connection: Connection, deadline: float, patience_s: float) -> None:
        """Subscribe to the twin and to methods.

        Raises:
            LinkDown: it was refused, or took too long.
        """
        heard, over = self._heard, list[Exception | None]()

        def done(_result: object, error: Exception | None) -> None:
            with heard.changed:
                over.append(error)
                heard.changed.notify_all()

        for feature in FEATURES:
            connection.enable(feature, done)
        late = f"did not confirm the subscriptions within {patience_s:g} s"
        self._wait(lambda: len(over) == len(FEATURES) or any(over), deadline, late)
        for error in over:
            if error is not None:
                raise LinkDown(f"{self._where}: not subscribed: {error}")

    def _steer(self) -> None:
        """Ask for the whole twin where it is wanted, and again when no answer comes."""
        connection = self._connection
        if self._downlink is None or connection is None:
            return
        timeout_s = self._settings.timeout_s
        with self._heard.changed:
            since_s = math.inf if self._asked_at is None else time.monotonic() - self._asked_at
            if not self._answered and timeout_s < since_s < math.inf:
                self._trouble = f"{self._where}: the twin was not told within {timeout_s:g} s (asking again)"
            due = since_s > (timeout_s if self._twin.wanted or not self._answered else _TWIN_EVERY_S)
        if due:
            self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        heard = self._heard
        with heard.changed:
            self._asked_at, self._answered = time.monotonic(), False
        connection.get_twin(partial(self._on_twin, heard))

    def _on_twin(self, heard: Heard, twin: Any, error: Exception | None) -> None:
        if error is not None:
            if heard.lost is None:
                self._trouble = f"{heard.host}: the twin cannot be read: {error}"
                log.warning("twin.not_read", host=heard.host, error=str(error))
            return
        with heard.changed:
            if heard is not self._heard:
                return
            self._answered, self._trouble = True, ""
            found = self._put(lambda: self._twin.whole(twin))
            if self._twin.wanted:
                self._asked_at = None  # a newer one was heard of: at once
            heard.changed.notify_all()
        self._propose(found)

    def _on_patch(self, heard: Heard, patch: Any) -> None:
        with heard.changed:
            if heard is not self._heard:
                return
            before = self._twin.wanted
            found = self._put(lambda: self._twin.changed(patch))
            if self._twin.wanted and not before:
                self._asked_at = None
        if not self._propose(found):
            with heard.changed:
                self._twin.doubt()  # it may be small again without what made it large

    def _put(self, change: Callable[[], Desired | None]) -> Desired | None:
        """What a twin becomes, however it is nested."""
        try:
            return change()
        except RecursionError:
            log.warning("desired.dropped", host=self._where, reason="nested too deeply")
            return None

    def _propose(self, found: Desired | None) -> bool:
        """Hand a desired state on; False when it is too large to be looked at."""
        if found is None or self._downlink is None:
            return True
        try:
            size = len(msgspec.json.encode(found.document))
        except (RecursionError, msgspec.EncodeError, UnicodeEncodeError):
            size = _DOCUMENT_BYTES + 1
        if size > _DOCUMENT_BYTES:
            log.warning("desired.dropped", host=self._where, version=found.version, reason="too large")
            return False
        self._downlink.propose("twin", str(found.version), found.document)
        return True

    def _on_method(self, heard: Heard, request: Any) -> None:
        connection = self._connection
        if self._downlink is None or connection is None or heard is not self._heard:
            return
        try:
            body = b"" if request.payload is None else json.dumps(request.payload).encode()
        except (RecursionError, ValueError):
            self._reply(connection, request.request_id, 400, b'{"error":"expected JSON, less nested"}')
            return
        reply = partial(self._reply, connection, request.request_id)
        self._downlink.request(str(request.name), body, reply)

    def _reply(self, connection: Connection, request_id: str, status: int, body: bytes) -> None:
        """Answer a direct method; from any thread. After the connection is lost nobody waits for it."""
        try:
            payload = json.loads(body) if body else None
        except ValueError:
            status, payload = _FAILED, {"error": "expected JSON as the answer, got something else"}
        if len(body) > _ANSWER_BYTES:
            status, payload = _FAILED, {"error": f"the answer has more than {_ANSWER_BYTES} bytes"}
        connection.respond(self._sdk.response(request_id, status, payload))


def message_id(part: Sequence[Record]) -> str:
    """The same for the same events, whenever they are sent: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for record in part:
        event = record.envelope
        digest.update(f"{event.source}\0{event.epoch}\0{event.seq}\n".encode())
    return digest.hexdigest()


def properties(part: Sequence[Record], site: str, *, whole: bool) -> dict[str, str]:
    """Application properties: what the hub's routes may ask for without looking into the body.

    `site`, `lane`, `events` (how many), `schema`, and `type`, `camera`, `rule` and `severity`: with one
    value as it is, with several the first 8 of them, comma-separated, in the order they appear. What an
    event does not say is left out. `iothub-creation-time-utc` is the time of the first event, unless its
    clock was never set.
    """
    said = [_said(record.raw) for record in part]
    found = {
        "site": site,
        "lane": part[0].envelope.lane,
        "events": str(len(part)),
        "schema": "cloudevents-batch/1.0" if whole else "cloudevents/1.0",
    }
    for name, values in (
        ("type", [record.envelope.type for record in part]),
        ("camera", [item.data.camera for item in said]),
        ("rule", [item.data.rule for item in said]),
        ("severity", [item.data.severity for item in said]),
    ):
        if text := _listed(values):
            found[name] = text
    if said[0].time and said[0].timequality != "unsynchronised":
        found["iothub-creation-time-utc"] = _clean(said[0].time)
    return found


def _said(raw: bytes) -> _Said:
    try:
        return _SAID.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Said()


def _listed(values: list[str]) -> str:
    distinct = list(dict.fromkeys(value for value in values if value and len(value) <= _LONGEST))
    return ",".join(_clean(value) for value in distinct[:_LISTED])


def _clean(text: str) -> str:
    """Of visible ASCII, which is all that the hub takes in properties; at most 128 characters."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text)[:_LONGEST]
