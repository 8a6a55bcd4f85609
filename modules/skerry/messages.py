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
from msgspec import UNSET, Meta, UnsetType

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

    Its extensions are `lane`, `epoch`, `seq`, `bootid` and `monotonic`, and, where they say something,
    `timequality`, `recordedtime` and `retryof`.
    `(source, epoch, seq)` names a record for ever: an `epoch` is drawn per lane and life of the
    producer's outbox, and `seq` is dense in it from 1. All events of an epoch are of one lane, so that
    one that overtakes another never has a higher seq of the same epoch. `id` is `<epoch>-<seq>`.

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
    timequality: Literal["corrected", "unsynchronised"] | UnsetType = UNSET
    """Absent when the clock was synchronised. Corrected: `time` was reckoned from `monotonic` once the
    clock was synchronised, and is that of the decision; unsynchronised: `time` may be wrong by years."""
    recordedtime: str | UnsetType = UNSET
    """What `time` said before it was corrected."""
    retryof: str | UnsetType = UNSET
    """The id of the refused event that this one repeats, by an operator's wish."""


class Submission(Message, frozen=True, kw_only=True):
    """Events that a producer asks the buffer to keep: of one epoch and lane, dense in seq, in order.

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


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Events of one epoch, from and to, both included."""

    producer: str
    epoch: str
    first: Count
    last: Count
    count: Count
    """How many of them; fewer than `last - first + 1` where others were delivered in between."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The `data` of a gap record, an event of type `skerry.gap`: what will never come, and why.

    It comes in the place of what is missing where the buffer lost it, and when it became known where a
    producer lost it or the far end refused it. Its `source` is the buffer; its `seq` ascends but is not
    dense.
    """

    lane: Lane
    reason: str
    """capacity: a limit was reached; corrupt: the disk no longer has it; never_submitted: the producer
    lost it; quarantined: see `detail`."""
    detail: str = ""
    count: Count
    bytes: Count
    """On the buffer's disk; 0 where they never came there."""
    time_from: str = ""
    """When the first and the last of them were accepted, UTC; empty where it is not known."""
    time_to: str = ""
    ranges: tuple[Range, ...] = ()
    """Which they were. Where the disk lost the names, the ranges are what may be missing at most."""


class Outbound(Message, frozen=True, kw_only=True):
    """Records of one lane for the far end, in order: `events` stand for the records `first` to `last`."""

    store: str
    """Identity of the lane's chain in the store."""
    lane: Lane
    first: Annotated[int, Meta(ge=1)]
    last: Annotated[int, Meta(ge=1)]
    """`first + len(events) - 1`, but where the one event is a gap record, which stands for many."""
    base: Count = 0
    """Nothing up to this record is to come any more: it is receipted. A reader that has confirmed less
    must not wait for the rest."""
    backlog: bool = False
    """They have waited for long: what is new in other lanes shares the pipe with them."""
    events: Annotated[tuple[msgspec.Raw, ...], Meta(min_length=1)]
    """Each an `Event`, as it was accepted."""


class Refusal(msgspec.Struct, frozen=True):
    """A record that the far end will never take."""

    offset: Annotated[int, Meta(ge=1)]
    reason: str


class Receipt(Message, frozen=True, kw_only=True):
    """The far end has every record of `store` up to and including `upto`, but those that it refused.

    Refusals are repeated with every receipt until `base` in `outbound` has passed them: the buffer has
    them in quarantine then.
    """

    store: str
    upto: Count
    refused: tuple[Refusal, ...] = ()


State = Literal["starting", "ready", "degraded", "stopped", "lost"]


class Status(Message, frozen=True, kw_only=True):
    """The retained state of a module; `lost` is its last will."""

    module: Name
    kind: str
    """capture, inference, decision, buffer, uplink or updater."""
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
    events: tuple[msgspec.Raw, ...]
    """Each an `Event`."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that a module runs on, as the module sees it."""

    machine: str
    """x86_64, aarch64, ..."""
    processor: str = ""
    """As the kernel names it; empty where it does not."""
    cores: Count = 0
    """That this process may use."""
    memory_mb: Count = 0


