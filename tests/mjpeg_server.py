"""A camera that serves Motion JPEG over HTTP on the loopback interface, and can misbehave."""

from __future__ import annotations

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Self

from footage import jpeg

BOUNDARY = "frame"


class MjpegCamera:
    """Serves numbered pictures; the numbers go on from connection to connection.

    Args:
        port: 0 takes a free one.
        fps: pictures a second.
        login: `user:password` that is asked for, or nothing.
    """

    def __init__(self, port: int = 0, fps: float = 30.0, login: str = "") -> None:
        self.fps = fps
        self.login = login
        self.frozen = threading.Event()
        self.dropped = threading.Event()
        self.garbage = threading.Event()
        self.sent = 0
        self.connections = 0
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"camera": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def stream(self, write) -> None:
        """Send pictures until told otherwise."""
        self.connections += 1
        while not self._closing.wait(1 / self.fps):
            if self.dropped.is_set():
                self.dropped.clear()
                return
            if self.frozen.is_set():
                continue
            body = b"no picture at all" if self.garbage.is_set() else jpeg(self.sent % 256)
            self.sent += 1
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            write(head.encode() + body + b"\r\n")


class _Handler(BaseHTTPRequestHandler):
    camera: ClassVar[MjpegCamera]

    def do_GET(self) -> None:
        want = self.camera.login
        if want and self.headers.get("Authorization") != "Basic " + base64.b64encode(want.encode()).decode():
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace;boundary={BOUNDARY}")
        self.end_headers()
        try:
            self.camera.stream(self.wfile.write)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """The test says what matters."""
