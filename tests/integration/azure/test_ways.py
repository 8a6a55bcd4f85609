"""Other ways to a hub, WebSockets and a proxy, and a hub that says everything twice."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pytest

import needs
from iot_hub import IotHub, free_address
from records import records
from skerry.errors import LinkDown
from skerry.testing import eventually
from skerry.uplink import settings as given


@needs.root
def test_web_sockets_on_port_443(tmp_path, connect) -> None:
    hub = IotHub(tmp_path, websockets=True)
    hub.start()
    link = connect(hub, websockets=True)
    link.open()
    link.send(records(1, 100))
    eventually(lambda: len(hub.arrived) == 100)
    hub.stop()


class Proxy:
    """An HTTP proxy that knows CONNECT and no more."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # close alone would leave it to the thread that accepts
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._carry, args=(self._listener.accept()[0],), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(1)
            self.asked.append(head.split(b"\r\n")[0])
            host, _, port = head.split()[1].decode().partition(":")
            with socket.create_connection((host, int(port))) as far:
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pour, args=(far, near), daemon=True)
                back.start()
                _pour(near, far)
                back.join(5)


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            sink.sendall(some)
        sink.shutdown(socket.SHUT_RDWR)


def test_a_proxy(hub, connect) -> None:
    proxy = Proxy()
    link = connect(hub, proxy=f"http://127.0.0.1:{proxy.port}")
    link.open()
    link.send(records(1, 10))
    eventually(lambda: len(hub.arrived) == 10)
    assert proxy.asked == [f"CONNECT {hub.host}:8883 HTTP/1.1".encode()]
    proxy.stop()
    link.close()
    with pytest.raises(LinkDown, match=r"cannot connect: .*refused"):
        link.open()


class Peer:
    """The far end of one connection: it confirms the first message three times, the others when it may.

    Args:
        host: its address.
        context: its certificate.
    """

    def __init__(self, host: str, context: ssl.SSLContext) -> None:
        self.got: list[int] = []
        self.confirm = threading.Event()
        self._listener = socket.create_server((host, 8883))
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            plain, _ = self._listener.accept()
            with self._context.wrap_socket(plain, server_side=True) as peer, peer.makefile("rb") as reader:
                while kind := reader.read(1):
                    body = reader.read(_length(reader))
                    if kind[0] >> 4 == 1:
                        peer.sendall(b"\x20\x02\x00\x00")
                    elif kind[0] >> 4 == 3:
                        at = 2 + int.from_bytes(body[:2])
                        self.got.append(int.from_bytes(body[at : at + 2]))
                        first = len(self.got) == 1
                        if not first:
                            self.confirm.wait(10)
                        peer.sendall((b"\x40\x02" + body[at : at + 2]) * (3 if first else 1))


def _length(reader: BinaryIO) -> int:
    value = shift = 0
    while True:
        (byte,) = reader.read(1)
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value


@contextmanager
def a_peer(hub: IotHub) -> Iterator[tuple[str, Peer]]:
    host = free_address()
    peer = Peer(host, hub.authority.server(host))
    yield host, peer
    peer.stop()


def test_a_confirmation_that_comes_three_times_confirms_one_batch(hub, connect, tmp_path) -> None:
    with a_peer(hub) as (host, peer):
        file = tmp_path / "string"
        file.write_text(hub.connection_string(tmp_path).read_text().replace(hub.host, host))
        link = connect(hub, given.ConnectionStringIdentity(connection_string_file=str(file)))
        link.open()
        for first in (1, 11, 21):
            link.start(records(first, first + 9))
        eventually(link.finish)
        assert not link.finish(0.3)
        peer.confirm.set()
        eventually(link.finish)
        eventually(link.finish)
        assert not link.finish(0.01)
        assert len(set(peer.got)) == 3
        link.close()
