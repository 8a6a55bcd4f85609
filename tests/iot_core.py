"""The services of IoT Core on a Mosquitto: a device shadow, and provisioning by claim.

Source: AWS IoT Core developer guide, Device Shadow MQTT topics and Device provisioning MQTT API.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt

from authority import Authority
from shadow_service import Refused, ShadowService
from skerry.testing import eventually

_TOPICS = (
    "$aws/things/+/shadow/name/+/get",
    "$aws/things/+/shadow/name/+/update",
    "$aws/certificates/create/json",
    "$aws/provisioning-templates/+/provision/json",
    "+/+/remote/responses",
)


class IotCore:
    """Answers on a broker's plain listener.

    Args:
        port: of it.
        signer: of the certificates that are asked for.

    Attributes:
        thing: whose shadow there is.
        shadow: that of the name `skerry`.
        silent: nothing is answered.
        asked: the topics of all that came.
        reject: template or operation to the answer that says no.
        made: ownership tokens of the certificates that were made.
        registered: what things were made of.
        raw: topic to the bytes that it is answered with, whatever was asked.
        answers: of commands.
        on_create: called when a certificate is asked for, before it is made.
    """

    def __init__(self, port: int, signer: Authority | None = None, thing: str = "gate-3") -> None:
        self.thing = thing
        self.shadow = ShadowService()
        self.silent = False
        self.asked: list[str] = []
        self.reject: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        self.registered: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.on_create: Callable[[], None] = lambda: None
        self.mute: set[str] = set()
        self.raw: dict[str, bytes] = {}
        self._port = port
        self.signer = signer
        self._subscribed = 0
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        self._client = mqtt.Client(clean_session=True, **options)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda c, *_: [c.subscribe(topic, 1) for topic in _TOPICS]
        self._client.on_subscribe = lambda *_: setattr(self, "_subscribed", self._subscribed + 1)

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        eventually(lambda: self._subscribed >= len(_TOPICS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()

    @property
    def prefix(self) -> str:
        return f"$aws/things/{self.thing}/shadow/name/skerry"

    def desire(self, desired: Any) -> None:
        """As an operator does, over HTTPS: only `update/documents` is told."""
        _, told = self.shadow.update({"state": {"desired": desired}})
        self.say(f"{self.prefix}/update/documents", told)

    def say(self, topic: str, message: Any, *, retain: bool = False) -> None:
        """Publish anything."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._client.publish(topic, payload, qos=1, retain=retain)

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        if topic.endswith("/responses"):
            self.answers.append(json.loads(payload))
            return
        self.asked.append(topic)
        if topic in self.raw:
            self.say(f"{topic}/accepted", self.raw[topic])
            return
        if self.silent or any(topic.endswith(end) for end in self.mute):
            return
        try:
            answer = self._answer(topic, json.loads(payload or b"{}"))
        except Refused as refused:
            said = {"code": refused.code, "message": str(refused)}
            token = json.loads(payload or b"{}").get("clientToken")
            self.say(f"{topic}/rejected", said | ({"clientToken": token} if token else {}))
        else:
            if answer is not None:
                self.say(f"{topic}/accepted", answer)

    def _answer(self, topic: str, request: dict[str, Any]) -> dict[str, Any] | None:
        if topic.startswith("$aws/things/"):
            return self._about_shadow(topic, request)
        what = "create" if "create" in topic else topic.split("/")[2]
        if what == "create":
            self.on_create()
        if what in self.reject:
            self.say(f"{topic}/rejected", self.reject[what])
            return None
        return self._create() if what == "create" else self._register(topic, request)

    def _about_shadow(self, topic: str, request: dict[str, Any]) -> dict[str, Any]:
        if topic.rsplit("/", 1)[0] != self.prefix:
            raise Refused(404, "No shadow exists with name")
        if topic.endswith("/get"):
            return self.shadow.get()
        answer, told = self.shadow.update(request)
        self.say(f"{self.prefix}/update/documents", told)
        return answer

    def _create(self) -> dict[str, Any]:
        assert self.signer is not None
        certificate, key = self.signer.issue(f"device-{len(self.made)}")
        self.made.append(f"token-{len(self.made)}-of-ownership")
        return {
            "certificateId": "1",
            "certificatePem": certificate.read_text(),
            "privateKey": key.read_text(),
            "certificateOwnershipToken": self.made[-1],
        }

    def _register(self, topic: str, request: dict[str, Any]) -> dict[str, Any] | None:
        if request["certificateOwnershipToken"] not in self.made:
            said = {"statusCode": 400, "errorCode": "InvalidCertificateOwnershipToken", "errorMessage": "no"}
            self.say(f"{topic}/rejected", said)
            return None
        self.registered.append(request)
        return {"deviceConfiguration": {}, "thingName": f"gate-{request['parameters']['SerialNumber']}"}
