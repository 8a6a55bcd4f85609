"""What every module's process does, over a real broker: signals, status, watchdog, health, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import needs
from skerry.broker import BrokerProcess, free_port
from skerry.channels import METRICS, STATUS
from skerry.ledger import read_tally
from skerry.messages import Metrics, Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = needs.mosquitto

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(shared_broker: BrokerProcess, unique_site: str, tmp_path: Path) -> Iterator[Start]:
    """Start the odd module with a behaviour and settings; all of them are killed at the end."""
    children: list[subprocess.Popen[str]] = []

    def starter(behaviour: str, **settings: Any) -> subprocess.Popen[str]:
        told = {
            "site": unique_site, "module": "odd", "state": str(tmp_path / "state"),
            "bus": {"port": shared_broker.port}, **settings,
        }  # fmt: skip
        with (tmp_path / "stderr").open("w") as errors:
            children.append(
                subprocess.Popen(
                    [sys.executable, str(needs.ROOT / "tests" / "odd_module.py"), behaviour],
                    env={"PATH": os.environ["PATH"], "SKERRY_SETTINGS": json.dumps(told)},
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            )
        return children[-1]

    yield starter
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.fixture
def heard(shared_broker: BrokerProcess, unique_site: str) -> Iterator[dict[str, list[Any]]]:
    """Status and metrics as they come."""
    bus = MqttBus(BusSettings(port=shared_broker.port), unique_site, "observer")
    messages: dict[str, list[Any]] = {"status": [], "metrics": []}
    bus.subscribe(STATUS, messages["status"].append)
    bus.subscribe(METRICS, messages["metrics"].append)
    bus.connect()
    eventually(lambda: bus.connected)
    yield messages
    bus.close()


def states(heard: dict[str, list[Any]]) -> list[str]:
    """States in order, repeats removed."""
    found: list[str] = []
    for status in heard["status"]:
        if not found or found[-1] != status.state:
            found.append(status.state)
    return found


def logged(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "stderr").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_module_drain_and_end_with_0(start, heard, tmp_path, number):
    child = start("drains")
    eventually(lambda: "ready" in states(heard), 30)
    child.send_signal(number)
    assert child.wait(30) == 0
    assert child.stdout.read() == "drained\n"
    assert read_tally(tmp_path / "state" / "tally") == {"seen": 1, "drained": 1}
    eventually(lambda: states(heard)[-1] == "stopped")
    assert "lost" not in states(heard)


def test_signal_before_the_module_is_ready_ends_it_too(start):
    child = start("drains", bus={"port": 1})
    eventually(lambda: child.poll() is not None or handles_sigterm(child.pid), 30)
    child.terminate()
    assert child.wait(30) == 0


def handles_sigterm(pid: int) -> bool:
    """Source: proc(5), SigCgt: the mask of signals that are caught."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)
    return bool(mask & (1 << (signal.SIGTERM - 1)))


def test_module_that_does_not_drain_in_its_grace_ends_with_70(start, heard, tmp_path):
    child = start("never-drains", grace_s=0.3)
    eventually(lambda: "ready" in states(heard), 30)
    child.terminate()
    assert child.wait(30) == 70
    assert any(entry["event"] == "module.grace_exceeded" for entry in logged(tmp_path))


def test_watchdog_ends_a_stalled_module_with_70_and_the_broker_says_lost(start, heard, tmp_path):
    child = start("stall", watchdog_s=1)
    assert child.wait(60) == 70
    assert any(entry["event"] == "module.stalled" for entry in logged(tmp_path))
    eventually(lambda: states(heard)[-1:] == ["lost"])


@pytest.mark.parametrize(("behaviour", "code"), [("crash", 70), ("package", 65), ("unavailable", 69)])
def test_exit_code_says_who_must_act(start, tmp_path, behaviour, code):
    assert start(behaviour).wait(30) == code
    assert any("as asked" in entry.get("error", "") for entry in logged(tmp_path))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"sate": "x"}, "SKERRY_SETTINGS: $.sate: unknown key (did you mean 'state'?)"),
        ({"grace_s": 0, "site": "a b"}, "SKERRY_SETTINGS: $.grace_s: expected a number above 0, got 0"),
        (
            {"bus": {"tls": {"ca": "/none"}}},
            "tls.ca: /none: expected PEM certificates, got No such file or directory",
        ),
        (
            {"bus": {"user": "u", "password_file": "/none"}},
            "password_file: /none: cannot read it: No such file or directory",
        ),
        ({"bus": {"port": 0}}, "bus: expected a host and a port above 0, got 127.0.0.1:0"),
    ],
)
def test_wrong_settings_end_it_with_78_and_name_every_problem(start, tmp_path, settings, problem):
    assert start("serve", **settings).wait(30) == 78
    plain = [line for line in (tmp_path / "stderr").read_text().splitlines() if not line.startswith("{")]
    assert problem in plain
    assert len(plain) == len(settings)


