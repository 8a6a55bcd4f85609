"""The Greengrass link on AWS's own client, against a nucleus of ours on a Unix socket."""

import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import needs
from events import events
from greengrass_ipc import Nucleus
from oracle import Oracle
from records import outbound, record, records
from shadow_service import Refused, ShadowService
from skerry.batches import decode
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import OUTBOUND, RECEIPTS
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import Event, Receipt
from skerry.testing import eventually, running
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink, Proposal, Request
from skerry.uplink.links import Link
from skerry.uplink.links.greengrass import GreengrassLink
from skerry.uplink.links.greengrass_ipc import Nucleus as Where
from skerry.uplink.links.greengrass_steering import configuration
from skerry.uplink.module import run

REMOTE = "skerry/here/remote"


@pytest.fixture
def nucleus() -> Iterator[Nucleus]:
    with Nucleus() as nucleus:
        nucleus.configuration = {"desired": {}}
        yield nucleus
        assert not nucleus.errors


@pytest.fixture
def downlink() -> Downlink:
    return Downlink()


@pytest.fixture
def make(nucleus, downlink) -> Iterator[Callable[..., GreengrassLink]]:
    made = []

    def make(*, steered: bool = True, stop: threading.Event | None = None, **options: Any) -> GreengrassLink:
        settings = given.GreengrassLink(**{"timeout_s": 5.0, **options})
        link = GreengrassLink(
            settings, "here", stop or threading.Event(), downlink=downlink if steered else None,
            nucleus=Where(nucleus.environment),
        )  # fmt: skip
        made.append(link)
        return link

    yield make
    for link in made:
        link.close()


def arrived(nucleus: Nucleus) -> list[Event]:
    return [
        msgspec.json.decode(raw, type=Event)
        for item in list(nucleus.cloud)
        if "/far/" in item.topic
        for raw in decode(item.payload)
    ]


def seqs(nucleus: Nucleus) -> list[int]:
    return [event.seq for event in arrived(nucleus)]


def proposed(downlink: Downlink) -> Proposal:
    found: list[Proposal] = []

    def look() -> bool:
        proposal, _ = downlink.take(0.01)
        found.extend([proposal] if proposal is not None else [])
        return bool(found)

    eventually(look)
    return found[0]


def asked(downlink: Downlink, count: int = 1) -> list[Request]:
    found: list[Request] = []

    def look() -> bool:
        found.extend(downlink.take(0.01)[1])
        return len(found) >= count

    eventually(look)
    return found


# Up


def test_a_batch_is_a_message_that_says_what_rules_ask_for(nucleus, make) -> None:
    link = make(steered=False)
    link.open()
    link.send([record(1, lane="alarm"), record(2, lane="alarm")])
    (item,) = nucleus.cloud
    assert (item.topic, item.retain) == ("skerry/here/far/alarm", False)
    assert item.fields["qos"] == "1"
    assert item.fields["contentType"] == "application/cloudevents-batch+json"
    assert item.fields["userProperties"] == [
        {"key": "site", "value": "here"}, {"key": "lane", "value": "alarm"}, {"key": "events", "value": "2"},
    ]  # fmt: skip
    assert decode(item.payload) == [record(1, lane="alarm").raw, record(2, lane="alarm").raw]


def test_what_the_nucleus_does_not_answer_is_not_confirmed(nucleus, make) -> None:
    nucleus.slow_s = 0.3
    link = make()
    link.open()
    link.start(records(1, 2))
    assert not link.finish(0.01)
    eventually(link.finish)


def test_a_refusal_names_the_operation_and_the_resource_to_allow(nucleus, make) -> None:
    nucleus.allow = {"PublishToIoTCore": ["skerry/here/far/alarm"]}
    link = make(steered=False)
    link.open()
    with pytest.raises(
        LinkDown,
        match=r"allow aws\.greengrass#PublishToIoTCore for skerry/here/far/event "
        r"below aws\.greengrass\.ipc\.mqttproxy in accessControl",
    ):
        link.send(records(1, 1))
    link.open()
    link.send([record(2, lane="alarm")])
    assert seqs(nucleus) == [2]


def test_more_than_iot_core_takes_is_refused_here(nucleus, make) -> None:
    link = make(max_payload_bytes=7000)
    link.open()
    with pytest.raises(Rejected, match="at most 7000 bytes"):
        link.send([record(1, size=7000)])
    link.send(records(2, 2))
    assert seqs(nucleus) == [2]


