"""One HTTP/1.1 connection: each step has an end, and another thread may let go of it at any moment."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from skerry.uplink.answers import Answer

_BODY_BYTES = 64 * 1024
"""Of an answer; behind more the connection is given up."""
_HEAD_BYTES = 16 * 1024
"""Of a proxy's answer."""
_PORTS = {"http": 80, "https": 443}


class WireError(Exception):
    """The connection is of no use any more."""


class Target(NamedTuple):
    """An address, in parts."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def shown(self) -> str:
        """Without the query, which may hold a secret."""
        return f"{self.scheme}://{self.netloc}{self.path.partition('?')[0]}"

    @property
    def netloc(self) -> str:
        """Host and port, as in an address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def target(url: str) -> Target:
    """The parts of an address that was checked."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme], path)


class Wire:
    """A connection, used by one thread; `abandon` is for all.

    Args:
        far: where to.
        proxy: the way there, or None.
        context: for https.
    """

    def __init__(self, far: Target, proxy: Target | None, context: ssl.SSLContext | None) -> None:
        self._far = far
        self._proxy = proxy
        self._context = context
        self._lock = threading.Lock()
        self._abandoned = False
        self._used = False
        self._socket: socket.socket | None = None
        self._http: http.client.HTTPConnection | None = None

    def connect(self, deadline: float) -> None:
        """Reach the far end by a monotonic time, in seconds. The system's resolver keeps its own time.

        Raises:
            OSError: it cannot be reached, or is not who it should be.
            WireError: the proxy refuses.
        """
        sock = self._dial(self._proxy or self._far, deadline)
        far = self._far
        if self._context is not None:
            if self._proxy is not None:
                self._tunnel(sock, deadline)
            sock = self._context.wrap_socket(sock, server_hostname=far.host, do_handshake_on_connect=False)
            self._hold(sock)
            sock.settimeout(_left(deadline))
            sock.do_handshake()
            self._http = http.client.HTTPSConnection(far.host, far.port, context=self._context)
        else:
            self._http = http.client.HTTPConnection(far.host, far.port)
        self._http.auto_open = 0  # a connection of its own making would have no deadline
        self._http.sock = sock

    @property
    def stale(self) -> bool:
        """Whether the far end has hung up, or says something that nobody asked."""
        if self._http is None or self._http.sock is None or self._socket is None:
            return True
        if not self._used:
            return False  # TLS 1.3: session tickets come behind the handshake, and are read with the answer
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def post(self, headers: Mapping[str, str], body: bytes, deadline: float) -> Answer:
        """Send a request and read the answer to it.

        Raises:
            OSError: the connection broke, or took too long.
            http.client.HTTPException: it was no HTTP.
        """
        http_, sock = self._http, self._socket
        if http_ is None or sock is None:
            raise WireError("not connected")
        far = self._far
        plain_proxy = self._proxy is not None and self._context is None
        path = f"{far.scheme}://{far.netloc}{far.path}" if plain_proxy else far.path
        sock.settimeout(_left(deadline))
        broken: OSError | None = None
        try:
            http_.request("POST", path, body, dict(headers))
        except (BrokenPipeError, ConnectionResetError) as error:
            broken = error  # it may have said why before it hung up
        try:
            with http_.getresponse() as response:
                self._used = True
                return self._read(response)
        except OSError:
            if broken is not None:
                raise broken from None
            raise

    def _read(self, response: http.client.HTTPResponse) -> Answer:
        body = response.read(_BODY_BYTES + 1)
        if len(body) > _BODY_BYTES:
            self.close()
        elif response.length:  # `read` of so many bytes does not mind an answer that is cut short
            raise http.client.IncompleteRead(body, response.length)
        head = response.headers
        return Answer(
            response.status, head.get("Retry-After", ""), head.get("Date", ""), head.get("Location", ""), body
        )

    def abandon(self) -> None:
        """Whatever the other thread waits for here fails at once. It closes the connection, nobody else."""
        with self._lock:
            self._abandoned = True
            sock = self._socket
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not that of an SSL socket: it would take the session from under the other thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go; on the thread that uses it."""
        if self._http is not None:
            self._http.close()
        with self._lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _dial(self, to: Target, deadline: float) -> socket.socket:
        """A TCP connection to the first address that answers; each has its share of the time."""
        found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
        failure: OSError = OSError(f"no address for {to.host}")
        for n, (family, kind, protocol, _, address) in enumerate(found):
            sock = socket.socket(family, kind, protocol)
            self._hold(sock)
            sock.settimeout(_left(deadline) / (len(found) - n))
            try:
                sock.connect(address)
            except OSError as error:
                failure = error
                self.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        raise failure

    def _tunnel(self, sock: socket.socket, deadline: float) -> None:
        """Ask a proxy for a way through. Source: RFC 9110, section 9.3.6.

        Raises:
            WireError: it says no.
        """
        host = f"[{self._far.host}]" if ":" in self._far.host else self._far.host
        name = f"{host}:{self._far.port}"
        sock.settimeout(_left(deadline))
        sock.sendall(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode("ascii"))
        head = b""
        while b"\r\n\r\n" not in head:
            sock.settimeout(_left(deadline))
            part = sock.recv(4096)
            head += part
            if not part or len(head) > _HEAD_BYTES:
                raise WireError("the proxy sent no answer to CONNECT (check link.proxy)")
        line = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
        if line is None or not line[1].startswith(b"2"):
            said = line[1].decode() if line else "something that is no HTTP"
            raise WireError(f"the proxy answered {said} to CONNECT (check link.proxy)")

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            abandoned = self._abandoned
        if abandoned:
            self.close()
            raise WireError("closed")


def _left(deadline: float) -> float:
    """Seconds until then, above 0.

    Raises:
        TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