def test_taken_http_port_ends_it_with_78(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert start("serve", http_port=taken.getsockname()[1]).wait(30) == 78
    assert "(choose another)" in (tmp_path / "stderr").read_text()


def test_state_folder_that_cannot_be_written_ends_it_with_69(start, tmp_path):
    (tmp_path / "state").write_text("a file where a folder should be")
    assert start("serve").wait(30) == 69
    assert "cannot write the state folder" in (tmp_path / "stderr").read_text()


def test_absent_broker_stops_nothing_and_ready_waits_for_it(start, tmp_path):
    port, http = free_port(), free_port()
    child = start("serve", bus={"port": port}, http_port=http)
    eventually(lambda: get(http, "/healthz")[0] == 200, 30)
    assert get(http, "/readyz") == (503, "no broker\n")
    with BrokerProcess(tmp_path / "late", port, "mosquitto"):
        eventually(lambda: get(http, "/readyz") == (200, "ready\n"), 30)
    eventually(lambda: get(http, "/readyz")[0] == 503, 30)
    child.terminate()
    assert child.wait(30) == 0


def test_killed_with_9_it_is_lost_and_started_again_it_is_ready(start, heard):
    child = start("serve")
    eventually(lambda: states(heard)[-1:] == ["ready"], 30)
    child.kill()
    eventually(lambda: states(heard)[-1:] == ["lost"])
    again = start("serve")
    eventually(lambda: states(heard)[-1:] == ["ready"], 30)
    assert heard["status"][-1].pid == again.pid


def test_crash_after_being_ready_leaves_no_ready_status_behind(start, heard):
    assert start("crash-later").wait(30) == 70
    eventually(lambda: states(heard)[-1:] == ["stopped"])
    last: Status = heard["status"][-1]
    assert last.reason == "RuntimeError: later, as asked"


def test_degraded_says_why(start, heard):
    start("degraded")
    eventually(lambda: states(heard)[-1:] == ["degraded"], 30)
    assert heard["status"][-1].reason == "camera gate: no signal"


def test_status_is_retained_for_who_comes_later(start, heard, shared_broker, unique_site):
    start("serve")
    eventually(lambda: "ready" in states(heard), 30)
    late: list[Status] = []
    bus = MqttBus(BusSettings(port=shared_broker.port), unique_site, "late")
    bus.subscribe(STATUS, late.append)
    bus.connect()
    eventually(lambda: late)
    bus.close()
    assert (late[0].module, late[0].kind, late[0].state) == ("odd", "odd", "ready")


def test_metrics_come_every_second_and_once_more_at_the_end(start, heard):
    child = start("serve")
    eventually(lambda: len(heard["metrics"]) >= 2, 30)
    before = len(heard["metrics"])
    child.terminate()
    child.wait(30)
    eventually(lambda: len(heard["metrics"]) > before)
    last: Metrics = heard["metrics"][-1]
    assert last.counters["skerry_odd_total{camera=gate}"] == 3
    assert last.latency_ms["decide{camera=gate}"].p50 == pytest.approx(7.0, rel=0.01)
    assert 5 < last.rss_mb < 500
    assert last.cpu_s > 0


def test_gauge_that_fails_is_logged_and_costs_only_its_metrics(start, heard, tmp_path):
    child = start("bad-gauge")
    eventually(lambda: [e["event"] for e in logged(tmp_path)].count("metrics.failed") >= 2, 30)
    assert child.poll() is None


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_metrics_page_is_what_prometheus_reads(start, heard):
    port = free_port()
    start("serve", http_port=port)
    eventually(lambda: get(port, "/readyz") == (200, "ready\n"), 30)
    families = {f.name: f for f in text_string_to_metric_families(get(port, "/metrics")[1])}
    (counter,) = families["skerry_odd"].samples
    assert (counter.value, counter.labels) == (3, {"module": "odd", "camera": "gate"})
    histogram = families["skerry_decide_seconds"]
    assert histogram.type == "histogram"
    buckets = {s.labels["le"]: s.value for s in histogram.samples if s.name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.01"], buckets["+Inf"]) == (0, 1, 1)


def test_stalled_main_loop_shows_on_healthz_before_the_watchdog_acts(start):
    port = free_port()
    child = start("stall", http_port=port, watchdog_s=2)
    codes: list[int] = []

    def over() -> bool:
        codes.append(get(port, "/healthz")[0])
        return child.poll() is not None

    eventually(over, 60)
    assert 200 in codes


def test_unknown_page_names_the_known_ones(start):
    port = free_port()
    start("serve", http_port=port)
    eventually(lambda: get(port, "/")[0] == 404, 30)
    assert "/readyz" in get(port, "/")[1]


def test_settings_may_stand_in_a_file(tmp_path, shared_broker, unique_site):
    file = tmp_path / "settings.json"
    file.write_text(
        json.dumps({"site": unique_site, "module": "odd", "state": str(tmp_path / "s"), "http": 1})
    )
    done = subprocess.run(
        [sys.executable, str(needs.ROOT / "tests" / "odd_module.py"), "serve"],
        env={"SKERRY_SETTINGS": f"@{file}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 78
    assert f"{file}: $.http: unknown key" in done.stderr
