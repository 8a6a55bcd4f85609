"""A module's commands in memory: each carried out once, in order, and none that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from skerry.bus import MemoryBus
from skerry.channels import ANSWERS, COMMANDS
from skerry.commands import Ping
from skerry.messages import Answer, Command
from skerry.remote import Refused
from skerry.service import Host
from skerry.settings import ModuleSettings
from skerry.testing import eventually


class Module:
    """A module that answers `ping`, and takes as long for it as the test lets it."""

    def __init__(self, folder: Path) -> None:
        self.bus = MemoryBus()
        self.answers: list[Answer] = []
        self.done: list[str] = []
        self.may = threading.Event()
        self.may.set()
        self.host = Host(ModuleSettings(site="test", module="odd", state=str(folder)), "odd", self.bus)
        self.bus.subscribe(ANSWERS, self.answers.append)
        self.host.remote.answer("ping", Ping, self._ping)
        self.host.remote.start()

    def _ping(self, asked: Ping) -> dict[str, str]:
        self.may.wait(30)
        self.done.append(asked.module or "")
        if asked.module == "refuse":
            raise Refused(403, "not this one")
        if asked.module == "fail":
            raise RuntimeError("rtsp://u:kanarie@cam is down")
        return {"module": asked.module or ""}

    def command(self, number: str, module: str | None = None, **changes: object) -> None:
        given = {"name": "ping", "arguments": {"module": module}, "timeout_s": 20.0, **changes}
        self.bus.publish(COMMANDS, Command(module="odd", id=number, **given), "odd")


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Module]:
    module = Module(tmp_path)
    yield module
    module.may.set()
    module.host.remote.stop()
    module.host.tally.close()


def said(module: Module) -> list[tuple[str, int]]:
    return [(answer.id, answer.status) for answer in module.answers]


def test_commands_are_answered_with_their_id(module):
    module.command("1", "a")
    module.command("2", "refuse")
    module.command("3", "fail")
    module.command("4", "a b")
    module.command("5", name="dance")
    eventually(lambda: len(module.answers) == 5)
    assert said(module) == [("1", 200), ("2", 403), ("3", 500), ("4", 400), ("5", 404)]
    assert module.answers[0].body == {"module": "a"}
    assert module.answers[1].body == {"error": "not this one"}
    assert module.answers[2].body == {"error": "RuntimeError: rtsp://cam is down"}


def test_command_that_nobody_waits_for_any_more_is_not_carried_out(module):
    module.may.clear()
    module.command("slow", "slow")
    eventually(lambda: not module.host.remote._commands)
    module.command("late", "late", timeout_s=0.001)
    module.command("next", "next")
    with capture_logs() as logs:
        threading.Timer(0.05, module.may.set).start()
        eventually(lambda: len(module.answers) == 2)
    assert module.done == ["slow", "next"]
    assert "command.overdue" in [entry["event"] for entry in logs]


def test_no_more_than_8_wait(module):
    module.may.clear()
    module.command("0")
    eventually(lambda: not module.host.remote._commands)
    for n in range(1, 12):
        module.command(str(n))
    assert said(module) == [("9", 429), ("10", 429), ("11", 429)]
    module.may.set()
    eventually(lambda: len(module.answers) == 12)
    assert [number for number, status in said(module)[3:]] == [str(n) for n in range(9)]


def test_commands_of_others_are_let_be(module):
    module.bus.publish(COMMANDS, Command(module="other", id="1", name="ping", timeout_s=5), "odd")
    module.command("2")
    eventually(lambda: module.answers)
    assert said(module) == [("2", 200)]
