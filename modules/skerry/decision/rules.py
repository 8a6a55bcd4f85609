"""Rules as state machines: tracks and capture time in, findings out. Pure.

Each machine takes every result of its camera, good or failed. After a failed one nothing is known, so
nothing is found and no delay moves; what a result speaks for is `KnownTime`. A track that coasts is
where it is expected, but nothing is said of a single object on that ground alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from skerry.decision.delays import Delay, KnownTime, reached
from skerry.decision.geometry import Area, Line, Point
from skerry.decision.settings import (
    AbsenceRule,
    CountRule,
    Direction,
    DwellRule,
    LineRule,
    MotionRule,
    PresenceRule,
    RateRule,
    Rule,
    RuleSettings,
    Where,
    ZoneRule,
)
from skerry.decision.tracker import Track

V = TypeVar("V")
Status = Literal["ok", "failed"]
MAX_TOTALS = 50
"""Labels that a line keeps totals of; what comes after counts as `other`."""
_STRIDE = 0.1
"""Positions are kept at this share of the time over which a speed is measured."""
_SPARE = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found in one result."""

    rule: Rule
    type: str
    """Ends the event's type, e.g. `line.crossed`."""
    data: dict[str, Any]


How = Literal["changed", "removed"]
"""What became of a rule that says for the last time what it knew."""


class Machine(Protocol):
    """One rule at work."""

    rule: Rule

    def hold(self, hold_s: float) -> None:
        """Let results speak for another time from now on, in seconds."""

    def close(self, kept: Mapping[str, int], how: How) -> list[Finding]:
        """Say the end of all that was said to have begun, before this machine is given up.

        Args:
            kept: what the machine in its place goes on from, as `saved` says it: that does not end.
            how: why it ends; told in the findings.
        """

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        """Take a result.

        Args:
            now_s: capture time in seconds, never less than before.
            tracks: what the tracker holds; ignored when the result failed.
            status: whether the result is good.
        """

    def saved(self) -> dict[str, int]:
        """What must outlive the process, by name."""

    def restore(self, saved: Mapping[str, int]) -> None:
        """Go on from what an earlier life saved."""

    def recall(self, data: Mapping[str, Any]) -> None:
        """Go on from an event of an earlier life whose state was not saved any more."""


class Filter:
    """Which tracks a rule looks at, and where they are."""

    __slots__ = ("_area", "_labels", "_min_score", "_where", "bottom")

    def __init__(self, rule: RuleSettings) -> None:
        self._labels = frozenset(rule.labels)
        self._min_score = rule.min_score
        self._where = rule.where
        self._area = Area(rule.zone) if rule.zone is not None else None
        self.bottom = rule.anchor == "bottom"

    def fits(self, track: Track) -> bool:
        """Whether the track is of the rule's kind, wherever it is, confirmed or not."""
        return (
            (not self._labels or track.label in self._labels)
            and track.score >= self._min_score
            and (self._where is None or self._shows(track, self._where))
        )

    def point(self, track: Track) -> Point:
        """The point of the track that is in a zone or crosses a line."""
        return (track.x, track.box[3]) if self.bottom else (track.x, track.y)

    def inside(self, track: Track) -> bool:
        """Whether the track is in the rule's zone."""
        return self._area is None or self._area.holds(track.x, track.box[3] if self.bottom else track.y)

    def pick(self, tracks: Iterable[Track], sure: bool = True) -> list[Track]:
        """The tracks of the rule's kind that are in its zone, by the cheapest question first.

        Args:
            tracks: all.
            sure: leave out those that are not confirmed.
        """
        there = [t for t in tracks if t.confirmed] if sure else list(tracks)
        labels, least, where, zone = self._labels, self._min_score, self._where, self._area
        if labels:
            there = [t for t in there if t.label in labels]
        if zone is not None:
            left, right = zone.left, zone.right
            there = [t for t in there if left <= t.x < right and self.inside(t)]
        if least > 0.0:
            there = [t for t in there if t.score >= least]
        return there if where is None else [t for t in there if self._shows(t, where)]

    def _shows(self, track: Track, where: Where) -> bool:
        if not reached(track.evidence_s, where.evidence_s):
            return False
        mean = track.attribute(where.attribute)
        return mean is not None and mean > where.above


