"""The Greengrass nucleus' inter-process communication, on AWS's own client (awsiotsdk).

The client's generated part of one call has futures, and so deadlines; its second version has none.

Source: AWS IoT Greengrass developer guide, Use the AWS IoT Device SDK to communicate with the nucleus.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import structlog

from skerry.errors import ConfigError, LinkDown

SOCKET = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
TOKEN = "SVCUID"  # noqa: S105 - the name of a variable
THING = "AWS_IOT_THING_NAME"
_STOP_S = 1.0
_LONGEST = 300
_SERVICES = {
    "PublishToIoTCore": "aws.greengrass.ipc.mqttproxy",
    "SubscribeToIoTCore": "aws.greengrass.ipc.mqttproxy",
    "PublishToTopic": "aws.greengrass.ipc.pubsub",
    "SubscribeToTopic": "aws.greengrass.ipc.pubsub",
    "GetThingShadow": "aws.greengrass.ShadowManager",
    "UpdateThingShadow": "aws.greengrass.ShadowManager",
}
"""What a recipe's accessControl names the operations' service."""

log = structlog.get_logger()


class Nucleus:
    """Where the nucleus is, and what it knows us by: it tells each component in its environment.

    Attributes:
        socket: the path of its socket.
        thing: the name of the core device's thing; "" where it does not tell.
        token: never to be shown.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Look.

        Raises:
            ConfigError: this process is no component.
        """
        absent = [name for name in (SOCKET, TOKEN) if not environment.get(name)]
        if absent:
            raise ConfigError(
                f"link.kind: greengrass: expected {' and '.join(absent)} in the environment, got nothing "
                "(the nucleus sets them for a component that it runs; a container must be handed them on)"
            )
        self.socket = environment[SOCKET]
        self.token = environment[TOKEN]
        self.thing = environment.get(THING, "")


class Heard:
    """What the client has told of its connection. Written on its thread, read on ours.

    Attributes:
        changed: notified on every change.
        lost: why the connection is no more; "" as long as it may be.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.lost = ""

    def lose(self, why: str) -> None:
        """The connection is no more; the first reason counts."""
        with self.changed:
            self.lost = self.lost or why
            self.changed.notify_all()

    def woken(self, _future: object = None) -> None:
        """Something has come."""
        with self.changed:
            self.changed.notify_all()

    def wait(self, fact: Callable[[], bool], deadline: float, stop: threading.Event) -> bool:
        """Wait until something is so.

        Raises:
            LinkDown: it cannot be any more, or the process stops.
        """
        with self.changed:
            while not fact():
                if self.lost:
                    raise LinkDown(self.lost)
                if stop.is_set():
                    raise LinkDown("stopping")
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self.changed.wait(min(left, 0.1))
            return True

    # What the client calls

    def on_connect(self) -> None:
        self.woken()

    def on_disconnect(self, reason: Exception | None) -> None:
        self.lose(f"connection lost: {said(reason)}" if reason is not None else "closed")

    def on_error(self, error: Exception) -> bool:
        self.lose(f"the nucleus speaks of an error: {type(error).__name__}")
        return True

    def on_ping(self, _headers: object, _payload: bytes) -> None:
        """Nothing is to be done."""


