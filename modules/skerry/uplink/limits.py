"""How much may go out, and how fast."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.settings import LIVE, RESTART, Positive, Settings


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a link must keep to. Infinity: no limit."""

    messages_per_s: float = math.inf
    bytes_per_s: float = math.inf
    """Of payloads as they are sent, compressed where they are."""
    message_bytes: float = math.inf
    unacked_messages: float = math.inf


Preset = Literal[
    "none", "aws-iot-core", "azure-iot-hub-s1", "azure-iot-hub-s2", "azure-iot-hub-s3", "azure-event-grid"
]

PRESETS: dict[Preset, Bounds] = {
    "none": Bounds(),
    # AWS IoT Core endpoints and quotas, message broker: per connection. Beyond it, messages are throttled.
    "aws-iot-core": Bounds(
        messages_per_s=100, bytes_per_s=512 * 1024, message_bytes=128 * 1024, unacked_messages=100
    ),
    # IoT Hub quotas and throttling: device-to-cloud sends of the whole hub, at one unit; 256 KB a message.
    "azure-iot-hub-s1": Bounds(messages_per_s=100, message_bytes=256 * 1024),
    "azure-iot-hub-s2": Bounds(messages_per_s=120, message_bytes=256 * 1024),
    "azure-iot-hub-s3": Bounds(messages_per_s=6000, message_bytes=256 * 1024),
    # Event Grid quotas and limits, MQTT in namespaces: per session.
    "azure-event-grid": Bounds(
        messages_per_s=1000, bytes_per_s=1024 * 1024, message_bytes=512 * 1024, unacked_messages=1000
    ),
}


class Limits(Settings, frozen=True, kw_only=True):
    """Limits of a link: a cloud's documented ones, your own, or a mix: what is given here wins."""

    preset: Annotated[Preset | None, RESTART] = None
    """Left out: that of the link, aws-iot-core for `aws` and `greengrass`, azure-iot-hub-s1
    for `azure` without an edgeHub, none for the others."""
    messages_per_s: Annotated[Positive | None, LIVE] = None
    """Messages a second."""
    bytes_per_s: Annotated[Positive | None, LIVE] = None
    """Of payloads as they are sent, compressed where they are."""
    message_bytes: Annotated[Annotated[int, Meta(ge=1024)] | None, RESTART] = None
    """A larger event is refused, and goes to the buffer's quarantine."""
    unacked_messages: Annotated[Annotated[int, Meta(ge=1)] | None, RESTART] = None
    """Messages that may wait for their confirmation."""

    @property
    def all(self) -> Bounds:
        """The preset with what was given in its place."""
        return self.on("none")

    def on(self, preset: Preset) -> Bounds:
        """The same, where no preset is given with this one."""
        given = {name: getattr(self, name) for name in Bounds.__struct_fields__}
        return msgspec.structs.replace(
            PRESETS[self.preset or preset], **{n: float(v) for n, v in given.items() if v is not None}
        )


class Bucket:
    """A token bucket that may go into debt: a cost is known only after it was paid. Pure.

    It refills at nine tenths of the rate and holds a tenth of a second's worth, so that what is paid
    in any one second is at most the rate and one payment more, and on average below the rate.

    Source: Tanenbaum, Wetherall: Computer Networks, 5th edition, section 5.4.2.

    Args:
        rate: tokens per second, or infinity.
        now: monotonic time, in seconds.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._refill = rate * 0.9
        self._most = rate * 0.1
        self._tokens = self._most
        self._at = now

    def wait_s(self, now: float, credit_s: float = 0.0) -> float:
        """Seconds until something may be paid; 0 when it may now.

        Args:
            now: monotonic time, in seconds.
            credit_s: how deep in debt the bucket may be, in seconds of its rate.
        """
        if math.isinf(self._refill):
            return 0.0
        self._fill(now)
        owed = -self._tokens - credit_s * self._refill
        return max(owed / self._refill, 0.0) if owed > 0 else 0.0

    def whole(self, now: float) -> float:
        """Whole tokens that are there, at least 1."""
        if math.isinf(self._refill):
            return math.inf
        self._fill(now)
        return max(math.floor(self._tokens), 1)

    def pay(self, amount: float, now: float) -> None:
        """Take tokens, there or not."""
        if not math.isinf(self._refill):
            self._fill(now)
            self._tokens -= amount

    def _fill(self, now: float) -> None:
        self._tokens = min(self._tokens + max(now - self._at, 0.0) * self._refill, self._most)
        self._at = max(now, self._at)


ALARM_CREDIT_S = 1.0
"""How far ahead of its limits an alarm may be sent: others wait the longer for it."""


class Meter:
    """The buckets of one link. Pure.

    Args:
        bounds: of the link.
        now: monotonic time, in seconds.
    """

    def __init__(self, bounds: Bounds, now: float) -> None:
        self._messages = Bucket(bounds.messages_per_s, now)
        self._bytes = Bucket(bounds.bytes_per_s, now)

    def wait_s(self, now: float, *, alarm: bool) -> float:
        """Seconds until the next batch may go; 0 when it may now."""
        credit = ALARM_CREDIT_S if alarm else 0.0
        return max(self._messages.wait_s(now, credit), self._bytes.wait_s(now, credit))

    def messages(self, now: float) -> float:
        """Messages that the next batch may have, at least 1."""
        return self._messages.whole(now)

    def pay(self, messages: int, size: int, now: float) -> None:
        """Note what was sent."""
        self._messages.pay(messages, now)
        self._bytes.pay(size, now)
