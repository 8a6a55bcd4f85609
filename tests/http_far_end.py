"""An HTTP/1.1 server that takes CloudEvents on the loopback interface, and can misbehave."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import zstandard

from skerry.messages import Event


class Got(NamedTuple):
    """A request that was answered with 2xx, or would have been."""

    path: str
    headers: dict[str, str]
    raw: list[bytes]

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]


class Say(NamedTuple):
    """What is answered instead of the truth.

    Attributes:
        status: of the answer; 0 hangs up without one.
        headers: more of them.
        body: of the answer.
        take: whether the events are kept.
        torn: the body is announced longer than it is.
    """

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    take: bool = False
    torn: bool = False


class HttpFarEnd:
    """Takes events by POST, single or batched.

    Args:
        context: of a server with TLS.

    Attributes:
        got: what was taken, repeats too.
        seen: every request's headers, taken or not.
        said: answers to give next, before it does its work again.
        refuse: the status for an event, or 0.
        token: the bearer token that is asked for, or "".
        most_bytes: of a body; beyond it 413.
        frozen: while set, nobody gets an answer.
        silent: hangs up after each answer, and does not announce it.
        final: announces with each answer that it hangs up.
        reset: this many requests are reset while their body arrives.
        connections: how many there were.
        strangers: how many failed their handshake.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.got: list[Got] = []
        self.seen: list[dict[str, str]] = []
        self.said: deque[Say] = deque()
        self.refuse: Callable[[Event], int] = lambda _: 0
        self.token = ""
        self.most_bytes = 16 * 1024 * 1024
        self.frozen = threading.Event()
        self.silent = self.final = False
        self.reset = 0
        self.connections = self.strangers = 0
        self.context = context
        self.closing = threading.Event()
        self.open: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        self.closing.clear()
        server = self._server = _Server(("127.0.0.1", self.port), type("Here", (_Handler,), {"far": self}))
        server.far = self
        self.port = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """As a kill: nothing listens, and every connection breaks."""
        server, thread, self._server = self._server, self._thread, None
        if server is None or thread is None:
            return
        self.closing.set()
        server.shutdown()
        server.socket.close()
        thread.join(5)
        self.hang_up()

    def hang_up(self) -> None:
        """Break the connections that there are."""
        with self.lock:
            for sock in self.open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def raw(self) -> list[bytes]:
        return [raw for got in list(self.got) for raw in got.raw]

    @property
    def arrived(self) -> list[Event]:
        return [msgspec.json.decode(raw, type=Event) for raw in self.raw]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    far: HttpFarEnd

    def finish_request(self, request: Any, client_address: Any) -> None:
        far = self.far
        far.connections += 1
        if far.context is not None:
            request = far.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with far.lock:
            far.open.add(request)
        try:
            if far.context is not None and not self._shake(request):
                return
            super().finish_request(request, client_address)
        finally:
            with far.lock:
                far.open.discard(request)
            request.close()

    def _shake(self, request: ssl.SSLSocket) -> bool:
        try:
            request.do_handshake()
        except OSError:
            self.far.strangers += 1
            request.settimeout(2)
            with contextlib.suppress(OSError):  # what is unread would reset it, and what we said be lost
                socket.socket.shutdown(request, socket.SHUT_WR)
                while socket.socket.recv(request, 65536):
                    pass
            return False
        return True

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """A client that hangs up is none."""


class _Handler(BaseHTTPRequestHandler):
    far: ClassVar[HttpFarEnd]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        far = self.far
        headers = {name.lower(): value for name, value in self.headers.items()}
        far.seen.append(headers)
        if far.reset:
            far.reset -= 1
            self._reset()
            return
        body = self.rfile.read(int(headers["content-length"]))
        while far.frozen.is_set() and not far.closing.wait(0.01):
            pass
        if far.closing.is_set():
            self.close_connection = True
            return
        say = far.said.popleft() if far.said else self._truth(headers, body)
        if say.take:
            self._take(headers, body)
        self._answer(say)

    def _truth(self, headers: dict[str, str], body: bytes) -> Say:
        far = self.far
        if far.token and headers.get("authorization") != f"Bearer {far.token}":
            return Say(401, (("WWW-Authenticate", "Bearer"),), f"got {headers.get('authorization')}".encode())
        if len(body) > far.most_bytes:
            return Say(413)
        for raw in _events(headers, body):
            if status := far.refuse(msgspec.json.decode(raw, type=Event)):
                return Say(status, (), b"not such a one")
        return Say(202, (), b"thanks", take=True)

    def _take(self, headers: dict[str, str], body: bytes) -> None:
        self.far.got.append(Got(self.path, headers, _events(headers, body)))

    def _answer(self, say: Say) -> None:
        far = self.far
        if not say.status:
            self.close_connection = True
            return
        self.send_response(say.status)
        for name, value in say.headers:
            self.send_header(name, value)
        if say.status != 204:
            self.send_header("Content-Length", str(len(say.body) + (10 if say.torn else 0)))
        if far.final:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(say.body)
        if far.silent or far.final or say.torn:
            self.close_connection = True

    def _reset(self) -> None:
        self.rfile.read(10)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def _events(headers: dict[str, str], body: bytes) -> list[bytes]:
    """The bytes of each event, by what the headers say and nothing else."""
    match headers.get("content-encoding"):
        case "gzip":
            body = gzip.decompress(body)
        case "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        case None:
            pass
        case other:
            raise AssertionError(other)
    json.loads(body)
    match headers["content-type"]:
        case "application/cloudevents+json":
            return [body]
        case "application/cloudevents-batch+json":
            return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
        case other:
            raise AssertionError(other)
