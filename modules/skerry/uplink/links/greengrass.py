"""The far end is AWS IoT Core, through the Greengrass nucleus of this machine, which runs us as a component.

One message a batch, one batch under way: the nucleus may refuse one and take the next. What its answer is
worth: it has the batch, in memory, and sends it when it can (the first nucleus keeps 2.5 MB and drops the
oldest; lite has written it to its connection). So an answer counts only while the nucleus was, and is,
connected to IoT Core, where it tells; a link to a nucleus that is not is down, and the batch stays in the
buffer. What was handed over in the keep-alive's minute before it notices is with it alone. With `confirm:
echo` a batch counts when IoT Core has sent it back.

Source: AWS IoT Greengrass developer guide, Publish/subscribe AWS IoT Core MQTT messages, and Configure the
AWS IoT Greengrass Core software, spooler; greengrass-lite, docs/spec of its core-bus and IPC commands.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import structlog

from skerry.batches import CONTENT_TYPE, encode
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import LANES, Lane
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.limits import Bounds
from skerry.uplink.links import Cost, Link
from skerry.uplink.links.greengrass_ipc import Heard, Ipc, Nucleus, Session, Stream, denied, said
from skerry.uplink.links.greengrass_steering import Kept, Steering
from skerry.uplink.record import Record

_TOPIC_BYTES, _TOPIC_SLASHES = 256, 7
_CONNECT_S = 20.0
_STATUS_S = 1.0
"""For the first word on the connection to IoT Core, once the nucleus agreed to tell."""
_LITE_BYTES = 7000
"""Lite takes packets of 10,000 bytes, of which a payload in base64 is the most."""
_TOO_LARGE = re.compile(r"exceeds the (configured|maximum)|too large", re.IGNORECASE)

log = structlog.get_logger()


class _Sent(NamedTuple):
    """A batch under way: what ends with the nucleus' answer, where it went, its first event and its size."""

    future: Future[Any]
    topic: str
    event: str
    size: int
    offline: int
    """How often the nucleus had lost IoT Core by then."""


