"""The other direction of the Azure link: desired and reported state, and direct methods."""

import time

import pytest
from structlog.testing import capture_logs

from records import records
from skerry.errors import LinkDown
from skerry.testing import eventually
from skerry.uplink.downlink import Downlink


@pytest.fixture
def downlink() -> Downlink:
    return Downlink()


@pytest.fixture
def link(hub, connect, downlink):
    link = connect(hub, downlink=downlink)
    link.open()
    return link


def proposal(downlink, version: int):
    """The first proposal of this version; what came before is passed over."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found, _ = downlink.take(0.1)
        if found is not None and found.version == str(version):
            return found
    raise AssertionError(f"version {version} was not proposed")


def test_the_desired_state_comes_whole_when_the_link_opens(hub, connect, downlink) -> None:
    version = hub.set_desired({"modules": {"capture": {"fps": 5}}, "$metadata": {"x": 1}})
    link = connect(hub, downlink=downlink)
    assert link.steered
    link.open()
    found = proposal(downlink, version)
    assert (found.source, found.document) == ("twin", {"modules": {"capture": {"fps": 5}}})


def test_a_link_without_a_downlink_asks_for_nothing(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.send(records(1, 1))
    assert not link.steered
    assert hub.twin_reads == 0


def test_a_change_is_merged_into_the_whole(hub, link, downlink) -> None:
    proposal(downlink, 1)
    hub.set_desired({"modules": {"capture": {"fps": 5, "size": 9}, "decision": {"x": 1}}})
    proposal(downlink, 2)
    hub.set_desired({"modules": {"capture": {"fps": None}, "decision": None}})
    assert proposal(downlink, 3).document == {"modules": {"capture": {"size": 9}}}
    assert hub.twin_reads == 1


def test_a_hole_in_the_versions_makes_the_link_ask_again(hub, link, downlink) -> None:
    proposal(downlink, 1)
    hub.set_desired({"modules": {"capture": {"fps": 5}}}, told=False)
    hub.set_desired({"modules": {"capture": {"size": 9}}})
    eventually(lambda: not link.finish(0) and hub.twin_reads == 2)
    assert proposal(downlink, 3).document == {"modules": {"capture": {"fps": 5, "size": 9}}}
    hub.set_desired({"more": 1})
    assert proposal(downlink, 4).document["more"] == 1
    assert hub.twin_reads == 2


def test_a_thousand_changes_end_with_the_last_and_cost_no_more_than_their_messages(
    hub, link, downlink
) -> None:
    proposal(downlink, 1)
    for n in range(1000):
        hub.set_desired({"modules": {"capture": {"fps": n}}})

    def newest() -> bool:
        link.finish(0)
        found, _ = downlink.take(0.05)
        return found is not None and found.version == "1001"

    eventually(newest, 60)
    assert hub.twin_reads <= 3
    link.send(records(1, 5))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"not json", ""),
        (b"[1, 2]", ""),
        (b"{}", ""),
        (b'{"$version": "x"}', ""),
        (b'{"$version": true, "a": 1}', ""),
        (b'{"$version": 2, "a":' + b"[" * 400 + b"]" * 400 + b"}", None),
        (b'{"$version": 2, "a":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", ""),
        (b'{"$version": 2, "a": "' + b"x" * 200_000 + b'"}', "too large"),
    ],
)
def test_a_hostile_desired_state_stops_nothing(hub, link, downlink, payload, why) -> None:
    proposal(downlink, 1)
    with capture_logs() as logs:
        hub.publish("$iothub/twin/PATCH/properties/desired/?$version=2", payload)
        hub.desired["$version"] = 2
        hub.set_desired({"modules": {}})
        eventually(lambda: not link.finish(0) and bool(downlink.take(0.05)[0]))
    if why:
        assert next(line["reason"] for line in logs if line["event"] == "desired.dropped") == why
    link.send(records(1, 5))


def test_a_twin_that_is_not_told_is_asked_for_again_and_holds_nothing_up(hub, connect, downlink) -> None:
    hub.answers_twin = False
    link = connect(hub, downlink=downlink, timeout_s=0.5)
    link.open()
    link.send(records(1, 5))
    eventually(lambda: not link.finish(0.05) and hub.twin_reads >= 2)
    hub.answers_twin = True
    eventually(lambda: not link.finish(0.05) and bool(downlink.take(0.01)[0]))


def test_a_report_takes_the_place_of_the_former_one(hub, connect, link) -> None:
    link.report({"a": {"b": 1, "c": [1]}, "d": 1}, 5)
    link.report({"a": {"b": 2, "c": [1]}}, 5)
    assert hub.patches == [{"a": {"b": 1, "c": [1]}, "d": 1}, {"d": None, "a": {"b": 2}}]
    link.report({"a": {"b": 2, "c": [1]}}, 5)
    assert len(hub.patches) == 2
    link.close()
    link.open()
    link.report({"e": True}, 5)
    assert hub.patches[2:] == [{"a": None, "e": True}]
    assert hub.reported == {"$version": 4, "e": True}


def test_a_report_that_is_refused_or_not_answered_is_said_to_be(hub, connect, downlink, link) -> None:
    link.report({"a": 1}, 5)
    hub.patch_status = 429
    with pytest.raises(LinkDown, match="429"):
        link.report({"b": 1}, 5)
    hub.patch_status = 204
    eventually(lambda: not link.finish(0.05) and link._twin.known)
    link.report({"b": 1}, 5)
    assert hub.reported == {"$version": 3, "b": 1}
    hub.answers_twin = False
    with pytest.raises(LinkDown, match=r"did not take the reported state within 0.3 s"):
        link.report({"c": 1}, 0.3)
    hub.answers_twin = True
    eventually(lambda: not link.finish(0.05) and link._twin.known)
    with pytest.raises(LinkDown, match="at most 32768 bytes"):
        link.report({"d": "x" * 40_000}, 5)
    link.close()
    with pytest.raises(LinkDown, match="closed"):
        link.report({"c": 1}, 5)


def test_a_method_is_a_request_and_its_reply_the_answer(hub, link, downlink) -> None:
    rid = hub.call("ping", {"deep": [1]})
    _, requests = wait_for(downlink)
    assert (requests[0].name, requests[0].body) == ("ping", b'{"deep": [1]}')
    requests[0].reply(200, b'{"pong": true}')
    assert hub.answer(rid) == (200, {"pong": True})
    rid = hub.call("ping")
    _, requests = wait_for(downlink)
    assert requests[0].body == b""
    requests[0].reply(200, b"")
    assert hub.answer(rid) == (200, None)


def wait_for(downlink):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = downlink.take(0.1)
        if found[1]:
            return found
    raise AssertionError("no request came")


@pytest.mark.parametrize("body", [b"not json", b'"' + b"x" * 130_000 + b'"'])
def test_an_answer_that_the_hub_would_not_take_is_said_to_be(hub, link, downlink, body) -> None:
    rid = hub.call("diagnostics")
    wait_for(downlink)[1][0].reply(200, body)
    status, answer = hub.answer(rid)
    assert status == 500
    assert "error" in answer


def test_of_many_methods_at_once_each_is_answered_once(hub, link, downlink) -> None:
    rids = [hub.call("ping", n) for n in range(200)]
    waiting = []
    eventually(lambda: waiting.extend(downlink.take(0.05)[1]) or len(waiting) + len(hub.responses) >= 200, 30)
    for request in waiting:
        request.reply(200, b"{}")
    eventually(lambda: len(hub.responses) == 200)
    assert {hub.responses[rid][0] for rid in rids} <= {200, 429}
    link.send(records(1, 5))


def test_an_answer_that_comes_after_the_connection_is_lost_is_dropped(hub, link, downlink) -> None:
    hub.call("ping")
    request = wait_for(downlink)[1][0]
    link.close()
    request.reply(200, b"{}")
    link.open()
    link.send(records(1, 1))


def test_a_last_change_that_was_lost_is_found_out_in_time(hub, connect, downlink, monkeypatch) -> None:
    monkeypatch.setattr("skerry.uplink.links.azure._TWIN_EVERY_S", 0.5)
    link = connect(hub, downlink=downlink)
    link.open()
    proposal(downlink, 1)
    hub.set_desired({"late": 1}, told=False)
    eventually(lambda: not link.finish(0.05) and bool(downlink.take(0.01)[0]))


def test_a_twin_that_is_not_told_is_a_trouble_until_it_is(hub, connect, downlink) -> None:
    hub.answers_twin = False
    link = connect(hub, downlink=downlink, timeout_s=0.5)
    link.open()
    assert link.trouble == ""
    eventually(lambda: not link.finish(0.05) and "the twin was not told within 0.5 s" in link.trouble)
    hub.answers_twin = True
    eventually(lambda: not link.finish(0.05) and not link.trouble)