def test_what_the_nucleus_finds_too_large_is_refused_and_the_link_goes_on(nucleus, make) -> None:
    said = (
        "Publish to topic t failed: The publishing message size 900 bytes exceeds the configured limit of 8"
    )
    nucleus.refusals.put(("ServiceError", said))
    link = make()
    link.open()
    with pytest.raises(Rejected, match="exceeds the configured limit"):
        link.send(records(1, 1))
    assert not link.finish(0.01)
    link.send(records(2, 2))
    assert seqs(nucleus) == [2]
    assert nucleus.connects == 1


def test_any_other_error_of_the_nucleus_is_tried_again(nucleus, make) -> None:
    nucleus.refusals.put(("ServiceError", "spooler is full"))
    link = make()
    link.open()
    with pytest.raises(LinkDown, match="spooler is full"):
        link.send(records(1, 1))
    link.open()
    link.send(records(1, 1))
    assert seqs(nucleus) == [1]


def test_a_nucleus_that_hangs_up_over_a_large_packet_is_told_of_with_what_to_set(nucleus, make) -> None:
    nucleus.max_packet = 10_000
    link = make(steered=False)
    link.open()
    link.send(records(1, 5))
    with pytest.raises(LinkDown, match=r"link\.max_payload_bytes: 7000"):
        link.send([record(6, size=20_000)])
    small = make(max_payload_bytes=7000)
    small.open()
    small.send([record(7, size=6000)])
    assert seqs(nucleus)[-1] == 7


@pytest.mark.parametrize("when", ["before", "after", "half", "corrupt"])
def test_a_connection_cut_in_the_middle_costs_nothing(nucleus, make, when) -> None:
    link = make()
    link.open()
    nucleus.cut = when
    with pytest.raises(LinkDown, match="nucleus:"):
        link.send(records(1, 3))
    link.open()
    assert not link.finish(0.01)
    link.send(records(1, 3))
    oracle = Oracle()
    oracle.send(events(1, 3))
    assert len(oracle.check_far_end(arrived(nucleus), repeats=True)) == 3


def test_a_nucleus_that_is_replaced_is_found_again(nucleus, make) -> None:
    link = make()
    link.open()
    link.send(records(1, 1))
    nucleus.stop()
    with pytest.raises(LinkDown, match="nucleus:"):
        eventually(lambda: link.finish(0.1))
    with pytest.raises(LinkDown, match=r"check AWS_GG_NUCLEUS_DOMAIN_SOCKET.*"):
        link.open()
    nucleus.start()
    link.open()
    link.send(records(2, 2))
    assert seqs(nucleus) == [1, 2]


def test_a_frozen_nucleus_is_given_up_in_time_and_found_again(nucleus, make) -> None:
    link = make(timeout_s=2.0)
    link.open()
    nucleus.freeze()
    with pytest.raises(LinkDown, match="did not confirm within 2 s"):
        link.send(records(1, 2))
    with pytest.raises(LinkDown, match="did not connect in time"):
        link.open()
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < 5
    nucleus.thaw()
    eventually(lambda: opens(link), 20)
    link.send(records(1, 2))
    link.close()


def opens(link: Link) -> bool:
    try:
        link.open()
    except LinkDown:
        return False
    return True


def test_attempts_that_take_too_long_leave_nothing_behind(nucleus, make) -> None:
    link = make(timeout_s=0.05)
    nucleus.freeze()

    def try_some() -> None:
        for _ in range(10):
            with pytest.raises(LinkDown):
                link.open()

    try_some()
    gc.collect()
    before = open_things()
    try_some()
    gc.collect()
    # The other side of the socket is ours as well, and waits.
    eventually(lambda: open_things()[0] <= before[0] + 1)
    assert open_things()[1] <= before[1] + 1


def open_things() -> tuple[int, int]:
    """Files and threads of this process, but for those of the nucleus that sleep."""
    held = [t for t in threading.enumerate() if not t.daemon]
    return len(list(Path("/proc/self/fd").iterdir())), len(held)


# What an answer is worth


def test_a_nucleus_without_iot_core_is_a_link_that_is_down(nucleus, make) -> None:
    nucleus.online = False
    link = make()
    with pytest.raises(LinkDown, match="not connected to IoT Core"):
        link.open()
    nucleus.online = True
    link.open()
    nucleus.online = False
    with pytest.raises(LinkDown, match="not connected to IoT Core"):
        eventually(lambda: link.finish(0.05))
    with pytest.raises(LinkDown):
        link.send(records(1, 1))
    assert nucleus.spool == []