class GreengrassLink(Link):
    """One connection to the nucleus.

    Args:
        settings: of the link.
        site: put into the topics and the properties.
        stop: once set, nothing waits any more.
        bounds: of the size of a message; the rest is for others to keep.
        downlink: where desired states and commands are put; None: they are left alone.
        nucleus: where it is; None: as the environment says, which the nucleus makes for each component.

    Raises:
        ConfigError: the package is missing, this is no component, or a topic is too long.
    """

    window = 1
    whole = True

    def __init__(
        self, settings: given.GreengrassLink, site: str, stop: threading.Event,
        bounds: Bounds = Bounds(), *,  # noqa: B008 - frozen
        downlink: Downlink | None = None, nucleus: Nucleus | None = None,
    ) -> None:  # fmt: skip
        # The nucleus has no other way to hand these to a component: the one place that may look.
        self._nucleus = nucleus or Nucleus(os.environ)
        self._ipc = Ipc()
        self._settings = settings
        self._site = site
        self._stop = stop
        self._topics = {lane: _topic(settings.topic, site, lane) for lane in LANES}
        self._max_payload = int(min(settings.max_payload_bytes, bounds.message_bytes))
        self.max_bytes = self._max_payload - 2
        self._downlink = downlink
        remote = settings.remote_topic.format(site=site)
        self.steered = downlink is not None and bool(
            remote or {settings.desired, settings.reported} != {"none"}
        )
        self._kept = Kept(settings, remote, self._nucleus.thing, downlink) if downlink is not None else None
        self._steering: Steering | None = None
        self._heard = Heard()
        self._session: Session | None = None
        self._under_way: deque[_Sent] = deque()
        self._moved = 0.0
        self._online: bool | None = None
        self._offline = 0
        self._expected = b""
        self._echoed = False
        self._running = False

    @property
    def report_bytes(self) -> int:
        """Of a report, at most."""
        most = super().report_bytes
        if self._kept is None or self._settings.reported != "shadow":
            return most
        return min(self._kept.shadow.room, most)

    @property
    def trouble(self) -> str:
        """What does not work of the way down; "" when all does."""
        steering = self._steering
        return "; ".join(tuple(steering.trouble.values())) if steering is not None else ""

    def open(self) -> None:
        self.close()
        deadline = time.monotonic() + min(self._settings.timeout_s, _CONNECT_S)
        heard = self._heard = Heard()
        self._steering = None
        try:
            session = self._session = self._ipc.connect(self._nucleus, heard, deadline, self._stop)
            if self._kept is not None and self.steered:
                self._steering = Steering(self._kept, session, self._ipc.model, heard)
                self._steering.begin()
            self._ask_for_echoes(session, heard, deadline)
            self._ask_for_status(session, heard, deadline)
            if not self._running:  # for those who are started with Startup
                session.call("UpdateState", state="RUNNING").add_done_callback(self._told_state)
        except LinkDown as error:
            self.close()
            raise LinkDown(f"nucleus: {error}") from error
        except Exception as error:
            self.close()
            raise LinkDown(f"nucleus: cannot connect: {said(error)}") from error

    def _told_state(self, answer: Future[Any]) -> None:
        self._running = type(answer.exception()).__name__ != "StreamClosedError"  # lite may not know it

    def start(self, batch: Sequence[Record]) -> Cost:
        payload = encode([record.raw for record in batch])
        event = batch[0].envelope.id
        if len(payload) > self._max_payload:
            raise Rejected(f"{event}: expected at most {self._max_payload} bytes, got {len(payload)}")
        session = self._session
        try:
            if session is None:
                raise LinkDown("the link is closed (open the link again)")
            self._check(self._moved if self._under_way else time.monotonic())
            topic = self._topics[batch[0].envelope.lane]
            offline = self._offline
            # Before it is sent: the echo may be here before the call returns.
            self._expected, self._echoed = hashlib.sha256(payload).digest(), False
            future = session.call(
                "PublishToIoTCore",
                topic_name=topic,
                qos="1",
                payload=payload,
                payload_format="1",
                content_type=CONTENT_TYPE,
                # Few: lite takes 50 values a packet.
                user_properties=[
                    self._ipc.model.UserProperty(key=key, value=value)
                    for key, value in (
                        ("site", self._site), ("lane", batch[0].envelope.lane), ("events", str(len(batch))),
                    )
                ],
            )  # fmt: skip
        except LinkDown as error:
            self.close()
            raise LinkDown(f"nucleus: {error}") from error
        except Exception as error:
            self.close()
            raise LinkDown(f"nucleus: not sent: {said(error)}") from error
        if not self._under_way:
            self._moved = time.monotonic()
        self._under_way.append(_Sent(future, topic, event, len(payload), offline))
        return Cost(1, len(payload))

    def finish(self, timeout_s: float = math.inf) -> bool:
        until = time.monotonic() + timeout_s
        under_way = self._under_way
        try:
            if not under_way:
                self._check(time.monotonic())
                if self._steering is not None:
                    self._steering.tick()
                return False
            oldest = under_way[0]
            with self._heard.changed:
                while not self._ended(oldest):
                    now = time.monotonic()
                    self._check(now)
                    if now >= until:
                        return False
                    self._heard.changed.wait(min(until - now, 0.1))
        except LinkDown as error:
            self.close()
            raise LinkDown(f"nucleus: {error}") from error
        except Rejected:
            under_way.popleft()
            raise
        under_way.popleft()
        self._moved = time.monotonic()
        return True

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        if not self.steered:
            return
        steering = self._steering
        if steering is None or self._session is None:
            raise LinkDown("nucleus: the link is closed")
        try:
            steering.report(document, time.monotonic() + timeout_s, self._stop)
        except LinkDown as error:
            raise LinkDown(f"nucleus: {error}") from error
        except Exception as error:  # the client's, of many types
            raise LinkDown(f"nucleus: not reported: {said(error)}") from error

    def close(self) -> None:
        session, self._session = self._session, None
        self._under_way = deque()  # an answer that comes now confirms nothing
        if session is not None:
            self._heard.lose("closed")
            session.close()

    # Whether it counts

    @property
    def _is_offline(self) -> bool:
        return self._online is False  # None: it does not tell

    def _check(self, now: float) -> None:
        """Whether what is under way may still be confirmed.

        Raises:
            LinkDown: the connection broke, nothing is confirmed any more, or the process stops.
        """
        if self._session is None or self._heard.lost:
            raise LinkDown(f"{self._heard.lost or 'the link is closed'}{self._hint()}")
        if self._is_offline:
            raise LinkDown("it is not connected to IoT Core")
        if now - self._moved > self._settings.timeout_s and self._under_way:
            echo = ", or no echo came" if self._settings.confirm == "echo" else ""
            raise LinkDown(f"did not confirm within {self._settings.timeout_s:g} s{echo}")
        if self._stop.is_set():
            raise LinkDown("stopping")

    def _hint(self) -> str:
        """It hangs up over a packet that is too large for it, and says nothing."""
        large = next((sent.size for sent in self._under_way if sent.size > _LITE_BYTES), 0)
        if not large:
            return ""
        limit = f"set link.max_payload_bytes: {_LITE_BYTES}"
        return f" (over a message of {large} bytes? for greengrass-lite {limit})"

    def _ended(self, sent: _Sent) -> bool:
        """Whether a batch is confirmed.

        Raises:
            LinkDown: it never will be.
            Rejected: it is refused for what it is.
        """
        if not sent.future.done():
            return False
        if error := sent.future.exception():
            self._refused(sent, error)
        if self._offline != sent.offline or self._is_offline:
            raise LinkDown("it lost IoT Core while a batch was with it")
        return self._settings.confirm != "echo" or self._echoed

    def _refused(self, sent: _Sent, error: BaseException) -> None:
        name, what = type(error).__name__, said(error)
        if name == "StreamClosedError":
            raise LinkDown(f"{self._heard.lost or 'the nucleus ended the call'}{self._hint()}")
        if name == "UnauthorizedError":
            raise LinkDown(denied("PublishToIoTCore", sent.topic))
        if _TOO_LARGE.search(what):
            raise Rejected(f"{sent.event}: {what}")
        raise LinkDown(f"{sent.topic}: {what}")

    def _ask_for_status(self, session: Session, heard: Heard, deadline: float) -> None:
        """Have the nucleus tell whether it is connected to IoT Core; older ones cannot.

        Raises:
            LinkDown: it is not.
        """
        self._online, self._offline = None, 0

        def event(news: Any) -> None:
            status = getattr(getattr(news, "connection_status_event", None), "status", None)
            with heard.changed:
                self._online = status != "DISCONNECTED"
                self._offline += not self._online
                heard.changed.notify_all()

        answer = session.listen("SubscribeToIoTCoreConnectionStatus", Stream(event, lambda: None))
        if not heard.wait(answer.done, deadline, self._stop):
            raise LinkDown("did not answer in time")
        if error := answer.exception():
            log.info("greengrass.status_unknown", reason=said(error))
            return
        first = min(time.monotonic() + _STATUS_S, deadline)
        heard.wait(lambda: self._online is not None, first, self._stop)
        if self._is_offline:
            if self._steering is not None:
                self._steering.settle(first, self._stop)  # what is desired holds without a cloud, too
            raise LinkDown("it is not connected to IoT Core")

    def _ask_for_echoes(self, session: Session, heard: Heard, deadline: float) -> None:
        """Subscribe to what we publish.

        Raises:
            LinkDown: that is not allowed, or not answered.
        """
        if self._settings.confirm != "echo":
            return

        def event(news: Any) -> None:
            message = getattr(news, "message", None)
            if message is not None and hashlib.sha256(message.payload or b"").digest() == self._expected:
                self._echoed = True
                heard.woken()

        for topic in dict.fromkeys(self._topics.values()):
            stream = Stream(event, lambda: heard.lose("the echo's subscription ended"))
            answer = session.listen("SubscribeToIoTCore", stream, topic_name=topic, qos="1")
            if not heard.wait(answer.done, deadline, self._stop):
                raise LinkDown(f"{topic}: subscribing to the echo was not answered in time")
            if error := answer.exception():
                refused = type(error).__name__ == "UnauthorizedError"
                raise LinkDown(f"echo: {denied('SubscribeToIoTCore', topic) if refused else said(error)}")


def _topic(template: str, site: str, lane: Lane) -> str:
    topic = template.format(site=site, lane=lane)
    if len(topic.encode()) > _TOPIC_BYTES or topic.count("/") > _TOPIC_SLASHES:
        raise ConfigError(
            f"link.topic: expected at most {_TOPIC_BYTES} bytes and {_TOPIC_SLASHES} slashes, got {topic!r}"
        )
    return topic
