"""The way down of the AWS link: a named shadow and commands, on a Mosquitto with their services."""

import gc
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import authority
import needs
from events import events
from iot_core import IotCore
from mqtt5_peer import Peer
from payloads import Payloads
from records import outbound, records
from shadow_service import Refused
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import OUTBOUND, RECEIPTS
from skerry.errors import LinkDown
from skerry.messages import Receipt
from skerry.settings import TlsSettings
from skerry.testing import eventually, running
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink, Proposal, Request
from skerry.uplink.links.aws import AwsLink
from skerry.uplink.links.shadow import State
from skerry.uplink.module import run
from tls_broker import TlsBroker

pytestmark = needs.mosquitto
REMOTE = "skerry/here/remote"
DEEP = b'{"a":' * 300 + b"1" + b"}" * 300


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return authority.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def broker(keys, tmp_path_factory) -> Iterator[TlsBroker]:
    broker = TlsBroker(tmp_path_factory.mktemp("broker"), keys)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def core(broker) -> Iterator[IotCore]:
    with IotCore(broker.plain) as core:
        yield core


@pytest.fixture
def downlink() -> Downlink:
    return Downlink()


def files(keys: Path) -> TlsSettings:
    return TlsSettings(
        ca=str(keys / "ca.pem"), certificate=str(keys / "client.pem"), key=str(keys / "client.key")
    )


@pytest.fixture
def make(keys, broker, downlink) -> Iterator[Callable[..., AwsLink]]:
    made = []

    def make(*, port: int = 0, stop: threading.Event | None = None, **options: Any) -> AwsLink:
        settings = given.AwsLink(
            **{
                "endpoint": "localhost", "port": port or broker.port, "tls": files(keys), "timeout_s": 5.0,
                "client_id": "gate-3", **options,
            }
        )  # fmt: skip
        link = AwsLink(settings, "here", "link", stop or threading.Event(), downlink=downlink)
        made.append(link)
        return link

    yield make
    for link in made:
        link.close()


def proposed(downlink: Downlink) -> Proposal:
    found: list[Proposal] = []

    def look() -> bool:
        proposal, _ = downlink.take(0.01)
        found.extend([proposal] if proposal is not None else [])
        return bool(found)

    eventually(look)
    return found[0]


def listening(link: AwsLink) -> AwsLink:
    """The same, open, once commands would come."""
    link.open()
    eventually(lambda: link._steering is not None and "requests" in link._steering.listening)
    return link


def asked(downlink: Downlink, count: int = 1) -> list[Request]:
    found: list[Request] = []

    def look() -> bool:
        found.extend(downlink.take(0.01)[1])
        return len(found) >= count

    eventually(look)
    return found


# Desired


def test_what_is_desired_when_the_link_opens_and_later_is_proposed_whole(core, make, downlink) -> None:
    core.desire({"modules": {"capture": {"fps": 5, "size": [1, 2]}}})
    link = make()
    link.open()
    assert proposed(downlink) == Proposal("shadow", "1", {"modules": {"capture": {"fps": 5, "size": [1, 2]}}})
    core.desire({"modules": {"capture": {"fps": None}, "decision": {"a": 1}}})
    assert proposed(downlink) == Proposal(
        "shadow", "2", {"modules": {"capture": {"size": [1, 2]}, "decision": {"a": 1}}}
    )
    assert link.trouble == ""


def test_a_thing_without_a_shadow_desires_nothing_until_it_has_one(core, make, downlink) -> None:
    link = make()
    link.open()
    assert proposed(downlink) == Proposal("shadow", "0", {})
    core.desire({"schema": 1})
    assert proposed(downlink) == Proposal("shadow", "1", {"schema": 1})


def test_versions_that_were_missed_are_made_up_for(core, make, downlink) -> None:
    link = make()
    link.open()
    proposed(downlink)
    for n in range(5):
        core.shadow.update({"state": {"desired": {str(n): n}}})  # nobody is told
    core.desire({"n": 9})
    found = proposed(downlink)
    assert (found.version, found.document) == ("6", {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4, "n": 9})


def test_a_change_that_nobody_was_told_of_is_found_within_the_hour(core, make, downlink) -> None:
    link = make()
    link.open()
    proposed(downlink)
    core.shadow.update({"state": {"desired": {"n": 1}}})
    link.finish(0)
    assert downlink.take(0.1)[0] is None
    link._steering._asked_s -= 3601
    link.finish(0)
    assert proposed(downlink).document == {"n": 1}


