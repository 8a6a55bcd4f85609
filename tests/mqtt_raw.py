"""A few bytes of MQTT 3.1.1, for sending what no well-behaved client would."""

import socket
import struct


def remaining_length(n: int) -> bytes:
    """Source: MQTT 3.1.1, section 2.2.3."""
    out = bytearray()
    while True:
        n, byte = divmod(n, 128)
        out.append(byte | (0x80 if n else 0))
        if not n:
            return bytes(out)


def text(content: bytes) -> bytes:
    return struct.pack(">H", len(content)) + content


def exactly(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        piece = connection.recv(count - len(got))
        if not piece:
            raise ConnectionError("hung up")
        got += piece
    return got


def receive(connection: socket.socket, kind: int) -> bytes:
    """The next packet of a kind; amqtt sends newcomers what is retained for others, which is passed over."""
    while True:
        first = exactly(connection, 1)[0]
        length = shift = 0
        while True:
            byte = exactly(connection, 1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        body = exactly(connection, length)
        if first & 0xF0 == kind:
            return body


def packet(first: int, body: bytes) -> bytes:
    """A packet, from the first byte of its header and what follows its length."""
    return bytes([first]) + remaining_length(len(body)) + body


class Peer:
    """A broker of one client, played by a test: it says and hears exactly what the test wants.

    Args:
        listener: where the client will connect.
    """

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(10)
        self._connection, _ = listener.accept()
        self._connection.settimeout(10)
        receive(self._connection, 0x10)
        self._connection.sendall(packet(0x20, b"\0\0"))
        subscribe = receive(self._connection, 0x80)
        at, topics = 2, 0
        while at < len(subscribe):
            at, topics = at + 2 + struct.unpack_from(">H", subscribe, at)[0] + 1, topics + 1
        self._connection.sendall(packet(0x90, subscribe[:2] + b"\1" * topics))

    def send(self, topic: bytes, payload: bytes, identifier: int) -> None:
        """Deliver at QoS 1."""
        body = text(topic) + struct.pack(">H", identifier) + payload
        self._connection.sendall(packet(0x32, body))

    def acknowledged(self) -> int:
        """The identifier of the next PUBACK."""
        return int(struct.unpack(">H", receive(self._connection, 0x40))[0])

    def close(self) -> None:
        self._connection.close()


def publish(port: int, topic: bytes, payload: bytes, *, retain: bool = False) -> bool:
    """Publish at QoS 1 with bytes as they are; whether the broker took it."""
    body = text(topic) + b"\0\1" + payload
    message = packet(0x32 | int(retain), body)
    connect = text(b"MQTT") + b"\4\2\0\x3c" + text(b"")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        connection.sendall(packet(0x10, connect))
        assert receive(connection, 0x20) == b"\0\0"
        try:
            connection.sendall(message)
            taken = receive(connection, 0x40) == b"\0\1"
            connection.sendall(b"\xe0\0")
        except OSError:
            return False
        return taken