def test_an_answer_while_iot_core_was_lost_confirms_nothing(nucleus, make) -> None:
    link = make()
    link.open()
    nucleus.slow_s = 0.3
    link.start(records(1, 2))
    eventually(lambda: "PublishToIoTCore" in nucleus.asked)
    nucleus.online = False
    nucleus.online = True  # it is back, and has the batch, perhaps; or it was dropped from a full spool
    eventually(lambda: link._offline == 1 and link._online)
    with pytest.raises(LinkDown, match="lost IoT Core while"):
        eventually(link.finish)
    link.open()
    link.send(records(1, 2))


def test_a_nucleus_that_cannot_tell_is_taken_at_its_word(nucleus, make) -> None:
    nucleus.tells_status = False
    link = make()
    link.open()
    link.send(records(1, 2))
    assert seqs(nucleus) == [1, 2]


def test_with_echo_only_what_iot_core_sent_back_is_confirmed(nucleus, make) -> None:
    link, impatient = make(confirm="echo"), make(confirm="echo", timeout_s=1.0)
    link.open()
    link.send(records(1, 2))
    nucleus.echoes = False
    eventually(lambda: opens(impatient))
    with pytest.raises(LinkDown, match="no echo came"):
        impatient.send(records(3, 4))
    eventually(lambda: opens(impatient))
    nucleus.send("skerry/here/far/event", b"[]")  # another's
    impatient.start(records(3, 4))
    nucleus.send("skerry/here/far/event", b"[]")
    with pytest.raises(LinkDown, match="no echo came"):
        eventually(impatient.finish)
    nucleus.echoes = True
    link.send(records(3, 4))


def test_an_echo_that_may_not_be_subscribed_to_is_said(nucleus, make) -> None:
    nucleus.allow = {"PublishToIoTCore": ["*"]}
    link = make(confirm="echo")
    with pytest.raises(LinkDown, match=r"allow aws.greengrass#SubscribeToIoTCore for skerry/here/far/"):
        link.open()


# Desired


def test_the_configuration_is_the_desired_state(nucleus, make, downlink) -> None:
    nucleus.configuration = {"desired": {"modules": {"capture": {"fps": 5, "threshold": 0.5}}}, "other": 1}
    link = make()
    link.open()
    first = proposed(downlink)
    assert first.source == "configuration"
    assert first.document == {"modules": {"capture": {"fps": 5, "threshold": 0.5}}}
    assert isinstance(first.document["modules"]["capture"]["fps"], int)  # the nucleus made a float of it
    nucleus.configure({"desired": {"modules": {"capture": {"fps": 6}}}})
    second = proposed(downlink)
    assert second.document == {"modules": {"capture": {"fps": 6}}}
    assert second.version != first.version


def test_a_configuration_that_did_not_change_is_not_proposed_again(nucleus, make, downlink) -> None:
    nucleus.configuration = {"desired": {"modules": {}}}
    link = make()
    link.open()
    proposed(downlink)
    before = nucleus.asked.count("GetConfiguration")
    nucleus.configure({"desired": {"modules": {}}})
    eventually(lambda: nucleus.asked.count("GetConfiguration") > before)
    link.open()
    link.send(records(1, 1))
    assert downlink.take(0.05)[0] is None


def test_a_component_without_the_key_desires_nothing_until_it_has_one(nucleus, make, downlink) -> None:
    nucleus.configuration = {}
    link = make()
    link.open()
    assert proposed(downlink).document == {}
    eventually(lambda: nucleus.asked.count("SubscribeToConfigurationUpdate") == 2)
    nucleus.configure({"desired": {"schema": 1}})
    assert proposed(downlink).document == {"schema": 1}


def test_a_key_that_comes_right_after_it_was_looked_for_is_seen(nucleus, make, downlink) -> None:
    """The first subscription is refused, for there is no such key yet: the second must be there by then."""
    nucleus.configuration = {}
    nucleus.after_refusal["GetConfiguration"] = lambda: nucleus.configure({"desired": {"n": 1}})
    make().open()
    eventually(lambda: proposed(downlink).document == {"n": 1})


