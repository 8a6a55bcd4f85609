"""A site whose modules are real processes under a supervisor, and an operator who gives it commands."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt

from skerry.capture.settings import CaptureSettings
from skerry.deploy.local import Supervisor
from skerry.deploy.plan import Part, Plan
from skerry.settings import ModuleSettings, parse
from skerry.uplink.settings import UplinkSettings


class Operator:
    """Somebody on the other side of an MQTT link. Keeps every answer, and whatever else the broker carries.

    Args:
        port: of the broker.
        site: name of the site.
    """

    def __init__(self, port: int, site: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self._prefix = f"skerry/{site}/remote"
        self._numbers = itertools.count(1)
        self._subscribed = threading.Event()
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        self._client = mqtt.Client(clean_session=True, **options)
        self._client.max_inflight_messages_set(2000)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda c, *_: c.subscribe(f"skerry/{site}/#", 1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, name: str, **arguments: Any) -> str:
        """Give a command; its id."""
        request = f"r{next(self._numbers)}"
        body = json.dumps({"id": request, "arguments": arguments})
        self._client.publish(f"{self._prefix}/requests/{name}", body, qos=1)
        return request

    def ask(
        self, name: str, *, meanwhile: Callable[[], None] = lambda: None, within_s: float = 60.0,
        **arguments: Any,
    ) -> Any:  # fmt: skip
        """Give a command and wait for its answer: (status, body)."""
        request = self.send(name, **arguments)
        deadline = time.monotonic() + within_s
        while request not in self.answers:
            assert time.monotonic() < deadline, f"{name}: no answer within {within_s} s"
            meanwhile()
            time.sleep(0.01)
        answer = self.answers[request][0]
        return answer["status"], answer["body"]

    def patient(self, name: str, *, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Whether a command is carried out: a storm that goes on may turn it away without a word."""
        try:
            return bool(self.ask(name, meanwhile=meanwhile, within_s=2.0)[0] == 200)
        except AssertionError:
            return False

    def retained(self, topic: str) -> dict[str, Any]:
        """The newest message of a topic below the site's."""
        found = [payload for name, payload in list(self.heard) if name.endswith(topic)]
        return json.loads(found[-1]) if found else {}

    def _on_message(self, client: object, data: object, message: mqtt.MQTTMessage) -> None:
        self.heard.append((message.topic, message.payload))
        if message.topic == f"{self._prefix}/responses":
            answer = json.loads(message.payload)
            self.answers.setdefault(answer["id"], []).append(answer)


class RemoteSite:
    """Modules as processes, started again when they end; `tend` it while waiting.

    Args:
        folder: of everything.
        port: of the broker, which is the site's bus and its far end.
        site: its name.
        cameras: of the capture module; none: there is no such module.
        link: more settings of the uplink's MQTT link.
        more: other settings of each kind of module.
    """

    def __init__(
        self, folder: Path, port: int, site: str, *, cameras: list[dict[str, Any]],
        link: dict[str, Any] | None = None, more: dict[str, dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        more = more or {}
        # One broker is bus and far end here: the link must not have the name that the module has on the bus.
        ours = {"kind": "mqtt", "host": "127.0.0.1", "port": port, "client_id": f"{site}-link"}
        self.folder = folder
        self.port = port
        self.site = site
        kinds: dict[str, tuple[type[ModuleSettings], dict[str, Any]]] = {
            "uplink": (
                UplinkSettings,
                {"link": {**ours, **(link or {})}, "grace_s": 0.7},
            )
        }
        if cameras:
            told = {"frames": str(folder / "frames"), "cameras": cameras, "grace_s": 1.0}
            kinds["capture"] = CaptureSettings, told
        parts = []
        for kind, (settings, values) in kinds.items():
            shared = {"site": site, "module": kind, "state": str(folder / kind), "bus": {"port": port}}
            raw = {**shared, **values, **more.get(kind, {})}
            parts.append(Part(module=kind, kind=kind, settings=parse(settings, raw, kind)))
        self.supervisor = Supervisor(Plan(site=site, parts=tuple(parts)), folder / "logs", None)

    def __enter__(self) -> Self:
        self.operator = Operator(self.port, self.site)
        self.supervisor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.supervisor.stop()
        self.operator.close()

    def tend(self) -> None:
        self.supervisor.tend(lambda _: True)

    def until(self, fact: Callable[[], object], within_s: float = 60.0) -> None:
        """Wait, and start again what ends meanwhile."""
        deadline = time.monotonic() + within_s
        while not fact():
            assert time.monotonic() < deadline, f"not within {within_s} s: {fact}\n{self.logs()[-3000:]}"
            self.tend()
            time.sleep(0.02)

    def ask(self, name: str, **arguments: Any) -> Any:
        """Give a command: (status, body)."""
        return self.operator.ask(name, meanwhile=self.tend, **arguments)

    def state(self, module: str) -> str:
        """As the module says."""
        return str(self.operator.retained(f"/status/{module}").get("state"))

    def pid(self, module: str) -> int:
        process = self.supervisor.children[module].process
        assert process is not None
        return process.pid

    def pid_is_new(self, module: str, before: int) -> bool:
        """Whether it was started again since it had this one, and has said so."""
        process = self.supervisor.children[module].process
        said = self.operator.retained(f"/status/{module}").get("pid")
        return process is not None and before != process.pid == said

    def logs(self, module: str = "*") -> str:
        return "".join(p.read_text() for p in sorted((self.folder / "logs").glob(f"{module}.log")))

    def ready(self) -> None:
        """Wait until all modules are there and commands are answered."""
        self.until(
            lambda: all(self.state(name) in {"ready", "degraded"} for name in self.supervisor.children)
        )
        # A request that comes before the link has subscribed is nobody's.
        self.until(lambda: self.operator.patient("ping", meanwhile=self.tend))
