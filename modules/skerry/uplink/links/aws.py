"""The far end is AWS IoT Core: MQTT 5 over mutual TLS, on AWS's own client (awsiotsdk).

One message a batch (`skerry.batches`), QoS 1, confirmed by a PUBACK that says success. One batch is
under way at a time: IoT Core may drop one message over a quota and take the next, and what is sent again
behind a later one is taken for a repeat. A round trip of 100 ms still leaves more than IoT Core allows.

The client would keep what is not confirmed, in memory, and send it again when it reconnects. It never
does here: each `open` has a client of its own, which makes one attempt, has no session, refuses what it
is given while not connected, and is stopped when its connection ends. What is sent again, the uplink sends.

A named shadow holds the desired and the reported state; commands come on topics: `aws_steering`.

Source: MQTT 5.0, sections 3.4.2.1 (PUBACK reason codes) and 3.14.2.1 (DISCONNECT reason codes); AWS IoT
Core endpoints and quotas, message broker and protocol limits.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from skerry.batches import encode
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import LANES, Lane
from skerry.settings import TlsSettings
from skerry.uplink import settings as given
from skerry.uplink.credentials import Watched
from skerry.uplink.downlink import Downlink
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link, handshake
from skerry.uplink.links.aws_client import Heard, Identity, Sdk, identity
from skerry.uplink.links.aws_provisioning import Device, Provision
from skerry.uplink.links.aws_steering import Known, Pipe, Steering
from skerry.uplink.links.shadow import Shadow
from skerry.uplink.record import Record

_PAYLOAD_BYTES = 128 * 1024
_TOPIC_BYTES, _TOPIC_SLASHES = 256, 7
_CLIENT_ID_BYTES = 128
_CONNECT_S = 20.0
_STOP_S = 1.0
"""For the client to hang up; a frozen far end gets no longer, and the client ends by itself then."""
_LOOK_S = 1.0
"""Between two looks at the files."""
_LISTED = 8
"""Types and sources that the properties of a message name; IoT Core takes 8 KB of properties."""
_LONGEST = 256
_REFUSED = {153: "payload format invalid"}
"""Reason codes of a PUBACK that are about the record, not about quotas, policies or the topic."""
_LATER = {
    128: "unspecified error",
    131: "implementation specific error",
    135: "not authorized (allow iot:Publish to this topic in the policy)",
    144: "topic name invalid (change link.topic)",
    145: "packet identifier in use",
    151: "quota exceeded (see the quotas of the account, or lower the limits)",
}


class _Sent(NamedTuple):
    """A batch under way: what ends with its PUBACK, where it went, and its first event."""

    future: Future[Any]
    topic: str
    event: str


class AwsLink(Link):
    """One connection to IoT Core.

    Args:
        settings: where it is and how to prove who we are.
        site: put into the topics, the properties and the client's name.
        name: the link's, put into the client's name.
        stop: once set, nothing waits any more.
        bounds: of the size of a message; the rest is for others to keep.
        downlink: where desired states and commands are put; None: they are left alone.
        state: folder for the certificate of our own, with provisioning.

    Raises:
        ConfigError: the package is missing, a file is not what it should be, or a name is too long.
    """

    window = 1
    whole = True

    def __init__(
        self, settings: given.AwsLink, site: str, name: str, stop: threading.Event,
        bounds: Bounds = Bounds(), *,  # noqa: B008 - frozen
        downlink: Downlink | None = None, state: Path = Path("/var/lib/skerry"),
    ) -> None:  # fmt: skip
        self._sdk = Sdk()
        self._settings = settings
        self._site = site
        self._name = f"skerry-{site}-{name}"
        self._stop = stop
        if len((settings.client_id or self._name).encode()) > _CLIENT_ID_BYTES:
            raise ConfigError(
                f"link.client_id: expected at most {_CLIENT_ID_BYTES} bytes, "
                f"got {settings.client_id or self._name!r}"
            )
        self._topics = {lane: _topic(settings.topic, site, lane) for lane in LANES}
        self._max_payload = int(min(_PAYLOAD_BYTES, bounds.message_bytes))
        self.max_bytes = self._max_payload - 2
        self._paced = math.isfinite(bounds.messages_per_s) or math.isfinite(bounds.bytes_per_s)
        self._where = f"{settings.endpoint}:{settings.port}"
        self._downlink = downlink
        self._remote = settings.remote_topic.format(site=site)
        self.steered = downlink is not None and bool(settings.shadow or self._remote)
        self._known = Known(Shadow(downlink or Downlink()), {}, {})
        self._steering: Steering | None = None
        self._heard = Heard()
        self._client: Any = None
        self._under_way: deque[_Sent] = deque()
        self._moved = 0.0
        self._provision = Provision(self._sdk, settings, self._name, state / "aws", stop)
        self._device: Device | None = None
        self._credentials: Watched[Identity] | None = None
        self._version = 0
        self._looked = 0.0
        # A mistake in the files is found at the start, not in a year.
        if settings.provisioning is None:
            self._use(Device(settings.tls, ""))
        elif found := self._provision.found():
            self._use(found)

    @property
    def report_bytes(self) -> int:
        """Of a report, at most."""
        most = super().report_bytes
        return min(self._known.shadow.room, most) if self._settings.shadow else most

    @property
    def certificates(self) -> Sequence[Path]:
        """The one that provisioning got."""
        return (self._provision.certificate,) if self._settings.provisioning is not None else ()

    @property
    def trouble(self) -> str:
        """What does not work of the way down; "" when all does."""
        steering = self._steering
        return "; ".join(tuple(steering.trouble.values())) if steering is not None else ""

    def open(self) -> None:
        self.close()
        patience_s = min(self._settings.timeout_s, _CONNECT_S)
        if self._credentials is None:
            self._use(self._provision.obtain())
        credentials = self._credentials
        assert credentials is not None
        deadline = time.monotonic() + patience_s
        who, self._version = credentials.get(), credentials.version
        heard = self._heard = Heard()
        try:
            self._client = self._sdk.client(
                self._settings, who, self._id, heard, patience_s, paced=self._paced
            )
            self._steering = self._make_steering(heard)
            self._client.start()
            self._wait_up(heard, deadline, patience_s)
            if self._steering is not None:
                self._steering.begin()
        except LinkDown:
            self.close()
            raise
        except Exception as error:
            # The client raises whatever Python type is nearest to its own code: none of this may end
            # the process.
            self.close()
            raise LinkDown(f"{self._where}: cannot connect: {error}") from error

    def start(self, batch: Sequence[Record]) -> Cost:
        payload = encode([record.raw for record in batch])
        if len(payload) > self._max_payload:
            raise Rejected(
                f"{batch[0].envelope.id}: expected at most {self._max_payload} bytes, got {len(payload)}"
            )
        why = (
            self._heard.lost or ("" if self._client is not None else "the link is closed") or self._changed()
        )
        if why:
            self.close()
            raise LinkDown(f"{self._where}: {why} (open the link again)")
        topic = self._topics[batch[0].envelope.lane]
        try:
            future = self._sdk.publish(self._client, topic, payload, properties(batch, self._site))
        except Exception as error:
            self.close()
            raise LinkDown(f"{self._where}: not sent: {error}") from error
        future.add_done_callback(self._heard.woken)
        if not self._under_way:
            self._moved = time.monotonic()
        self._under_way.append(_Sent(future, topic, batch[0].envelope.id))
        return Cost(1, len(payload))

    def finish(self, timeout_s: float = math.inf) -> bool:
        until = time.monotonic() + timeout_s
        under_way = self._under_way
        try:
            if not under_way:
                self._check(self._moved)
                if self._steering is not None:
                    self._steering.tick()
                if why := self._changed():
                    raise LinkDown(f"{self._where}: {why}")
                return False
            oldest = under_way[0]
            with self._heard.changed:
                while not oldest.future.done():
                    now = time.monotonic()
                    self._check(now)
                    if now >= until:
                        return False
                    self._heard.changed.wait(min(until - now, 0.1))
            self._outcome(oldest)
        except LinkDown:
            self.close()
            raise
        except Rejected:
            under_way.popleft()
            raise
        under_way.popleft()
        self._moved = time.monotonic()
        return True

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        if not self.steered:
            return
        deadline = time.monotonic() + timeout_s
        steering, heard = self._steering, self._heard
        if steering is None or self._client is None or heard.lost:
            raise LinkDown(f"{self._where}: {heard.lost or 'the link is closed'}")
        try:
            steering.report(
                document, deadline, lambda: heard.lost or ("stopping" if self._stop.is_set() else "")
            )
        except LinkDown:
            raise
        except Exception as error:  # the client's, of many types
            raise LinkDown(f"{self._where}: not reported: {error}") from error

    def close(self) -> None:
        client, self._client = self._client, None
        self._under_way = deque()  # a PUBACK that comes now confirms nothing
        if client is None:
            return
        heard = self._heard
        with contextlib.suppress(Exception):  # whatever it says, it is let go of
            self._sdk.hang_up(client)
        del client
        with heard.changed:
            heard.lost = heard.lost or "closed"
            heard.changed.wait_for(lambda: heard.stopped, _STOP_S)

    def _use(self, device: Device) -> None:
        """Be this device from now on.

        Raises:
            ConfigError: a file is not what it should be.
        """
        tls = device.tls
        files = [file for file in (tls.ca, tls.certificate, tls.key) if file]
        self._credentials = Watched(files, lambda: identity(tls))
        self._device = device
        self._id = self._settings.client_id or device.thing or self._name

    def _changed(self) -> str:
        """Whether there are new credentials, and nothing under way; looks once a second."""
        now = time.monotonic()
        if self._credentials is None or self._under_way or now - self._looked < _LOOK_S:
            return ""
        self._looked = now
        self._credentials.get()
        return "tls: the files have changed" if self._credentials.version != self._version else ""

    def _make_steering(self, heard: Heard) -> Steering | None:
        if not self.steered or self._downlink is None or self._device is None:
            return None
        client, sdk, settings = self._client, self._sdk, self._settings
        thing = settings.thing or self._device.thing or self._id
        pipe = Pipe(
            lambda filters: sdk.subscribe(client, filters),
            lambda topic, payload: sdk.say(client, topic, payload),
        )
        prefix = f"$aws/things/{thing}/shadow/name/{settings.shadow}" if settings.shadow else ""
        steering = Steering(
            pipe, self._known, self._downlink, prefix=prefix, remote=self._remote,
            token=f"skerry-{time.monotonic_ns():x}",
        )  # fmt: skip
        heard.tell(steering)
        return steering

    def _check(self, now: float) -> None:
        """Whether what is under way may still be confirmed.

        Raises:
            LinkDown: the connection broke, nothing is confirmed any more, or the process stops.
            Rejected: the far end hung up because the one batch under way is too large for it.
        """
        heard = self._heard
        if heard.too_large and len(self._under_way) == 1:
            raise Rejected(f"{self._under_way[0].event}: the far end says: packet too large")
        if self._client is None or heard.lost:
            raise LinkDown(f"{self._where}: {heard.lost or 'the link is closed'}")
        if now - self._moved > self._settings.timeout_s:
            raise LinkDown(f"{self._where}: did not confirm within {self._settings.timeout_s:g} s")
        if self._stop.is_set():
            raise LinkDown(f"{self._where}: stopping")

    def _outcome(self, sent: _Sent) -> None:
        """Look at how a batch ended.

        Raises:
            LinkDown: it is not confirmed.
            Rejected: the far end will never take it.
        """
        error = sent.future.exception()
        if error is not None:
            if getattr(error, "name", "") == "AWS_ERROR_MQTT5_PACKET_VALIDATION":
                raise Rejected(f"{sent.event}: larger than the far end takes, or not MQTT 5: {error}")
            self._check(self._moved)  # knows better why
            raise LinkDown(f"{self._where}: not confirmed: {error}")
        ack = sent.future.result().puback
        code = ack.reason_code
        if code is None:
            raise LinkDown(f"{self._where}: {sent.topic}: confirmed with a reason that MQTT 5 does not know")
        if code < 128:
            return
        said = f": {ack.reason_string[:_LONGEST]}" if ack.reason_string else ""
        if code in _REFUSED:
            raise Rejected(f"{sent.event}: {_REFUSED[code]}{said}")
        raise LinkDown(f"{self._where}: {sent.topic}: {_LATER.get(code, f'reason {code}')}{said}")

    def _wait_up(self, heard: Heard, deadline: float, patience_s: float) -> None:
        """Wait for the CONNACK.

        Raises:
            LinkDown: it was refused, the time is over, or the process stops.
        """
        with heard.changed:
            while not heard.up:
                left = deadline - time.monotonic()
                if heard.lost or left <= 0:
                    break
                if self._stop.is_set():
                    raise LinkDown(f"{self._where}: stopping")
                heard.changed.wait(min(left, 0.1))
            if heard.up and not heard.lost:
                return
            why = heard.lost or f"did not connect within {patience_s:g} s"
        if not heard.refused:
            settings = self._settings
            tls = self._device.tls if self._device is not None else TlsSettings()
            better = handshake.reason(settings.endpoint, settings.port, tls, min(patience_s, 2.0))
            why = better or why
        raise LinkDown(f"{self._where}: {why}")


def properties(batch: Sequence[Record], site: str) -> list[tuple[str, str]]:
    """User properties of a message: what a rule of IoT Core may ask for without reading the batch.

    `site`, `lane`, `events` (how many), and `type` and `source` once for each that occurs, the first 8 of
    them.
    """
    envelopes = [record.envelope for record in batch]
    found = [("site", site), ("lane", envelopes[0].lane), ("events", str(len(batch)))]
    for name in ("type", "source"):
        values = dict.fromkeys(getattr(envelope, name) for envelope in envelopes)
        found += [(name, value) for value in list(values)[:_LISTED] if len(value) <= _LONGEST]
    return found


def _topic(template: str, site: str, lane: Lane) -> str:
    topic = template.format(site=site, lane=lane)
    if len(topic.encode()) > _TOPIC_BYTES or topic.count("/") > _TOPIC_SLASHES:
        raise ConfigError(
            f"link.topic: expected at most {_TOPIC_BYTES} bytes and {_TOPIC_SLASHES} slashes, got {topic!r}"
        )
    return topic
