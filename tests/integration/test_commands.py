"""Commands from an MQTT broker outside, through the uplink's process to the modules' and back."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

import needs
from remote_site import RemoteSite
from skerry.broker import BrokerProcess

pytestmark = needs.mosquitto

SCENE = {"kind": "synthetic", "width": 320, "height": 240, "fps": 15}
LEFT = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
CAMERAS: list[dict[str, Any]] = [
    {"name": "gate", "source": SCENE, "snapshots": "allowed", "masks": [LEFT]},
    {"name": "hall", "source": SCENE, "snapshots": "blurred"},
    {"name": "desk", "source": SCENE},
]


@pytest.fixture(scope="module")
def site(shared_broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteSite]:
    folder = tmp_path_factory.mktemp("site")
    more = {"uplink": {"remote": {"commands_per_min": 6000}}}
    with RemoteSite(folder, shared_broker.port, f"cmd-{os.getpid()}", cameras=CAMERAS, more=more) as site:
        site.ready()
        site.until(lambda: site.ask("snapshot", camera="hall")[0] == 200)
        site.until(lambda: site.ask("snapshot", camera="gate")[0] == 200)
        yield site


def picture(body: dict[str, Any]) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(body["image"]), np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (body["height"], body["width"], 3)
    return pixels


def test_ping_says_how_all_are_and_one_by_itself(site):
    status, body = site.ask("ping")
    assert status == 200
    assert {name: m["kind"] for name, m in body["modules"].items()} == {
        "capture": "capture", "uplink": "uplink",
    }  # fmt: skip
    status, body = site.ask("ping", module="uplink")
    assert (status, body["module"], body["state"]) == (200, "uplink", "ready")


def test_snapshot_shows_the_scene_with_its_masks(site):
    status, body = site.ask("snapshot", camera="gate", width=320)
    assert status == 200
    pixels = picture(body)
    assert pixels[:, :150].max() < 40
    assert pixels[:, 170:].std() > 10
    assert body["age_s"] < 30


def test_snapshot_is_as_coarse_or_as_forbidden_as_the_site_file_says(site):
    status, body = site.ask("snapshot", camera="hall", width=320)
    assert (status, body["blurred"]) == (200, True)
    edges = cv2.Laplacian(picture(body), cv2.CV_64F)
    assert np.abs(edges).max() < 60
    status, body = site.ask("snapshot", camera="desk")
    assert status == 403
    assert "`snapshots` is never" in body["error"]


def test_log_level_counts_for_a_time(site):
    def done() -> int:
        return site.logs("capture").count('"command": "ping"')

    status, body = site.ask("log_level", level="error", seconds=1.5, module="capture")
    assert (status, body) == (200, {"level": "error", "seconds": 1.5})
    before = done()
    assert site.ask("ping", module="capture")[0] == 200
    assert done() == before

    def logged_again() -> bool:
        site.ask("ping", module="capture")
        return done() > before

    site.until(logged_again)


def test_log_level_of_all_is_joined(site):
    status, body = site.ask("log_level", level="info", seconds=1)
    assert (status, sorted(body["modules"]), body["missing"]) == (200, ["capture", "uplink"], {})


def test_restart_ends_a_module_and_its_supervisor_starts_it_again(site):
    child, before = site.supervisor.children["capture"], site.pid("capture")
    exits = len(child.exits)
    assert site.ask("restart", module="capture") == (200, {"restarting": "capture"})
    site.until(lambda: child.process is not None and child.process.pid != before)
    assert child.exits[exits:] == [75]
    site.until(lambda: site.operator.retained("/status/capture").get("pid") == site.pid("capture"))
    site.until(lambda: site.ask("ping", module="capture")[0] == 200)


def test_restart_of_the_uplink_is_answered_before_it_ends(site):
    child, before = site.supervisor.children["uplink"], site.pid("uplink")
    exits = len(child.exits)
    assert site.ask("restart", module="uplink") == (200, {"restarting": "uplink"})
    site.until(lambda: child.process is not None and child.process.pid != before)
    assert child.exits[exits:] == [75]
    site.until(lambda: site.operator.retained("/status/uplink").get("pid") == site.pid("uplink"))
    site.until(lambda: site.operator.patient("ping", meanwhile=site.tend))


def frozen(pid: int) -> bool:
    """Whether every thread has stopped: the signal reaches one after the other.

    Source: proc(5), /proc/pid/task/tid/stat, the field after the name in parentheses.
    """
    states = [
        path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")
    ]
    return set(states) == {"T"}


def test_module_that_is_killed_meanwhile_is_named(site):
    site.until(lambda: site.state("capture") == "ready")
    pid = site.pid("capture")
    os.kill(pid, signal.SIGSTOP)
    site.until(lambda: frozen(pid))
    heard, before = site.operator.heard, len(site.operator.heard)
    request = site.operator.send("ping", module="capture")
    site.until(lambda: any(topic.endswith("/commands/capture") for topic, _ in heard[before:]))
    os.kill(pid, signal.SIGKILL)
    site.until(lambda: request in site.operator.answers)
    (answer,) = site.operator.answers[request]
    assert answer["status"] == 504
    assert answer["body"]["error"].startswith("capture: it ")
    site.until(lambda: site.pid_is_new("capture", pid) and site.ask("ping", module="capture")[0] == 200)


def test_flush_is_answered(site):
    status, body = site.ask("flush", wait_s=10)
    assert (status, body) == (200, {"done": True, "waiting": 0})


def files_of(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar.getmembers()}


def test_diagnostics_hold_logs_counts_and_settings_of_every_module(site):
    site.until(lambda: site.ask("snapshot", camera="hall")[0] == 200)
    heard, before = site.operator.heard, len(site.operator.heard)
    site.until(lambda: any(t.endswith("/metrics/capture") and b"=gate" in p for t, p in heard[before:]))
    status, body = site.ask("diagnostics", lines=50)
    assert (status, body["modules"], body["missing"]) == (200, ["capture", "uplink"], {})
    content = base64.b64decode(body["content"])
    assert hashlib.sha256(content).hexdigest() == body["sha256"]
    assert Path(body["file"]).read_bytes() == content
    files = files_of(content)
    assert sorted({name.partition("/")[0] for name in files}) == ["capture", "site.json", "uplink"]
    assert json.loads(files["capture/ledger.json"])["gate/captured"] > 0
    metrics = json.loads(files["capture/metrics.json"])
    assert metrics["counters"]["skerry_frames_captured_total{camera=gate}"] > 0
    settings = json.loads(files["capture/settings.json"])
    assert settings["now"]["cameras"][0]["name"] == "gate"
    status_of = json.loads(files["capture/status.json"])
    assert (status_of["state"], status_of["kind"]) == ("ready", "capture")
    lines = [json.loads(line) for line in files["uplink/log.jsonl"].splitlines()]
    assert 0 < len(lines) <= 50
    assert any(line["event"] == "command.answered" for line in lines)


KINDS: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}), ("ping", {"module": "capture"}), ("snapshot", {"camera": "gate"}), ("reboot", {}),
    ("log_level", {"level": "info", "seconds": 1}), ("ping", {"nonsense": 1}), ("flush", {"wait_s": 1}),
    ("snapshot", {"camera": "desk"}), ("diagnostics", {"lines": 20}), ("restart", {"module": "none"}),
]  # fmt: skip
"""A storm of these has something that goes to a module, to all, to none, and that is refused."""


def audit(site: RemoteSite) -> list[dict[str, Any]]:
    text = (site.folder / "uplink" / "audit.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


REFUSALS = {400, 413, 429}
"""Answers that the link drops first when too many are on their way."""


def looked_at(site: RemoteSite) -> int:
    """Commands that came to an end otherwise than by a refusal, as the audit has it."""
    return sum(line.get("status", 429) not in REFUSALS for line in audit(site))


def answered(site: RemoteSite) -> int:
    """Answers that the operator got, but for refusals."""
    several = list(site.operator.answers.values())
    return sum(answer["status"] not in REFUSALS for answers in several for answer in answers)


def test_storm_of_commands_is_answered_in_bounded_memory_and_disturbs_nothing(site):
    """Of a thousand at once most are turned away, many without a word; what is looked at is answered."""
    site.until(lambda: site.state("capture") == "ready" and site.ask("ping", module="capture")[0] == 200)
    uplink, capture = psutil.Process(site.pid("uplink")), site.pid("capture")
    before_mb = uplink.memory_info().rss / 2**20
    captured = site.operator.retained("/cameras/gate")["captured"]
    looked, heard = looked_at(site), answered(site)
    for n in range(1000):
        name, arguments = KINDS[n % len(KINDS)]
        site.operator.send(name, **arguments)
    # It comes after all of them.
    site.until(lambda: site.operator.patient("ping", meanwhile=site.tend))
    site.until(lambda: answered(site) - heard == looked_at(site) - looked >= 20)
    site.until(lambda: site.operator.retained("/cameras/gate")["captured"] > captured + 15)
    assert max(map(len, site.operator.answers.values())) == 1
    assert uplink.memory_info().rss / 2**20 < before_mb + 25
    assert site.state("uplink") == "ready"
    assert (site.pid("uplink"), site.pid("capture")) == (uplink.pid, capture)
    assert site.ask("ping", module="capture")[0] == 200


def test_every_one_of_many_commands_is_answered_once_while_no_more_are_open_than_may_be(site):
    answers, requests = site.operator.answers, []
    for n in range(300):
        site.until(lambda: sum(request not in answers for request in requests) < 8)
        name, arguments = KINDS[n % len(KINDS)]
        requests.append(site.operator.send(name, **arguments))
    site.until(lambda: all(request in answers for request in requests))
    assert {len(answers[request]) for request in requests} == {1}
    for name, status in (("restart", 404), ("reboot", 404)):
        assert {answers[r][0]["status"] for r in requests if answers[r][0]["name"] == name} == {status}
