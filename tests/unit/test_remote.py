"""A module's side of being steered, over a bus in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from skerry.adjuster import Adjuster
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import ANSWERS, COMMANDS, DESIRED, INVENTORY, REPORTED
from skerry.commands import Ping, Restart
from skerry.desired import digest
from skerry.errors import ConfigError, Unavailable
from skerry.messages import Answer, Command, Desired, Inventory, ModelInUse, Reported
from skerry.remote import Refused, Remote
from skerry.settings import LIVE, RESTART, ModuleSettings, Problem
from skerry.testing import eventually


class Odd(ModuleSettings, frozen=True, kw_only=True):
    fps: Annotated[int, LIVE] = 1
    model: Annotated[str, RESTART] = "a"
    url: str = ""
    cameras: tuple[dict[str, str], ...] = ()


def check(settings: Odd) -> list[Problem]:
    return [("$.fps", "expected less than 100")] if settings.fps == 100 else []


class Site:
    """A module's side of being steered, a loop that tests turn, and those who steer it."""

    def __init__(self, folder: Path, broker: MemoryBroker, deployed: Odd) -> None:
        self.bus = MemoryBus(broker)
        self.far = MemoryBus(broker)
        self.reports: list[Reported] = []
        self.answers: list[Answer] = []
        self.inventories: list[Inventory] = []
        self.far.subscribe(REPORTED, self.reports.append)
        self.far.subscribe(ANSWERS, self.answers.append)
        self.far.subscribe(INVENTORY, self.inventories.append)
        self.remote = Remote(self.bus, "odd", Adjuster(deployed, folder / "desired.json", check))
        self.applied: list[Odd] = []
        self.remote.start()

    def desire(self, version: str, module: str = "odd", **patch: Any) -> None:
        message = Desired(module=module, version=version, digest=digest(patch), patch=patch)
        self.far.publish(DESIRED, message, "odd")

    def command(self, name: str, number: int = 1, timeout_s: float = 5, **arguments: Any) -> None:
        self.far.publish(
            COMMANDS,
            Command(module="odd", id=f"c{number}", name=name, arguments=arguments, timeout_s=timeout_s),
            "odd",
        )

    def turn(self) -> None:
        self.remote.adjust(self.applied.append)

    def turns(self, report: tuple[str, str]) -> Reported:
        """Turn the loop until this was reported."""

        def said() -> bool:
            self.turn()
            return self.said == report

        eventually(said)
        return self.reports[-1]

    @property
    def said(self) -> tuple[str, str]:
        return (self.reports[-1].version, self.reports[-1].state) if self.reports else ("", "")


@pytest.fixture
def deployed() -> Odd:
    return Odd(site="test", module="odd", state="x")


@pytest.fixture
def site(tmp_path: Path, deployed: Odd) -> Iterator[Site]:
    made = Site(tmp_path, MemoryBroker(), deployed)
    yield made
    made.remote.stop(5)