def test_a_text_is_a_document(nucleus, make, downlink) -> None:
    nucleus.configuration = {"desired": '{"modules": {"a": {"n": 5, "x": 1.0}}}'}
    link = make()
    link.open()
    assert proposed(downlink).document == {"modules": {"a": {"n": 5, "x": 1.0}}}


def test_a_thousand_versions_at_once_end_with_the_last(nucleus, make, downlink) -> None:
    link = make()
    link.open()
    proposed(downlink)
    for n in range(1000):
        nucleus.configure({"desired": {"n": n}})
    link.send(records(1, 1))
    last: list[Any] = []

    def look() -> bool:
        proposal, _ = downlink.take(0.01)
        last.extend([proposal.document["n"]] if proposal is not None else [])
        return bool(last) and last[-1] == 999

    eventually(look)
    assert nucleus.asked.count("GetConfiguration") < 1000


def test_what_is_desired_without_a_cloud_is_proposed_too(nucleus, make, downlink) -> None:
    nucleus.configuration = {"desired": {"schema": 1}}
    nucleus.online = False
    with pytest.raises(LinkDown):
        make().open()
    assert proposed(downlink).document == {"schema": 1}


@pytest.mark.parametrize("desired", ["configuration", "shadow"])
def test_a_change_that_nobody_was_told_of_is_found_within_the_hour(nucleus, make, downlink, desired) -> None:
    link = make(desired=desired)
    link.open()
    proposed(downlink)
    nucleus.configuration["desired"] = {"n": 1}
    nucleus.shadows.setdefault("skerry", ShadowService()).update({"state": {"desired": {"n": 1}}})
    link.finish(0)
    assert downlink.take(0.1)[0] is None
    question = link._steering._configuration if desired == "configuration" else link._steering._shadow
    question._asked_s -= 3601
    link.finish(0)
    assert proposed(downlink).document == {"n": 1}


def test_what_could_not_be_asked_for_is_asked_for_again(nucleus, make, downlink) -> None:
    nucleus.unsupported = {"GetConfiguration"}
    link = make()
    link.open()
    eventually(lambda: "not supported" in link.trouble)
    nucleus.unsupported = set()
    link._steering._configuration._asked_s -= 61
    link.finish(0)
    proposed(downlink)
    eventually(lambda: link.trouble == "")


def test_what_changes_while_it_is_asked_for_is_asked_for_once_more(nucleus, make, downlink) -> None:
    link = make()
    link.open()
    proposed(downlink)
    nucleus.meanwhile = lambda: nucleus.configure({"desired": {"n": 2}})
    nucleus.configure({"desired": {"n": 1}})
    eventually(lambda: proposed(downlink).document == {"n": 2})


@pytest.mark.parametrize(
    ("value", "reason"), [({"a": "x" * 70_000}, "at most 65536 bytes"), ("{no", "expected JSON")]
)
def test_a_hostile_configuration_is_said_and_harms_no_batch(nucleus, make, downlink, value, reason) -> None:
    nucleus.configuration = {"desired": value}
    link = make()
    link.open()
    eventually(lambda: reason in link.trouble)
    link.send(records(1, 2))
    assert downlink.take(0.01)[0] is None
    nucleus.configure({"desired": {"schema": 1}})
    assert proposed(downlink).document == {"schema": 1}
    eventually(lambda: link.trouble == "")


def test_a_deep_configuration_is_refused() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="at most 64 levels"):
        configuration(deep)


def test_numbers_are_what_they_were() -> None:
    assert configuration({"a": [5.0, 0.5, True, None, "5.0", 1e300]}) == {
        "a": [5, 0.5, True, None, "5.0", 1e300]
    }


# A shadow


def test_the_shadow_manager_has_the_desired_state(nucleus, make, downlink) -> None:
    nucleus.desire("skerry", {"modules": {"capture": {"fps": 5}}})
    link = make(desired="shadow", reported="shadow")
    link.open()
    assert proposed(downlink) == Proposal("shadow", "1", {"modules": {"capture": {"fps": 5}}})
    nucleus.desire("skerry", {"modules": {"capture": {"fps": 6}}})
    assert proposed(downlink) == Proposal("shadow", "2", {"modules": {"capture": {"fps": 6}}})
    assert 7900 < link.report_bytes < 8000
    link.report({"version": "2", "applied": {"a": 1, "b": 2}}, 5.0)
    link.report({"version": "2", "applied": {"a": 1}}, 5.0)
    service = nucleus.shadows["skerry"]
    assert service.state is not None
    assert service.state["reported"] == {"version": "2", "applied": {"a": 1}}
    assert service.updates[-1] == {"reported": {"applied": {"b": None}}}
    link.send(records(1, 1))
    assert downlink.take(0.05)[0] is None  # our own report is nothing that is desired


