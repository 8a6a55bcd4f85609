"""Far ends of every kind with the way to them: what is asked of all links is asked here."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

import authority
from greengrass_ipc import Nucleus
from http_far_end import HttpFarEnd
from iot_core import IotCore
from iot_hub import IotHub, free_address
from payloads import Payloads
from skerry.batches import decode
from skerry.broker import BrokerProcess
from skerry.messages import Event
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.links import Link
from tcp_proxy import TcpProxy
from tls_broker import TlsBroker

SITE = "here"
REMOTE = f"skerry/{SITE}/remote"
Answer = tuple[int, Any]


class World:
    """A far end, the way to it, and what an operator does there.

    Attributes:
        steered: whether desired states and commands come down.
        settings: of the link.
        proxy: the way, where it is TCP.
    """

    steered = True
    settings: given.Link
    proxy: TcpProxy | None = None

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.answers: dict[str, Answer] = {}
        self._number = 0

    def link(self, stop: threading.Event, downlink: Downlink | None, state: Path) -> Link:
        from skerry.uplink.links import make

        settings = given.UplinkSettings(site=SITE, module="uplink", state=str(state), link=self.settings)
        return make(settings, stop, downlink)

    def close(self) -> None:
        self._stack.close()

    # Faults

    def slow(self, delay_s: float) -> None:
        assert self.proxy is not None
        self.proxy.delay_s = delay_s

    def freeze(self) -> None:
        assert self.proxy is not None
        self.proxy.freeze()

    def thaw(self) -> None:
        assert self.proxy is not None
        self.proxy.thaw()

    def reset(self) -> None:
        assert self.proxy is not None
        self.proxy.reset()

    def cut(self) -> None:
        assert self.proxy is not None
        self.proxy.cut()

    def restore(self) -> None:
        assert self.proxy is not None
        self.proxy.restore()

    # The far end

    def raw(self) -> list[bytes]:
        raise NotImplementedError

    def arrived(self) -> list[Event]:
        return [msgspec.json.decode(raw, type=Event) for raw in self.raw()]

    def desire(self, document: Any, *, clear: bool = True) -> None:
        """Set the whole desired state.

        Args:
            document: it.
            clear: first take away what is there, where the platform would merge.
        """
        raise NotImplementedError

    def hostile(self) -> list[Any]:
        """Desired states that nobody should send, as far as the platform itself lets them through."""
        deep: Any = {}
        for _ in range(30):
            deep = {"a": deep}
        return [{"modules": "x" * 5000}, {"modules": deep}, {"modules": {"a": [1] * 1000}}]

    def reported(self) -> Any:
        """The report that the platform has."""
        raise NotImplementedError

    def ask(self, name: str, arguments: Any) -> str:
        """Give a command; the answer comes to `answers` under what this returns."""
        raise NotImplementedError

    def _requests(self, send: Callable[[str, bytes], object]) -> Callable[[str, Any], str]:
        """`ask`, where commands are messages on topics."""

        def ask(name: str, arguments: Any) -> str:
            self._number += 1
            number = str(self._number)
            body = json.dumps({"id": number, "arguments": arguments}).encode()
            send(f"{REMOTE}/requests/{name}", body)
            return number

        return ask

    def _answered(self, payload: bytes) -> None:
        document = json.loads(payload)
        self.answers[document["id"]] = document["status"], document["body"]


class MqttWorld(World):
    """Mosquitto, in the clear."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._broker = self._stack.enter_context(BrokerProcess(folder / "far"))
        self.proxy = self._stack.enter_context(TcpProxy(("127.0.0.1", self._broker.port)))
        self.settings = given.MqttLink(host="127.0.0.1", port=self.proxy.port, format="batch", timeout_s=2.0)
        self._far = _listen(self, self._broker.port, f"skerry/{SITE}/far/#")
        self._reports = _listen(self, self._broker.port, f"{REMOTE}/reported")
        self._responses = _Responses(self, self._broker.port)
        self._pen = _Pen(self, self._broker.port)
        self.ask = self._requests(self._pen.write)  # type: ignore[method-assign]

    def raw(self) -> list[bytes]:
        return [raw for payload in list(self._far.got) for raw in decode(payload)]

    def desire(self, document: Any, *, clear: bool = True) -> None:
        del clear
        self._pen.write(f"{REMOTE}/desired", json.dumps(document).encode(), retain=True)

    def hostile(self) -> list[Any]:
        return [*super().hostile(), None, [], "text", 5]

    def reported(self) -> Any:
        return json.loads(self._reports.got[-1]) if self._reports.got else None


class HttpWorld(World):
    """A web server, in the clear. Nothing comes down."""

    steered = False

    def __init__(self, folder: Path) -> None:
        del folder
        super().__init__()
        self._far = self._stack.enter_context(HttpFarEnd())
        self.proxy = self._stack.enter_context(TcpProxy(("127.0.0.1", self._far.port)))
        self.settings = given.HttpLink(
            url=f"http://127.0.0.1:{self.proxy.port}/events", format="batch", timeout_s=2.0
        )

    def raw(self) -> list[bytes]:
        return self._far.raw