class _Rule:
    """What all machines share: the filter, known time and nothing to save."""

    def __init__(self, rule: Rule, hold_s: float) -> None:
        self.rule = rule
        self.filter = Filter(rule)
        self.known = KnownTime(hold_s)

    def hold(self, hold_s: float) -> None:
        self.known.hold(hold_s)

    def close(self, kept: Mapping[str, int], how: How) -> list[Finding]:  # noqa: ARG002 - nothing goes on here
        return []

    def saved(self) -> dict[str, int]:
        return {}

    def restore(self, saved: Mapping[str, int]) -> None:
        """There is nothing to restore."""

    def recall(self, data: Mapping[str, Any]) -> None:
        """There is nothing to recall."""

    def found(self, type_: str, about: Track | None = None, **data: Any) -> Finding:
        """A finding, with what is known of the object it is about."""
        return Finding(self.rule, type_, (_describe(about, self.rule) if about is not None else {}) | data)


class _Switch(_Rule):
    """A machine that is active or not, and reports both changes."""

    ENDED = ""
    """Type of the finding that it is not active any more."""

    def __init__(self, rule: Rule, hold_s: float, on_s: float, off_s: float) -> None:
        super().__init__(rule, hold_s)
        self.delay = Delay(on_s, off_s)
        self._since_s: float | None = None
        """Capture time at which the condition of the present state began; None after a restart."""
        self._turn_s: float | None = None

    def saved(self) -> dict[str, int]:
        return {"active": int(self.delay.active)}

    def restore(self, saved: Mapping[str, int]) -> None:
        self.delay.active = saved.get("active", 0) == 1

    def recall(self, data: Mapping[str, Any]) -> None:
        self.delay.active = data.get("active") is True

    def close(self, kept: Mapping[str, int], how: How) -> list[Finding]:
        if not self.delay.active or kept.get("active"):
            return []
        self.delay.active = False
        return [self.found(self.ENDED, active=False, how=how)]

    def switch(
        self, now_s: float, clock_s: float, condition: bool, ripe: bool = True
    ) -> dict[str, Any] | None:
        """Take the condition at a good result; what to say of the change, None when there is none.

        Args:
            now_s: capture time.
            clock_s: the time that delays count in.
            condition: whether what the rule looks for holds.
            ripe: whether this result may bring a change; otherwise delays only go on.
        """
        if condition == self.delay.active:
            self._turn_s = None
        elif self._turn_s is None:
            self._turn_s = now_s
        if not self.delay.step(clock_s, condition, ripe):
            return None
        began, turned = self._since_s, self._turn_s if self._turn_s is not None else now_s
        self._since_s, self._turn_s = turned, None
        if condition:
            return {"active": True, "for_s": _round(now_s - turned)}
        lasted = {"lasted_s": _round(turned - began)} if began is not None else {}
        return {"active": False} | lasted


class Presence(_Switch):
    """`PresenceRule` with `per: zone`."""

    ENDED = "presence.ended"

    def __init__(self, rule: PresenceRule, hold_s: float) -> None:
        super().__init__(rule, hold_s, rule.on_delay_s, rule.off_delay_s)

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        there = self.filter.pick(tracks)
        ripe = not there or any(t.seen for t in there)
        change = self.switch(now_s, self.known.seconds, bool(there), ripe)
        if change is None:
            return []
        first = min(there, key=lambda t: t.first_s) if there else None
        name = "presence.started" if self.delay.active else self.ENDED
        return [self.found(name, first, count=len(there), **change)]


class PresencePerTrack(_Rule):
    """`PresenceRule` with `per: track`."""

    def __init__(self, rule: PresenceRule, hold_s: float) -> None:
        super().__init__(rule, hold_s)
        self._on_s = rule.on_delay_s
        self._since: dict[int, float] = {}
        self._told: set[int] = set()

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        clock_s = self.known.seconds
        self._told &= {t.id for t in tracks}
        waiting: dict[int, float] = {}
        found = []
        for track in self.filter.pick(tracks):
            if track.id in self._told:
                continue
            waiting[track.id] = since = self._since.get(track.id, clock_s)
            if track.seen and reached(clock_s - since, self._on_s):
                del waiting[track.id]
                self._told.add(track.id)
                found.append(self.found("presence.started", track, for_s=_round(clock_s - since)))
        self._since = waiting
        return found


