"""What a shadow is told, and what is learned of one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow_service import ShadowService
from skerry.uplink.downlink import Downlink, Proposal
from skerry.uplink.links.shadow import Shadow, State, difference, read, read_documents, read_refusal, update

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b", 0.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def without_null(value: Any) -> Any:
    """As a shadow keeps it."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return value


@given(before=DOCUMENTS.map(without_null), after=DOCUMENTS)
def test_a_difference_makes_one_document_of_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    service = ShadowService()
    service.update({"state": {"reported": before}})
    change = difference(before, after)
    if change:
        service.update({"state": {"reported": change}})
    assert service.state is not None
    assert json.dumps(service.state["reported"], sort_keys=True) == json.dumps(
        without_null(after), sort_keys=True
    )


@given(document=DOCUMENTS.map(without_null))
def test_what_is_there_already_is_not_told_again(document: dict[str, Any]) -> None:
    assert difference(document, document) == {}
    assert update(document, document, "t") == b""


def test_true_is_not_one() -> None:
    assert difference({"a": 1, "b": [True]}, {"a": True, "b": [1]}) == {"a": True, "b": [1]}


def test_a_report_has_its_token_and_at_most_8_kilobytes() -> None:
    assert json.loads(update({"b": 1}, {"a": 1}, "t")) == {
        "state": {"reported": {"a": 1, "b": None}}, "clientToken": "t",
    }  # fmt: skip
    with pytest.raises(ValueError, match="at most 8192 bytes"):
        update({}, {"a": "x" * 8192}, "t")


def learnt(*steps: tuple[State, int | None]) -> list[Proposal | None]:
    downlink = Downlink()
    shadow = Shadow(downlink)
    found = []
    for state, asked_at in steps:
        shadow.learn(state, asked_at)
        found.append(downlink.take(0)[0])
    return found


def test_only_what_is_newer_and_desires_something_else_is_proposed() -> None:
    first, same, new, old = learnt(
        (State(1, {"a": 1}, {}), None),
        (State(2, {"a": 1}, {"r": 1}), None),
        (State(3, {"a": True}, {}), None),
        (State(2, {"a": 5}, {}), None),
    )
    assert first == Proposal("shadow", "1", {"a": 1})
    assert same is None
    assert new == Proposal("shadow", "3", {"a": True})
    assert old is None


def test_an_answer_that_was_overtaken_is_old_and_one_below_what_was_asked_at_is_anew() -> None:
    *_, overtaken, anew = learnt(
        (State(5, {"a": 5}, {}), None),
        (State(6, {"a": 6}, {}), None),
        (State(5, {"a": 5}, {}), 5),
        (State(1, {"a": 1}, {}), 6),
    )
    assert overtaken is None
    assert anew == Proposal("shadow", "1", {"a": 1})


def test_a_message_of_the_service_is_read() -> None:
    assert read(b'{"state": {"desired": {"a": 1}}, "version": 3, "metadata": {}}') == State(3, {"a": 1}, {})
    assert (
        read_documents(b'{"previous": {}, "current": {"state": {"desired": null}, "version": 4}}').desired
        == {}
    )
    assert read_refusal(b'{"code": 404, "message": "m", "clientToken": "t"}') == ("t", 404, "m")


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"5", b'{"version": 1}', b'{"state": {}, "version": -1}', b'{"state": [], "version": 1}',
        b"\xff",
        b'{"state": {"reported": 5}, "version": 1}', b"[" * 10_000, b'{"a":' * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_shadow_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="shadow: "):
        read(payload)