class AwsWorld(World):
    """Mosquitto in the place of IoT Core, with shadow and commands."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        (folder / "keys").mkdir(parents=True)
        keys = authority.make(folder / "keys")
        broker = TlsBroker(folder / "far", keys)
        broker.start()
        self._stack.callback(broker.stop)
        self.proxy = self._stack.enter_context(TcpProxy(("127.0.0.1", broker.port)))
        self._core = self._stack.enter_context(IotCore(broker.plain))
        self._far = _listen(self, broker.plain, f"skerry/{SITE}/far/#")
        self._responses = _Responses(self, broker.plain)
        self._pen = _Pen(self, broker.plain)
        self.ask = self._requests(self._pen.write)  # type: ignore[method-assign]
        self.settings = given.AwsLink(
            endpoint="localhost", port=self.proxy.port, thing=self._core.thing, timeout_s=2.0,
            tls=given.TlsSettings(
                ca=str(keys / "ca.pem"), certificate=str(keys / "client.pem"), key=str(keys / "client.key")
            ),
        )  # fmt: skip

    def raw(self) -> list[bytes]:
        return [raw for payload in list(self._far.got) for raw in decode(payload)]

    def desire(self, document: Any, *, clear: bool = True) -> None:
        if clear and self._desired:
            self._core.desire(dict.fromkeys(self._desired))  # what is merged does not go away
        self._core.desire(document)
        self._desired = list(document)

    _desired: Sequence[str] = ()

    def reported(self) -> Any:
        return self._core.shadow.get()["state"].get("reported")


class GreengrassWorld(World):
    """A nucleus of ours on a Unix socket; the component's configuration is the desired state."""

    def __init__(self, folder: Path) -> None:
        del folder
        super().__init__()
        self._nucleus = self._stack.enter_context(Nucleus())
        self.settings = given.GreengrassLink(timeout_s=2.0)
        self.ask = self._requests(self._nucleus.send)  # type: ignore[method-assign]

    def link(self, stop: threading.Event, downlink: Downlink | None, state: Path) -> Link:
        del state
        from skerry.uplink.links.greengrass import GreengrassLink
        from skerry.uplink.links.greengrass_ipc import Nucleus as Where

        assert isinstance(self.settings, given.GreengrassLink)
        where = Where(self._nucleus.environment)
        return GreengrassLink(self.settings, SITE, stop, downlink=downlink, nucleus=where)

    def slow(self, delay_s: float) -> None:
        self._nucleus.slow_s = delay_s

    def freeze(self) -> None:
        self._nucleus.freeze()

    def thaw(self) -> None:
        self._nucleus.thaw()

    def reset(self) -> None:
        self._nucleus.stop()
        self._nucleus.start()

    def cut(self) -> None:
        self._nucleus.stop()

    def restore(self) -> None:
        self._nucleus.start()

    def raw(self) -> list[bytes]:
        return [
            raw
            for item in list(self._nucleus.cloud)
            if item.topic.startswith(f"skerry/{SITE}/far/")
            for raw in decode(item.payload)
        ]

    def desire(self, document: Any, *, clear: bool = True) -> None:
        del clear
        self._nucleus.configure({"desired": document})

    def reported(self) -> Any:
        found = [item.payload for item in list(self._nucleus.cloud) if item.topic == f"{REMOTE}/reported"]
        return json.loads(found[-1]) if found else None

    @property
    def answers(self) -> dict[str, Answer]:
        found = [json.loads(i.payload) for i in list(self._nucleus.cloud) if i.topic == f"{REMOTE}/responses"]
        return {document["id"]: (document["status"], document["body"]) for document in found}

    @answers.setter
    def answers(self, _: object) -> None:
        """The nucleus has them."""


class AzureWorld(World):
    """Mosquitto in the place of IoT Hub, with twin and methods, and its port on another address before it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        front = free_address()
        self._hub = IotHub(folder, names=(front,))
        self._hub.start()
        self._stack.callback(self._hub.stop)
        self.proxy = self._stack.enter_context(TcpProxy((self._hub.host, 8883), front, 8883))
        self._hub.host = front
        file = self._hub.connection_string(folder)
        self.settings = given.AzureLink(
            identity=given.ConnectionStringIdentity(connection_string_file=str(file)),
            ca=str(self._hub.authority.ca), timeout_s=2.0,
        )  # fmt: skip

    def raw(self) -> list[bytes]:
        return self._hub.raw

    def desire(self, document: Any, *, clear: bool = True) -> None:
        gone = {key: None for key in self._hub.desired if not key.startswith("$")}
        if clear and gone:
            self._hub.set_desired(gone)  # what is merged does not go away
        self._hub.set_desired(document)

    def reported(self) -> Any:
        return {key: value for key, value in self._hub.reported.items() if not key.startswith("$")}

    def ask(self, name: str, arguments: Any) -> str:
        return self._hub.call(name, arguments)

    @property
    def answers(self) -> dict[str, Answer]:
        return self._hub.responses

    @answers.setter
    def answers(self, _: object) -> None:
        """The hub has them."""


def _listen(world: World, port: int, topic: str) -> Payloads:
    payloads = Payloads(port, topic)
    payloads.start()
    world._stack.callback(payloads.stop)
    return payloads


class _Responses(Payloads):
    """What a site answers."""

    def __init__(self, world: World, port: int) -> None:
        super().__init__(port, f"{REMOTE}/responses")
        self._world = world
        self.start()
        world._stack.callback(self.stop)

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        super()._on_message(client, data, message)
        self._world._answered(bytes(message.payload))


class _Pen(Payloads):
    """What an operator writes."""

    def __init__(self, world: World, port: int) -> None:
        super().__init__(port, "nothing/at/all")
        self.start()
        world._stack.callback(self.stop)

    def write(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self._client is not None
        self._client.publish(topic, payload, qos=1, retain=retain)


WORLDS: dict[str, type[World]] = {
    "mqtt": MqttWorld, "http": HttpWorld, "aws": AwsWorld, "greengrass": GreengrassWorld, "azure": AzureWorld,
}  # fmt: skip
