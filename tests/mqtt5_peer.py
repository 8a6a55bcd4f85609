"""A far end that speaks MQTT 5 over mutual TLS and answers each message as the test wants.

Source: MQTT 5.0, sections 3.1 to 3.4 and 3.14.
"""

import contextlib
import queue
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mqtt_raw import exactly, packet


@dataclass
class Message:
    """A PUBLISH as it came."""

    connection: int
    topic: str
    payload: bytes
    flags: int
    format: int
    content_type: str
    properties: list[tuple[str, str]]


HANG_UP, SILENCE = -1, -2
"""Answers to a message that are no PUBACK: close the connection, or say nothing."""
TOO_LARGE = -149
"""Answer with a DISCONNECT: packet too large."""


class Peer:
    """Takes connections one after the other on a thread.

    Args:
        keys: as `authority.make` leaves them.

    Attributes:
        answers: what the next messages are answered with: the reason code of a PUBACK, or one of the
            above; success when there is none.
        connack: reason code and properties of the next CONNACK.
        got: the messages that came.
        connects: flags, properties and client's name of each CONNECT.
        subscribed: the filters of each SUBSCRIBE.
        subacks: what is in a filter to what it is answered with: a reason code, or -1 to hang up.
    """

    def __init__(self, keys: Path) -> None:
        self.answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.connack: tuple[int, bytes] = (0, b"")
        self.got: list[Message] = []
        self.connects: list[tuple[int, bytes, str]] = []
        self.subscribed: list[list[str]] = []
        self.subacks: dict[str, int] = {}
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=keys / "ca.pem")
        self._context.load_cert_chain(keys / "server.pem", keys / "server.key")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._live: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def hang_up(self) -> None:
        """Close the connection that there is."""
        live = self._live
        if live is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(live, socket.SHUT_RDWR)  # not the one of SSLSocket, which forgets TLS

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError, struct.error), plain:
                plain.settimeout(30)
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    self._live = connection
                    self._converse(connection)
            self._live = None

    def _converse(self, connection: ssl.SSLSocket) -> None:
        while True:
            first, body = _packet(connection)
            kind = first & 0xF0
            if kind == 0x10:
                flags = body[7]
                length, at = _varint(body, 10)
                name = body[at + length + 2 :].decode(errors="replace")
                self.connects.append((flags, body[at : at + length], name))
                code, properties = self.connack
                connection.sendall(packet(0x20, bytes([0, code, len(properties)]) + properties))
                if code:
                    return
            elif kind == 0xC0:
                connection.sendall(b"\xd0\0")
            elif kind == 0x80:
                codes = self._subscribe(body)
                if -1 in codes:
                    return
                connection.sendall(packet(0x90, body[:2] + b"\0" + bytes(codes)))
            elif kind == 0xE0 or (kind == 0x30 and not self._answer(connection, first, body)):
                return

    def _subscribe(self, body: bytes) -> list[int]:
        length, at = _varint(body, 2)
        at += length
        filters = []
        while at < len(body):
            name, at = _text(body, at)
            filters.append(name)
            at += 1
        self.subscribed.append(filters)
        return [next((code for part, code in self.subacks.items() if part in name), 1) for name in filters]

    def _answer(self, connection: ssl.SSLSocket, first: int, body: bytes) -> bool:
        size = struct.unpack_from(">H", body)[0]
        topic, identifier = body[2 : 2 + size].decode(), body[2 + size : 4 + size]
        length, at = _varint(body, 4 + size)
        form, content_type, pairs = _properties(body[at : at + length])
        self.got.append(
            Message(len(self.connects), topic, body[at + length :], first & 0xF, form, content_type, pairs)
        )
        answer = 0 if self.answers.empty() else self.answers.get()
        if answer >= 0:
            connection.sendall(packet(0x40, identifier + bytes([answer, 0])))
        elif answer == TOO_LARGE:
            connection.sendall(packet(0xE0, bytes([149, 0])))
            return False
        return answer != HANG_UP


def _packet(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    first = exactly(connection, 1)[0]
    length = shift = 0
    while True:
        byte = exactly(connection, 1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return first, exactly(connection, length)


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = body[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


def _properties(content: bytes) -> tuple[int, str, list[tuple[str, str]]]:
    """Payload format, content type and user properties of a PUBLISH; others are an error."""
    form, content_type, pairs, at = -1, "", [], 0
    while at < len(content):
        name, at = content[at], at + 1
        if name == 1:
            form, at = content[at], at + 1
        elif name == 3:
            content_type, at = _text(content, at)
        elif name == 38:
            key, at = _text(content, at)
            value, at = _text(content, at)
            pairs.append((key, value))
        else:
            raise AssertionError(f"property {name}")
    return form, content_type, pairs


def _text(content: bytes, at: int) -> tuple[str, int]:
    size = struct.unpack_from(">H", content, at)[0]
    return content[at + 2 : at + 2 + size].decode(), at + 2 + size