class TestDesired:
    def test_the_loop_applies_what_is_desired_and_then_it_is_said(self, site):
        site.desire("1", fps=5)
        assert site.turns(("1", "applied")).digest == digest({"fps": 5})
        assert [settings.fps for settings in site.applied] == [5]
        site.turn()
        assert len(site.applied) == 1

    def test_nothing_is_said_before_the_loop_has_applied_it(self, site):
        eventually(lambda: site.inventories)
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        site.desire("2", fps=6)
        known = len(site.inventories)
        site.bus.disconnect()
        site.bus.reconnect()  # whatever else there is to do, the first is still in the loop's hands
        eventually(lambda: len(site.inventories) > known)
        assert site.reports == []
        site.turn()
        eventually(lambda: site.said == ("1", "applied"))
        site.turns(("2", "applied"))
        assert [settings.fps for settings in site.applied] == [5, 6]

    def test_what_takes_longer_than_a_turn_is_asked_for_again_and_said_when_it_is_done(self, site):
        seen = []
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        for _ in range(3):
            assert site.remote.adjust(lambda settings: seen.append(settings.fps) or False)
        assert site.reports == []
        assert not site.remote.adjust(lambda settings: seen.append(settings.fps))
        eventually(lambda: site.said == ("1", "applied"))
        assert seen == [5, 5, 5, 5]
        assert site.remote.settings.fps == 5

    def test_what_is_desired_next_takes_the_place_of_what_the_loop_is_slow_with(self, site):
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        assert site.remote.adjust(lambda _: False)
        site.desire("2", fps=6)
        eventually(lambda: site.remote._pending[0].version == "2")
        seen = []
        assert site.remote.adjust(lambda settings: seen.append(settings.fps) or False)
        assert seen == [6]
        site.turns(("2", "applied"))
        assert [report.version for report in site.reports] == ["2"]

    def test_what_the_loop_is_slow_with_can_be_taken_back(self, site):
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        assert site.remote.adjust(lambda _: False)
        site.desire("2")
        eventually(lambda: site.said == ("2", "applied"))
        assert not site.remote.adjust(site.applied.append)
        assert site.applied == []
        assert site.remote.settings.fps == 1

    def test_what_is_taken_back_as_the_loop_is_done_with_it_is_judged_again(self, site):
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        assert site.remote.adjust(lambda _: False)

        def done_too_late(settings: Odd) -> None:
            site.applied.append(settings)
            site.desire("2")
            eventually(lambda: site.said == ("2", "applied"))

        site.remote.adjust(done_too_late)
        # The loop goes by the first one now, so the second has to be taken over as well.
        eventually(lambda: site.turn() or [settings.fps for settings in site.applied] == [5, 1])
        eventually(lambda: site.said == ("2", "applied"))
        assert site.remote.settings.fps == 1

    def test_what_the_loop_is_slow_with_counts_after_a_restart_only_once_it_is_done(
        self, site, tmp_path, deployed
    ):
        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        assert site.remote.adjust(lambda _: False)
        assert Adjuster(deployed, tmp_path / "desired.json", check).now.fps == 1
        site.turns(("1", "applied"))
        assert Adjuster(deployed, tmp_path / "desired.json", check).now.fps == 5

    def test_of_a_flood_the_newest_counts_and_the_loop_sees_few(self, site):
        for n in range(1, 1001):
            site.desire(str(n), fps=n % 90 + 1)
        site.turns(("1000", "applied"))
        assert site.applied[-1].fps == 1000 % 90 + 1
        assert len(site.applied) <= 3
        assert [int(r.version) for r in site.reports] == sorted(int(r.version) for r in site.reports)

    def test_a_flood_while_the_loop_turns_ends_with_the_newest(self, site):
        over = threading.Event()
        loop = threading.Thread(target=lambda: [site.turn() for _ in iter(over.is_set, True)])
        loop.start()
        try:
            for n in range(1, 1001):
                site.desire(str(n), fps=n % 90 + 1)
            eventually(lambda: site.said == ("1000", "applied"))
        finally:
            over.set()
            loop.join()
        assert site.applied[-1].fps == site.remote.settings.fps == 1000 % 90 + 1

    def test_what_is_for_another_module_is_not_ours(self, site):
        site.desire("1", module="other", fps=5)
        site.desire("2", fps=6)
        site.turns(("2", "applied"))
        assert [settings.fps for settings in site.applied] == [6]

    def test_what_will_not_do_is_refused_without_asking_the_loop(self, site):
        site.desire("1", fps=100)
        eventually(lambda: site.said == ("1", "refused"))
        assert site.reports[-1].errors == ("modules.odd.fps: expected less than 100",)
        site.turn()
        assert site.applied == []

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ConfigError(["one", "two"]), ("one", "two")),
            (Unavailable("disk: full"), ("disk: full",)),
            (ZeroDivisionError("division by zero"), ("internal: ZeroDivisionError: division by zero",)),
        ],
    )
    def test_what_the_loop_cannot_apply_is_refused_and_the_next_is_applied(self, site, error, said):
        def refuse(_: Odd) -> None:
            raise error

        site.desire("1", fps=5)
        eventually(lambda: site.remote._pending is not None)
        site.remote.adjust(refuse)
        eventually(lambda: site.said == ("1", "refused"))
        assert site.reports[-1].errors == said
        assert site.remote.settings.fps == 1
        site.desire("2", fps=6)
        site.turns(("2", "applied"))

    def test_what_waits_for_a_restart_is_said_at_once(self, site):
        site.desire("1", model="b")
        eventually(lambda: site.said == ("1", "applied"))
        assert site.reports[-1].restart == ("model",)
        assert site.applied == []

    def test_watchers_see_every_change_after_it_counts(self, site):
        seen: list[int] = []
        site.remote.watch(lambda settings: seen.append(settings.fps))
        site.desire("1", fps=5)
        site.turns(("1", "applied"))
        assert seen[-1] == 5

    def test_a_broker_that_forgot_everything_is_told_again(self, site):
        site.desire("1", fps=5)
        site.turns(("1", "applied"))
        known, said = len(site.inventories), len(site.reports)
        site.bus.disconnect()
        site.bus.reconnect()
        eventually(lambda: len(site.inventories) > known and len(site.reports) > said)
        assert site.said == ("1", "applied")

    def test_after_a_restart_it_is_said_without_being_asked(self, site, tmp_path, deployed):
        site.desire("1", fps=5)
        site.turns(("1", "applied"))
        site.remote.stop(5)
        again = Site(tmp_path, MemoryBroker(), deployed)
        eventually(lambda: again.said == ("1", "applied"))
        assert again.remote.settings.fps == 5
        again.remote.stop(5)

    def test_a_trial_is_said_to_be_good_when_the_module_is_ready(self, site, tmp_path, deployed):
        site.desire("1", model="b")
        eventually(lambda: site.said == ("1", "applied"))
        site.remote.stop(5)
        again = Site(tmp_path, MemoryBroker(), deployed)
        again.desire("1", model="b")  # the broker repeats it
        eventually(lambda: again.inventories)
        assert again.reports == []
        again.remote.ready()
        eventually(lambda: again.said == ("1", "applied"))
        assert again.reports[-1].restart == ()
        again.remote.stop(5)