def test_a_late_message_of_an_older_version_changes_nothing(core, make, downlink) -> None:
    for n in range(3):
        core.desire({"n": n})
    link = make()
    link.open()
    assert proposed(downlink).version == "3"
    old = {"current": {"state": {"desired": {"n": 0}}, "version": 1}}
    core.say(f"{core.prefix}/update/documents", old)
    core.desire({"n": 7})
    assert proposed(downlink) == Proposal("shadow", "4", {"n": 7})


def test_a_shadow_that_was_deleted_and_made_anew_is_followed(core, make, downlink) -> None:
    for n in range(3):
        core.desire({"n": n})
    link = make()
    link.open()
    assert proposed(downlink).version == "3"
    core.shadow.delete()
    core.say(f"{core.prefix}/delete/accepted", {"version": 3})
    assert proposed(downlink) == Proposal("shadow", "0", {})
    core.desire({"n": 8})
    assert proposed(downlink) == Proposal("shadow", "1", {"n": 8})
    core.shadow.delete()
    core.desire({"n": 9})  # version 1 again, and nobody was told of the deletion
    assert proposed(downlink) == Proposal("shadow", "1", {"n": 9})
    core.desire({"n": 10})
    assert proposed(downlink) == Proposal("shadow", "2", {"n": 10})
    core.shadow.delete()
    core.desire({"n": 11})
    assert proposed(downlink) == Proposal("shadow", "1", {"n": 11})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"{no", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"current": {"version": "x", "state": 5}}', "expected a state and a version"),
        (b'{"current": {"version": 9, "state": {"desired": []}}}', ""),
        (b'{"current": {"version": 9, "state": {"desired": [1]}}}', "expected objects"),
        (b'{"current": {"version": 9, "state": {"desired": {"a": "%s"}}}}' % (b"x" * 70_000), "65536"),
        (b'{"current": {"version": 9, "state": {"desired": %s}}}' % DEEP, "64 levels"),
        (b'{"a": "%s"}' % (b"x" * 200_000), "at most 131072"),
    ],
)  # fmt: skip
def test_a_hostile_message_changes_nothing_and_the_shadow_is_asked_for(
    core, make, downlink, payload, reason
) -> None:
    core.desire({"n": 1})
    link = make()
    link.open()
    proposed(downlink)
    before = core.asked.count(f"{core.prefix}/get")
    core.say(f"{core.prefix}/update/documents", payload)
    if reason:
        eventually(lambda: core.asked.count(f"{core.prefix}/get") > before)
        eventually(lambda: link.trouble == "")
    link.send(records(1, 2))
    core.desire({"n": 10})
    core.desire({"n": 11})
    eventually(lambda: proposed(downlink).document == {"n": 11})


def test_a_thousand_versions_at_once_end_with_the_last(core, make, downlink) -> None:
    link = make()
    link.open()
    proposed(downlink)
    for n in range(1000):
        core.desire({"n": n})
    link.send(records(1, 1))
    eventually(lambda: proposed(downlink).document == {"n": 999}, 30)


# Reported


def test_a_report_is_in_the_place_of_the_former_one_whoever_made_that(core, make) -> None:
    core.shadow.update({"state": {"desired": {"x": 1}, "reported": {"old": {"a": 1, "b": 2}, "gone": 3}}})
    link = make()
    link.open()
    link.report({"version": "1", "old": {"a": 1}, "list": [1, 2], "flag": True, "none": None}, 5.0)
    assert core.shadow.state == {
        "desired": {"x": 1},
        "reported": {"version": "1", "old": {"a": 1}, "list": [1, 2], "flag": True},
    }
    link.report({"version": "1", "old": {"a": 1}, "list": [1], "flag": 1}, 5.0)
    assert core.shadow.updates[-1] == {"reported": {"list": [1], "flag": 1}}


def test_a_report_has_the_room_that_is_left_by_what_is_desired(core, make, downlink) -> None:
    link = make()
    assert 7900 < link.report_bytes <= 8000
    core.desire({"a": "x" * 6000})
    link.open()
    proposed(downlink)
    assert 1000 < link.report_bytes < 8192 - 6000
    link.report({"b": "x" * (link.report_bytes - 8)}, 5.0)
    core.desire({"a": "x" * 6010})
    assert core.shadow.state is not None
    assert make(shadow="").report_bytes == 8000


