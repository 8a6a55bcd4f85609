import pytest
from hypothesis import given
from hypothesis import strategies as st

from samples import SAMPLES
from skerry.bus import MemoryBroker, MemoryBus, encode, matches
from skerry.channels import ACCEPTED, METRICS, STATUS


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "a/b", True),
        ("+", "/a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b", False),
        ("#", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a/b/d", False),
        ("a.b", "axb", False),
    ],
)
def test_filter_covers_topics_as_the_standard_says(pattern, topic, expected):
    assert matches(pattern, topic) is expected


levels = st.lists(st.sampled_from(["a", "b", "", "ü"]), min_size=1, max_size=4)


@given(levels, st.data())
def test_topic_is_covered_by_itself_and_by_any_of_its_levels_as_plus(topic, data):
    level = data.draw(st.integers(0, len(topic) - 1))
    assert matches("/".join(topic), "/".join(topic))
    assert matches("/".join([*topic[:level], "+", *topic[level + 1 :]]), "/".join(topic))
    assert matches("/".join([*topic[:level], "#"]), "/".join(topic))
    assert not matches("/".join([*topic, "+"]), "/".join(topic))


def test_wrong_type_is_said_with_the_channel():
    with pytest.raises(TypeError, match="accepted: expected Accepted, got Status"):
        encode(ACCEPTED, SAMPLES["status"])


def test_two_buses_on_one_broker_in_memory_hear_each_other_at_once():
    broker = MemoryBroker()
    heard: list[object] = []
    MemoryBus(broker, "s").subscribe(METRICS, heard.append)
    MemoryBus(broker, "s").publish(METRICS, SAMPLES["metrics"], "m")
    assert heard == [SAMPLES["metrics"]]


def test_bus_in_memory_hears_what_is_retained_again_after_a_reconnect():
    bus, other = MemoryBus(broker := MemoryBroker()), MemoryBus(broker)
    heard: list[object] = []
    bus.subscribe(STATUS, heard.append)
    bus.disconnect()
    other.publish(STATUS, SAMPLES["status"], "m")
    assert heard == []
    bus.reconnect()
    assert heard == [SAMPLES["status"]]