class TestCommands:
    def test_a_command_is_answered_with_its_id(self, site):
        site.remote.answer("ping", Ping, lambda asked: {"asked": asked.module})
        site.command("ping", 7, module="odd")
        eventually(lambda: site.answers)
        assert site.answers == [Answer(module="odd", id="c7", status=200, body={"asked": "odd"})]

    @pytest.mark.parametrize(
        ("name", "arguments", "status", "error"),
        [
            ("nothing", {}, 404, "odd has no such command (known: ping, restart)"),
            ("__init__", {}, 404, "odd has no such command"),
            ("", {}, 404, "odd has no such command"),
            ("restart", {}, 400, "restart: $.module: expected a name"),
            ("restart", {"module": "a/b"}, 400, "restart: $.module: expected a name"),
            ("ping", {"more": 1}, 400, "unknown key"),
            ("ping", {"module": 10**400}, 400, "expected"),
        ],
    )
    def test_a_command_that_makes_no_sense_is_answered_with_why(self, site, name, arguments, status, error):
        site.remote.answer("ping", Ping, lambda _: {})
        site.remote.answer("restart", Restart, lambda _: {})
        site.command(name, **arguments)
        eventually(lambda: site.answers)
        assert site.answers[0].status == status
        assert error in site.answers[0].body["error"]

    def test_what_is_refused_and_what_fails_is_answered_too(self, site):
        def refuse(_: Ping) -> dict[str, Any]:
            raise Refused(403, "not allowed")

        site.remote.answer("refuse", Ping, refuse)
        site.remote.answer("fail", Ping, lambda _: {"never": 1 / 0})
        site.command("refuse", 1)
        site.command("fail", 2)
        eventually(lambda: len(site.answers) == 2)
        assert [(a.status, a.body["error"]) for a in site.answers] == [
            (403, "not allowed"),
            (500, "ZeroDivisionError: division by zero"),
        ]

    def test_too_many_commands_are_answered_at_once_with_429(self, site):
        let_go = threading.Event()
        site.remote.answer("slow", Ping, lambda _: {"waited": let_go.wait(10)})
        for number in range(20):
            site.command("slow", number)
        eventually(lambda: len(site.answers) >= 11)
        assert {a.status for a in site.answers} == {429}
        let_go.set()
        eventually(lambda: len(site.answers) == 20)
        assert sum(a.status == 200 for a in site.answers) in (8, 9)
        assert len({a.id for a in site.answers}) == 20

    def test_settings_do_not_wait_for_a_slow_command(self, site):
        let_go = threading.Event()
        site.remote.answer("slow", Ping, lambda _: {"waited": let_go.wait(10)})
        site.command("slow")
        site.desire("1", fps=5)
        site.turns(("1", "applied"))
        assert site.answers == []
        let_go.set()
        eventually(lambda: site.answers)

    def test_a_command_that_nobody_waits_for_any_more_is_not_carried_out(self, site):
        let_go, done = threading.Event(), []
        site.remote.answer("slow", Ping, lambda _: {"waited": let_go.wait(10)})
        site.remote.answer("quick", Ping, lambda _: {"done": done.append(1)})
        site.command("slow", 1)
        site.command("quick", 2, timeout_s=0.001)
        site.command("quick", 3)
        time.sleep(0.01)
        let_go.set()
        eventually(lambda: {a.id for a in site.answers} == {"c1", "c3"})
        assert done == [1]

    @pytest.mark.parametrize(
        "payload",
        [
            b"", b"{", b"null", b'{"module": "odd"}', b'{"module":"odd","id":"","name":"ping","timeout_s":1}',
            b'{"module":"odd","id":"' + b"x" * 65 + b'","name":"ping","timeout_s":1}',
            b'{"module":"odd","id":"1","name":"ping","timeout_s":1e9}',
            b'{"module":"odd","id":"1","name":"ping","timeout_s":1,"arguments":[]}',
            b'{"module":"other","id":"1","name":"ping","timeout_s":1}',
            b'{"module":"odd","id":"1","name":"ping","timeout_s":1,"arguments":'
            + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
            b" " * 300_000 + b'{"module":"odd","id":"1","name":"ping","timeout_s":1}',
        ],
    )  # fmt: skip
    def test_a_message_that_is_no_command_of_ours_is_dropped_and_the_next_one_answered(self, site, payload):
        site.remote.answer("ping", Ping, lambda _: {})
        site.far.broker.publish(COMMANDS.topic("test", "odd"), payload)
        site.command("ping", 2)
        eventually(lambda: site.answers)
        assert [a.id for a in site.answers] == ["c2"]

    def test_a_body_that_cannot_be_sent_does_not_end_the_answering(self, site):
        site.remote.answer("odd", Ping, lambda _: {"body": object()})
        site.remote.answer("ping", Ping, lambda _: {})
        site.command("odd", 1)
        site.command("ping", 2)
        eventually(lambda: len(site.answers) == 2)
        assert [(a.id, a.status) for a in site.answers] == [("c1", 500), ("c2", 200)]

    def test_a_body_that_is_too_large_is_answered_with_that(self, site):
        site.remote.answer("large", Ping, lambda _: {"body": "x" * 2 * ANSWERS.max_bytes})
        site.command("large")
        eventually(lambda: site.answers)
        assert (site.answers[0].status, site.answers[0].body) == (
            500,
            {"error": f"the answer is larger than {ANSWERS.max_bytes} bytes"},
        )


