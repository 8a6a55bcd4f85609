"""A whole site under changing settings: every process real, and every frame and event accounted for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

import needs
from site_run import SiteRun, assert_exactly_once, site_run
from skerry.broker import free_port
from skerry.channels import ANSWERS, COMMANDS, DESIRED, DETECTIONS, REPORTED
from skerry.desired import digest
from skerry.messages import Answer, Command, Desired, Detections, Reported
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = needs.mosquitto

SITE = """
site: %s
bus: {port: %d, broker: mosquitto}
cameras:
  - {name: belt, source: {kind: synthetic, seed: 1, fps: 15}}
  - {name: yard, source: {kind: synthetic, seed: 2, fps: 10, width: 320, height: 240}, fps: 8}
models: [{package: %s, runtime: onnxruntime}]
rules:
  - {name: crossed, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}
  - {name: in-yard, kind: presence, camera: yard, off_delay_s: 0.2}
"""
MASKS = ([[0, 0], [0.2, 0], [0.2, 1], [0, 1]], [[0.8, 0], [1, 0], [1, 1], [0.8, 1]])
MODULES = ("capture", "inference", "decision", "buffer")


class Operator:
    """Someone on the bus of a running site who changes settings, and hears what became of them."""

    def __init__(self, port: int, site: str) -> None:
        self.site, self.port = site, port
        self.bus = MqttBus(BusSettings(port=port), site, "operator")
        self.reports: dict[str, Reported] = {}
        self.answers: dict[str, Answer] = {}
        self.detections: dict[str, Detections] = {}
        self.bus.subscribe(REPORTED, lambda report: self.reports.__setitem__(report.module, report))
        self.bus.subscribe(ANSWERS, lambda answer: self.answers.__setitem__(answer.id, answer))
        self.bus.subscribe(DETECTIONS, lambda found: self.detections.__setitem__(found.camera, found))
        self.bus.connect()

    def desire(self, module: str, version: str, patch: dict[str, Any]) -> None:
        message = Desired(module=module, version=version, digest=digest(patch), patch=patch)
        eventually(lambda: self.bus.publish(DESIRED, message, module))

    def told(self, module: str, version: str, state: str = "applied") -> Reported:
        """Wait until a module has said what it made of a version."""

        def said() -> bool:
            report = self.reports.get(module)
            return report is not None and (report.version, report.state) == (version, state)

        eventually(said, 20)
        return self.reports[module]

    def restart(self, module: str, number: str) -> None:
        command = Command(module=module, id=number, name="restart", arguments={"module": module}, timeout_s=5)
        self.bus.publish(COMMANDS, command, module)
        eventually(lambda: number in self.answers)
        assert self.answers[number].status == 200

    def forget(self, module: str) -> None:
        """Have the broker forget what it retained."""
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        for channel in (DESIRED, REPORTED):
            client.publish(channel.topic(self.site, module), b"", qos=1, retain=True).wait_for_publish(5)
        client.disconnect()
        client.loop_stop()
        self.reports.pop(module, None)

    def next_detection(self, camera: str) -> Detections:
        """A result that came after this call."""
        before = self.detections.get(camera)
        eventually(lambda: self.detections.get(camera) not in (None, before), 20)
        return self.detections[camera]


@contextmanager
def steered(folder: Path) -> Iterator[tuple[SiteRun, Operator]]:
    """A running site whose every module is ready, and its operator."""
    port, site = free_port(), f"steered-{os.getpid()}"
    path = folder / "site.yaml"
    path.write_text(SITE % (site, port, needs.ROOT / "models" / "parts"), encoding="utf-8")
    with site_run(folder / "out", "run", str(path)) as run:
        run.child("uplink")
        operator = Operator(port, site)
        try:
            for camera in ("belt", "yard"):
                operator.next_detection(camera)
            yield run, operator
        finally:
            operator.bus.close()


def finished(run: SiteRun) -> dict[str, Any]:
    """The result of a run whose every equation must hold."""
    code, result = run.finish(number=signal.SIGTERM)
    assert code == 0, run.stderr()
    assert result["ledger_balanced"]
    for name, camera in result["cameras"].items():
        accounted = camera["inferred"] + camera["failed"] + sum(camera["dropped"].values())
        assert camera["captured"] == accounted > 0, (name, camera)
    assert result["events"]["waiting"] == result["events"]["unaccepted"] == 0
    assert_exactly_once(run.delivered())
    assert len(run.delivered()) == result["events"]["delivered"]
    return result


def exits(run: SiteRun, module: str) -> list[int]:
    """Exit codes of a module's former lives."""
    lines = (run.out / "logs" / "run.log").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [e["code"] for e in found if e["event"] == "child.exited" and e.get("child") == module]