class ModelInUse(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an inference module serves."""

    model: str
    """name@version of the package."""
    digest: str
    """SHA-256 of the package's manifest, which names the digest of every other file; hexadecimal."""
    runtime: str
    """What runs it, and on which device, e.g. `openvino/cpu`."""
    cameras: tuple[str, ...] = ()
    """Empty: every camera that no other model names."""
    exchange: str = ""
    """The model that is on its way to take its place, and how far it is, e.g. `parts@1.1.0: shadow`."""
    drift: tuple[str, ...] = ()
    """What is no longer as in the package's baseline, e.g. `gate: brightness`."""


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What the updater has made of what is desired of one slot."""

    slot: Name
    current: str = ""
    """name@version of what serves by the store; empty: the bundled package."""
    digest: str = ""
    """Of its package, hexadecimal; empty: the bundled package."""
    wanted: str = ""
    """name@version of what is on its way, or was refused; empty: nothing newer is known."""
    step: str = ""
    """How far that is: `fetching`, `offered`, the steps of an activation; empty: nothing is under way."""
    reason: str = ""
    """Why it is there: above all, why something was refused or rolled back."""


class Inventory(Message, frozen=True, kw_only=True):
    """What a module is, what it was told when it was deployed, and what it runs on; retained."""

    module: Name
    kind: str
    version: str
    python: str
    device: Device
    settings: dict[str, Any]
    """As deployed, without what the desired state says; logins in addresses are taken out."""
    runtimes: dict[str, str] = {}
    """Name to version of each model runtime that is installed."""
    models: tuple[ModelInUse, ...] = ()
    updates: tuple[Update, ...] = ()
    """Of an updater: a slot each."""
    audit: str = ""
    """Of an updater: `NUMBER:HASH` of the newest entry of its audit log, so that nobody can cut it short."""


class OfferedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The package that is to serve in a slot."""

    slot: Name
    model: str = ""
    """name@version, for people."""
    digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$(?!\n)")] = ""
    """Of the package in the store; empty: the bundled one."""
    attempt: Count = 0
    """Raised where the same package is to be tried once more."""
    back: bool = False
    """It has served here before and is gone back to: it need not agree with the one that serves."""
    force: bool = False
    """It is to be tried although it failed here."""


class Offer(Message, frozen=True, kw_only=True):
    """What an inference module should serve its slots with, as soon as each has proved itself; retained."""

    module: Name
    models: tuple[OfferedModel, ...] = ()


class SlotUse(msgspec.Struct, frozen=True, kw_only=True):
    """What serves in a slot, and what became of the last package that was offered for it."""

    slot: Name
    model: str
    """name@version of what serves."""
    digest: str = ""
    """Of its package in the store; empty: the bundled one."""
    passed_over: str = ""
    """Why not what the store names as current."""
    offered: str = ""
    """Digest of the package that was offered last; empty: none, or the bundled one."""
    attempt: Count = 0
    """Which try of it this is about."""
    step: str = ""
    """How far it is, as `skerry.inference.activation` names it; empty: nothing was tried yet."""
    reason: str = ""
    """Why it is there."""
    final: bool = False
    """It failed, and would so again."""
    drift: tuple[str, ...] = ()
    """As `ModelInUse.drift`."""
    watched: bool = False
    """What serves has been compared with its baseline for so long that no drift means that there is none."""
    failing: str = ""
    """Why most of the last results of what serves are failures; empty where they are not."""


class Activations(Message, frozen=True, kw_only=True):
    """What an inference module has made of what it was offered; retained."""

    module: Name
    slots: tuple[SlotUse, ...] = ()


class Desired(Message, frozen=True, kw_only=True):
    """What a module's settings should be from now on; retained. Sent only after it was found to be valid.

    `patch` is a JSON merge patch on the settings as deployed (RFC 7396), with one more rule: a list whose
    elements have a `name` is addressed as a mapping from that name, any other list of mappings as a mapping
    from the place (`"0"`, `"1"`). An empty patch is a module as it was deployed.
    """

    module: Name
    version: str
    """Of the whole desired state, e.g. `twin/7`."""
    digest: str
    """Of the patch, so that a version with other content is told from this one."""
    patch: dict[str, Any] = {}


class Reported(Message, frozen=True, kw_only=True):
    """What a module has made of the last desired settings that it saw; retained."""

    module: Name
    version: str
    digest: str
    state: Literal["applied", "refused"]
    errors: tuple[str, ...] = ()
    """Why they were refused; the settings before them go on."""
    restart: tuple[str, ...] = ()
    """Settings that are applied with the next start of the module, by path."""


class Command(Message, frozen=True, kw_only=True):
    """Something to do once. Answered with the same `id`."""

    module: Name
    """Who is to do it."""
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: str
    arguments: dict[str, Any] = {}
    timeout_s: Annotated[float, Meta(gt=0, le=300)]
    """Nobody waits for an answer for longer."""


class Answer(Message, frozen=True, kw_only=True):
    """What came of a command."""

    module: Name
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    status: Annotated[int, Meta(ge=100, le=599)]
    """In the manner of HTTP: 200 done, 400 wrong arguments, 403 not allowed, 404 unknown, 429 too many,
    500 it failed, 504 no answer in time."""
    body: dict[str, Any] = {}
