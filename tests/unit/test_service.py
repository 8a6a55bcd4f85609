"""What a module sees of its process, in memory; tests/integration/test_service.py has the process itself."""

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from skerry.bus import MemoryBus
from skerry.channels import METRICS, STATUS
from skerry.errors import ConfigError, Unavailable
from skerry.messages import Metrics, Status
from skerry.service import Host, configure_logging, last_will, load
from skerry.settings import ModuleSettings
from skerry.testing import eventually, running


@pytest.fixture
def settings(tmp_path) -> ModuleSettings:
    return ModuleSettings(site="test", module="odd", state=str(tmp_path / "state"))


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def host(settings, bus):
    host = Host(settings, "kind", bus)
    yield host
    host.tally.close()


@pytest.fixture
def statuses(bus) -> list[Status]:
    heard: list[Status] = []
    bus.subscribe(STATUS, heard.append)
    return heard


def test_settings_come_from_the_environment_as_json_or_from_a_file(tmp_path):
    text = '{"site": "s", "module": "m", "state": "x"}'
    (tmp_path / "settings.json").write_text(text)
    assert load(ModuleSettings, {"SKERRY_SETTINGS": text}) == ModuleSettings(site="s", module="m", state="x")
    assert load(ModuleSettings, {"SKERRY_SETTINGS": f"@{tmp_path}/settings.json"}).module == "m"


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({}, "SKERRY_SETTINGS: expected JSON or @FILE, got nothing (set the variable)"),
        ({"SKERRY_SETTINGS": "@/none"}, "/none: cannot read the settings: No such file or directory"),
        ({"SKERRY_SETTINGS": "[]"}, "SKERRY_SETTINGS: $: expected a mapping, got []"),
    ],
)
def test_settings_that_are_not_there_say_what_to_do(environment, problem):
    with pytest.raises(ConfigError) as caught:
        load(ModuleSettings, environment)
    assert caught.value.problems == (problem,)


def test_status_is_said_when_it_changes_and_only_then(host, statuses):
    host.announce()
    host.ready()
    host.ready()
    host.fault("camera gate", "no signal")
    host.fault("camera gate", "no signal")
    host.fault("camera hall", "no signal")
    host.clear("camera gate")
    host.clear("camera gate")
    host.clear("camera hall")
    assert [(s.state, s.reason) for s in statuses] == [
        ("starting", ""),
        ("ready", ""),
        ("degraded", "camera gate: no signal"),
        ("degraded", "camera gate: no signal; camera hall: no signal"),
        ("degraded", "camera hall: no signal"),
        ("ready", ""),
    ]


def test_status_that_could_not_be_sent_is_said_at_the_next_occasion(host, bus, statuses):
    bus.disconnect()
    host.ready()
    bus.reconnect()
    host.announce()
    host.announce()
    assert [s.state for s in statuses] == ["ready"]


def test_last_will_names_the_module_and_says_lost(settings):
    will = last_will(settings, "kind")
    assert (will.module, will.kind, will.state) == ("odd", "kind", "lost")


def test_metrics_carry_counts_gauges_and_what_the_bus_refused(host, bus):
    heard: list[Metrics] = []
    bus.subscribe(METRICS, heard.append)
    bus.broker.publish("skerry/test/metrics/x", b"{")
    host.before_metrics(lambda: host.telemetry.gauge("depth", 4))
    host.fps = lambda: 14.987
    host.publish_metrics()
    (metrics,) = heard
    assert metrics.counters == {"depth": 4, "skerry_messages_rejected_total{reason=malformed}": 1}
    assert metrics.fps == 14.99


def test_state_folder_is_made_and_one_that_cannot_be_is_unavailable(settings, bus, tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(Unavailable, match="cannot write the state folder"):
        Host(settings, "kind", bus)


def test_running_hands_an_exception_of_the_module_to_the_test(settings, bus):
    def run(settings: ModuleSettings, bus: Any, host: Host) -> None:
        host.ready()
        raise RuntimeError("as asked")

    with pytest.raises(RuntimeError, match="as asked"), running(run, settings, bus) as host:
        eventually(lambda: host.condition[0] == "ready")


def test_eventually_fails_with_what_was_waited_for():
    def door_is_open() -> bool:
        """the door is open"""
        return False

    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the door is open"):
        eventually(door_is_open, 0.05)


@pytest.fixture
def logging_restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("logging_restored")
def test_every_line_names_its_module_in_whatever_thread() -> None:
    sink = io.StringIO()
    configure_logging("json", "info", "capture", sink)
    thread = threading.Thread(target=lambda: structlog.get_logger().info("said"))
    thread.start()
    thread.join()
    assert json.loads(sink.getvalue())["module"] == "capture"


@pytest.mark.usefixtures("logging_restored")
def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115 - closing it fails, too
    configure_logging("json", "info", "capture", full)
    for _ in range(3):
        structlog.get_logger().info("said", much="x" * 10_000)
    with contextlib.suppress(OSError):
        full.close()
