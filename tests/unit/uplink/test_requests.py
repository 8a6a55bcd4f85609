"""Commands on topics, without a connection."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from skerry.uplink.downlink import Downlink
from skerry.uplink.links.requests import Requests


class Far:
    """Takes answers."""

    def __init__(self) -> None:
        self.downlink = Downlink()
        self.answers: list[dict[str, Any]] = []
        self.sent: list[Callable[[], None]] = []
        self.broken = False
        self.requests = Requests("p", self.downlink, self._publish)

    def _publish(self, payload: bytes, sent: Callable[[], None]) -> None:
        if self.broken:
            raise RuntimeError("no connection")
        self.answers.append(json.loads(payload))
        self.sent.append(sent)


@pytest.fixture
def far() -> Far:
    return Far()


def test_a_request_becomes_a_command_and_its_reply_an_answer(far) -> None:
    assert far.requests.take(
        "p/requests/ping", b'{"id": "1", "arguments": {"a": 1}, "more": 2}', retained=False
    )
    (request,) = far.downlink.take(0)[1]
    assert (request.name, request.body) == ("ping", b'{"a": 1}')
    request.reply(200, b'{"b": 2}')
    request.reply(204, b"")
    assert far.answers[0] == {"id": "1", "name": "ping", "status": 200, "body": {"b": 2}}
    assert far.answers[1]["body"] is None


def test_other_topics_are_others_affair(far) -> None:
    assert not far.requests.take("p/responses", b"{}", retained=False)
    assert not far.requests.take("q/requests/ping", b"{}", retained=False)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65])
def test_a_name_that_is_none_is_ignored(far, name) -> None:
    assert far.requests.take(f"p/requests/{name}", b"{}", retained=False)
    assert far.downlink.take(0)[1] == []
    assert far.answers == []


def test_no_more_answers_are_on_their_way_than_there_is_room_for(far) -> None:
    """Refusals leave half of a megabyte to the answers of commands that were taken."""
    with capture_logs() as logs:
        for n in range(10_000):
            far.requests.take("p/requests/ping", json.dumps({"id": n}).encode(), retained=False)
    refused = len(far.answers)
    assert 0 < refused < 10_000
    assert [entry["event"] for entry in logs].count("answer.dropped") == 1
    far.requests.take("p/requests/ping", b"{}", retained=False)
    (request,) = far.downlink.take(0)[1]
    for _ in range(10):
        request.reply(200, b'"%s"' % (b"x" * 100_000))
    assert len(far.answers) == refused + 5
    for sent in far.sent:
        sent()
    far.requests.take("p/requests/ping", b"{no", retained=False)
    assert len(far.answers) == refused + 6


def test_an_answer_that_cannot_be_sent_takes_no_room(far) -> None:
    far.broken = True
    for _ in range(100):
        far.requests.take("p/requests/ping", b"{no", retained=False)
    far.broken = False
    far.requests.take("p/requests/ping", b"{no", retained=False)
    assert [answer["status"] for answer in far.answers] == [400]


@given(payload=st.binary(max_size=200) | st.text(max_size=50).map(str.encode))
def test_whatever_comes_nothing_is_raised(payload: bytes) -> None:
    far = Far()
    far.requests.take("p/requests/ping", payload, retained=False)
    assert len(far.answers) + len(far.downlink.take(0)[1]) == 1
