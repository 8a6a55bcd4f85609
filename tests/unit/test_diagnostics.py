"""What a module tells of itself: all that helps, nothing that is a secret, and never too much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry.bus import MemoryBus
from skerry.channels import ANSWERS
from skerry.diagnostics import Gatherer
from skerry.logbook import Logbook
from skerry.service import Host
from skerry.settings import BusSettings, ModuleSettings


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "password").write_text("kanarie and more\n")
    bus = BusSettings(user="u", password_file=str(tmp_path / "password"))
    settings = ModuleSettings(site="test", module="odd", state=str(tmp_path / "state"), bus=bus)
    host = Host(settings, "odd", MemoryBus())
    yield host
    host.tally.close()


def test_counts_settings_and_state_are_told(host):
    host.tally.add({"seen": 3})
    host.telemetry.count("skerry_odd_total", 2, camera="gate")
    host.telemetry.latency("decide").add(7.0)
    host.ready()
    host.fault("camera gate", "no signal")
    book = Logbook()
    book.add('{"event":"a","n":1}')
    told = Gatherer(host, book).gather(10)
    assert [json.loads(line) for line in told["log"]] == [{"event": "a", "n": 1}]
    assert told["ledger"] == {"seen": 3}
    assert told["metrics"]["counters"] == {"skerry_odd_total{camera=gate}": 2}
    assert told["metrics"]["latency_ms"]["decide"]["count"] == 1
    assert told["settings"]["now"]["module"] == told["settings"]["deployed"]["module"] == "odd"
    assert told["settings"]["desired"] is None
    assert (told["status"]["state"], told["status"]["reason"]) == ("degraded", "camera gate: no signal")
    assert {"version", "python", "device", "runtimes", "models"} <= set(told["status"])


def test_content_of_a_secret_file_is_nowhere_even_after_it_was_exchanged(host, tmp_path):
    book = Logbook()
    gatherer = Gatherer(host, book)
    book.add('{"event":"login","text":"it said: kanarie and more"}')
    (tmp_path / "password").write_text("kanarie/new\n")
    book.add('{"event":"login","text":"it said: kanarie/new, kanarie%2Fnew"}')
    book.add("no json: kanarie/new")
    host.fault("bus", "refused kanarie/new")
    assert "kanarie" not in json.dumps(gatherer.gather(10))


def test_only_the_last_lines_that_were_asked_for_are_told(host):
    book = Logbook()
    for n in range(100):
        book.add(json.dumps({"n": n}))
    told = Gatherer(host, book).gather(3)["log"]
    assert [json.loads(line)["n"] for line in told] == [97, 98, 99]
    assert Gatherer(host, book).gather(0)["log"] == []


def test_log_leaves_room_in_its_channel(host):
    book = Logbook(most_lines=10_000, most_bytes=10_000_000)
    for n in range(2000):
        book.add(json.dumps({"n": n, "text": "x" * 1000}))
    told = Gatherer(host, book).gather(2000)["log"]
    assert 150 < len(told) < 200
    assert json.loads(told[-1])["n"] == 1999
    assert sum(map(len, told)) < ANSWERS.max_bytes // 4