class _Bounds:
    """A number with a highest and a lowest value, each with hysteresis and delays."""

    def __init__(
        self, above: float | None, below: float | None, hysteresis: float, on_s: float, off_s: float
    ) -> None:
        self._above, self._below, self._hysteresis = above, below, hysteresis
        self.high, self.low = Delay(on_s, off_s), Delay(on_s, off_s)

    def step(
        self, clock_s: float, value: float, certain: float | None = None, low: bool = True
    ) -> list[tuple[str, dict[str, Any]]]:
        """Take the number at a good result.

        Args:
            clock_s: the time that delays count in.
            value: the number.
            certain: the part of it that this result shows; only that makes it too high.
            low: whether it may be too low already.

        Returns:
            The changes: "high", "low" or "normal", and what to say of it.
        """
        changes: list[tuple[str, dict[str, Any]]] = []
        if self._above is not None:
            limit = self._above - (self._hysteresis if self.high.active else 0.0)
            ripe = self.high.active or certain is None or certain > limit
            if self.high.step(clock_s, value > limit, ripe):
                state = "high" if self.high.active else "normal"
                changes.append((state, {"active": self.high.active, "bound": "above", "limit": self._above}))
        if self._below is not None and low:
            limit = self._below + (self._hysteresis if self.low.active else 0.0)
            if self.low.step(clock_s, value < limit):
                state = "low" if self.low.active else "normal"
                changes.append((state, {"active": self.low.active, "bound": "below", "limit": self._below}))
        return changes

    def close(self, kept: Mapping[str, int]) -> list[dict[str, Any]]:
        """Be normal again; what to say of each bound that was not and does not go on."""
        sides = (("high", self.high, "above", self._above), ("low", self.low, "below", self._below))
        said = []
        for name, delay, bound, limit in sides:
            if delay.active and not kept.get(name):
                delay.active = False
                said.append({"active": False, "bound": bound, "limit": limit})
        return said

    def saved(self) -> dict[str, int]:
        return {"high": int(self.high.active), "low": int(self.low.active)}

    def restore(self, saved: Mapping[str, int]) -> None:
        self.high.active = self._above is not None and saved.get("high", 0) == 1
        self.low.active = self._below is not None and saved.get("low", 0) == 1

    def recall(self, data: Mapping[str, Any]) -> None:
        active = data.get("active") is True
        if data.get("bound") == "above" and self._above is not None:
            self.high.active = active
        elif data.get("bound") == "below" and self._below is not None:
            self.low.active = active


class _Bounded(_Rule):
    """A machine that watches a number."""

    NORMAL = ""
    """Type of the finding that it is within its bounds again."""

    def __init__(self, rule: CountRule | RateRule, hold_s: float) -> None:
        super().__init__(rule, hold_s)
        self.bounds = _Bounds(rule.above, rule.below, rule.hysteresis, rule.on_delay_s, rule.off_delay_s)

    def close(self, kept: Mapping[str, int], how: How) -> list[Finding]:
        return [self.found(self.NORMAL, **said, how=how) for said in self.bounds.close(kept)]

    def saved(self) -> dict[str, int]:
        return self.bounds.saved()

    def restore(self, saved: Mapping[str, int]) -> None:
        self.bounds.restore(saved)

    def recall(self, data: Mapping[str, Any]) -> None:
        self.bounds.recall(data)


class Count(_Bounded):
    """`CountRule`."""

    NORMAL = "count.normal"
    _NAMES = {"high": "count.exceeded", "low": "count.short", "normal": NORMAL}  # noqa: RUF012 - never written

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        there = self.filter.pick(tracks)
        changes = self.bounds.step(self.known.seconds, len(there), certain=sum(t.seen for t in there))
        if not changes:
            return []
        labels = dict(Counter(t.label for t in there))
        return [
            self.found(self._NAMES[state], count=len(there), labels=labels, **data) for state, data in changes
        ]