def test_a_shadow_that_takes_no_report_is_said(nucleus, make) -> None:
    service = nucleus.shadows["skerry"] = ShadowService()
    link = make(desired="shadow", reported="shadow")
    link.open()
    service.refuse = Refused(413, "The payload exceeds the maximum size allowed")
    with pytest.raises(LinkDown, match="payload exceeds the maximum"):
        link.report({"a": 1}, 5.0)
    with pytest.raises(LinkDown, match="at most 8192 bytes"):
        link.report({"a": "x" * 9000}, 5.0)
    link.report({"a": 1}, 5.0)


def test_lite_has_no_shadows_and_batches_go_on(nucleus, make) -> None:
    nucleus.unsupported = {"GetThingShadow", "UpdateThingShadow", "UpdateState"}
    link = make(desired="shadow", reported="shadow")
    link.open()
    eventually(lambda: "GetThingShadow is not supported" in link.trouble)
    with pytest.raises(LinkDown, match="not supported"):
        link.report({"a": 1}, 5.0)
    link.send(records(1, 2))


def test_a_shadow_that_is_not_allowed_is_said_with_what_to_allow(nucleus, make) -> None:
    nucleus.allow = {"PublishToIoTCore": ["*"]}
    link = make(desired="shadow", reported="shadow", remote_topic="")
    link.open()
    eventually(
        lambda: (
            "aws.greengrass#GetThingShadow for $aws/things/gate-3/shadow/name/skerry "
            "below aws.greengrass.ShadowManager" in link.trouble
        )
    )
    link.send(records(1, 2))


# Reported


def test_the_state_is_retained_on_a_topic(nucleus, make) -> None:
    link = make()
    link.open()
    link.report({"version": "1"}, 5.0)
    (item,) = nucleus.cloud
    assert (item.topic, item.retain, json.loads(item.payload)) == (
        f"{REMOTE}/reported", True, {"version": "1"},
    )  # fmt: skip


def test_the_state_in_the_configuration_is_the_whole_of_it(nucleus, make, downlink) -> None:
    link = make(reported="configuration")
    link.open()
    proposed(downlink)
    link.report({"version": "1", "a": 1}, 5.0)
    link.report({"version": "2"}, 5.0)
    assert json.loads(nucleus.configuration["reported"]) == {"version": "2"}
    link.send(records(1, 1))
    assert downlink.take(0.05)[0] is None


def test_a_report_to_a_nucleus_that_is_not_there_or_frozen_ends_in_time(nucleus, make) -> None:
    link = make()
    with pytest.raises(LinkDown, match="closed"):
        link.report({"a": 1}, 5.0)
    link.open()
    nucleus.freeze()
    began = time.monotonic()
    with pytest.raises(LinkDown, match="not answered in time"):
        link.report({"a": 1}, 0.2)
    assert time.monotonic() - began < 5


# Commands


@pytest.mark.parametrize("way", ["local", "iot-core"])
def test_a_command_is_answered_where_it_came_from(nucleus, make, downlink, way) -> None:
    link = make()
    link.open()
    link.send(records(1, 1))  # so the subscriptions are there
    body = b'{"id": "7", "arguments": {"camera": "gate"}}'
    say = nucleus.say if way == "local" else nucleus.send
    say(f"{REMOTE}/requests/snapshot", body)
    (request,) = asked(downlink)
    assert (request.name, json.loads(request.body)) == ("snapshot", {"camera": "gate"})
    request.reply(200, b'{"ok": true}')
    wanted = {"id": "7", "name": "snapshot", "status": 200, "body": {"ok": True}}

    def answers() -> list[bytes]:
        if way == "local":
            return [payload for topic, payload in nucleus.local if topic == f"{REMOTE}/responses"]
        return [item.payload for item in nucleus.cloud if item.topic == f"{REMOTE}/responses"]

    eventually(answers)
    assert [json.loads(answer) for answer in answers()] == [wanted]