class Ipc:
    """The package, with one thread for all connections of a link.

    Raises:
        ConfigError: it is not installed.
    """

    def __init__(self) -> None:
        try:
            self._io: Any = importlib.import_module("awscrt.io")
            self._rpc: Any = importlib.import_module("awsiot.eventstreamrpc")
            self._client: Any = importlib.import_module("awsiot.greengrasscoreipc.client")
            self.model: Any = importlib.import_module("awsiot.greengrasscoreipc.model")
        except ImportError as error:
            raise ConfigError(
                f"link.kind: greengrass: expected the package awsiotsdk, got: {error} "
                "(pip install 'skerry[aws]')"
            ) from error
        loops = self._io.EventLoopGroup(1)
        self._bootstrap = self._io.ClientBootstrap(loops, self._io.DefaultHostResolver(loops))

    def connect(self, nucleus: Nucleus, heard: Heard, deadline: float, stop: threading.Event) -> Session:
        """Connect and show the token.

        The package's own `connect` would leave a connection behind, for ever, with each attempt that takes
        too long.

        Raises:
            LinkDown: not now.
        """
        sockets = self._io.SocketOptions()
        sockets.domain = self._io.SocketDomain.Local
        connection = self._rpc.Connection(
            host_name=nucleus.socket,
            port=0,
            bootstrap=self._bootstrap,
            socket_options=sockets,
            connect_message_amender=self._rpc.MessageAmendment.create_static_authtoken_amender(nucleus.token),
        )
        session = Session(self._client.GreengrassCoreIPCClient(connection), self.model, heard)
        try:
            connected = connection.connect(heard)
            connected.add_done_callback(heard.woken)
            if not heard.wait(connected.done, deadline, stop):
                raise LinkDown("did not connect in time (is the nucleus well?)")
            if error := connected.exception():
                raise LinkDown(_refused(error))
        except LinkDown:
            session.close()
            raise
        except Exception as error:  # of many types
            session.close()
            raise LinkDown(_refused(error)) from error
        return session


class Session:
    """One connection. Calls may come from any thread, and raise what the client raises."""

    def __init__(self, client: Any, model: Any, heard: Heard) -> None:
        self._client = client
        self._model = model
        self._heard = heard

    def call(self, operation: str, **fields: Any) -> Future[Any]:
        """Ask; the future ends with the answer, or what the nucleus says against it."""
        return self._activate(self._new(operation)(), operation, fields)

    def listen(self, operation: str, stream: Stream, **fields: Any) -> Future[Any]:
        """Subscribe; the future ends when it is accepted, events go to `stream`."""
        return self._activate(self._new(operation)(stream), operation, fields)

    def close(self) -> None:
        """Let go, within a second."""
        closed = self._client.close()
        with contextlib.suppress(Exception):  # however it ended, it has; or it ends by itself
            closed.result(_STOP_S)

    def _new(self, operation: str) -> Any:
        snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation.replace("IoT", "Iot")).lower()
        return getattr(self._client, f"new_{snake}")

    def _activate(self, made: Any, operation: str, fields: Mapping[str, Any]) -> Future[Any]:
        made.activate(getattr(self._model, f"{operation}Request")(**fields))
        answer: Future[Any] = made.get_response()
        answer.add_done_callback(self._heard.woken)
        return answer


class Stream:
    """Events of a subscription. The client calls it on its own thread.

    Args:
        event: takes each.
        ended: called when there are no more, though the connection may be well.
    """

    def __init__(self, event: Callable[[Any], None], ended: Callable[[], None]) -> None:
        self._event = event
        self._ended = ended

    def on_stream_event(self, event: Any) -> None:
        self._event(event)

    def on_stream_error(self, error: Exception) -> bool:
        """One event could not be read: the next may be."""
        log.warning("greengrass.event_ignored", reason=type(error).__name__)
        return False

    def on_stream_closed(self) -> None:
        self._ended()


def said(error: BaseException) -> str:
    """What an error says, without what was in a message."""
    name = type(error).__name__
    message = getattr(error, "message", None)
    if isinstance(message, str) and message:
        return f"{name}: {message[:_LONGEST]}"
    if name == "DeserializeError":  # has the whole message in it
        return name
    return f"{name}: {str(error)[:_LONGEST]}" if str(error) else name


def denied(operation: str, resource: str) -> str:
    """What to add to the recipe when the nucleus says no."""
    service = _SERVICES.get(operation, "the service")
    return (
        f"not authorized (allow aws.greengrass#{operation} for {resource} below {service} "
        "in accessControl of the component's configuration)"
    )


def _refused(error: BaseException) -> str:
    if type(error).__name__ == "AccessDeniedError" or getattr(error, "name", "") == "AWS_IO_SOCKET_CLOSED":
        # The client says only that it was hung up on, where that was quicker than the answer.
        return (
            f"the nucleus refuses {TOKEN}, or hung up (it is good for one run of the component: restart it)"
        )
    return f"cannot connect: {said(error)} (check {SOCKET}: is the socket there, and ours to use?)"