def test_a_site_under_a_flood_of_desired_states_balances_to_the_frame_and_the_event(tmp_path: Path) -> None:
    with steered(tmp_path) as (run, operator):
        run.wait_for_events(1)
        for n in range(200):
            belt = {"fps": (15, 2, None, 7)[n % 4], "more_masks": [MASKS[n % 2]], "late_s": 0.2 + n % 3}
            operator.desire("capture", str(n), {"cameras": {"belt": belt, "yard": {"fps": n % 9 + 1}}})
            operator.desire("inference", str(n), {"models": {"0": {"score_threshold": n % 5 / 10 + 0.2}}})
            rules = {"crossed": {"lane": ("event", "alarm")[n % 2]}, "in-yard": {"enabled": n % 3 > 0}}
            rules |= {"more": None if n % 4 else {"kind": "motion", "camera": "yard", "lane": "telemetry"}}
            operator.desire("decision", str(n), {"rules": rules, "tracker": {"lost_s": 0.5 + n % 2}})
            lane = {"limit_bytes": (n % 3 + 2) * 2**20}
            operator.desire("buffer", str(n), {"linger_ms": n % 10, "lanes": {"event": lane}})
            if n % 40 == 39:
                operator.told("capture", str(n))
                operator.told("decision", str(n))
        for module in MODULES:
            assert operator.told(module, "199").restart == ()
        eventually(lambda: any(event["lane"] == "alarm" for event in run.delivered()), 20)
        for module in MODULES:
            operator.desire(module, "last", {})
        for module in MODULES:
            operator.told(module, "last")
        seen = len(run.delivered())
        run.wait_for_events(seen + 2)
        result = finished(run)
        assert result["restarts"] == {}


def test_desired_settings_outlive_kills_restarts_and_a_forgetful_broker(tmp_path: Path) -> None:
    with steered(tmp_path) as (run, operator):
        # Between desired and applied: a process that is stopped hears nothing, and is killed.
        capture = run.child("capture")
        capture.suspend()
        operator.desire("capture", "1", {"cameras": {"belt": {"fps": 5}, "yard": {"width": 160}}})
        capture.kill()
        report = operator.told("capture", "1")
        assert report.restart == ("cameras.yard.width",)
        assert operator.next_detection("yard").width == 320

        # What waits for a restart counts after it, with nobody there to repeat it.
        operator.desire("inference", "1", {"models": {"0": {"score_threshold": 1.0}}})
        operator.told("inference", "1")
        for module in ("capture", "inference"):
            operator.forget(module)
            operator.restart(module, module)
        assert operator.told("capture", "1").restart == ()
        operator.told("inference", "1")
        eventually(lambda: operator.next_detection("yard").width == 160, 20)
        assert operator.next_detection("belt").objects == ()
        assert exits(run, "capture") == [-signal.SIGKILL, 75]

        # A package that is not there is refused at once.
        patch = {"models": {"0": {"score_threshold": 0.5, "package": "/nowhere/package"}}}
        operator.desire("inference", "lost", patch)
        report = operator.told("inference", "lost", "refused")
        assert "/nowhere/package/manifest.json: expected a model package" in report.errors[0]
        assert operator.next_detection("belt").objects == ()

        # A device that is not there: the start with it fails, and the one after goes by what was before.
        patch = {"models": {"0": {"score_threshold": 1.0, "device": "cuda"}}}
        operator.desire("inference", "2", patch)
        assert operator.told("inference", "2").restart == ("models.0.device",)
        operator.restart("inference", "again")
        report = operator.told("inference", "2", "refused")
        assert "the module did not start with it: device: cuda is not in this onnxruntime" in report.errors[0]
        assert operator.next_detection("belt").objects == ()
        assert exits(run, "inference") == [75, 75, 75]
        operator.restart("inference", "and-again")  # the broker repeats what failed; it is not tried again
        eventually(lambda: exits(run, "inference") == [75] * 4)
        assert operator.next_detection("belt").status == "ok"
        assert operator.told("inference", "2", "refused").errors == report.errors
        result = finished(run)
        assert result["restarts"] == {"capture": 2, "inference": 4}


@pytest.mark.timeout(240)
def test_a_model_is_exchanged_while_the_site_runs_and_serves_after_a_kill(tmp_path: Path) -> None:
    package = tmp_path / "next"
    shutil.copytree(needs.ROOT / "models" / "parts", package)
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    (package / "manifest.json").write_text(json.dumps({**manifest, "version": "next"}), encoding="utf-8")
    with steered(tmp_path) as (run, operator):
        run.wait_for_events(1)
        exchange = {"shadow_frames": 5, "probation_s": 0.5}
        operator.desire("inference", "1", {"models": {"0": {"package": str(package), "exchange": exchange}}})
        assert operator.told("inference", "1").restart == ()
        assert operator.next_detection("yard").model == "parts@next"
        run.kill("inference")
        eventually(lambda: operator.next_detection("belt").model == "parts@next", 20)
        run.wait_for_events(len(run.delivered()) + 3)
        assert finished(run)["restarts"] == {"inference": 1}