def test_a_retained_command_is_ignored(nucleus, make, downlink) -> None:
    link = make()
    link.open()
    link.send(records(1, 1))
    nucleus.send(f"{REMOTE}/requests/restart", b'{"id": "1"}', retain=True)
    nucleus.send(f"{REMOTE}/requests/ping", b'{"id": "2"}')
    assert [request.name for request in asked(downlink)] == ["ping"]


def test_a_storm_of_commands_is_answered_or_refused_and_batches_go_on(nucleus, make, downlink) -> None:
    link = make()
    link.open()
    link.send(records(1, 1))
    for n in range(500):
        nucleus.send(f"{REMOTE}/requests/ping", json.dumps({"id": str(n)}).encode())
    link.send(records(2, 3))
    for request in asked(downlink, 32):
        request.reply(200, b"{}")
    statuses = lambda: [json.loads(i.payload)["status"] for i in nucleus.cloud if "responses" in i.topic]  # noqa: E731 - a fact
    eventually(lambda: statuses().count(200) >= 1)
    assert set(statuses()) <= {200, 429}
    assert 3 in seqs(nucleus)


def test_commands_that_are_not_allowed_are_said_and_batches_go_on(nucleus, make) -> None:
    nucleus.allow = {"PublishToIoTCore": ["skerry/here/far/*"], "SubscribeToTopic": ["*"]}
    link = make()
    link.open()
    eventually(lambda: f"aws.greengrass#SubscribeToIoTCore for {REMOTE}/requests/+" in link.trouble)
    link.send(records(1, 2))
    nucleus.allow = None
    link.open()
    link.send(records(3, 3))
    assert link.trouble == ""


def test_without_a_downlink_nothing_is_subscribed_to(nucleus, make) -> None:
    link = make(steered=False)
    link.open()
    link.send(records(1, 1))
    assert not link.steered
    assert set(nucleus.asked) == {"SubscribeToIoTCoreConnectionStatus", "UpdateState", "PublishToIoTCore"}


# The component


def test_the_nucleus_is_told_once_that_the_component_runs(nucleus, make) -> None:
    link = make()
    link.open()
    link.send(records(1, 1))
    link.open()
    link.send(records(2, 2))
    eventually(lambda: nucleus.states == ["RUNNING"])


def test_outside_of_greengrass_the_missing_names_are_said() -> None:
    with pytest.raises(ConfigError, match="AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT and SVCUID"):
        Where({})
    with pytest.raises(ConfigError, match="expected SVCUID in"):
        Where({"AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": "/x"})


def test_a_token_that_is_refused_is_said_and_never_shown(nucleus, downlink, caplog, capsys) -> None:
    caplog.set_level(logging.DEBUG)
    where = Where({**nucleus.environment, "SVCUID": "wr0ng-token"})
    link = GreengrassLink(given.GreengrassLink(), "here", threading.Event(), downlink=downlink, nucleus=where)
    with pytest.raises(LinkDown, match="refuses SVCUID") as caught:
        link.open()
    good = GreengrassLink(
        given.GreengrassLink(), "here", threading.Event(), downlink=downlink,
        nucleus=Where(nucleus.environment),
    )  # fmt: skip
    good.open()
    good.send(records(1, 1))
    good.close()
    shown = f"{caught.value!r} {where!r} {good._nucleus!r} {caplog.text} {capsys.readouterr()}"
    for token in ("wr0ng-token", nucleus.token):
        assert token not in shown


def test_settings_that_cannot_work_are_refused() -> None:
    for options, what in (
        ({"topic": "a/{type}"}, "topic: expected only"),
        ({"remote_topic": "a/{lane}"}, "remote_topic: expected only"),
        ({"remote_topic": "a/#"}, "no wildcard"),
        ({"desired": "shadow", "shadow": ""}, "shadow: expected a name"),
        ({"remote_topic": ""}, "remote_topic: expected a topic"),
    ):
        with pytest.raises(ValueError, match=what):
            given.GreengrassLink(**options)


def test_names_that_are_too_long_are_a_mistake_of_the_settings(nucleus, make) -> None:
    with pytest.raises(ConfigError, match="at most 256 bytes and 7 slashes"):
        make(topic="a/b/c/d/e/f/g/{site}/{lane}")


# The end


def test_nothing_waits_once_the_process_stops(nucleus, make) -> None:
    stop = threading.Event()
    link = make(stop=stop, timeout_s=100.0)
    link.open()
    nucleus.freeze()
    link.start(records(1, 1))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(LinkDown, match="stopping"):
        eventually(link.finish)
    with pytest.raises(LinkDown, match="stopping"):
        link.open()