class Absence(_Switch):
    """`AbsenceRule`."""

    ENDED = "absence.ended"

    def __init__(self, rule: AbsenceRule, hold_s: float) -> None:
        super().__init__(rule, hold_s, rule.after_s, rule.off_delay_s)

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        there = self.filter.pick(tracks)
        ripe = not there or any(t.seen for t in there)
        change = self.switch(now_s, self.known.seconds, not there, ripe)
        if change is None:
            return []
        if self.delay.active:
            return [self.found("absence.started", **change)]
        return [self.found(self.ENDED, min(there, key=lambda t: t.first_s), **change)]


@dataclass(slots=True)
class _Stay:
    """One track's time in a zone."""

    track: Track
    since_s: float
    """Capture time of the first sighting inside."""
    last_s: float
    """Capture time of the latest sighting inside."""
    out_s: float | None = None
    """Capture time of the first sighting outside since."""
    told: bool = False
    """Whether its beginning was reported."""


class _Stays(_Rule, ABC):
    """A machine that follows single tracks through its zone, by sightings and capture time alone."""

    def __init__(self, rule: ZoneRule | DwellRule, hold_s: float, off_s: float) -> None:
        super().__init__(rule, hold_s)
        self._off_s = off_s
        self._stays: dict[int, _Stay] = {}

    def close(self, kept: Mapping[str, int], how: How) -> list[Finding]:  # noqa: ARG002 - no stay is kept
        stays, self._stays = self._stays, {}
        return [finding for stay in stays.values() for finding in self.over(stay, how)]

    @abstractmethod
    def over(self, stay: _Stay, how: str) -> list[Finding]:
        """What to say of a stay that has ended."""

    def advance(self, now_s: float, tracks: Sequence[Track]) -> tuple[list[_Stay], list[tuple[_Stay, str]]]:
        """Take the tracks of a good result.

        Returns:
            The stays that this result shows to go on; those that have ended, each with `left` or `lost`.
        """
        stays = self._stays
        going, over = [], []
        inside = {t.id for t in self.filter.pick(tracks, sure=False)}
        for track in tracks:
            number = track.id
            if not track.seen or not (number in inside or number in stays):
                continue
            stay = stays.get(number)
            if number in inside:
                if stay is None:
                    stay = stays[number] = _Stay(track, now_s, now_s)
                stay.last_s, stay.out_s = now_s, None
                going.append(stay)
            elif stay is not None:
                stay.out_s = now_s if stay.out_s is None else stay.out_s
                if reached(now_s - stay.out_s, self._off_s):
                    over.append((stay, "left"))
        live = {t.id for t in tracks}
        over += [(stay, "lost") for number, stay in stays.items() if number not in live]
        for stay, _ in over:
            stays.pop(stay.track.id, None)
        return going, over


class Zone(_Stays):
    """`ZoneRule`."""

    def __init__(self, rule: ZoneRule, hold_s: float) -> None:
        super().__init__(rule, hold_s, rule.off_delay_s)
        self._on_s = rule.on_delay_s
        self._report = rule.report

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        if status != "ok":
            return []
        going, over = self.advance(now_s, tracks)
        found = []
        for stay in going:
            if not stay.told and stay.track.confirmed and reached(now_s - stay.since_s, self._on_s):
                stay.told = True
                if self._report != "left":
                    found.append(self.found("zone.entered", stay.track))
        for stay, how in over:
            found += self.over(stay, how)
        return found

    def over(self, stay: _Stay, how: str) -> list[Finding]:
        if not stay.told or self._report == "entered":
            return []
        return [self.found("zone.left", stay.track, stayed_s=_round(stay.last_s - stay.since_s), how=how)]


class Dwell(_Stays):
    """`DwellRule`."""

    def __init__(self, rule: DwellRule, hold_s: float) -> None:
        super().__init__(rule, hold_s, rule.off_delay_s)
        self._longer_s = rule.longer_s

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        if status != "ok":
            return []
        going, over = self.advance(now_s, tracks)
        found = []
        for stay in going:
            if not stay.told and stay.track.confirmed and reached(now_s - stay.since_s, self._longer_s):
                stay.told = True
                found.append(self.found("dwell.exceeded", stay.track, dwell_s=_round(now_s - stay.since_s)))
        for stay, how in over:
            found += self.over(stay, how)
        return found

    def over(self, stay: _Stay, how: str) -> list[Finding]:
        if not stay.told:
            return []
        return [self.found("dwell.ended", stay.track, dwell_s=_round(stay.last_s - stay.since_s), how=how)]