def test_a_report_that_changes_nothing_is_not_sent(core, make) -> None:
    link = make()
    link.open()
    link.report({"a": 1}, 5.0)
    link.report({"a": 1}, 5.0)
    assert len(core.shadow.updates) == 1


def test_a_report_is_nothing_that_is_desired(core, make, downlink) -> None:
    """It makes a new version; told of it, the suite would report it, for ever."""
    core.desire({"n": 1})
    link = make()
    link.open()
    proposed(downlink)
    link.report({"version": "1"}, 5.0)
    link.send(records(1, 1))
    assert downlink.take(0.1)[0] is None


def test_a_report_that_is_refused_says_why(core, make) -> None:
    link = make()
    link.open()
    core.shadow.refuse = Refused(400, "JSON contains too many levels of nesting; maximum is 6")
    with pytest.raises(LinkDown, match="update: refused: 400: JSON contains too many levels"):
        link.report({"a": 1}, 5.0)
    with pytest.raises(LinkDown, match=r"at most 8192 bytes, got 90\d\d \(report less\)"):
        link.report({"a": "x" * 9000}, 5.0)
    link.report({"a": 1}, 5.0)
    assert core.shadow.state is not None
    assert core.shadow.state["reported"] == {"a": 1}


def test_a_report_that_nobody_answers_ends_in_time(core, make) -> None:
    link = make()
    with pytest.raises(LinkDown, match="closed"):
        link.report({"a": 1}, 5.0)
    link.open()
    link.report({"a": 1}, 5.0)
    core.mute.add("/update")
    with pytest.raises(LinkDown, match="update was not answered in time"):
        link.report({"a": 2}, 0.2)
    core.silent = True
    link.open()
    with pytest.raises(LinkDown, match="get was not answered in time"):
        link.report({"a": 2}, 0.2)


def test_a_shadow_that_is_not_told_of_is_asked_for_again_and_said(core, make) -> None:
    """As without iot:Receive: IoT Core drops what may not be received, and says nothing."""
    core.mute.add("/get")
    link = make()
    link.open()
    eventually(lambda: core.asked.count(f"{core.prefix}/get") == 1)
    link._steering._asked_s -= 100
    assert not link.finish(0)
    assert "get: no answer (allow iot:Receive" in link.trouble
    eventually(lambda: core.asked.count(f"{core.prefix}/get") == 2)
    link.send(records(1, 1))
    core.mute.clear()
    link._steering._asked_s -= 100
    link.finish(0)
    eventually(lambda: link.trouble == "")


def test_an_answer_to_another_report_confirms_nothing(core, make) -> None:
    link = make()
    link.open()
    core.mute.add("/update")
    threading.Timer(
        0.1, lambda: core.say(f"{core.prefix}/update/accepted", {"state": {}, "clientToken": "skerry-1"})
    ).start()
    with pytest.raises(LinkDown, match="was not answered"):
        link.report({"a": 2}, 0.5)


def test_a_report_is_given_up_when_the_process_stops(core, make) -> None:
    stop = threading.Event()
    link = make(stop=stop)
    link.open()
    core.silent = True
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(LinkDown, match="stopping"):
        link.report({"a": 2}, 60.0)


# Commands


def test_a_command_is_answered_with_its_id(core, make, downlink) -> None:
    listening(make())
    core.say(f"{REMOTE}/requests/snapshot", {"id": "7", "arguments": {"camera": "gate"}})
    (request,) = asked(downlink)
    assert (request.name, json.loads(request.body)) == ("snapshot", {"camera": "gate"})
    request.reply(200, b'{"ok": true}')
    eventually(lambda: core.answers)
    assert core.answers == [{"id": "7", "name": "snapshot", "status": 200, "body": {"ok": True}}]


def test_a_command_that_is_none_is_refused_and_a_retained_one_ignored(core, make, downlink, broker) -> None:
    core.say(f"{REMOTE}/requests/restart", {"id": "0"}, retain=True)
    listening(make())
    core.say(f"{REMOTE}/requests/ping", b"{no")
    core.say(f"{REMOTE}/requests/ping", b'{"id": "%s"}' % (b"x" * 200))
    core.say(f"{REMOTE}/requests/ping", b'{"id": "1", "arguments": "%s"}' % (b"x" * 70_000))
    core.say(f"{REMOTE}/requests/ping", b"")
    eventually(lambda: len(core.answers) == 3)
    assert [answer["status"] for answer in core.answers] == [400, 400, 413]
    requests = asked(downlink)
    assert [(request.name, request.body) for request in requests] == [("ping", b"")]
    core.say(f"{REMOTE}/requests/restart", b"", retain=True)


