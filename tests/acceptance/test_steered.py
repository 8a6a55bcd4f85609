"""A site as an operator steers it: `skerry run`, and a broker far away where it is set, asked and told."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as mqtt
import pytest

import needs
from site_run import site_run
from skerry.broker import BrokerProcess
from skerry.testing import eventually

pytestmark = [needs.mosquitto, pytest.mark.slow]

SITE = """
site: steered
cameras: [{name: belt, source: {kind: synthetic, fps: 15, seed: 3}, snapshots: allowed}]
models: [{package: %s, runtime: onnxruntime}]
rules: [{name: crossed, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}]
link: {kind: mqtt, host: 127.0.0.1, port: %d}
"""
PREFIX = "skerry/steered/remote"


class Console:
    """What an operator has: the far broker."""

    def __init__(self, port: int) -> None:
        self.reported: dict[str, Any] = {}
        self.responses: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.subscribe(
            [(f"{PREFIX}/reported", 1), (f"{PREFIX}/responses", 1), ("skerry/steered/far/#", 1)]
        )
        self._client.loop_start()
        self._number = 0

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        document = json.loads(message.payload) if message.payload else {}
        with self._changed:
            if message.topic.endswith("/reported"):
                self.reported = document
            elif message.topic.endswith("/responses"):
                self.responses[document["id"]] = document
            else:
                self.events.append(document)
            self._changed.notify_all()

    def desire(self, version: Any, modules: Any) -> None:
        document = json.dumps({"version": version, "modules": modules})
        self._client.publish(f"{PREFIX}/desired", document, qos=1, retain=True).wait_for_publish(10)

    def until(self, version: Any, state: str, within_s: float = 20.0) -> dict[str, Any]:
        """The report of that version and state."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: (
                    (told := self.reported.get("desired", {})).get("state") == state
                    and told.get("version") == f"topic/{version}"
                ),
                within_s,
            ), self.reported
            return self.reported

    def ask(self, name: str, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """Give a command, and wait for the answer."""
        self._number += 1
        number = str(self._number)
        request = json.dumps({"id": number, "arguments": arguments})
        self._client.publish(f"{PREFIX}/requests/{name}", request, qos=1)
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.responses, 30), name
            answer = self.responses[number]
        return answer["status"], answer["body"]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[Console, int]]:
    with BrokerProcess(tmp_path / "far") as broker:
        made = Console(broker.port)
        yield made, broker.port
        made.close()


def test_a_site_is_steered_over_its_link_and_loses_nothing(
    tmp_path: Path, console: tuple[Console, int]
) -> None:
    far, port = console
    site = tmp_path / "site.yaml"
    site.write_text(SITE % (needs.ROOT / "models" / "parts", port), encoding="utf-8")
    with site_run(tmp_path / "out", "run", str(site)) as run:
        eventually(lambda: far.events, 60)

        # Set, applied, told.
        wanted = {
            "capture": {"cameras": {"belt": {"fps": 8}}},
            "decision": {"rules": {"all-there": {"kind": "presence", "camera": "belt"}}},
            "inference": {"models": {"0": {"score_threshold": 0.4, "batch": {"max": 2}}}},
        }
        far.desire(1, wanted)
        told = far.until(1, "applied")
        assert told["desired"]["restart"] == {"inference": ["models.0.batch.max"]}
        assert {m["state"] for m in told["modules"].values()} == {"ready"}
        assert told["models"]["inference"][0]["model"].startswith("parts@")
        eventually(lambda: any(e["data"]["rule"] == "all-there" for e in far.events), 30)

        # A bad one is refused whole, with every mistake; the one before goes on.
        far.desire(
            2, {"capture": {"cameras": {"belt": {"fps": -1}}}, "decision": {"rules": None}, "nobody": {}}
        )
        told = far.until(2, "refused")
        assert told["desired"]["counts"] == "topic/1"
        assert len(told["desired"]["errors"]) == 2

        # What only the device can know takes everything back.
        far.desire(3, {"inference": {"models": {"0": {"package": "/nowhere"}}}, "buffer": {"backlog_s": 7}})
        told = far.until(3, "refused", 40)
        assert "/nowhere" in told["desired"]["errors"][0]
        assert far.ask("restart", module="inference")[0] == 200
        eventually(lambda: far.ask("ping")[1]["modules"]["inference"]["state"] == "ready", 30)

        # Asked.
        status, picture = far.ask("snapshot", camera="belt", width=320)
        assert status == 200
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(picture["image"]), np.uint8), cv2.IMREAD_COLOR)
        assert pixels.shape[1] <= 320
        status, bundle = far.ask("diagnostics", lines=50)
        assert status == 200, bundle
        content = (
            base64.b64decode(bundle["content"]) if "content" in bundle else Path(bundle["file"]).read_bytes()
        )
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            assert {"capture", "decision", "uplink"} <= {
                n.split("/")[-2] for n in archive.getnames() if "/" in n
            }
        assert far.ask("log_level", level="debug", seconds=2)[0] == 200
        assert far.ask("flush", wait_s=10)[0] == 200
        assert far.ask("snapshot", camera="nobody")[0] == 404
        assert far.ask("format_disk")[0] == 404

        # Restarted, with the state that counts.
        assert far.ask("restart", module="capture")[0] == 200
        eventually(lambda: far.ask("ping")[1]["modules"]["capture"]["state"] == "ready", 30)
        code, result = run.finish(number=2, within_s=30)
        assert code == 0, run.stderr()
        assert result["ledger_balanced"]
    assert len(far.events) == result["events"]["delivered"]