class Motion(_Switch):
    """`MotionRule`."""

    ENDED = "motion.resumed"

    def __init__(self, rule: MotionRule, hold_s: float) -> None:
        super().__init__(rule, hold_s, rule.on_delay_s, rule.off_delay_s)
        self._slower, self._over_s, self._empty = rule.slower, rule.over_s, rule.empty
        self._clock_s = 0.0
        """Seconds for which the speed was known."""
        self._ways: dict[int, deque[tuple[float, float, float]]] = {}

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        passed_s = self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        there = self.filter.pick(tracks)
        speed = self._speed(now_s, there)
        if speed is None and (there or self._empty == "unknown"):
            return []
        self._clock_s += passed_s
        change = self.switch(now_s, self._clock_s, speed is None or speed < self._slower)
        if change is None:
            return []
        name = "motion.stopped" if self.delay.active else self.ENDED
        of = "objects" if there else "nothing"
        return [
            self.found(
                name, speed=None if speed is None else _round(speed), of=of, count=len(there), **change
            )
        ]

    def _speed(self, now_s: float, tracks: Sequence[Track]) -> float | None:
        """The median speed of the tracks that were watched for long enough, in fractions per second."""
        ways, over_s = self._ways, self._over_s
        speeds = []
        for track in tracks:
            if not track.seen:
                continue
            way = ways.get(track.id)
            if way is None:
                way = ways[track.id] = deque()
            x, y = self.filter.point(track)
            if not way or now_s - way[-1][0] >= over_s * _STRIDE:
                way.append((now_s, x, y))
            while len(way) > 2 and reached(now_s - way[1][0], over_s):
                way.popleft()
            then_s, from_x, from_y = way[0]
            if reached(now_s - then_s, over_s):
                speeds.append(math.hypot(x - from_x, y - from_y) / (now_s - then_s))
        _prune(ways, tracks)
        return sorted(speeds)[len(speeds) // 2] if speeds else None


@dataclass(slots=True)
class _Way:
    """On which side of a line a track was last for certain, and where."""

    left: bool
    point: Point
    crossed: set[str] = field(default_factory=set)
    """Directions in which it has crossed."""


class Gate:
    """Counts tracks across a line.

    A track is for certain on a side when it is `margin` from the line; the first sighting counts as
    certain wherever it is. What it did before it was confirmed counts once it is.
    """

    def __init__(self, line: tuple[Point, Point], direction: Direction, margin: float, once: bool) -> None:
        self._line = Line(*line)
        self._direction, self._margin, self._once = direction, margin, once
        self._ways: dict[int, _Way] = {}

    def crossings(self, tracks: Sequence[Track], choose: Filter) -> list[tuple[Track, str]]:
        """The tracks that have crossed with this result, each with `forward` or `backward`."""
        ways, margin = self._ways, self._margin
        found = []
        for track in tracks:
            if not track.seen:
                continue
            x, y = track.x, track.box[3] if choose.bottom else track.y
            distance = self._line.side(x, y)
            way = ways.get(track.id)
            if way is None:
                ways[track.id] = _Way(distance > 0.0, (x, y))
                continue
            if -margin < distance < margin:
                continue
            left = distance > 0.0
            if left is way.left:
                way.point = (x, y)
            elif track.confirmed:
                start, way.left, way.point = way.point, left, (x, y)
                direction = "forward" if left else "backward"
                if self._counts(way, direction, start, (x, y)) and choose.fits(track):
                    way.crossed.add(direction)
                    found.append((track, direction))
        _prune(ways, tracks)
        return found

    def _counts(self, way: _Way, direction: str, start: Point, end: Point) -> bool:
        if self._direction not in ("both", direction) or (self._once and direction in way.crossed):
            return False
        return self._line.meets(start, end)


class Crossing(_Rule):
    """`LineRule`."""

    def __init__(self, rule: LineRule, hold_s: float) -> None:
        super().__init__(rule, hold_s)
        self._gate = Gate(rule.line, rule.direction, rule.margin, rule.once)
        self._totals: dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}

    def saved(self) -> dict[str, int]:
        return {f"{way}/{label}": n for way, totals in self._totals.items() for label, n in totals.items()}

    def restore(self, saved: Mapping[str, int]) -> None:
        for name, n in saved.items():
            way, _, label = name.partition("/")
            if way in self._totals:
                self._totals[way][label] = n

    def recall(self, data: Mapping[str, Any]) -> None:
        totals, way = data.get("totals"), str(data.get("direction"))
        if isinstance(totals, dict) and way in self._totals:
            self._totals[way] = Counter({str(k): n for k, n in totals.items() if isinstance(n, int)})

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:  # noqa: ARG002 - a line needs no clock
        if status != "ok":
            return []
        found = []
        for track, way in self._gate.crossings(tracks, self.filter):
            totals = self._totals[way]
            totals[track.label if track.label in totals or len(totals) < MAX_TOTALS else "other"] += 1
            said: dict[str, Any] = {"direction": way, "totals": dict(totals), "total": totals.total()}
            found.append(self.found("line.crossed", track, **said))
        return found


