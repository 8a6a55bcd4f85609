"""What comes to a topic, byte for byte: a subscriber that is told nothing of our messages."""

import contextlib
from typing import Any

import paho.mqtt.client as mqtt

from skerry.testing import eventually


class Payloads:
    """Collects the payloads of a topic filter; `start` again after the broker was away."""

    def __init__(self, port: int, topic: str, *, host: str = "127.0.0.1") -> None:
        self.got: list[bytes] = []
        self.topics: list[str] = []
        self.connected = False
        self._where = host, port
        self._topic = topic
        self._client: mqtt.Client | None = None

    def start(self) -> None:
        """Connect and subscribe; returns when the broker has the subscription."""
        self.stop()
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        client = self._client = mqtt.Client(clean_session=True, **options)
        client.on_message = self._on_message
        client.on_connect = lambda c, *_: c.subscribe(self._topic, 1)
        client.on_subscribe = lambda *_: setattr(self, "connected", True)
        client.on_disconnect = lambda *_: setattr(self, "connected", False)
        client.connect(*self._where)
        client.loop_start()
        eventually(lambda: self.connected)

    def stop(self) -> None:
        """Let go."""
        client, self._client = self._client, None
        self.connected = False
        if client is not None:
            with contextlib.suppress(OSError, ValueError):
                client.disconnect()
            client.loop_stop()
            sock = client.socket()
            if sock is not None:
                sock.close()

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self.got.append(bytes(message.payload))
        self.topics.append(message.topic)
