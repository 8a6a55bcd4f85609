"""What comes to a component beside the batches: its configuration or a shadow, and commands on topics."""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import structlog

from skerry.clock import utc
from skerry.errors import LinkDown
from skerry.uplink.downlink import Downlink
from skerry.uplink.links import shadow as shadows
from skerry.uplink.links.greengrass_ipc import Heard, Session, Stream, denied, said
from skerry.uplink.links.requests import Requests
from skerry.uplink.links.shadow import MOST_DESIRED_BYTES, Shadow, State
from skerry.uplink.settings import GreengrassLink

_DESIRED, _REPORTED = "desired", "reported"
_MOST_DEPTH = 64
_MOST_REPORTED = 120 * 1024
_ASK_AGAIN_S, _ASK_ANYHOW_S = 60.0, 3600.0
"""After a question that was not answered well; and after any: an event may be lost."""
_EXACT = 2**53
"""Above it a double is no whole number for sure."""

log = structlog.get_logger()


class Kept:
    """What outlives a connection.

    Args:
        settings: of the link.
        remote: the start of the topics of commands; "" none.
        thing: the core device's.
        downlink: where everything is put.
    """

    def __init__(self, settings: GreengrassLink, remote: str, thing: str, downlink: Downlink) -> None:
        self.settings = settings
        self.remote = remote
        self.thing = settings.thing or thing
        self.downlink = downlink
        self.shadow = Shadow(downlink if settings.desired == "shadow" else Downlink())
        self.digest = ""
        """Of the configuration that was put into the downlink last."""