def test_a_process_ends_though_the_nucleus_is_frozen_and_nobody_closed_the_link(nucleus) -> None:
    code = """
import threading
from records import records
from skerry.uplink.downlink import Downlink
from skerry.uplink.links.greengrass import GreengrassLink
from skerry.uplink.settings import GreengrassLink as Settings
link = GreengrassLink(Settings(), "s", threading.Event(), downlink=Downlink())
link.open()
print("open", flush=True)
input()
link.start(records(1, 100))
print("end")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **nucleus.environment, "PYTHONPATH": str(needs.ROOT / "tests")},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    nucleus.freeze()
    out, err = process.communicate("\n", timeout=20)
    assert (process.returncode, out) == (0, "end\n"), err


def test_fifty_connections_leave_nothing_behind(nucleus, make) -> None:
    link = make()

    def once(n: int) -> None:
        link.open()
        link.start(records(n, n))
        if n % 2:
            eventually(link.finish)
        link.close()

    for n in range(1, 11):
        once(n)
    gc.collect()
    eventually(lambda: not nucleus._connections)
    before, held = resident_kb(), len(list(Path("/proc/self/fd").iterdir()))
    others = connections()  # of earlier tests in this process, too
    for n in range(11, 61):
        once(n)
    gc.collect()
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= held)
    assert resident_kb() - before < 4096
    assert connections() - others <= 6


def connections() -> int:
    """Objects that a connection is made of."""
    return sum(type(one).__name__ in {"Session", "Steering"} for one in gc.get_objects())


def resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


@contextmanager
def uplink(
    nucleus: Nucleus, tmp_path: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[MemoryBus, list[Receipt]]]:
    """The uplink at work: a bus to it, and the receipts that it sends."""
    for name, value in nucleus.environment.items():
        patch.setenv(name, value)
    broker = MemoryBroker()
    bus, receipts = MemoryBus(broker), list[Receipt]()
    bus.subscribe(RECEIPTS, receipts.append)
    settings = given.UplinkSettings(
        site="here", module="uplink", state=str(tmp_path), grace_s=3.0,
        link=given.GreengrassLink(timeout_s=2.0), sending=given.Sending(limits=given.Limits(preset="none")),
        backoff=given.BackoffSettings(first_s=0.05, last_s=0.1),
    )  # fmt: skip
    with running(run, settings, MemoryBus(broker), "uplink") as host:
        eventually(lambda: host.condition[0] in {"ready", "degraded"})
        yield bus, receipts


def test_a_nucleus_that_comes_and_goes_costs_nothing(nucleus, tmp_path, monkeypatch) -> None:
    with uplink(nucleus, tmp_path, monkeypatch) as (bus, receipts):
        for first in range(1, 501, 100):
            bus.publish(OUTBOUND, outbound(first, events(first, first + 99)), "uplink")
            nucleus.cut = "before" if first % 200 == 1 else "after"
            eventually(lambda upto=first + 99: receipts and receipts[-1].upto == upto, 30)
        nucleus.stop()
        bus.publish(OUTBOUND, outbound(501, events(501, 600)), "uplink")
        nucleus.start()
        eventually(lambda: receipts[-1].upto == 600, 30)
    oracle = Oracle()
    oracle.send(events(1, 600))
    assert len(oracle.check_far_end(arrived(nucleus), repeats=True)) == 600
    assert not any(receipt.refused for receipt in receipts)


def test_a_nucleus_that_loses_what_it_had_in_memory_costs_nothing(nucleus, tmp_path, monkeypatch) -> None:
    """It takes batches while it is offline, as the first one does, and forgets them when it is replaced."""
    with uplink(nucleus, tmp_path, monkeypatch) as (bus, receipts):
        eventually(lambda: "UpdateState" in nucleus.asked)
        for first in range(1, 1001, 100):
            bus.publish(OUTBOUND, outbound(first, events(first, first + 99)), "uplink")
            nucleus.online = False
            nucleus.stop()
            nucleus.start()
            nucleus.online = True
            eventually(lambda upto=first + 99: receipts and receipts[-1].upto == upto, 30)
    oracle = Oracle()
    oracle.send(events(1, 1000))
    assert len(oracle.check_far_end(arrived(nucleus), repeats=True)) == 1000