def test_an_answer_that_is_too_large_is_an_error(core, make, downlink) -> None:
    listening(make())
    core.say(f"{REMOTE}/requests/diagnostics", {"id": "1"})
    asked(downlink)[0].reply(200, json.dumps("x" * 200_000).encode())
    eventually(lambda: core.answers)
    assert core.answers[0]["status"] == 413


def test_a_storm_of_commands_is_answered_or_refused_and_batches_go_on(core, make, downlink) -> None:
    link = listening(make())
    for n in range(500):
        core.say(f"{REMOTE}/requests/ping", {"id": str(n)})
    link.send(records(2, 3))
    for request in asked(downlink, 32):
        request.reply(200, b"{}")
    eventually(lambda: any(answer["status"] == 200 for answer in core.answers))
    assert {answer["status"] for answer in core.answers} <= {200, 429}


def test_an_answer_to_a_connection_that_is_gone_harms_nothing(core, make, downlink) -> None:
    link = listening(make())
    core.say(f"{REMOTE}/requests/ping", {"id": "1"})
    (request,) = asked(downlink)
    link.close()
    request.reply(200, b"{}")


# What the policy forbids


@pytest.fixture
def peer(keys) -> Iterator[Peer]:
    with Peer(keys) as peer:
        yield peer


def test_a_shadow_that_may_not_be_subscribed_to_is_said_and_batches_go_on(peer, make) -> None:
    peer.subacks = {"shadow": 135}
    link = make(port=peer.port)
    link.open()
    eventually(lambda: "$aws/things/gate-3/shadow/name/skerry/get/accepted" in link.trouble)
    assert "allow iot:Subscribe and iot:Receive" in link.trouble
    link.send(records(1, 2))
    with pytest.raises(LinkDown, match="iot:Subscribe"):
        link.report({"a": 1}, 5.0)


def test_no_subscription_has_more_filters_than_iot_core_takes(peer, make) -> None:
    link = make(port=peer.port)
    link.open()
    eventually(lambda: len(peer.subscribed) == 2)
    assert all(len(filters) <= 8 for filters in peer.subscribed)
    assert not any("#" in name for filters in peer.subscribed for name in filters)


def test_a_shadow_that_iot_core_hangs_up_over_is_left_alone_and_batches_go_on(peer, make) -> None:
    peer.subacks = {"shadow": -1}
    link = make(port=peer.port)

    def sends() -> bool:
        try:
            link.open()
            eventually(lambda: link._heard.lost or "requests" in link._steering.listening)
            link.send(records(1, 2))
        except LinkDown:
            return False
        return True

    eventually(sends)
    assert "IoT Core hung up over it" in link.trouble
    assert len(peer.connects) <= 4
    assert peer.subscribed[-1] == [f"{REMOTE}/requests/+"]


def test_a_question_that_may_not_be_asked_is_said(peer, make) -> None:
    peer.answers.put(135)
    link = make(port=peer.port)
    link.open()
    eventually(lambda: "get: refused: reason 135 (allow iot:Publish to it)" in link.trouble)
    link.send(records(1, 2))


def test_a_report_that_may_not_be_made_is_said_and_may_be_made_later(peer, make) -> None:
    link = listening(make(port=peer.port))
    link._steering._told(State(1, {}, {}), None)
    for code, why in (
        (135, r"update: refused: reason 135 \(allow iot:Publish to it\)"),
        (151, "reason 151$"),
    ):
        peer.answers.put(code)
        with pytest.raises(LinkDown, match=why):
            link.report({"a": 1}, 5.0)
    assert link.trouble == ""


def test_a_link_without_a_downlink_subscribes_to_nothing(peer, keys) -> None:
    settings = given.AwsLink(endpoint="localhost", port=peer.port, tls=files(keys))
    link = AwsLink(settings, "here", "link", threading.Event())
    link.open()
    link.send(records(1, 1))
    assert not link.steered
    assert peer.subscribed == []
    link.close()


def test_fifty_connections_leave_nothing_behind(peer, make) -> None:
    """Each holds what holds it: the client its handlers, and they the client."""
    link = make(port=peer.port)

    def once() -> None:
        listening(link)
        link.send(records(1, 1))
        link.close()

    for _ in range(15):
        once()
    gc.collect()
    threads, held = things()
    others = connections()  # of earlier tests in this process, too
    for _ in range(50):
        once()
    gc.collect()
    assert things()[0] <= threads
    assert things()[1] <= held
    assert connections() - others <= 1


