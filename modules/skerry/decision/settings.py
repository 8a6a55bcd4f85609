"""What the decision module is told: cameras, tracker, rules.

Rules are data. Each type below is one kind of rule; its docstring is its documentation, its fields
are its JSON Schema (`msgspec.json.schema(Rule)`). Durations are seconds of capture time, never frames.
Zones, lines and speeds are in fractions of the picture: x to the right, y down, 0 to 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from skerry.messages import Count, Fraction, Lane, Name
from skerry.settings import LIVE, ModuleSettings, Positive, Settings

Seconds = Annotated[float, Meta(ge=0.0)]
Point = tuple[Fraction, Fraction]
Polygon = Annotated[tuple[Point, ...], Meta(min_length=3, max_length=64)]
Segment = tuple[Point, Point]
Severity = Literal["info", "warning", "critical"]
Direction = Literal["both", "forward", "backward"]


class TrackerSettings(Settings, frozen=True, kw_only=True):
    """How sightings become tracks. One set for all cameras of the module."""

    start_score: Fraction = 0.3
    """A new track starts from a sighting of at least this score; weaker ones only continue a track.

    Source: Zhang et al., ByteTrack, ECCV 2022, section 3.
    """
    min_iou: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    """Least overlap of a sighting with where its track is expected."""
    same_iou: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    """Two boxes of different labels that overlap this much are one object, and a track that overlaps a
    confirmed one this much is not believed; 1 is never."""
    confirm_s: Seconds = 0.2
    """A track counts once it was sighted for this long; each sighting adds at most half of it."""
    lost_s: Positive = 1.0
    """A track that results have not shown for this long has ended."""
    hold_s: Positive = 1.0
    """A result speaks for the time until the next one, for this long at most; the rest is unknown.
    Raise it for a camera slower than one frame a second."""
    blind_s: Positive = 3.0
    """After this long without any good result all tracks end: nobody knows what moved meanwhile."""
    evidence_s: Positive = 10.0
    """Time constant of a track's mean of an attribute: older sightings count less."""


class Where(Settings, frozen=True, kw_only=True):
    """Only objects of which the model says so: a track's mean of `attribute` is above `above`."""

    attribute: Annotated[str, Meta(min_length=1, max_length=64)]
    """A name in the detections' `attributes`, e.g. `defect`."""
    above: float
    """The time-weighted mean over the track must be above this."""
    evidence_s: Seconds = 0.3
    """Least time for which the track must have been sighted whole before the mean means anything."""


class RuleSettings(Settings, frozen=True, kw_only=True, tag_field="kind"):
    """What every rule has."""

    name: Name
    """Names the rule in events; unique in the site."""
    camera: Name
    enabled: bool = True
    """false: the rule says nothing and forgets what it knew, as if it were not there."""
    labels: tuple[str, ...] = ()
    """Labels of the model that the rule looks at; none means all."""
    min_score: Fraction = 0.0
    """Least mean score of a track."""
    where: Where | None = None
    """Look only at objects with this attribute."""
    zone: Polygon | None = None
    """Corners of the area the rule looks at; null is the whole picture."""
    anchor: Literal["centre", "bottom"] = "centre"
    """The point of an object's box that is in a zone or crosses a line: its centre, or where it stands."""
    lane: Lane = "event"
    """Priority class of the events."""
    severity: Severity = "info"
    """Passed on in the events."""


class PresenceRule(RuleSettings, frozen=True, kw_only=True, tag="presence"):
    """Something is there.

    Per `zone`, the rule reports `presence.started` when any matching object has been in the zone for the
    on-delay, and `presence.ended` when none has been for the off-delay. Per `track`, it reports each object
    once, when that object has matched for the on-delay, and says nothing when it goes: "a defective part,
    once per part".
    """

    per: Literal["zone", "track"] = "zone"
    on_delay_s: Seconds = 0.5
    off_delay_s: Seconds = 1.0
    """Per `zone` only: how long the zone must be empty."""


class CountRule(RuleSettings, frozen=True, kw_only=True, tag="count"):
    """Too many or too few objects are in the zone at one time.

    The rule reports `count.exceeded` when more than `above` have been there for the on-delay, `count.short`
    when fewer than `below`, and `count.normal` when the number has come back by more than `hysteresis` for
    the off-delay.
    """

    above: Count | None = None
    """More than this many is too many."""
    below: Count | None = None
    """Fewer than this many is too few."""
    hysteresis: Count = 0
    """Back to normal at `above` - `hysteresis` or fewer, `below` + `hysteresis` or more."""
    on_delay_s: Seconds = 0.5
    off_delay_s: Seconds = 0.5


class ZoneRule(RuleSettings, frozen=True, kw_only=True, tag="zone"):
    """Objects enter and leave the zone, each by itself.

    The rule reports `zone.entered` when an object has been inside for the on-delay, and `zone.left`, with
    the seconds it stayed, when it has been outside for the off-delay or its track has ended.
    """

    report: Literal["both", "entered", "left"] = "both"
    on_delay_s: Seconds = 0.2
    off_delay_s: Seconds = 0.2


