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


def publish(port: int, topic: bytes, payload: bytes, *, retain: bool = False) -> bool:
    """Publish at QoS 1 with bytes as they are; whether the broker took it."""
    body = text(topic) + b"\0\1" + payload
    packet = bytes([0x32 | int(retain)]) + remaining_length(len(body)) + body
    connect = text(b"MQTT") + b"\4\2\0\x3c" + text(b"")
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        connection.sendall(b"\x10" + remaining_length(len(connect)) + connect)
        assert receive(connection, 0x20) == b"\0\0"
        try:
            connection.sendall(packet)
            taken = receive(connection, 0x40) == b"\0\1"
            connection.sendall(b"\xe0\0")
        except OSError:
            return False
        return taken
