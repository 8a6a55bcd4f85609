"""Commands on the in-memory bus, with a clock that stands still: who is asked, and what is answered when."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import ANSWERS, COMMANDS, INVENTORY, METRICS, STATUS
from skerry.commands import KINDS, MOST_ANSWER_BYTES
from skerry.messages import Answer, Command, Device, Inventory, Metrics, State, Status
from skerry.settings import parse
from skerry.telemetry import Telemetry
from skerry.uplink.audit import Audit
from skerry.uplink.commander import Commander
from skerry.uplink.downlink import Request
from skerry.uplink.settings import UplinkSettings


class Sender:
    """Stands for the loop that delivers."""

    def __init__(self) -> None:
        self.waiting = 0
        self.flushes: list[float] = []

    def flush(self, wait_s: float) -> None:
        self.flushes.append(wait_s)


class Desk:
    """A commander, the bus that it is on, and somebody outside who keeps what he is answered."""

    def __init__(self, folder: Path, **remote: Any) -> None:
        self.now = 100.0
        self.folder = folder
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.site = MemoryBus(self.broker)
        self.asked: list[Command] = []
        self.replies: list[tuple[int, Any]] = []
        self.sender = Sender()
        self.telemetry = Telemetry()
        self.site.subscribe(COMMANDS, self.asked.append)
        raw = {
            "site": "test", "module": "uplink", "state": str(folder), "remote": remote,
            "link": {"kind": "file", "path": str(folder / "far.jsonl")},
        }  # fmt: skip
        self.commander = Commander(
            parse(UplinkSettings, raw, "test"), self.bus, flushing=self.sender,
            audit=Audit(folder, now=lambda: "2026-01-02T03:04:05.000Z"), telemetry=self.telemetry,
            folder=folder / "diagnostics", clock=lambda: self.now,
        )  # fmt: skip

    def say(self, module: str, kind: str = "capture", state: State = "ready", reason: str = "") -> None:
        status = Status(module=module, kind=kind, state=state, reason=reason, version="1.2.3", time="t")
        self.site.publish(STATUS, status, module)

    def give(self, name: str, arguments: object = None, body: bytes | None = None) -> list[tuple[int, Any]]:
        """Give a command; what it is answered so far, and after each step from now on."""
        heard: list[tuple[int, Any]] = []

        def reply(status: int, content: bytes) -> None:
            heard.append((status, json.loads(content)))
            self.replies.append(heard[-1])

        body = body if body is not None else b"" if arguments is None else json.dumps(arguments).encode()
        self.commander.take(Request(name, body, reply))
        self.step()
        return heard

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.commander.step(self.now)

    def answer(self, command: Command, code: int = 200, by: str = "", **body: Any) -> None:
        said = Answer(module=by or command.module, id=command.id, status=code, body=body)
        self.site.publish(ANSWERS, said, said.module)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.say("capture")
    desk.say("buffer", "buffer")
    return desk


def cameras(desk: Desk, module: str, *names: str) -> None:
    inventory = Inventory(
        module=module, kind="capture", version="1", python="3", device=Device(machine="x"),
        settings={"cameras": [{"name": name} for name in names]},
    )  # fmt: skip
    desk.site.publish(INVENTORY, inventory, module)


# Refused


def test_unknown_command_is_answered_with_404_and_the_known_ones(desk):
    assert desk.give("reboot") == [
        (404, {"error": 'command: expected one of diagnostics, flush, log_level, ping, restart, snapshot, '
                        'got "reboot"'})
    ]  # fmt: skip


def test_command_that_the_settings_do_not_allow_is_answered_with_403(tmp_path):
    desk = Desk(tmp_path, commands=["ping"])
    desk.say("capture")
    assert desk.give("restart", {"module": "capture"}) == [
        (403, {"error": "restart: the setting remote.commands does not allow it (it allows: ping)"})
    ]
    assert desk.asked == []


def test_all_that_is_wrong_with_arguments_is_said_at_once(desk):
    ((status, body),) = desk.give("snapshot", {"camera": "a b", "width": 5, "hight": 3})
    assert status == 400
    assert "snapshot: $.hight: unknown key" in body["error"]
    assert "snapshot: $.camera: expected a name" in body["error"]
    assert "snapshot: $.width: expected a whole number from 64 to 1920, got 5" in body["error"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "expected JSON, got something else"),
        (b"\xff\xfe", "expected JSON, got something else"),
        (b'{"module":"\\ud800"}', "expected"),
        (b"[" * 8000, "expected JSON, got something else"),
        (b"[" * 20 + b"]" * 20, "expected at most 8 levels, got more"),
        (b"[]", "expected a mapping, got []"),
        (b"7" * 9000, "expected"),
        (b" " * 16385, "expected at most 16384 bytes of arguments, got 16385"),
        (b'{"module":7}', "expected"),
    ],
)
def test_hostile_arguments_are_answered_with_400(desk, body, problem):
    ((status, answer),) = desk.give("ping", body=body)
    assert status == 400
    assert problem in answer["error"]


@pytest.mark.parametrize("body", [b"", b" ", b"null", b"{}"])
def test_no_arguments_may_be_said_in_several_ways(desk, body):
    assert desk.give("ping", body=body)[0][0] == 200


@given(name=st.one_of(st.sampled_from([*KINDS, ""]), st.text(max_size=30)), body=st.binary(max_size=200))
def test_whatever_comes_in_is_answered_once(tmp_path_factory, name, body):
    desk = Desk(tmp_path_factory.mktemp("desk"))
    heard = desk.give(name, body=body)
    desk.commander.close()
    assert len(heard) == 1
    assert 200 <= heard[0][0] < 600


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    )
)
def test_arguments_of_any_shape_are_judged(tmp_path_factory, arguments):
    desk = Desk(tmp_path_factory.mktemp("desk"))
    for name in KINDS:
        body = json.dumps(arguments).encode()
        heard = desk.give(name, body=body)
        assert heard == [] or heard[0][0] in {200, 400, 404, 429, 503, 504}


def test_more_than_the_rate_allows_is_answered_with_429_until_time_has_passed(desk):
    heard = [desk.give("ping")[0][0] for _ in range(13)]
    assert heard == [200] * 10 + [429] * 3
    desk.now += 1.0
    assert desk.give("ping")[0][0] == 200
    ((status, body),) = desk.give("ping")
    assert (status, body["retry_after_s"]) == (429, 1.0)


def test_a_storm_leaves_few_lines_in_the_audit(desk):
    for _ in range(1000):
        desk.give("ping")
    desk.step(60)
    lines = desk.audit()
    away = [line["count"] for line in lines if line["what"] == "commands.turned_away"]
    assert sum(away) == 990
    assert len(away) == 2
    assert len(lines) < 30


def test_module_that_nobody_has_heard_of_is_answered_with_404(desk):
    assert desk.give("restart", {"module": "captrue"}) == [
        (404, {"error": 'module: expected one of buffer, capture, got "captrue"'})
    ]


def test_module_that_is_gone_is_answered_with_503_at_once(desk):
    desk.say("capture", state="lost", reason="connection lost")
    assert desk.give("ping", {"module": "capture"}) == [
        (503, {"error": "expected capture to be there, but it is lost: connection lost"})
    ]


def test_no_bus_is_answered_with_503_at_once(desk):
    desk.bus.disconnect()
    ((status, body),) = desk.give("ping", {"module": "capture"})
    assert (status, body["error"]) == (503, "capture: the bus is not connected (try later)")


# One module


def test_a_module_is_asked_once_and_its_answer_is_passed_on(desk):
    heard = desk.give("restart", {"module": "capture"})
    (command,) = desk.asked
    assert (command.module, command.name, command.arguments) == ("capture", "restart", {"module": "capture"})
    assert heard == []
    desk.answer(command, restarting="capture")
    desk.answer(command, 500, error="a second answer")
    desk.step()
    assert heard == [(200, {"restarting": "capture"})]
    assert desk.telemetry.values()["skerry_answers_ignored_total"] == 1


def test_refusal_of_a_module_is_passed_on(desk):
    cameras(desk, "capture", "gate")
    heard = desk.give("snapshot", {"camera": "gate"})
    desk.answer(desk.asked[0], 403, error="never")
    desk.step()
    assert heard == [(403, {"error": "never"})]


def test_module_that_does_not_answer_in_time_is_named_with_504(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.step(4.9)
    assert heard == []
    desk.step(0.2)
    error = "capture: it did not answer within 5 s"
    assert heard == [(504, {"error": error, "missing": {"capture": "it did not answer within 5 s"}})]
    desk.answer(desk.asked[0])
    desk.step()
    assert len(heard) == 1


def test_module_that_is_killed_meanwhile_is_not_waited_for(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.say("capture", state="lost", reason="connection lost")
    desk.step()
    assert heard[0][0] == 504
    assert heard[0][1]["error"] == "capture: it went away: lost: connection lost"


def test_answer_that_came_before_the_module_stopped_counts(desk):
    heard = desk.give("restart", {"module": "capture"})
    desk.answer(desk.asked[0], restarting="capture")
    desk.say("capture", state="stopped")
    desk.step()
    assert heard == [(200, {"restarting": "capture"})]


def test_answer_of_another_module_is_no_answer(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.answer(desk.asked[0], by="buffer")
    desk.step()
    assert heard == []
    desk.answer(desk.asked[0], state="ready")
    desk.step()
    assert heard == [(200, {"state": "ready"})]


def test_ids_are_never_used_again(desk):
    desk.give("ping", {"module": "capture"})
    desk.give("ping", {"module": "capture"})
    other = Desk(desk.folder)
    other.say("capture")
    other.give("ping", {"module": "capture"})
    ids = [command.id for command in [*desk.asked, *other.asked]]
    assert len(set(ids)) == 3


def test_answer_that_is_too_large_for_a_platform_is_refused(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.answer(desk.asked[0], text="x" * MOST_ANSWER_BYTES)
    desk.step()
    assert heard[0][0] == 500
    assert "expected at most 98304" in heard[0][1]["error"]


def test_hostile_status_of_an_answer_becomes_500(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.answer(desk.asked[0], 101)
    desk.step()
    assert heard[0][0] == 500


def test_error_of_a_module_is_passed_on_without_secrets(desk):
    heard = desk.give("ping", {"module": "capture"})
    desk.answer(desk.asked[0], 500, error="rtsp://user:canary@cam/ is down, password=canary")
    desk.step()
    assert heard == [(500, {"error": "rtsp://cam/ is down, password=***"})]


def test_camera_is_looked_for_in_the_inventories(desk):
    desk.say("hall")
    cameras(desk, "hall", "door", "lift")
    cameras(desk, "capture", "gate")
    desk.give("snapshot", {"camera": "lift", "width": 320})
    assert [(c.module, c.arguments) for c in desk.asked] == [("hall", {"camera": "lift", "width": 320})]
    assert desk.give("snapshot", {"camera": "lfit"}) == [
        (404, {"error": 'camera: expected one of door, gate, lift, got "lfit"'})
    ]


def test_at_most_16_are_under_way_and_each_is_answered_in_the_end(tmp_path):
    desk = Desk(tmp_path, commands_per_min=6000)
    desk.say("capture")
    heard = [desk.give("ping", {"module": "capture"}) for _ in range(20)]
    assert [h[0][0] for h in heard if h] == [429] * 4
    desk.step(6)
    assert [h[0][0] for h in heard] == [504] * 16 + [429] * 4


def test_reply_that_raises_does_not_hinder_the_others(desk):
    def broken(status: int, content: bytes) -> None:
        raise RuntimeError("as asked")

    desk.commander.take(Request("ping", b"", broken))
    assert desk.give("ping")[0][0] == 200


def test_stopping_answers_what_is_open_and_what_still_comes_with_503(desk):
    heard = desk.give("ping", {"module": "capture"})
    flush = desk.give("flush")
    desk.commander.close()
    assert [h[0][0] for h in (heard, flush)] == [503, 503]
    assert desk.give("ping")[0][0] == 503
    desk.commander.close()
    assert len(heard) == 1


# All modules


def test_ping_of_all_is_answered_from_what_was_heard(desk):
    desk.say("decision", "decision", "degraded", "rtsp://u:canary@cam stalled")
    ((status, body),) = desk.give("ping")
    assert (status, body["site"], sorted(body["modules"])) == (200, "test", ["buffer", "capture", "decision"])
    assert body["modules"]["decision"]["reason"] == "rtsp://cam stalled"
    assert desk.asked == []


def test_log_level_of_all_names_those_that_did_not_do_it(desk):
    desk.say("inference", "inference", "stopped")
    heard = desk.give("log_level", {"level": "debug"})
    assert sorted(c.module for c in desk.asked) == ["buffer", "capture"]
    desk.answer(next(c for c in desk.asked if c.module == "capture"), level="debug", seconds=600)
    desk.step(1)
    assert heard == []
    desk.step(5)
    assert heard == [
        (200, {
            "modules": {"capture": {"level": "debug", "seconds": 600}},
            "missing": {"inference": "stopped", "buffer": "it did not answer within 5 s"},
        })
    ]  # fmt: skip


def test_log_level_that_nobody_takes_is_answered_with_504(desk):
    heard = desk.give("log_level", {"level": "debug"})
    desk.step(6)
    assert heard[0][0] == 504
    assert sorted(heard[0][1]["missing"]) == ["buffer", "capture"]


def test_without_any_module_there_is_nobody_to_ask(tmp_path):
    assert Desk(tmp_path).give("log_level", {"level": "debug"})[0][0] == 504


# Diagnostics

TOLD = {
    "log": ['{"event":"a"}', '{"event":"b"}'], "ledger": {"seen": 3}, "metrics": {"counters": {"x": 1.0}},
    "settings": {"now": {"site": "test"}}, "status": {"state": "ready"},
}  # fmt: skip


def files_of(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar.getmembers()}


def test_diagnostics_of_all_are_joined_and_who_is_missing_is_named(desk):
    heard = desk.give("diagnostics", {"lines": 7})
    assert [c.arguments["lines"] for c in desk.asked] == [7, 7]
    desk.answer(next(c for c in desk.asked if c.module == "capture"), **TOLD)
    desk.step(21)
    ((status, body),) = heard
    assert (status, body["modules"]) == (200, ["capture"])
    assert body["missing"] == {"buffer": "it did not answer within 20 s"}
    content = base64.b64decode(body["content"])
    assert (len(content), hashlib.sha256(content).hexdigest()) == (body["bytes"], body["sha256"])
    assert Path(body["file"]).read_bytes() == content
    files = files_of(content)
    assert files["capture/log.jsonl"] == b'{"event":"a"}\n{"event":"b"}\n'
    assert json.loads(files["capture/ledger.json"]) == {"seen": 3}
    assert json.loads(files["capture/settings.json"]) == TOLD["settings"]
    assert sorted(files) == [
        *(
            f"capture/{n}"
            for n in ("ledger.json", "log.jsonl", "metrics.json", "settings.json", "status.json")
        ),
        "site.json",
    ]
    site = json.loads(files["site.json"])
    assert (site["site"], site["missing"]) == ("test", body["missing"])
    assert site["modules"]["capture"]["version"] == "1.2.3"


def test_a_bundle_that_is_too_large_for_an_answer_is_kept_and_a_hint_given(desk):
    heard = desk.give("diagnostics", {"modules": ["capture"]})
    (command,) = desk.asked
    noise = tuple(hashlib.sha512(str(n).encode()).hexdigest() for n in range(1500))
    desk.answer(command, **{**TOLD, "log": noise})
    desk.step()
    ((status, body),) = heard
    assert status == 200
    assert "content" not in body
    assert "fewer lines" in body["hint"]
    assert Path(body["file"]).stat().st_size == body["bytes"] > 72 * 1024


def test_hostile_diagnostics_of_one_module_do_not_hinder_the_others(desk):
    heard = desk.give("diagnostics")
    good, bad = sorted(desk.asked, key=lambda c: c.module == "buffer")
    desk.answer(good, **TOLD)
    desk.answer(bad, log=7, settings=[])
    desk.step()
    ((status, body),) = heard
    assert (status, body["modules"]) == (200, ["capture"])
    assert "Expected `array`, got `int` - at `$.log`" in body["missing"]["buffer"]


def test_a_log_line_with_line_feeds_stays_one_line(desk):
    heard = desk.give("diagnostics", {"modules": ["capture"]})
    desk.answer(desk.asked[0], log=["a\nb", "c\r\x0bd\u2028e"])
    desk.step()
    content = files_of(base64.b64decode(heard[0][1]["content"]))["capture/log.jsonl"]
    assert content.count(b"\n") == 2


def test_one_bundle_at_a_time(desk):
    desk.give("diagnostics")
    assert desk.give("diagnostics") == [(429, {"error": "another diagnostics is under way (try later)"})]


def test_only_the_newest_three_bundles_are_kept(desk):
    for _ in range(5):
        heard = desk.give("diagnostics", {"modules": ["capture"]})
        desk.answer(desk.asked[-1], **TOLD)
        desk.step()
    kept = sorted((desk.folder / "diagnostics").iterdir())
    assert len(kept) == 3
    assert str(kept[-1]) == heard[0][1]["file"]


def test_disk_that_takes_no_bundle_is_said_and_the_bundle_delivered(desk):
    (desk.folder / "diagnostics").write_text("a file is in the way")
    heard = desk.give("diagnostics", {"modules": ["capture"]})
    desk.answer(desk.asked[0], **TOLD)
    desk.step()
    ((status, body),) = heard
    assert status == 200
    assert "cannot write it" in body["not_kept"]
    assert gzip.decompress(base64.b64decode(body["content"]))


def test_unknown_module_in_diagnostics_is_answered_with_404(desk):
    assert desk.give("diagnostics", {"modules": ["capture", "x"]})[0][0] == 404
    assert desk.asked == []


# Flush


def queue(desk: Desk, waiting: int) -> None:
    message = Metrics(module="buffer", kind="buffer", uptime_s=1, rss_mb=1, cpu_s=1, queue=waiting)
    desk.site.publish(METRICS, message, "buffer")


def test_flush_is_answered_when_buffer_and_uplink_hold_nothing_any_more(desk):
    desk.sender.waiting = 2
    heard = desk.give("flush", {"wait_s": 10})
    assert desk.sender.flushes == [10]
    desk.step(1)
    queue(desk, 7)
    desk.step(1)
    desk.sender.waiting = 0
    desk.step(1)
    assert heard == []
    queue(desk, 0)
    desk.step()
    assert heard == [(200, {"done": True, "waiting": 0})]


def test_flush_that_takes_too_long_says_how_much_waits_still(desk):
    heard = desk.give("flush", {"wait_s": 10})
    desk.step(1)
    queue(desk, 12)
    desk.step(8.9)
    assert heard == []
    desk.step(0.2)
    assert heard == [(200, {"done": False, "waiting": 12})]


def test_flush_without_a_word_of_the_buffer_is_never_called_done(desk):
    heard = desk.give("flush", {"wait_s": 5})
    desk.step(5)
    assert heard == [(200, {"done": False, "waiting": 0})]


def test_flush_without_a_buffer_looks_at_the_uplink_alone(tmp_path):
    desk = Desk(tmp_path)
    heard = desk.give("flush", {"wait_s": 10})
    desk.step(1)
    assert heard == []
    desk.step(1)
    assert heard == [(200, {"done": True, "waiting": 0})]


def test_one_flush_at_a_time(desk):
    desk.give("flush")
    assert desk.give("flush")[0][0] == 429


# Audit


def test_a_command_is_in_the_audit_before_it_is_carried_out_and_after(desk):
    before: list[int] = []
    desk.site.subscribe(COMMANDS, lambda _: before.append(len(desk.audit())))
    desk.give("restart", {"module": "capture"})
    assert before == [1]
    desk.answer(desk.asked[0], restarting="capture")
    desk.step(0.25)
    begun, answered = desk.audit()
    assert begun == {
        "time": "2026-01-02T03:04:05.000Z", "what": "command.begun", "id": 1, "link": "file",
        "command": "restart", "arguments": {"module": "capture"},
    }  # fmt: skip
    assert (answered["what"], answered["id"], answered["status"], answered["seconds"]) == (
        "command.answered", 1, 200, 0.25,
    )  # fmt: skip


def test_refused_command_is_in_the_audit_without_secrets(desk):
    desk.give("ping", {"password": "canary", "url": "rtsp://u:canary@h"})
    (line,) = desk.audit()
    assert (line["what"], line["status"]) == ("command.refused", 400)
    assert "canary" not in (desk.folder / "audit.jsonl").read_text()


def test_audit_that_cannot_be_written_stops_nothing(desk):
    (desk.folder / "audit.jsonl").mkdir()
    assert desk.give("ping")[0][0] == 200
