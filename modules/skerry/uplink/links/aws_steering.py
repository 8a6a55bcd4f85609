"""What comes down a connection to IoT Core beside the batches: a named shadow, and commands on topics.

Source: AWS IoT Core developer guide, Device Shadow MQTT topics and Device Shadow error messages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import structlog

from skerry.errors import LinkDown
from skerry.uplink.downlink import Downlink
from skerry.uplink.links import shadow as shadows
from skerry.uplink.links.requests import Requests
from skerry.uplink.links.shadow import Shadow, State

_ASK_AGAIN_S = 60.0
"""After a question about the shadow that was not answered, or not well."""
_ASK_ANYHOW_S = 3600.0
"""The last message of a change may be lost, and nothing comes behind it that would tell."""
_SKIP_S = 600.0
"""How long nothing is subscribed to that made IoT Core hang up."""
_STRIKES = 2
_REFUSED, _NOT_AUTHORIZED = 128, 135

log = structlog.get_logger()


class Pipe(NamedTuple):
    """How to use a connection; both from any thread, and both raise whatever the client does."""

    subscribe: Callable[[Sequence[str]], Future[Any]]
    """At QoS 1; ends with the SUBACK."""
    publish: Callable[[str, bytes], Future[Any]]
    """At QoS 1, not retained; ends with the PUBACK."""


class Known(NamedTuple):
    """What outlives a connection."""

    shadow: Shadow
    skip_until: dict[str, float]
    """Part to the time, in monotonic seconds, until which it is left alone."""
    hung_up: dict[str, int]
    """Part to how often in a row the connection was lost while it was subscribed to."""


class Steering:
    """Of one connection. Handlers run on the client's thread and only put away, or hand over.

    The parts, `shadow` and `requests`, are subscribed to one after the other: IoT Core may hang up over a
    topic that the policy forbids, and it must be known over which. That part is left alone for a while,
    so that batches go on.

    Args:
        pipe: of the connection.
        known: kept by the link.
        downlink: where commands go.
        prefix: of the shadow's topics; "" none.
        remote: of the topics of commands; "" none.
        token: the start of ours, unlike that of any other process.

    Attributes:
        trouble: what does not work, part by part.
        listening: the parts that are subscribed to.
    """

    def __init__(
        self, pipe: Pipe, known: Known, downlink: Downlink, *, prefix: str, remote: str, token: str
    ) -> None:
        self._pipe = pipe
        self._known = known
        self._prefix = prefix
        self._token = token
        self._changed = threading.Condition()
        self._tokens = 0
        self._answers: dict[str, str | None] = {}
        """Of our updates under way: None, "" when it was accepted, or why it was not."""
        self._asked_at: int | None = None
        self._asked_s = 0.0
        self._fresh = False
        """Whether the shadow was told of since the connection was made."""
        self._under_way = ""
        self.trouble: dict[str, str] = {}
        self.listening: set[str] = set()
        self._requests = Requests(remote, downlink, self._answer) if remote else None
        now = time.monotonic()
        wanted = {"shadow": bool(prefix), "requests": bool(remote)}
        self._left = [part for part, wants in wanted.items() if wants and not self._skipped(part, now)]

    def begin(self) -> None:
        """The connection is there."""
        self._subscribe_next()

    def lost(self) -> None:
        """The connection is no more: was it over what we subscribed to?"""
        with self._changed:
            part, self._under_way = self._under_way, ""
            self._changed.notify_all()
        if not part:
            return
        times = self._known.hung_up[part] = self._known.hung_up.get(part, 0) + 1
        if times >= _STRIKES:  # once is chance
            self._known.hung_up[part] = 0
            self._known.skip_until[part] = time.monotonic() + _SKIP_S
            log.warning("steering.left_alone", part=part, seconds=_SKIP_S)

    def tick(self) -> None:
        """Ask again what was not answered, or long ago; now and then, from the link's thread."""
        now = time.monotonic()
        with self._changed:
            waited_s = now - self._asked_s
            late = self._asked_at is not None and waited_s > _ASK_AGAIN_S
            old = self._fresh and waited_s > _ASK_ANYHOW_S
        if old and not late:
            self._ask()
        if late:
            self._trouble("shadow", f"{self._prefix}/get: no answer (allow iot:Receive for get/accepted)")
            self._ask()

    def message(self, topic: str, payload: bytes, *, retained: bool) -> None:
        """Something came."""
        if self._requests is not None and self._requests.take(topic, payload, retained=retained):
            return
        if not self._prefix or not topic.startswith(f"{self._prefix}/"):
            return
        try:
            self._about_shadow(topic[len(self._prefix) + 1 :], payload)
        except (ValueError, RecursionError) as error:
            log.warning("shadow.ignored", topic=topic, reason=str(error))
            self._trouble("shadow", str(error))

    def report(self, document: dict[str, Any], deadline: float, ended: Callable[[], str]) -> None:
        """Tell the shadow what is reported; from any thread.

        Args:
            document: the whole of it.
            deadline: in monotonic seconds.
            ended: why there is no use in waiting any more; "" as long as there is.

        Raises:
            LinkDown: it was not confirmed.
        """
        if not self._prefix:
            return
        self._wait(lambda: self._fresh, deadline, ended, f"{self._prefix}/get was not answered in time")
        with self._changed:
            self._tokens += 1
            token = f"{self._token}-{self._tokens}"
            self._answers[token] = None
        try:
            request = self._request(document, token)
            if request:
                self._checked(
                    self._pipe.publish(f"{self._prefix}/update", request),
                    lambda why: self._answered(token, why),
                )
                why = (
                    f"{self._prefix}/update was not answered in time (allow iot:Receive for update/accepted)"
                )
                self._wait(lambda: self._answers[token] is not None, deadline, ended, why)
                if refused := self._answers[token]:
                    raise LinkDown(f"{self._prefix}/update: refused: {refused}")
            self._known.shadow.told(document)
        finally:
            with self._changed:
                del self._answers[token]

    # The shadow

    def _request(self, document: dict[str, Any], token: str) -> bytes:
        try:
            return shadows.update(self._known.shadow.reported, document, token)
        except ValueError as error:
            raise LinkDown(f"{self._prefix}: {error} (report less)") from error

    def _about_shadow(self, what: str, payload: bytes) -> None:
        """Take a message of the shadow's service.

        Raises:
            ValueError: it is not what it should be.
        """
        if what == "update/documents":
            try:
                newer = self._known.shadow.learn(shadows.read_documents(payload))
            except ValueError:
                self._ask()  # there is a newer one than we know
                raise
            if not newer:
                self._ask()  # late, or of a shadow that was made anew
        elif what == "get/accepted":
            with self._changed:
                asked_at, self._asked_at = self._asked_at, None
            self._told(shadows.read(payload), asked_at)
        elif what == "get/rejected":
            refusal = shadows.read_refusal(payload)
            if refusal.code != shadows.NOT_FOUND:
                raise ValueError(f"shadow: get: refused: {refusal.code}: {refusal.message}")
            with self._changed:
                asked_at, self._asked_at = self._asked_at, None
            self._told(State(0, {}, {}), asked_at)  # nothing is desired of us
        elif what == "delete/accepted":
            self._ask()
        elif what == "update/accepted":
            self._answered(shadows.read_token(payload), "")
        elif what == "update/rejected":
            refusal = shadows.read_refusal(payload)
            self._answered(refusal.token, f"{refusal.code}: {refusal.message}")

    def _told(self, state: State, asked_at: int | None) -> None:
        self._known.shadow.learn(state, asked_at)
        with self._changed:
            self._fresh = True
            self.trouble.pop("shadow", None)
            self._changed.notify_all()

    def _answered(self, token: str, what: str) -> None:
        with self._changed:
            if token in self._answers:
                self._answers[token] = what
                self._changed.notify_all()

    def _ask(self) -> None:
        """Ask for the whole shadow, unless that is under way."""
        now = time.monotonic()
        with self._changed:
            if self._asked_at is not None and now - self._asked_s < _ASK_AGAIN_S:
                return
            self._asked_at, self._asked_s = self._known.shadow.version, now
        try:
            self._checked(
                self._pipe.publish(f"{self._prefix}/get", b""),
                lambda why: self._trouble("shadow", f"{self._prefix}/get: refused: {why}"),
            )
        except Exception as error:  # noqa: BLE001 - of many types, in a callback: the connection is ending
            log.debug("shadow.not_asked", error=str(error))

    def _checked(self, future: Future[Any], refused: Callable[[str], None]) -> None:
        """Look at the PUBACK of a question when it comes."""

        def look(done: Future[Any]) -> None:
            code = 0 if done.exception() is not None else int(done.result().puback.reason_code or 0)
            if code >= _REFUSED:
                hint = " (allow iot:Publish to it)" if code == _NOT_AUTHORIZED else ""
                refused(f"reason {code}{hint}")

        future.add_done_callback(look)

    # Subscriptions

    def _subscribe_next(self) -> None:
        if not self._left:
            return
        part = self._under_way = self._left.pop(0)
        filters = self._filters(part)
        try:
            future = self._pipe.subscribe(filters)
        except Exception as error:  # noqa: BLE001 - of many types, in a callback: the connection is ending
            log.debug("steering.not_subscribed", part=part, error=str(error))
            return
        future.add_done_callback(lambda done: self._subscribed(part, filters, done))

    def _filters(self, part: str) -> list[str]:
        if part == "requests":
            assert self._requests is not None
            return [self._requests.filter]
        names = (
            "get/accepted", "get/rejected", "update/accepted", "update/rejected", "update/documents",
            "delete/accepted",
        )  # fmt: skip
        return [f"{self._prefix}/{name}" for name in names]

    def _subscribed(self, part: str, filters: list[str], done: Future[Any]) -> None:
        if done.exception() is not None:
            return  # the connection is lost: `lost` knows which part it was
        self._under_way = ""
        self._known.hung_up[part] = 0
        codes = done.result().reason_codes or []
        refused = [name for name, code in zip(filters, codes, strict=False) if code >= _REFUSED]
        if refused:
            self._trouble(part, f"{', '.join(refused)}: refused (allow iot:Subscribe and iot:Receive)")
        else:
            self.listening.add(part)
            if part == "shadow":
                self._ask()
        self._subscribe_next()

    def _skipped(self, part: str, now: float) -> bool:
        skipped = now < self._known.skip_until.get(part, 0.0)
        if skipped:
            names = ", ".join(self._filters(part))
            self.trouble[part] = f"{names}: IoT Core hung up over it (allow iot:Subscribe and iot:Receive)"
        return skipped

    def _trouble(self, part: str, what: str) -> None:
        with self._changed:
            new = self.trouble.get(part) != what
            self.trouble[part] = what
            self._changed.notify_all()
        if new:
            log.warning("steering.trouble", part=part, reason=what)

    # Answers

    def _answer(self, payload: bytes, sent: Callable[[], None]) -> None:
        assert self._requests is not None
        self._pipe.publish(self._requests.answers, payload).add_done_callback(lambda _: sent())

    def _wait(self, fact: Callable[[], bool], deadline: float, ended: Callable[[], str], late: str) -> None:
        """Wait for what a handler brings.

        Raises:
            LinkDown: it did not come.
        """
        with self._changed:
            while not fact():
                left = deadline - time.monotonic()
                if why := ended() or self.trouble.get("shadow", ""):
                    raise LinkDown(why)
                if left <= 0:
                    raise LinkDown(late)
                self._changed.wait(min(left, 0.1))
