import msgspec
import pytest

from samples import DETECTION, EVENT, SAMPLES
from skerry.channels import CHANNELS
from skerry.messages import Detection, Event


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_message_is_the_same_after_a_round_trip(channel):
    message = SAMPLES[channel.name]
    payload = msgspec.json.encode(message)
    assert msgspec.json.decode(payload, type=channel.payload) == message
    assert len(payload) < channel.max_bytes


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_message_cannot_be_changed_and_takes_unknown_fields(channel):
    message = SAMPLES[channel.name]
    with pytest.raises(AttributeError):
        message.schema = 2
    later = msgspec.json.encode(message)[:-1] + b',"new":1}'
    assert msgspec.json.decode(later, type=channel.payload) == message


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: c.name)
def test_every_message_carries_the_version_of_its_layout(channel):
    assert msgspec.json.decode(msgspec.json.encode(SAMPLES[channel.name]))["schema"] == 1


def test_event_is_a_structured_cloud_event():
    """CloudEvents 1.0.2, sections 3.1 and 3.2: required attributes, lower-case names."""
    sent = msgspec.to_builtins(EVENT)
    assert {"id", "source", "specversion", "type"} <= set(sent)
    assert sent["specversion"] == "1.0"
    assert all(name.isalnum() and name.islower() and len(name) <= 20 for name in sent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": 1.5},
        {"score": float("nan")},
        {"box": [0, 0, 1]},
        {"label": None},
        {"attributes": {"a": "b"}},
    ],
)
def test_impossible_detection_is_refused(wrong):
    raw = {**msgspec.to_builtins(DETECTION), **wrong}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(raw, Detection)


@pytest.mark.parametrize("wrong", [{"seq": 0}, {"lane": "urgent"}, {"monotonic": -1}, {"specversion": "2.0"}])
def test_impossible_event_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**msgspec.to_builtins(EVENT), **wrong}, Event)