class LineRule(RuleSettings, frozen=True, kw_only=True, tag="line"):
    """Objects cross a line.

    The rule reports `line.crossed` for each crossing, with the object's label, the direction and the
    running totals by label. Forward is from the right hand to the left hand of someone who walks the line
    from its first point to its second: left to right for a line drawn downwards, upwards for one drawn to
    the right. An object must get `margin` beyond the line, so jitter on it counts nothing.
    """

    line: Segment
    """First and second point."""
    direction: Direction = "both"
    """Which crossings count."""
    margin: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.01
    """How far beyond the line an object must get, as a fraction of the picture."""
    once: bool = False
    """Count an object once per direction, however often it crosses."""


class DwellRule(RuleSettings, frozen=True, kw_only=True, tag="dwell"):
    """An object stays in the zone for longer than `longer_s`.

    The rule reports `dwell.exceeded` once per stay, and `dwell.ended` with the whole duration when the
    object has been outside for the off-delay or its track has ended. A stay is measured from the first to
    the last capture time inside, so dropped frames do not change it.
    """

    longer_s: Positive
    off_delay_s: Seconds = 0.5


class AbsenceRule(RuleSettings, frozen=True, kw_only=True, tag="absence"):
    """Nothing is there: no parts arrive, nobody is at the post.

    The rule reports `absence.started` when good results have shown no matching object in the zone for
    `after_s`, and `absence.ended` when one has been there for the off-delay. Failed results and a silent
    camera are not absence.
    """

    after_s: Positive
    off_delay_s: Seconds = 0.2


class MotionRule(RuleSettings, frozen=True, kw_only=True, tag="motion"):
    """Nothing moves: the belt has stopped.

    The rule reports `motion.stopped` when the median speed of the matching objects has been below `slower`
    for the on-delay, and `motion.resumed` when it has not for the off-delay. With no object in the zone the
    speed is unknown and nothing changes, or, where `empty` says so, that counts as stopped too: a belt
    without parts.
    """

    slower: Positive = 0.02
    """Fractions of the picture per second."""
    over_s: Positive = 1.0
    """The speed is measured over this long."""
    empty: Literal["unknown", "stopped"] = "unknown"
    """What an empty zone means."""
    on_delay_s: Seconds = 1.0
    off_delay_s: Seconds = 0.5


class RateRule(RuleSettings, frozen=True, kw_only=True, tag="rate"):
    """Objects come too fast or too slowly.

    The rule counts objects that arrive in the zone or, where `line` is given, that cross it, over a moving
    window, and reports `rate.high` when there are more than `above` a minute for the on-delay, `rate.low`
    when fewer than `below`, and `rate.normal` when it is back by `hysteresis` for the off-delay. It never
    says low before a whole window was seen.
    """

    above: Annotated[float, Meta(ge=0.0)] | None = None
    """More than this many a minute is high."""
    below: Annotated[float, Meta(ge=0.0)] | None = None
    """Fewer than this many a minute is low."""
    hysteresis: Annotated[float, Meta(ge=0.0)] = 0.0
    """In objects a minute."""
    window_s: Positive = 60.0
    line: Segment | None = None
    direction: Direction = "both"
    margin: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.01
    on_delay_s: Seconds = 0.0
    off_delay_s: Seconds = 0.0


Rule = PresenceRule | CountRule | ZoneRule | LineRule | DwellRule | AbsenceRule | MotionRule | RateRule

RULES: tuple[type[RuleSettings], ...] = (
    PresenceRule, CountRule, ZoneRule, LineRule, DwellRule, AbsenceRule, MotionRule, RateRule,
)  # fmt: skip


class DecisionSettings(ModuleSettings, frozen=True, kw_only=True):
    """What one decision module decides on."""

    cameras: Annotated[tuple[Name, ...], Meta(min_length=1)]
    tracker: Annotated[TrackerSettings, LIVE] = TrackerSettings()
    """How sightings become tracks."""
    rules: Annotated[tuple[Rule, ...], LIVE] = ()
    """What turns tracks into events, each by its name."""
    queue: Annotated[int, Meta(ge=1, le=10_000)] = 32
    """Results per camera that may wait; the oldest makes room and is counted."""
    outbox_events: Annotated[int, Meta(ge=1)] = 100_000
    """Events of each lane that may wait for acceptance; what comes beyond is refused and counted."""
    outbox_bytes: Annotated[int, Meta(ge=65_536)] = 256 * 1024 * 1024
    """Bytes of each lane's events that may wait for acceptance. Its file may be twice as large."""
    resend_s: Positive = 1.0
    """Events are repeated when the buffer has accepted nothing for this long."""
