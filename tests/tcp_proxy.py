"""A way to a far end that can be slow, frozen, reset or gone, on loopback."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024


class TcpProxy:
    """Passes bytes on, from `with` to its end.

    Args:
        target: where to.
        host: where to listen; its port, 0 for a free one.

    Attributes:
        delay_s: before each piece of up to 64 KB is passed on.
        connections: how many there were.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        self.target = target
        self.delay_s = 0.0
        self.connections = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._host, self.port = host, port
        self._listener: socket.socket | None = None
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw()
        self.cut()

    def freeze(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        """End every connection with RST; new ones are taken."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                _end(end)

    def cut(self) -> None:
        """Refuse connections, and end those that there are."""
        listener, self._listener = self._listener, None
        if listener is not None:
            _end(listener)
        self.reset()

    def restore(self) -> None:
        """Take connections again, where it did before."""
        listener = socket.create_server((self._host, self.port), backlog=32)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._flowing.wait()
        try:
            far = socket.create_connection(self.target, 5)
        except OSError:
            _end(near)
            return
        far.settimeout(None)
        pair = near, far
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.add(pair)
        for one, other in (pair, (far, near)):
            threading.Thread(target=self._pass, args=(one, other, pair), daemon=True).start()

    def _pass(
        self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(_CHUNK):
                self._flowing.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                other.sendall(piece)
        for end in pair:
            _end(end)
        with self._lock:
            self._pairs.discard(pair)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
