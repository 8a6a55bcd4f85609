"""A Mosquitto as `skerry certs` configures it, and clients of it that try what they may not."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt

from skerry.broker import free_port, mosquitto
from skerry.children import end, spawn
from skerry.deploy.acl import acl, broker_configuration
from skerry.deploy.plan import Plan
from skerry.testing import eventually

CONNECT = bytes.fromhex("100c00044d515454040200050000")
CONNACK = bytes.fromhex("20020000")


class SecuredBroker:
    """The broker; its log has every message that it refuses.

    Args:
        folder: of the certificates, with one `broker` in it.
        plan: the site that it serves.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.port = free_port()
        self.folder = folder / "broker"
        self._rules = acl(plan)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        (self.folder / "acl").write_text(self._rules)
        user = "root" if os.geteuid() == 0 else ""
        text = broker_configuration(str(self.folder), port=self.port, address="127.0.0.1", user=user)
        (self.folder / "mosquitto.conf").write_text(f"{text}log_type debug\n")
        argv = [mosquitto() or "mosquitto", "-c", str(self.folder / "mosquitto.conf")]
        with (self.folder / "log").open("ab") as log:
            self._child = spawn(argv, stdout=log.fileno(), stderr=log.fileno())
        eventually(self._listens, 20)

    def stop(self) -> None:
        assert self._child is not None
        end(self._child, 5)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def denied(self) -> list[str]:
        """What was published and refused: of whom, and the topic."""
        found = [
            line.split("Denied PUBLISH from ")[1]
            for line in self.log.splitlines()
            if "Denied PUBLISH" in line
        ]
        return [f"{line.split(' ')[0]} {line.split(chr(39))[1]}" for line in found]

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            assert self._child is not None
            assert self._child.poll() is None, self.log
            return False
        return True


def context(folder: Path, ca: Path | None = None) -> ssl.SSLContext:
    """What a client shows that has this folder; None of it where there is no certificate in it."""
    made = ssl.create_default_context(cafile=ca or folder / "ca.crt")
    if (folder / "tls.crt").exists():
        made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


def let_in(port: int, shown: ssl.SSLContext) -> bool:
    """Whether a broker answers a CONNECT; a client of TLS 1.3 hears of a refusal only when it reads."""
    with socket.create_connection(("127.0.0.1", port), 20) as raw:
        try:
            with shown.wrap_socket(raw, server_hostname="localhost") as connection:
                connection.sendall(CONNECT)
                return connection.recv(4) == CONNACK
        except (ssl.SSLError, ConnectionError):
            return False


class Peer:
    """Somebody with a certificate; keeps what is delivered. Connects once, and says when that ended.

    Args:
        port: of the broker.
        folder: of the certificate.
        client: the client id that it asks for.
        user: the user name that it asks for.
    """

    def __init__(self, port: int, folder: Path, client: str = "", user: str = "") -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self.gone = threading.Event()
        self._up = threading.Event()
        self._subscribed = threading.Event()
        options: dict[str, Any] = {"reconnect_on_failure": False}
        if hasattr(mqtt, "CallbackAPIVersion"):
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        self._client = mqtt.Client(client_id=client, clean_session=True, **options)
        self._client.tls_set_context(context(folder))
        if user:
            self._client.username_pw_set(user, "x")
        self._client.max_inflight_messages_set(1000)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda *_: self._up.set()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_disconnect = lambda *_: self.gone.set()
        self._client.connect("localhost", port)
        self._client.loop_start()
        assert self._up.wait(20)

    def subscribe(self, *filters: str) -> None:
        """Subscribe with QoS 0, so that what is delivered comes in the order of the broker's work."""
        self._subscribed.clear()
        self._client.subscribe([(one, 0) for one in filters])
        assert self._subscribed.wait(20)

    def publish(self, topics: Sequence[str], payload: bytes, *, retain: bool = False) -> None:
        """Publish to each; returns when the broker has worked through them all.

        It confirms what it refuses too (MQTT 3.1.1 has no other answer), and in order.
        """
        sent = [self._client.publish(topic, payload, qos=1, retain=retain) for topic in topics]
        for one in sent:
            one.wait_for_publish(20)
            assert one.is_published()

    def settled(self) -> list[tuple[str, bytes, bool]]:
        """All that the broker had for this one when it was asked."""
        self.subscribe("nothing/comes/here")
        return list(self.heard)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        self.heard.append((message.topic, message.payload, message.retain))
