"""The nucleus of Greengrass, as its components see it: event-stream RPC on a Unix socket.

It takes tokens, keeps to an accessControl table, has local topics, IoT Core's topics, a configuration and
shadows; and it can freeze, hang up, be slow, be offline, and be replaced.

Source: the event-stream RPC of AWS's SDKs (awscrt, eventstream/rpc): frames with a CRC-32 of the prelude
and one of the whole; the operations as in the AWS IoT Greengrass developer guide.
"""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import re
import shutil
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from shadow_service import Refused, ShadowService

_MESSAGE, _ERROR, _PING, _PONG, _CONNECT, _ACK = range(6)
_ACCEPTED, _END = 1, 2
_SPOOL_BYTES = 2_621_440
_PREFIX = "aws.greengrass#"
Frame = tuple[dict[str, Any], bytes]


@dataclass
class Published:
    """What IoT Core got."""

    topic: str
    payload: bytes
    retain: bool
    fields: dict[str, Any]


@dataclass
class _Subscription:
    """A stream that gets events."""

    connection: _Connection
    stream: int
    operation: str
    what: Any


@dataclass
class _Says(Exception):  # noqa: N818 - what the nucleus says
    model: str
    fields: dict[str, Any] = field(default_factory=dict)


class Nucleus:
    """A nucleus, from `with` to its end.

    Attributes:
        allow: operation to the resources that accessControl allows, `*` for any; None: everything.
        unsupported: operations that it does not know, as lite says it.
        tells_status: whether it tells of its connection to IoT Core.
        cloud: what IoT Core got.
        spool: what waits for IoT Core, in memory.
        echoes: whether IoT Core sends to those who subscribed.
        refusals: errors, as model and message, that the next publishes to IoT Core get.
        cut: hang up on the next publish: before or after taking it, or in the middle of the answer; or
            answer with a checksum that is wrong.
        slow_s: before a publish is answered.
        max_packet: a larger frame makes it hang up, as lite does at 10,000; 0: any.
        configuration: of the component.
        shadows: by name.
        asked: operations, as they came.
        after_refusal: operation to what is called once, right after it was refused.
        meanwhile: called once, when the configuration was looked up and not sent yet.
        states: told by UpdateState.
        local: messages of local topics: topic and payload.
        errors: what was wrong with what came.
    """

    def __init__(self) -> None:
        self.token = "s3cret-of-the-component"
        self.thing = "gate-3"
        self.allow: dict[str, list[str]] | None = None
        self.unsupported: set[str] = set()
        self.tells_status = True
        self.cloud: list[Published] = []
        self.spool: list[Published] = []
        self.echoes = True
        self.refusals: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self.cut: Literal["", "before", "after", "half", "corrupt"] = ""
        self.slow_s = 0.0
        self.max_packet = 0
        self.configuration: dict[str, Any] = {}
        self.after_refusal: dict[str, Callable[[], None]] = {}
        self.meanwhile: Callable[[], None] | None = None
        self.shadows: dict[str, ShadowService] = {}
        self.asked: list[str] = []
        self.states: list[str] = []
        self.local: list[tuple[str, bytes]] = []
        self.errors: list[str] = []
        self.connects = 0
        self._online = True
        self._lock = threading.RLock()
        self._running = threading.Event()
        self._running.set()
        self._subscriptions: list[_Subscription] = []
        self._connections: set[_Connection] = set()
        # A path of a Unix socket has 107 bytes; those of pytest are longer.
        self._folder = Path(tempfile.mkdtemp(prefix="gg-"))
        self.socket = self._folder / "ipc.socket"
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """End, with its folder."""
        self.thaw()
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def environment(self) -> dict[str, str]:
        """What it tells a component that it runs."""
        return {
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(self.socket),
            "SVCUID": self.token,
            "AWS_IOT_THING_NAME": self.thing,
        }

    def start(self) -> None:
        """Listen."""
        self.socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(16)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """End, as by a kill: what waited for IoT Core is gone."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            self.spool.clear()
            self._subscriptions.clear()
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()

    def freeze(self) -> None:
        """Read nothing, answer nothing; connections stay."""
        self._running.clear()

    def thaw(self) -> None:
        self._running.set()

    def wait(self) -> None:
        """Until it is not frozen."""
        self._running.wait()

    # The world outside

    @property
    def online(self) -> bool:
        """Whether it is connected to IoT Core."""
        return self._online

    @online.setter
    def online(self, online: bool) -> None:
        with self._lock:
            self._online = online
            waiting, self.spool[:] = (list(self.spool), []) if online else ([], self.spool)
            for item in waiting:
                self._deliver(item)
            self._tell_status()

    def configure(self, value: dict[str, Any]) -> None:
        """As a deployment does."""
        with self._lock:
            self.configuration.update(value)
            for key in value:
                self._tell_configuration([key])

    def desire(self, name: str, desired: Any) -> None:
        """As an operator does, with the shadow manager in between."""
        with self._lock:
            service = self.shadows.setdefault(name, ShadowService())
            _, told = service.update({"state": {"desired": desired}})
            self._say_locally(f"$aws/things/{self.thing}/shadow/name/{name}/update/documents", told)

    def send(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """A message of IoT Core to those who subscribed through the nucleus."""
        message = {"topicName": topic, "payload": _base64(payload), "retain": retain}
        self._tell("SubscribeToIoTCore", topic, "IoTCoreMessage", {"message": message})

    def say(self, topic: str, payload: bytes) -> None:
        """A message of another component."""
        self.local.append((topic, payload))
        message = {"message": _base64(payload), "context": {"topic": topic}}
        self._tell("SubscribeToTopic", topic, "SubscriptionResponseMessage", {"binaryMessage": message})

    # Connections

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            self.wait()
            connection = _Connection(self, connected)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=connection.serve, daemon=True).start()

    def forget(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
            self._subscriptions = [s for s in self._subscriptions if s.connection is not connection]

    def end(self, connection: _Connection, stream: int) -> None:
        """A component unsubscribes."""
        with self._lock:
            self._subscriptions = [
                s for s in self._subscriptions if (s.connection, s.stream) != (connection, stream)
            ]

    def operate(self, connection: _Connection, stream: int, operation: str, request: dict[str, Any]) -> None:
        """Do what was asked, and answer."""
        self.asked.append(operation)
        try:
            if operation in self.unsupported:
                raise _Says("ServiceError", {"message": f"{operation} is not supported"})
            handler = getattr(self, f"_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', operation).lower()}")
            answer = handler(connection, stream, request)
        except _Says as says:
            connection.send(stream, says.model, says.fields, kind=_ERROR, flags=_END)
            self.after_refusal.pop(operation, lambda: None)()
            return
        if operation.startswith("SubscribeTo"):
            connection.send(stream, f"{operation}Response", answer)
            self._after_subscribing(connection, stream, operation)
        else:
            connection.send(stream, f"{operation}Response", answer, flags=_END)

    # Operations, by their names

    def _publish_to_io_tcore(
        self, connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        topic = request["topicName"]
        self._authorize("PublishToIoTCore", topic)
        payload = base64.b64decode(request.get("payload", ""))
        time.sleep(self.slow_s)
        if not self.refusals.empty():
            model, message = self.refusals.get()
            raise _Says(model, {"message": message})
        cut, self.cut = self.cut, ""
        if cut == "before":
            connection.hang_up()
        item = Published(topic, payload, bool(request.get("retain")), request)
        with self._lock:
            if cut == "before":
                return {}
            if self._online:
                self._deliver(item)
            else:
                self.spool.append(item)
                while sum(len(waiting.payload) for waiting in self.spool) > _SPOOL_BYTES:
                    self.spool.pop(0)
        if cut == "after":
            connection.hang_up()
        connection.spoil = cut if cut in {"half", "corrupt"} else ""
        return {}

    def _subscribe_to_io_tcore(
        self, connection: _Connection, stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        return self._subscribe("SubscribeToIoTCore", connection, stream, request["topicName"])

    def _subscribe_to_io_tcore_connection_status(
        self, connection: _Connection, stream: int, _request: dict[str, Any]
    ) -> dict[str, Any]:
        if not self.tells_status:
            raise _Says("ServiceError", {"message": "unknown operation"})
        self._add("SubscribeToIoTCoreConnectionStatus", connection, stream, None)
        return {}

    def _publish_to_topic(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        topic, message = request["topic"], request["publishMessage"]
        self._authorize("PublishToTopic", topic)
        if "binaryMessage" in message:
            payload = base64.b64decode(message["binaryMessage"]["message"])
        else:
            payload = json.dumps(message["jsonMessage"]["message"]).encode()
        self.say(topic, payload)
        return {}

    def _subscribe_to_topic(
        self, connection: _Connection, stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        return self._subscribe("SubscribeToTopic", connection, stream, request["topic"])

    def _get_configuration(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        value: Any = self.configuration
        path = request.get("keyPath") or []
        for key in path:
            if key not in value:
                raise _Says("ResourceNotFoundError", {"message": "Key not found"})
            value = value[key]
        # As the first nucleus does: whole numbers become floats, a single value has its name around it.
        value = _floats(value if isinstance(value, dict) else {path[-1]: value})
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return {"componentName": "com.example.Skerry", "value": value}

    def _update_configuration(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        if request.get("keyPath"):
            raise _Says("InvalidArgumentsError", {"message": "not here"})
        self.configure(request["valueToMerge"])
        return {}

    def _subscribe_to_configuration_update(
        self, connection: _Connection, stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        path = request.get("keyPath") or []
        if path and path[0] not in self.configuration:
            raise _Says("ResourceNotFoundError", {"message": "Key not found"})
        self._add("SubscribeToConfigurationUpdate", connection, stream, path)
        return {}

    def _get_thing_shadow(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        self._authorize(
            "GetThingShadow", f"$aws/things/{request['thingName']}/shadow/name/{request['shadowName']}"
        )
        try:
            found = self.shadows.setdefault(request["shadowName"], ShadowService()).get()
        except Refused as refused:
            raise _Says("ResourceNotFoundError", {"message": str(refused)}) from refused
        return {"payload": _base64(json.dumps(found).encode())}

    def _update_thing_shadow(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        name = request["shadowName"]
        prefix = f"$aws/things/{request['thingName']}/shadow/name/{name}"
        self._authorize("UpdateThingShadow", prefix)
        with self._lock:
            try:
                answer, told = self.shadows.setdefault(name, ShadowService()).update(
                    json.loads(base64.b64decode(request["payload"]))
                )
            except Refused as refused:
                raise _Says("InvalidArgumentsError", {"message": str(refused)}) from refused
            self._say_locally(f"{prefix}/update/documents", told)
        return {"payload": _base64(json.dumps(answer).encode())}

    def _update_state(
        self, _connection: _Connection, _stream: int, request: dict[str, Any]
    ) -> dict[str, Any]:
        self.states.append(request["state"])
        return {}

    # Help

    def _subscribe(self, operation: str, connection: _Connection, stream: int, topic: str) -> dict[str, Any]:
        self._authorize(operation, topic)
        self._add(operation, connection, stream, topic)
        return {"topicName": topic} if operation == "SubscribeToTopic" else {}

    def _add(self, operation: str, connection: _Connection, stream: int, what: Any) -> None:
        with self._lock:
            self._subscriptions.append(_Subscription(connection, stream, operation, what))

    def _after_subscribing(self, connection: _Connection, stream: int, operation: str) -> None:
        if operation == "SubscribeToIoTCoreConnectionStatus":
            connection.send(stream, "IoTCoreConnectionStatusEvent", self._status())

    def _authorize(self, operation: str, resource: str) -> None:
        if self.allow is None:
            return
        for allowed in self.allow.get(operation, []):
            pattern = re.escape(allowed).replace(r"\*", ".*").replace(r"\+", "[^/]+")
            if allowed == resource or re.fullmatch(pattern, resource):
                return
        raise _Says("UnauthorizedError", {"message": "Not Authorized"})

    def _deliver(self, item: Published) -> None:
        self.cloud.append(item)
        if self.echoes:
            self.send(item.topic, item.payload)

    def _say_locally(self, topic: str, message: dict[str, Any]) -> None:
        self.say(topic, json.dumps(message).encode())

    def _status(self) -> dict[str, Any]:
        return {"connectionStatusEvent": {"status": "CONNECTED" if self._online else "DISCONNECTED"}}

    def _tell_status(self) -> None:
        for subscription in self._of("SubscribeToIoTCoreConnectionStatus"):
            subscription.connection.send(subscription.stream, "IoTCoreConnectionStatusEvent", self._status())

    def _tell_configuration(self, path: list[str]) -> None:
        event = {"configurationUpdateEvent": {"componentName": "com.example.Skerry", "keyPath": path}}
        for subscription in self._of("SubscribeToConfigurationUpdate"):
            if subscription.what == path[: len(subscription.what)]:
                subscription.connection.send(subscription.stream, "ConfigurationUpdateEvents", event)

    def _tell(self, operation: str, topic: str, model: str, event: dict[str, Any]) -> None:
        for subscription in self._of(operation):
            pattern = re.escape(subscription.what).replace(r"\+", "[^/]+").replace(r"\#", ".*")
            if re.fullmatch(pattern, topic):
                subscription.connection.send(subscription.stream, model, event)

    def _of(self, operation: str) -> list[_Subscription]:
        with self._lock:
            return [s for s in self._subscriptions if s.operation == operation]


class _Connection:
    """One component's."""

    def __init__(self, nucleus: Nucleus, connected: socket.socket) -> None:
        self._nucleus = nucleus
        self._socket = connected
        self.spoil = ""
        self._lock = threading.Lock()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError), self._socket:
            headers, payload = self._read()
            accepted = json.loads(payload).get("authToken") == self._nucleus.token
            if headers[":message-type"] != _CONNECT:
                self._nucleus.errors.append("no connect first")
            self._nucleus.connects += 1
            self._write({":message-type": _ACK, ":message-flags": _ACCEPTED * accepted, ":stream-id": 0}, b"")
            while accepted:
                self._take(*self._read())
        self._nucleus.forget(self)

    def send(
        self, stream: int, model: str, message: dict[str, Any], *, kind: int = _MESSAGE, flags: int = 0
    ) -> None:
        """An answer or an event."""
        self._nucleus.wait()
        headers = {
            ":message-type": kind, ":message-flags": flags, ":stream-id": stream,
            ":content-type": "application/json", "service-model-type": f"{_PREFIX}{model}",
        }  # fmt: skip
        with contextlib.suppress(OSError):
            self._write(headers, json.dumps(message).encode())

    def _take(self, headers: dict[str, Any], payload: bytes) -> None:
        kind, stream = headers[":message-type"], headers[":stream-id"]
        if kind == _PING:
            self._write({":message-type": _PONG, ":message-flags": 0, ":stream-id": 0}, payload)
        elif headers.get(":message-flags", 0) & _END:
            self._nucleus.end(self, stream)
        elif "operation" in headers:
            operation = headers["operation"].removeprefix(_PREFIX)
            self._nucleus.operate(self, stream, operation, json.loads(payload or b"{}"))

    def _read(self) -> Frame:
        prelude = self._exactly(12)
        total, size, crc = struct.unpack(">III", prelude)
        body = self._exactly(total - 12)
        self._nucleus.wait()
        if 0 < self._nucleus.max_packet < total:
            raise EOFError
        if (
            zlib.crc32(prelude[:8]) != crc
            or zlib.crc32(prelude + body[:-4]) != struct.unpack(">I", body[-4:])[0]
        ):
            self._nucleus.errors.append("a checksum is wrong")
        return _headers(body[:size]), body[size:-4]

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self._socket.recv(size - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def _write(self, headers: dict[str, Any], payload: bytes) -> None:
        encoded = b"".join(_header(name, value) for name, value in headers.items())
        prelude = struct.pack(">II", 16 + len(encoded) + len(payload), len(encoded))
        message = prelude + struct.pack(">I", zlib.crc32(prelude)) + encoded + payload
        frame = message + struct.pack(">I", zlib.crc32(message))
        spoil, self.spoil = self.spoil, ""
        with self._lock:
            if spoil == "corrupt":
                frame = frame[:-1] + bytes([frame[-1] ^ 1])
            self._socket.sendall(frame[: len(frame) // 2] if spoil == "half" else frame)
        if spoil == "half":
            self.hang_up()


def _header(name: str, value: int | str) -> bytes:
    start = bytes([len(name)]) + name.encode()
    if isinstance(value, int):
        return start + b"\x04" + struct.pack(">i", value)
    return start + b"\x07" + struct.pack(">H", len(value)) + value.encode()


def _headers(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at = 0
    while at < len(content):
        size = content[at]
        name, at = content[at + 1 : at + 1 + size].decode(), at + 1 + size
        kind, at = content[at], at + 1
        if kind == 4:
            found[name], at = struct.unpack_from(">i", content, at)[0], at + 4
        elif kind in {6, 7}:
            size = struct.unpack_from(">H", content, at)[0]
            found[name], at = content[at + 2 : at + 2 + size].decode(), at + 2 + size
        else:
            raise AssertionError(f"header {name} of type {kind}")
    return found


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
