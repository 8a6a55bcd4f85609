"""What crosses the bus: one struct a message, encoded as JSON.

Conventions, for every message:

* `schema` is the version of its layout. A reader takes any message whose fields it can read and
  ignores the fields it does not know, so adding one is not a new version.
* Boxes, points and zones are fractions of the frame: x to the right, y down, 0 to 1. They mean the
  same at every resolution.
* `..._ns` is a monotonic clock in nanoseconds (CLOCK_MONOTONIC: comparable between processes of one
  boot); `time` is UTC as RFC 3339. Order and duration never come from `time`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
"""A position as a share of the frame's width or height."""

Count = Annotated[int, Meta(ge=0)]
NAME = r"^[A-Za-z0-9_-]+$(?!\n)"
"""Python's `$` also matches before a last line feed, JSON Schema's does not; this says the same in both."""

Name = Annotated[str, Meta(pattern=NAME, min_length=1, max_length=64)]
"""The name of a site, module, camera, rule or model; it becomes one level of a topic."""

Lane = Literal["alarm", "event", "telemetry", "bulk"]
"""The priority class of a record, highest first."""

LANES: tuple[Lane, ...] = ("alarm", "event", "telemetry", "bulk")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every message has."""

    schema: Annotated[int, Meta(ge=1)] = 1


class FrameRef(Message, frozen=True, kw_only=True):
    """One captured frame, by reference: where its pixels wait in the frame store.

    `number` is dense per camera and survives a restart of capture (it lives in the ring), so a
    reader that sees a jump knows how many frames it never received.
    """

    camera: Name
    number: Annotated[int, Meta(ge=1)]
    time: str
    captured_ns: Count
    """Monotonic time at which capture had the decoded frame."""
    media_ns: int
    """Presentation time in the stream (file, RTSP); equal to `captured_ns` where there is none."""
    ring: str
    """File name of the ring inside the frame store's folder."""
    slot: Count
    generation: Count
    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]
    format: Literal["bgr24", "gray8"] = "bgr24"
    keep: bool = False
    """The source waits for this frame's result (a file, as fast as possible): never supersede it."""
    trace: str = ""
    """W3C traceparent, empty when tracing is off."""


class Detection(msgspec.Struct, frozen=True):
    """One object that a model found."""

    label: str
    score: Fraction
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 as fractions of the frame."""
    attributes: dict[str, float] = {}
    """What else the model says of the object, e.g. {"defect": 0.93}."""


class Detections(Message, frozen=True, kw_only=True):
    """What inference says of one frame. A failure is never an empty result."""

    camera: Name
    number: Annotated[int, Meta(ge=1)]
    """The frame's number."""
    sequence: Annotated[int, Meta(ge=1)]
    """Dense per camera over results (ok and failed): a jump means results that were not received."""
    status: Literal["ok", "failed"]
    reason: str = ""
    """Why it failed; empty when ok."""
    time: str
    captured_ns: Count
    media_ns: int
    inferred_ns: Count
    """Monotonic time at which the result was ready."""
    session_ms: float = 0.0
    """Time inside the model's session alone, in milliseconds."""
    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)]
    model: str = ""
    """name@version of the package."""
    objects: tuple[Detection, ...] = ()
    trace: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvents 1.0 event (structured JSON).

    Its extensions are `lane`, `epoch`, `seq`, `bootid` and `monotonic`.
    `(source, epoch, seq)` names a record for ever: `epoch` is drawn once per life of the producer's
    outbox and `seq` is dense in it from 1. `id` is `<epoch>-<seq>`.

    Source: CloudEvents 1.0.2, section 3 (context attributes).
    """

    id: str
    source: str
    type: str
    time: str
    subject: str
    lane: Lane
    epoch: str
    seq: Annotated[int, Meta(ge=1)]
    bootid: str
    """Identity of the boot in which `monotonic` was read."""
    monotonic: Count
    """CLOCK_MONOTONIC in nanoseconds when the event was decided."""
    data: dict[str, Any]
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: str = "application/json"


class Submission(Message, frozen=True, kw_only=True):
    """Events that a producer asks the buffer to keep: dense in seq, in order.

    `oldest` is the first seq that the producer still holds. It tells a buffer that has never heard
    of this epoch where to begin.
    """

    producer: Name
    epoch: str
    oldest: Annotated[int, Meta(ge=1)]
    events: Annotated[tuple[Event, ...], Meta(min_length=1)]


class Accepted(Message, frozen=True, kw_only=True):
    """The buffer has every event of `epoch` up to and including `seq` on disk."""

    producer: Name
    epoch: str
    seq: Count


class Outbound(Message, frozen=True, kw_only=True):
    """Records for the far end: `events` are the store's records `first`, `first + 1`, ... in order."""

    store: str
    """Identity of the store, drawn when it was made."""
    first: Annotated[int, Meta(ge=1)]
    base: Count = 0
    """Nothing up to this record is to come any more: it is receipted, or evicted. A reader that has
    confirmed less must not wait for the rest."""
    events: Annotated[tuple[Event, ...], Meta(min_length=1)]


class Receipt(Message, frozen=True, kw_only=True):
    """The far end has every record of `store` up to and including `upto`."""

    store: str
    upto: Count


State = Literal["starting", "ready", "degraded", "stopped", "lost"]


class Status(Message, frozen=True, kw_only=True):
    """The retained state of a module; `lost` is its last will."""

    module: Name
    kind: str
    """capture, inference, decision, buffer or uplink."""
    state: State
    reason: str = ""
    """Why it is degraded or how it stopped."""
    time: str = ""
    version: str = ""
    pid: int = 0


class CameraStatus(Message, frozen=True, kw_only=True):
    """The retained state of one camera. `captured` lets a reader account for a tail it never saw."""

    camera: Name
    state: Literal["starting", "live", "degraded", "ended", "stopped"]
    reason: str = ""
    captured: Count
    """The number of the last frame captured; 0 when there was none."""
    width: Count = 0
    height: Count = 0
    fps: float = 0.0
    """Measured over the last seconds."""
    time: str = ""


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    count: Count
    p50: float
    p95: float
    p99: float
    max: float


class Metrics(Message, frozen=True, kw_only=True):
    """What a module counts, sent every second: the source of the live screen."""

    module: Name
    kind: str
    uptime_s: float
    rss_mb: float
    cpu_s: float
    """User and system time of the process so far, in seconds."""
    fps: float = 0.0
    queue: Count = 0
    counters: dict[str, float] = {}
    latency_ms: dict[str, Quantiles] = {}


class Delivered(Message, frozen=True, kw_only=True):
    """Events that the far end has just confirmed; for screens, never for accounting."""

    module: Name
    events: tuple[Event, ...]
