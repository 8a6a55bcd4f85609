"""Events as flat objects."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import WHEN, event
from records import of, record
from rule_events import crossing, rule_event
from skerry.uplink.plain import flat, level, place, told

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=70), inner, max_size=80),
    max_leaves=40,
)


def test_an_event_is_one_level_deep() -> None:
    said = flat(
        told(
            of(
                rule_event(
                    7, "count", "exceeded", active=True, bound="above", limit=2, count=3,
                    labels={"person": 2, "dog": 1}, box=[0.1, 0.2, 0.3, 0.4], trace="00-1-2-01",
                )
            ).raw
        )
    )  # fmt: skip
    assert said == {
        "time": WHEN,
        "lane": "event",
        "type": "skerry.count.exceeded",
        "camera": "gate",
        "rule": "crowd",
        "id": "e1-7",
        "source": "/skerry/test/decision",
        "kind": "count",
        "severity": "info",
        "frame": 7,
        "active": True,
        "bound": "above",
        "limit": 2,
        "count": 3,
        "labels_person": 2,
        "labels_dog": 1,
    }


def test_totals_are_by_label() -> None:
    said = flat(told(crossing(1, "forward", {"person": 4, "car": 1}).raw))
    assert (said["direction"], said["total"], said["totals_person"], said["totals_car"]) == (
        "forward",
        5,
        4,
        1,
    )


def test_data_does_not_take_the_place_of_attributes() -> None:
    odd = msgspec.structs.replace(event(1), data={"id": "other", "lane": 5, "time": {"zone": 1}})
    said = flat(told(of(odd).raw))
    assert (said["id"], said["lane"], said["time"], said["time_zone"]) == ("e1-1", "event", WHEN, 1)


def test_a_time_that_may_be_wrong_is_said_to_be() -> None:
    odd = msgspec.structs.replace(event(1), timequality="unsynchronised")
    assert flat(told(of(odd).raw))["timequality"] == "unsynchronised"
    assert "timequality" not in flat(told(record(1).raw))


@given(data=st.dictionaries(st.text(max_size=70), JSON, max_size=80))
def test_whatever_the_data_it_is_flat_and_bounded(data: dict[str, object]) -> None:
    said = flat(told(of(msgspec.structs.replace(event(1), data=data)).raw))
    assert len(said) <= 64
    assert all(value is None or isinstance(value, str | int | float) for value in said.values())


def test_what_is_no_event_is_said_to_be() -> None:
    for raw in (b"{}", b"[" * 100_000, b'{"data": 5}', b"\xff"):
        with pytest.raises(ValueError, match="expected an event"):
            told(raw)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [("gate/line", ("gate", "line")), ("alarm", ("alarm", "-")), ("", ("-", "-")), ("a/b/#+", ("a", "b___"))],
)
def test_a_subject_is_a_camera_and_a_rule(subject: str, expected: tuple[str, str]) -> None:
    assert place(subject) == expected


def test_a_level_of_a_topic_has_nothing_that_means_something_there() -> None:
    assert level("a/b+c#d\0e") == "a_b_c_d_e"
    assert level("") == "-"