class Steering:
    """Of one connection. Handlers run on the client's thread and only put away, or ask on.

    Attributes:
        trouble: what does not work, part by part.
    """

    def __init__(self, kept: Kept, session: Session, model: Any, heard: Heard) -> None:
        self._kept = kept
        self._session = session
        self._model = model
        self._heard = heard
        self._asked_at = -1
        self.trouble: dict[str, str] = {}
        settings = kept.settings
        self._prefix = f"$aws/things/{kept.thing}/shadow/name/{settings.shadow}"
        self._wants_shadow = "shadow" in (settings.desired, settings.reported)
        self._configuration = _Question("desired", self, self._get_configuration, self._take_configuration)
        self._shadow = _Question("shadow", self, self._get_shadow, self._take_shadow)
        if self._wants_shadow and not kept.thing:
            self.trouble_with("shadow", "link.thing: expected a name, got none, and the nucleus tells none")
            self._wants_shadow = False

    def begin(self) -> None:
        """The connection is there."""
        settings = self._kept.settings
        if settings.desired == "configuration":
            self._watch([_DESIRED])
        if self._wants_shadow:
            for name, then in (("delete/accepted", None), ("update/documents", self._shadow.ask)):
                topic = f"{self._prefix}/{name}"
                self._subscribe(name, "SubscribeToTopic", topic, self._about_shadow, then)
        if not self._kept.remote:
            return
        if "local" in settings.commands:
            requests = Requests(self._kept.remote, self._kept.downlink, self._answer_locally)
            self._subscribe("commands", "SubscribeToTopic", requests.filter, _given_to(requests))
        if "iot-core" in settings.commands:
            requests = Requests(self._kept.remote, self._kept.downlink, self._answer)
            self._subscribe(
                "commands of IoT Core", "SubscribeToIoTCore", requests.filter, _given_to(requests)
            )

    def tick(self) -> None:
        """Ask again what was not answered well, or long ago; now and then, from the link's thread."""
        now = time.monotonic()
        settings = self._kept.settings
        if settings.desired == "configuration":
            self._configuration.ask_again(now)
        if self._wants_shadow:
            self._shadow.ask_again(now)

    def settle(self, deadline: float, stop: threading.Event) -> None:
        """Wait until the desired state was looked at.

        Raises:
            LinkDown: the connection is lost, or the process stops.
        """
        desired = self._kept.settings.desired
        question = self._shadow if desired == "shadow" else self._configuration
        if desired != "none":
            self._heard.wait(lambda: question.known, deadline, stop)

    def report(self, document: dict[str, Any], deadline: float, stop: threading.Event) -> None:
        """Tell the platform the state; from any thread.

        Raises:
            LinkDown: it was not confirmed.
        """
        settings = self._kept.settings
        if settings.reported == "topic":
            topic = f"{self._kept.remote}/{_REPORTED}"
            payload = msgspec.json.encode(document)
            if len(payload) > _MOST_REPORTED:
                raise LinkDown(f"{topic}: expected at most {_MOST_REPORTED} bytes, got {len(payload)}")
            self._do(
                "PublishToIoTCore", topic, deadline, stop,
                topic_name=topic, qos="1", payload=payload, retain=True, content_type="application/json",
            )  # fmt: skip
        elif settings.reported == "configuration":
            # A merge takes nothing away, so the document is one value: its text.
            text = msgspec.json.encode(document).decode()
            self._do(
                "UpdateConfiguration", _REPORTED, deadline, stop,
                key_path=[], timestamp=dt.datetime.fromisoformat(utc()), value_to_merge={_REPORTED: text},
            )  # fmt: skip
        elif settings.reported == "shadow":
            self._report_to_shadow(document, deadline, stop)

    # Reported

    def _report_to_shadow(self, document: dict[str, Any], deadline: float, stop: threading.Event) -> None:
        if not self._wants_shadow:
            raise LinkDown(self.trouble.get("shadow", ""))
        if not self._heard.wait(lambda: self._shadow.known or "shadow" in self.trouble, deadline, stop):
            raise LinkDown(f"{self._prefix}: was not told of in time")
        if not self._shadow.known:
            raise LinkDown(self.trouble["shadow"])
        try:
            request = shadows.update(self._kept.shadow.reported, document, "")
        except ValueError as error:
            raise LinkDown(f"{self._prefix}: {error} (report less)") from error
        if request:
            self._do(
                "UpdateThingShadow", self._prefix, deadline, stop,
                thing_name=self._kept.thing, shadow_name=self._kept.settings.shadow, payload=request,
            )  # fmt: skip
        self._kept.shadow.told(document)

    def _do(self, operation: str, what: str, deadline: float, stop: threading.Event, **fields: Any) -> None:
        """Call and wait.

        Raises:
            LinkDown: it was refused, or not answered.
        """
        answer = self._session.call(operation, **fields)
        if not self._heard.wait(answer.done, deadline, stop):
            raise LinkDown(f"{operation} {what}: was not answered in time")
        if error := answer.exception():
            raise LinkDown(_why(operation, what, error))

    # Desired

    def _watch(self, path: list[str]) -> None:
        """Subscribe to changes of the configuration: to all where there is no such key yet."""
        answer = self._session.listen(
            "SubscribeToConfigurationUpdate",
            Stream(lambda _: self._configuration.ask(), lambda: None),
            key_path=path,
        )

        def done(future: Future[Any]) -> None:
            error = future.exception()
            if error is not None and path:
                self.attempt(lambda: self._watch([]))
                return
            if error is not None:
                self.trouble_with("changes", _why("SubscribeToConfigurationUpdate", "the component", error))
            self._configuration.ask()  # only now: what changes from here on is told

        answer.add_done_callback(done)

    def _get_configuration(self) -> Future[Any]:
        return self._session.call("GetConfiguration", key_path=[_DESIRED])

    def _take_configuration(self, value: Any) -> None:
        """Put the component's configuration into the downlink; None: there is none.

        Raises:
            ValueError: it is nothing that could be put there.
        """
        document = {} if value is None else configuration(value.value)
        text = msgspec.json.encode(document, order="sorted")
        if len(text) > MOST_DESIRED_BYTES:
            raise ValueError(f"{_DESIRED}: expected at most {MOST_DESIRED_BYTES} bytes, got {len(text)}")
        digest = hashlib.sha256(text).hexdigest()[:12]
        if digest != self._kept.digest:
            self._kept.digest = digest
            self._kept.downlink.propose("configuration", digest, document)

    def _get_shadow(self) -> Future[Any]:
        self._asked_at = self._kept.shadow.version
        return self._session.call(
            "GetThingShadow", thing_name=self._kept.thing, shadow_name=self._kept.settings.shadow
        )

    def _take_shadow(self, value: Any) -> None:
        """Learn of the shadow; None: there is none.

        Raises:
            ValueError: it is not what it should be.
        """
        state = State(0, {}, {}) if value is None else shadows.read(value.payload or b"")
        self._kept.shadow.learn(state, self._asked_at)

    def _about_shadow(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/update/documents"):
            try:
                if self._kept.shadow.learn(shadows.read_documents(payload)):
                    return
            except ValueError as error:
                log.warning("shadow.ignored", topic=topic, reason=str(error))
        self._shadow.ask()

    # Commands

    def _subscribe(
        self, part: str, operation: str, topic: str, take: Callable[[str, bytes], None],
        then: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Subscribe to a topic; `then` is called once that is so, or refused."""

        def event(news: Any) -> None:
            message = _message(news, topic)
            if message is not None:
                take(*message)

        def done(future: Future[Any]) -> None:
            if error := future.exception():
                self.trouble_with(part, _why(operation, topic, error))
            if then is not None:
                then()

        stream = Stream(event, lambda: None)
        fields = {"topic": topic} if operation == "SubscribeToTopic" else {"topic_name": topic, "qos": "1"}
        self.attempt(lambda: self._session.listen(operation, stream, **fields).add_done_callback(done))

    def _answer(self, payload: bytes, sent: Callable[[], None]) -> None:
        self._session.call(
            "PublishToIoTCore", topic_name=f"{self._kept.remote}/responses", qos="1", payload=payload
        ).add_done_callback(lambda done: self._answered("PublishToIoTCore", done, sent))

    def _answer_locally(self, payload: bytes, sent: Callable[[], None]) -> None:
        message = self._model.PublishMessage(binary_message=self._model.BinaryMessage(message=payload))
        self._session.call(
            "PublishToTopic", topic=f"{self._kept.remote}/responses", publish_message=message
        ).add_done_callback(lambda done: self._answered("PublishToTopic", done, sent))

    def _answered(self, operation: str, done: Future[Any], sent: Callable[[], None]) -> None:
        sent()
        if error := done.exception():
            self.trouble_with("answers", _why(operation, f"{self._kept.remote}/responses", error))

    def attempt(self, do: Callable[[], object]) -> None:
        """Ask, from a callback: there an error is that of a connection that is ending."""
        try:
            do()
        except Exception as error:  # noqa: BLE001 - of many types
            log.debug("greengrass.not_asked", error=said(error))

    def why(self, part: str, error: BaseException) -> str:
        """What is against a question."""
        if part == "shadow":
            return _why("GetThingShadow", self._prefix, error)
        return _why("GetConfiguration", _DESIRED, error)

    def well(self, part: str) -> None:
        """Something works."""
        self.trouble.pop(part, None)
        self._heard.woken()

    def trouble_with(self, part: str, what: str) -> None:
        """Something does not work."""
        if self.trouble.get(part) != what:
            log.warning("steering.trouble", part=part, reason=what)
        self.trouble[part] = what
        self._heard.woken()


class _Question:
    """Asks for a desired state; what changed while it was asked for is asked for once more."""

    def __init__(
        self, part: str, steering: Steering, get: Callable[[], Future[Any]], take: Callable[[Any], None]
    ) -> None:
        self._part = part
        self._steering = steering
        self._get = get
        self._take = take
        self._lock = threading.Lock()
        self._asking = False
        self._again = False
        self._asked_s = 0.0
        self._well = True
        self.known = False
        """Whether it was answered since the connection was made."""

    def ask(self) -> None:
        """Ask, unless that is under way."""
        with self._lock:
            self._again = self._asking
            if self._asking:
                return
            self._asking = True
            self._asked_s = time.monotonic()
        self._steering.attempt(lambda: self._get().add_done_callback(self._got))

    def ask_again(self, now: float) -> None:
        """Ask, when the last time was long ago, or went wrong."""
        if now - self._asked_s > (_ASK_ANYHOW_S if self._well else _ASK_AGAIN_S):
            self.ask()

    def _got(self, future: Future[Any]) -> None:
        error = future.exception()
        try:
            if error is not None and type(error).__name__ != "ResourceNotFoundError":
                raise ValueError(self._steering.why(self._part, error))
            self._take(None if error is not None else future.result())
        except ValueError as problem:
            self._well = False
            self._steering.trouble_with(self._part, str(problem))
        else:
            self._well = True
            self.known = True
            self._steering.well(self._part)
        with self._lock:
            self._asking = False
            again, self._again = self._again, False
        if again:
            self.ask()


def configuration(value: Any, depth: int = 0) -> Any:
    """A document as it was before it went through the nucleus.

    The nucleus makes floats of whole numbers; a single value comes with its name around it, and a text is
    a document for those who wrote it as one.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    if (
        depth == 0
        and isinstance(value, dict)
        and set(value) == {_DESIRED}
        and isinstance(value[_DESIRED], str)
    ):
        try:
            return msgspec.json.decode(value[_DESIRED] or "{}")
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"{_DESIRED}: expected JSON ({str(error)[:100]})") from error
    if depth > _MOST_DEPTH:
        raise ValueError(f"{_DESIRED}: expected at most {_MOST_DEPTH} levels")
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, dict):
        return {key: configuration(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [configuration(item, depth + 1) for item in value]
    return value


def _why(operation: str, what: str, error: BaseException) -> str:
    if type(error).__name__ == "UnauthorizedError":
        return f"{what}: {denied(operation, what)}"
    return f"{operation} {what}: {said(error)}"


def _given_to(requests: Requests) -> Callable[[str, bytes], None]:
    def give(topic: str, payload: bytes) -> None:
        requests.take(topic, payload, retained=False)

    return give


def _message(news: Any, topic: str) -> tuple[str, bytes] | None:
    """Topic and payload of an event of a subscription to a topic."""
    cloud = getattr(news, "message", None)
    if cloud is not None:
        if cloud.retain:
            log.warning("command.ignored", topic=cloud.topic_name, reason="retained")
            return None
        return cloud.topic_name or topic, cloud.payload or b""
    for kind in ("binary_message", "json_message"):
        local = getattr(news, kind, None)
        if local is not None:
            context = getattr(local, "context", None)
            name = getattr(context, "topic", None) or topic
            body = local.message or b""
            return name, body if isinstance(body, bytes) else msgspec.json.encode(body)
    return None