class Rate(_Bounded):
    """`RateRule`."""

    NORMAL = "rate.normal"

    def __init__(self, rule: RateRule, hold_s: float) -> None:
        super().__init__(rule, hold_s)
        self._window_s = rule.window_s
        self._gate = Gate(rule.line, rule.direction, rule.margin, once=False) if rule.line else None
        self._arrived: set[int] = set()
        self._times: deque[float] = deque()

    def step(self, now_s: float, tracks: Sequence[Track], status: Status) -> list[Finding]:
        self.known.step(now_s, status == "ok")
        if status != "ok":
            return []
        clock_s = self.known.seconds
        self._times.extend([clock_s] * self._new(tracks))
        while self._times and self._times[0] <= clock_s - self._window_s:
            self._times.popleft()
        rate = len(self._times) * 60.0 / self._window_s
        changes = self.bounds.step(clock_s, rate, low=reached(clock_s, self._window_s))
        names = {"high": "rate.high", "low": "rate.low", "normal": self.NORMAL}
        said: dict[str, Any] = {
            "per_minute": _round(rate), "count": len(self._times), "window_s": self._window_s,
        }  # fmt: skip
        return [self.found(names[state], **said, **data) for state, data in changes]

    def _new(self, tracks: Sequence[Track]) -> int:
        if self._gate is not None:
            return len(self._gate.crossings(tracks, self.filter))
        self._arrived &= {t.id for t in tracks}
        new = [t.id for t in self.filter.pick(tracks) if t.id not in self._arrived]
        self._arrived.update(new)
        return len(new)


def machine(rule: Rule, hold_s: float) -> Machine:
    """The state machine of a rule.

    Args:
        rule: what it should do.
        hold_s: how long a result speaks for what follows it, seconds above 0.
    """
    match rule:
        case PresenceRule(per="track"):
            return PresencePerTrack(rule, hold_s)
        case PresenceRule():
            return Presence(rule, hold_s)
        case CountRule():
            return Count(rule, hold_s)
        case ZoneRule():
            return Zone(rule, hold_s)
        case LineRule():
            return Crossing(rule, hold_s)
        case DwellRule():
            return Dwell(rule, hold_s)
        case AbsenceRule():
            return Absence(rule, hold_s)
        case MotionRule():
            return Motion(rule, hold_s)
        case RateRule():
            return Rate(rule, hold_s)


def _describe(track: Track, rule: RuleSettings) -> dict[str, Any]:
    """What an event says of the object it is about."""
    said: dict[str, Any] = {
        "label": track.label,
        "track": track.id,
        "score": round(track.score, 4),
        "box": [round(v, 5) for v in track.box],
    }
    if rule.where is not None:
        mean = track.attribute(rule.where.attribute)
        said["attributes"] = {rule.where.attribute: None if mean is None else round(mean, 4)}
    return said


def _prune(by_track: dict[int, V], tracks: Sequence[Track]) -> None:
    """Forget tracks that have ended, once there are many: ids never come twice, so they do no harm."""
    if len(by_track) > 2 * len(tracks) + _SPARE:
        live = {t.id for t in tracks}
        for number in [n for n in by_track if n not in live]:
            del by_track[number]


def _round(seconds: float) -> float:
    return round(seconds, 3)
