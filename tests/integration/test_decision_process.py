"""The decision module as a process on a real broker, killed with -9; the test plays inference and buffer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import needs
from skerry.broker import BrokerProcess
from skerry.channels import ACCEPTED, DETECTIONS, EVENTS, METRICS, STATUS
from skerry.children import end, spawn
from skerry.ledger import read_tally
from skerry.messages import Accepted, Detection, Detections, Event, Metrics, Status, Submission
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

S = 1_000_000_000


class Site:
    """Inference, which never stops counting, and a buffer that keeps what is next in order."""

    def __init__(self, port: int, site: str) -> None:
        self.bus = MqttBus(BusSettings(port=port), site, "rest")
        self.kept: list[Event] = []
        self.repeats = 0
        self.marks: dict[str, int] = {}
        self.state = ""
        self.metrics: Metrics | None = None
        self.sequence = 0
        self._lock = threading.Lock()
        self.bus.subscribe(EVENTS, self._take)
        self.bus.subscribe(STATUS, self._status, "decision")
        self.bus.subscribe(METRICS, self._metrics, "decision")
        self.bus.connect()

    def _take(self, submission: Submission) -> None:
        mark = self.marks.get(submission.epoch, submission.oldest - 1)
        for event in submission.events:
            if event.seq == mark + 1:
                self.kept.append(event)
                mark = event.seq
            else:
                self.repeats += 1
        self.marks[submission.epoch] = mark
        watermark = Accepted(producer="decision", epoch=submission.epoch, seq=mark)
        self.bus.publish(ACCEPTED, watermark, "decision")

    def _status(self, status: Status) -> None:
        self.state = status.state

    def _metrics(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def show(self, x: float | None) -> None:
        """The next result, with one nut or nothing, a fifth of a second after the last."""
        self.sequence += 1
        box = () if x is None else (Detection("nut", 0.9, (x - 0.05, 0.4, x + 0.05, 0.5)),)
        message = Detections(
            camera="belt", number=self.sequence, sequence=self.sequence, status="ok",
            time="2026-01-01T00:00:00Z", captured_ns=1,
            media_ns=self.sequence * S // 5, inferred_ns=1, width=640, height=480, objects=box,
        )  # fmt: skip
        self.bus.publish(DETECTIONS, message, "belt")

    def cross(self) -> None:
        """A part crosses the line and is gone."""
        for x in (0.46, 0.54, None, None):
            self.show(x)


def start(port: int, site: str, state: Path) -> subprocess.Popen[bytes]:
    settings = {
        "site": site, "module": "decision", "state": str(state), "cameras": ["belt"], "bus": {"port": port},
        "rules": [
            {"kind": "line", "name": name, "camera": "belt", "line": [[0.5, 0], [0.5, 1]], "lane": lane}
            for name, lane in (("count", "event"), ("watch", "alarm"))
        ],
        "tracker": {"confirm_s": 0, "lost_s": 0.25}, "resend_s": 0.3, "queue": 1000,
    }  # fmt: skip
    environment = {**os.environ, "SKERRY_SETTINGS": json.dumps(settings)}
    return spawn([sys.executable, "-m", "skerry.decision"], environment, stderr=subprocess.DEVNULL)


def in_order(kept: list[Event]) -> bool:
    by_epoch: dict[str, list[int]] = {}
    for event in kept:
        by_epoch.setdefault(event.epoch, []).append(event.seq)
    return all(seqs == list(range(1, len(seqs) + 1)) for seqs in by_epoch.values())


@needs.mosquitto
def test_events_survive_kill_9_of_module_and_broker_exactly_once_and_the_ledger_balances(
    tmp_path: Path, broker: BrokerProcess
) -> None:
    rng = random.Random(7)
    site = Site(broker.port, "hall")
    child = start(broker.port, "hall", tmp_path / "state")
    try:
        eventually(lambda: site.state == "ready", 30)
        for turn in range(5):
            for _ in range(rng.randrange(5, 40)):
                site.cross()
            if turn % 2 == 0:
                child.send_signal(signal.SIGKILL)
                child.wait()
                eventually(lambda: site.state == "lost", 30)
                child = start(broker.port, "hall", tmp_path / "state")
            else:
                site.state = "unknown"
                os.kill(broker.pid, signal.SIGKILL)
                eventually(lambda: broker.poll() is not None)
                broker.start()
            eventually(lambda: site.bus.connected and site.state == "ready", 30)
        before = len(site.kept)
        site.cross()
        eventually(lambda: len(site.kept) > before, 30)
        end(child, 10.0)
        assert child.returncode == 0
    finally:
        end(child, 5.0)
        site.bus.close()
    tally = read_tally(tmp_path / "state" / "tally")
    assert len({e.id for e in site.kept}) == len(site.kept)
    assert in_order(site.kept)
    assert len({(e.epoch, e.lane) for e in site.kept}) == len({e.epoch for e in site.kept}) == 2
    assert tally["decided"] - tally.get("refused", 0) == len(site.kept) + tally["unaccepted"]
    assert tally["belt/evaluated"] + tally.get("belt/unseen", 0) == tally["belt/sequence"] == site.sequence
    for rule in ("count", "watch"):
        totals = [e.data["total"] for e in site.kept if e.data["rule"] == rule]
        assert totals == list(range(1, len(totals) + 1)), "in order, none twice"


@needs.mosquitto
def test_the_process_says_what_it_counts_and_ends_at_once_when_told(
    tmp_path: Path, shared_broker: BrokerProcess, unique_site: str
) -> None:
    site = Site(shared_broker.port, unique_site)
    child = start(shared_broker.port, unique_site, tmp_path / "state")
    try:
        eventually(lambda: site.state == "ready", 30)
        for _ in range(20):
            site.cross()
        eventually(lambda: len(site.kept) == 40, 30)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
        eventually(lambda: site.state == "stopped")
    finally:
        end(child, 5.0)
        site.bus.close()
    assert site.metrics is not None
    counters = site.metrics.counters
    assert counters["skerry_events_decided_total"] == 40
    assert counters["skerry_events_unaccepted"] == 0
    assert counters["skerry_results_evaluated_total{camera=belt}"] == 80
    assert {"evaluate", "capture_to_event", "event_to_accepted"} <= set(site.metrics.latency_ms)


def test_wrong_rules_end_the_process_with_the_code_for_configuration(tmp_path: Path) -> None:
    settings = {
        "site": "s", "module": "decision", "state": str(tmp_path), "cameras": ["belt"], "bus": {"port": 1},
        "rules": [{"kind": "count", "name": "c", "camera": "roof"}],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "skerry.decision"],
        env={**os.environ, "SKERRY_SETTINGS": json.dumps(settings)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78
    assert "settings: $.rules[0].camera: unknown camera 'roof' (known: belt)" in done.stderr
    assert "settings: $.rules[0]: expected above or below, got neither (add the bound)" in done.stderr
