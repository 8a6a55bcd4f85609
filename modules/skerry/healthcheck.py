"""Whether the process in this container is well: the health command of the images.

    python3 -m skerry.healthcheck [PORT]          a module: GET /healthz
    python3 healthcheck.py --mqtt [PORT]          a broker: CONNECT, CONNACK

Exit code 0 when it is, 1 when it is not. It runs every few seconds beside the module, in its memory limit, so
it takes nothing but sockets, and stands alone: the image of the bus has this file and no other of ours.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

HTTP_PORT = 8080
"""Where modules in containers serve /healthz."""
MQTT_PORT = 1883
_TIMEOUT_S = 4.0
_CONNECT = bytes.fromhex("100c 0004 4d515454 04 02 0005 0000")  # MQTT 3.1.1, clean session, 5 s, no id
_CONNACK = bytes.fromhex("2002")
_CONNACK_BYTES = 4
_DISCONNECT = bytes.fromhex("e000")


def problem(mqtt: bool, port: int, timeout_s: float = _TIMEOUT_S) -> str:
    """What is wrong with who listens on this port of loopback; empty: nothing.

    Args:
        mqtt: whether it is a broker; else it serves /healthz.
        port: where.
        timeout_s: how long each of its answers may take.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
            return _mqtt(connection) if mqtt else _http(connection)
    except OSError as error:
        return f"port {port}: {error}"


def _http(connection: socket.socket) -> str:
    """One request; the status line says it all.

    Source: RFC 1945, sections 4.1 and 6.1.
    """
    connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
    answer = b""
    while piece := connection.recv(1024):
        answer += piece
    status, _, body = answer.partition(b"\r\n\r\n")
    words = status.partition(b"\r\n")[0].split()
    return "" if words[1:2] == [b"200"] else body.decode(errors="replace").strip() or "no answer"


def _mqtt(connection: socket.socket) -> str:
    """One session. A broker that knows whom it lets in refuses us, and is well.

    Source: MQTT 3.1.1, sections 3.1 and 3.2.
    """
    connection.sendall(_CONNECT)
    answer = b""
    while len(answer) < _CONNACK_BYTES and (piece := connection.recv(_CONNACK_BYTES - len(answer))):
        answer += piece
    whole = answer.startswith(_CONNACK) and len(answer) == _CONNACK_BYTES
    if whole and not answer[3]:
        connection.sendall(_DISCONNECT)
    return "" if whole else f"expected CONNACK, got {answer.hex() or 'nothing'}"


def main(arguments: Sequence[str]) -> int:
    """Ask once; returns the exit code."""
    mqtt = arguments[:1] == ["--mqtt"]
    rest = arguments[1:] if mqtt else arguments
    try:
        port = int(rest[0]) if rest else MQTT_PORT if mqtt else HTTP_PORT
    except ValueError:
        print("usage: healthcheck [--mqtt] [PORT]", file=sys.stderr)
        return 1
    found = problem(mqtt, port)
    if found:
        print(found, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
