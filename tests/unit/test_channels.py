import pytest

from skerry.bus import matches
from skerry.channels import CHANNELS, MAX_PAYLOAD, STATUS, Channel
from skerry.messages import Status


def test_no_two_channels_share_a_name_or_a_topic():
    assert len({c.name for c in CHANNELS}) == len(CHANNELS)
    assert len({c.filter("s") for c in CHANNELS}) == len(CHANNELS)
    for one in CHANNELS:
        assert [c.name for c in CHANNELS if matches(c.filter("s"), one.topic("s", "k"))] == [one.name]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_topics_stay_within_every_broker_limit(channel):
    """AWS IoT Core allows 7 slashes and 256 bytes, and no topic may hold a wildcard."""
    topic = channel.topic("s" * 64, "k" * 64)
    assert topic.count("/") <= 7
    assert len(topic.encode()) <= 256
    assert not set("+#") & set(topic)
    assert channel.max_bytes >= MAX_PAYLOAD


def test_filter_matches_every_key_of_its_site_and_nothing_else():
    assert STATUS.topic("hall", "capture") == "skerry/hall/status/capture"
    assert STATUS.filter("hall") == "skerry/hall/status/+"
    assert matches(STATUS.filter("hall"), STATUS.topic("hall", "x"))
    assert not matches(STATUS.filter("hall"), STATUS.topic("hal", "x"))


def test_key_is_required_exactly_where_the_address_has_one():
    plain = Channel(name="p", address="skerry/{site}/p", payload=Status, qos=0, retain=False, doc="")
    assert (plain.key, STATUS.key) == (None, "module")
    assert plain.topic("s") == plain.filter("s") == "skerry/s/p"
    with pytest.raises(AssertionError):
        STATUS.topic("s")
    with pytest.raises(AssertionError):
        plain.topic("s", "k")