def connections() -> int:
    """Objects that a connection is made of."""
    return sum(type(one).__name__ == "Steering" for one in gc.get_objects())


def things() -> tuple[int, int]:
    """Threads and open files of this process."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def test_the_end_of_an_old_connection_is_not_taken_for_that_of_the_new_one(peer, make) -> None:
    link = listening(make(port=peer.port))
    old = link._heard
    link.open()
    steering = link._steering
    steering._under_way = "shadow"
    old.on_disconnection(SimpleNamespace(disconnect_packet=None, exception="late"))
    assert steering._under_way == "shadow"
    assert not link._known.hung_up.get("shadow")


# The thing, and its files


def test_whose_shadow_it_is_may_be_said(broker, make, downlink) -> None:
    with IotCore(broker.plain, thing="other") as core:
        core.desire({"n": 1})
        make(thing="other").open()
        assert proposed(downlink).document == {"n": 1}


def test_neither_shadow_nor_commands_is_no_steering(keys, make) -> None:
    link = make(shadow="", remote_topic="")
    assert not link.steered
    link.open()
    link.send(records(1, 1))
    link.report({"a": 1}, 1.0)


def test_a_new_certificate_makes_a_new_connection_between_two_batches(keys, peer, downlink, tmp_path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(keys, mine)
    settings = given.AwsLink(endpoint="localhost", port=peer.port, tls=files(mine), timeout_s=5.0)
    link = AwsLink(settings, "here", "link", threading.Event(), downlink=downlink)
    link.open()
    link.send(records(1, 1))
    (mine / "client.pem").write_text("-----BEGIN CERT")  # half written
    link._looked = -10.0  # it looks once a second
    assert not link.finish(0)
    link.send(records(2, 2))
    assert len(peer.connects) == 1
    shutil.copy(keys / "client.pem", mine / "client.pem")
    link._looked = -10.0
    with pytest.raises(LinkDown, match="tls: the files have changed"):
        eventually(lambda: link.finish(0) is not False)
    link.open()
    link.send(records(3, 3))
    assert len(peer.connects) == 2
    link.close()


def test_a_batch_under_way_is_finished_before_a_new_certificate_is_used(
    keys, peer, downlink, tmp_path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(keys, mine)
    settings = given.AwsLink(endpoint="localhost", port=peer.port, tls=files(mine), timeout_s=5.0)
    link = AwsLink(settings, "here", "link", threading.Event())
    link.open()
    link._looked = -10.0
    link.start(records(1, 1))
    (mine / "client.pem").write_bytes((keys / "client.pem").read_bytes() + b"\n")
    link._looked = -10.0
    link.start(records(2, 2))
    eventually(link.finish)
    eventually(link.finish)
    with pytest.raises(LinkDown, match="the files have changed"):
        link.start(records(3, 3))
    assert len(peer.got) == 2
    link.close()


def test_in_the_uplink_a_rotation_costs_nothing(keys, broker, tmp_path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(keys, mine)
    bus_broker = MemoryBroker()
    bus, receipts = MemoryBus(bus_broker), list[Receipt]()
    bus.subscribe(RECEIPTS, receipts.append)
    seen = Payloads(broker.plain, "skerry/rotated/far/#")
    seen.start()
    settings = given.UplinkSettings(
        site="rotated", module="uplink", state=str(tmp_path / "state"), grace_s=3.0,
        link=given.AwsLink(endpoint="localhost", port=broker.port, tls=files(mine), timeout_s=5.0),
        backoff=given.BackoffSettings(first_s=0.05, last_s=0.1),
    )  # fmt: skip
    with running(run, settings, MemoryBus(bus_broker), "uplink") as host:
        eventually(lambda: host.condition[0] in {"ready", "degraded"})
        for n in range(20):
            bus.publish(OUTBOUND, outbound(n * 10 + 1, events(n * 10 + 1, n * 10 + 10)), "uplink")
            if n % 5 == 0:
                (mine / "client.pem").write_bytes((keys / "client.pem").read_bytes() + b"\n" * n)
            eventually(lambda upto=n * 10 + 10: receipts and receipts[-1].upto == upto, 20)
    assert not any(receipt.refused for receipt in receipts)
    eventually(lambda: len(seen.got) >= 20)
    seen.stop()