class TestInventory:
    def test_it_says_what_the_module_is_and_runs_on(self, site):
        eventually(lambda: site.inventories)
        said = site.inventories[-1]
        assert (said.module, said.kind) == ("odd", "odd")
        assert said.settings["fps"] == 1
        assert said.device.cores > 0
        assert said.device.memory_mb > 0

    def test_logins_are_taken_out_wherever_they_are(self, tmp_path, deployed):
        secret = msgspec.structs.replace(
            deployed, url="rtsp://me:s3cret@host/1", cameras=({"url": "http://you:p@s3cret@host:80/x"},)
        )
        site = Site(tmp_path, MemoryBroker(), secret)
        eventually(lambda: site.inventories)
        assert b"s3cret" not in msgspec.json.encode(site.inventories[-1])
        assert site.inventories[-1].settings["url"] == "rtsp://host/1"
        site.remote.stop(5)

    def test_settings_in_it_are_those_deployed(self, site):
        site.desire("1", fps=5)
        site.turns(("1", "applied"))
        site.remote.describe(runtimes={"onnxruntime": "1.0"})
        eventually(lambda: site.inventories[-1].runtimes)
        assert site.inventories[-1].settings["fps"] == 1

    def test_what_is_left_out_of_a_description_stays(self, site):
        model = ModelInUse(model="a@1", digest="0", runtime="onnxruntime/cpu")
        site.remote.describe(runtimes={"onnxruntime": "1.0"})
        site.remote.describe(models=(model,))
        eventually(lambda: site.inventories and site.inventories[-1].models == (model,))
        assert site.inventories[-1].runtimes == {"onnxruntime": "1.0"}
