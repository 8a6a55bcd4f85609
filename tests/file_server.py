"""An HTTP(S) server of one folder on the loopback interface, with ranges, that can misbehave."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


@dataclass
class Manner:
    """How the next answers are.

    Attributes:
        ranges: whether ranges are known.
        cut: bytes of a body after which the connection is reset.
        status: said instead of the truth, where it is not 0.
        headers: in place of our own, or beside them; a callable gets the true value.
        pause_s: waited before each byte of the body.
        more: bytes sent after the body, where its length is not announced.
        chunked: the length is not announced.
        raw: sent in place of any answer, so many times.
        repeat: how many.
    """

    ranges: bool = True
    cut: int | None = None
    status: int = 0
    headers: dict[str, str | Callable[[str], str]] = field(default_factory=dict)
    pause_s: float = 0.0
    more: bytes = b""
    chunked: bool = False
    raw: bytes = b""
    repeat: int = 1


class FileServer:
    """Serves a folder.

    Args:
        folder: what is in it.
        context: of a server with TLS.

    Attributes:
        folder: as given.
        manner: may be exchanged at any time.
        asked: path and first byte of each request.
        headers: of each request.
    """

    def __init__(self, folder: Path, context: ssl.SSLContext | None = None) -> None:
        self.folder = folder
        self.manner = Manner()
        self.asked: list[tuple[str, int]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, folder)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' * (context is not None)}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def _answer(self, request: BaseHTTPRequestHandler, folder: Path) -> None:
        manner = self.manner
        wanted = re.fullmatch(r"bytes=([0-9]+)-", request.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.asked.append((request.path, start))
        self.headers.append(dict(request.headers))
        if manner.raw:
            request.close_connection = True
            with contextlib.suppress(OSError):
                for _ in range(manner.repeat):
                    request.wfile.write(manner.raw)
            return
        if self._refused(request):
            request.close_connection = True
            return
        path = self._path(folder, request.path)
        if not path.is_file() and not manner.status:
            request.send_error(404)
            return
        content = path.read_bytes() if path.is_file() else b""
        part = content[start:] if manner.ranges else content
        headers = {"Content-Length": str(len(part))}
        if wanted and manner.ranges:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        for name, value in manner.headers.items():
            headers[name] = value(headers.get(name, "")) if callable(value) else value
        if manner.chunked:
            headers.pop("Content-Length")
            headers["Transfer-Encoding"] = "chunked"
        request.send_response(manner.status or (206 if wanted and manner.ranges else 200))
        for name, value in headers.items():
            request.send_header(name, str(value))
        request.end_headers()
        with contextlib.suppress(OSError):
            self._send(request, part + manner.more, manner)
        request.close_connection = True

    def _refused(self, request: BaseHTTPRequestHandler) -> bool:
        """Whether it was answered here already, as who asks may not ask."""
        return False

    def _path(self, folder: Path, asked: str) -> Path:
        """The file that is asked for."""
        return folder / asked.lstrip("/").partition("?")[0]

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, manner: Manner) -> None:
        out = request.wfile
        if manner.cut is not None:
            out.write(body[: manner.cut])
            out.flush()
            reset = struct.pack("ii", 1, 0)
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        elif manner.pause_s:
            for n in range(len(body)):
                out.write(body[n : n + 1])
                out.flush()
                time.sleep(manner.pause_s)
        elif manner.chunked:
            for at in range(0, len(body), 1000):
                piece = body[at : at + 1000]
                out.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            out.write(b"0\r\n\r\n")
        else:
            out.write(body)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
