"""Sightings to tracks: constant velocity and overlap, in seconds of capture time.

Each result moves every track to where it is expected, pairs sightings with tracks by overlap (greedy, best
pair first), lets unpaired tracks coast, and starts tracks from unpaired sightings. What a failed result
shows is unknown, not nothing: tracks neither end nor move nor lose their chance.

Objects on a belt share one velocity. Where the tracks agree on one, it is what a new track starts with and
what a track out of sight moves with, so parts keep their identity through an overlap while the belt stops.

Source: Bewley et al., Simple online and realtime tracking, ICIP 2016; Zhang et al., ByteTrack, ECCV 2022
(weak sightings continue tracks).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from statistics import median

from skerry.decision.delays import KnownTime, reached
from skerry.decision.geometry import Box, Point, iou
from skerry.decision.settings import TrackerSettings
from skerry.messages import Detection

MAX_SIGHTINGS = 500
"""Objects of one result that are looked at, best scores first."""
MAX_TRACKS = 1000
MAX_LABEL = 64
"""Characters of a label that are kept."""
_NOTHING: dict[str, float] = {}
MAX_VOTES = 32
"""Labels that a track keeps votes for."""
MAX_ATTRIBUTES = 16
"""Attributes of one object that are kept."""

Pairs = list[tuple[float, int, int]]
"""(likeness, index of a sighting, index of a track)."""

_EDGE = 0.004
"""A box this near to the picture's edge is cut by it."""
_FAR_EDGE = 1.0 - _EDGE
_CUT_WEIGHT = 0.1
"""What a cut box says of label and score counts this much; of attributes, nothing."""
_LEAST_S = 0.001
_VELOCITY_S = 0.3
"""Time constant of a track's velocity: shorter follows a stopping belt, longer shakes less."""
_PRIOR_S = 0.2
"""A shared velocity is worth this long of watching the track itself."""
_SHARED_AFTER_S = 0.3
"""A younger track has no say in the shared velocity."""
_SAME_LABEL = 0.1
_CONFIRMED = 0.05
_SURE_IOU = 0.4
"""Boxes that overlap this much pair before any other does."""
_SETTLED_IOU = 0.3
_SETTLED_S = 0.5
_FRESH_S = 0.3
"""A track of `_SETTLED_S` that was seen less than `_FRESH_S` ago takes no sighting off its way."""
_SIZES = 2.5
"""Without overlap, boxes pair only when their sides differ by less than this factor."""


class Sighting:
    """One object in one result: what several boxes on the same spot say together."""

    __slots__ = ("attributes", "box", "label", "others", "score", "whole")

    def __init__(self, box: Box, label: str, score: float, attributes: dict[str, float]) -> None:
        self.box = box
        self.label = label
        self.score = score
        self.attributes = attributes
        self.others: list[tuple[str, float]] = []
        """(label, score) of weaker boxes on the same spot."""
        x1, y1, x2, y2 = box
        self.whole = x1 > _EDGE and y1 > _EDGE and x2 < _FAR_EDGE and y2 < _FAR_EDGE
        """Whether no edge of the picture cuts the box."""


class Moment:
    """What one good result's time means for every track; computed once.

    Attributes:
        now_s: capture time.
        since_s: time since the last good result.
        weight_s: for how long a sighting speaks.
        fade: what remains of an attribute's older weight.
    """

    __slots__ = ("fade", "now_s", "settings", "share", "since_s", "weight_s")

    def __init__(self, now_s: float, since_s: float, settings: TrackerSettings) -> None:
        self.now_s, self.since_s, self.settings = now_s, since_s, settings
        self.weight_s = min(max(since_s, _LEAST_S), settings.hold_s)
        self.fade = math.exp(-self.weight_s / settings.evidence_s)
        self.share = 1.0 - math.exp(-since_s / _VELOCITY_S)


class Track:
    """One object over time. Rules read it; only the tracker writes.

    Attributes:
        id: unique per camera.
        box: as seen in this result or, while it coasts, where it is expected; fractions.
        x, y: the box's centre.
        vx, vy: velocity in fractions per second.
        first_s, seen_s: capture time of the first and the latest sighting.
        seen: whether this result shows it.
        confirmed: whether it was sighted long enough to be believed.
        label: by votes weighted with score and time.
        score: time-weighted mean.
        evidence_s: time for which it was sighted whole.
    """

    __slots__ = (
        "_means", "_prior_s", "_score_sum", "_score_weight", "_votes", "_whole", "at_s", "box", "confirmed",
        "evidence_s", "first_s", "id", "label", "score", "seen", "seen_s", "sighted_s", "unseen_s",
        "vx", "vy", "x", "y",
    )  # fmt: skip

    def __init__(self, number: int, sighting: Sighting, moment: Moment, shared: Point | None) -> None:
        self.id = number
        self.box = sighting.box
        self.x, self.y = middle(sighting.box)
        self.vx, self.vy = shared or (0.0, 0.0)
        self._prior_s = _PRIOR_S if shared is not None else 0.0
        self.first_s = self.seen_s = self.at_s = moment.now_s
        self.sighted_s = self.unseen_s = self.evidence_s = 0.0
        self.seen = True
        self._whole = sighting.whole
        self.confirmed = moment.settings.confirm_s == 0.0
        self.label = sighting.label
        self.score = sighting.score
        self._score_sum = self._score_weight = 0.0
        self._votes = {self.label: 0.0}
        self._means: dict[str, tuple[float, float]] = {}
        self._learn(sighting, moment)

    def attribute(self, name: str) -> float | None:
        """The time-weighted mean of an attribute, None when it was never seen on the whole object."""
        found = self._means.get(name)
        return found[0] if found is not None else None

    def settled(self, now_s: float) -> bool:
        """Whether its way is known so well that a sighting off it is another object's."""
        return self.confirmed and now_s - self.seen_s <= _FRESH_S and self.seen_s - self.first_s >= _SETTLED_S

    def expected(self, now_s: float, shared: Point | None) -> Box:
        """Where the box should be at `now_s`; out of sight it moves with what all move with."""
        passed = now_s - self.at_s
        if shared is not None and not self.seen:
            dx, dy = shared[0] * passed, shared[1] * passed
        else:
            dx, dy = self.vx * passed, self.vy * passed
        x1, y1, x2, y2 = self.box
        return x1 + dx, y1 + dy, x2 + dx, y2 + dy

    def sight(self, sighting: Sighting, expected: Box, moment: Moment) -> None:
        """Take a sighting for this track's, which was expected in a box."""
        passed = moment.now_s - self.seen_s
        if passed > 0.0:
            self._steer(sighting, expected, passed, moment)
            if not self.confirmed:
                self.sighted_s += min(passed, moment.settings.confirm_s / 2.0)
        box = self.box = sighting.box
        self.x, self.y = (box[0] + box[2]) / 2.0, (box[1] + box[3]) / 2.0
        self._whole = sighting.whole
        self.at_s = self.seen_s = moment.now_s
        self.seen, self.unseen_s = True, 0.0
        self._learn(sighting, moment)

    def coast(self, box: Box, now_s: float, unseen_s: float) -> None:
        """Move unseen to where it is expected."""
        self.box, self.at_s, self.seen = box, now_s, False
        self.x, self.y = middle(box)
        self.unseen_s += unseen_s

    def _learn(self, sighting: Sighting, moment: Moment) -> None:
        """Add what a sighting says of label, score and attributes, for as long as it speaks."""
        weight = moment.weight_s
        if sighting.whole:
            self.evidence_s += weight
            if sighting.attributes:
                self._average(sighting.attributes, moment)
        else:
            weight *= _CUT_WEIGHT
        self._score_sum += sighting.score * weight
        self._score_weight += weight
        self.score = self._score_sum / self._score_weight
        if sighting.label == self.label:
            self._votes[self.label] += sighting.score * weight
        else:
            self._vote(sighting.label, sighting.score * weight)
        for label, score in sighting.others:
            self._vote(label, score * weight)

    def _steer(self, sighting: Sighting, expected: Box, passed_s: float, moment: Moment) -> None:
        """Correct the velocity by how far the box is from where it was expected.

        The mean over a young track's life, then an exponential one. Sides cut by the picture's edge do not
        move with the object and say nothing.
        """
        young = passed_s / (passed_s + self.seen_s - self.first_s + self._prior_s)
        old = moment.share if self.seen else 1.0 - math.exp(-passed_s / _VELOCITY_S)
        rate = max(young, old) / passed_s
        x1, y1, x2, y2 = sighting.box
        if self._whole and sighting.whole:
            self.vx += rate * (x1 + x2 - expected[0] - expected[2]) / 2.0
            self.vy += rate * (y1 + y2 - expected[1] - expected[3]) / 2.0
            return
        left, top, right, bottom = self.box
        self.vx += rate * (_shift(left, right, x1, x2) - expected[0] + left)
        self.vy += rate * (_shift(top, bottom, y1, y2) - expected[1] + top)

    def _vote(self, label: str, weight: float) -> None:
        votes = self._votes
        if label not in votes and len(votes) >= MAX_VOTES:
            return
        votes[label] = total = votes.get(label, 0.0) + weight
        if total > votes[self.label]:
            self.label = label

    def _average(self, attributes: dict[str, float], moment: Moment) -> None:
        """Fold values into the means; what is older than the settings' `evidence_s` fades."""
        means, weight_s = self._means, moment.weight_s
        for name, value in attributes.items():
            known = means.get(name)
            if known is not None:
                weight = known[1] * moment.fade + weight_s
                means[name] = known[0] + (value - known[0]) * weight_s / weight, weight
            elif len(means) < MAX_ATTRIBUTES:
                means[name] = value, weight_s


def _bonus(track: Track, sighting: Sighting) -> float:
    """What speaks for a pair besides its overlap."""
    bonus = _CONFIRMED if track.confirmed else 0.0
    return bonus + _SAME_LABEL if sighting.label == track.label else bonus


def middle(box: Box) -> Point:
    """The centre of a box."""
    return (box[0] + box[2]) / 2.0, (box[1] + box[3]) / 2.0


def _shift(low: float, high: float, new_low: float, new_high: float) -> float:
    """How far a box moved along one axis, by the sides that no edge of the picture cuts."""
    cut_low = low <= _EDGE or new_low <= _EDGE
    cut_high = high >= _FAR_EDGE or new_high >= _FAR_EDGE
    if cut_low is cut_high:
        return (new_low + new_high - low - high) / 2.0
    return new_high - high if cut_low else new_low - low


class Tracker:
    """Keeps the identity of the objects of one camera.

    Args:
        settings: thresholds and times.
        first_id: the first track's id; pass `next_id` of an earlier life so that ids never come twice.
        attributes: the attributes to keep a mean of; None is all.
    """

    def __init__(
        self, settings: TrackerSettings, first_id: int = 1, attributes: Collection[str] | None = None
    ) -> None:
        self.settings = settings
        self._attributes = attributes
        self.next_id = first_id
        self.tracks: list[Track] = []
        self.ignored = 0
        """Objects not looked at so far: boxes without area, and those beyond `MAX_SIGHTINGS`."""
        self._known = KnownTime(settings.hold_s)
        self._good_s: float | None = None
        self._shared: Point | None = None

    def adjust(self, settings: TrackerSettings, attributes: Collection[str] | None) -> None:
        """Go by other settings from the next result on; tracks go on, with what is known of them."""
        self.settings, self._attributes = settings, attributes
        self._known.hold(settings.hold_s)

    def forget(self) -> None:
        """End all tracks: what comes next has nothing to do with what was."""
        self.tracks = []
        self._shared = None

    def fail(self, now_s: float) -> None:
        """Take a failed result: nothing is known of this moment."""
        self._known.step(now_s, good=False)

    def update(self, now_s: float, objects: Sequence[Detection]) -> list[Track]:
        """Take a good result.

        Args:
            now_s: capture time, never less than before.
            objects: what the model found.

        Returns:
            The tracks that live, seen or coasting, confirmed or not.
        """
        unseen_s = self._known.step(now_s, good=True)
        since_s = now_s - self._good_s if self._good_s is not None else 0.0
        self._good_s = now_s
        if since_s > self.settings.blind_s:
            self.forget()
        moment = Moment(now_s, since_s, self.settings)
        sightings = self._sightings(objects)
        expected = [track.expected(now_s, self._shared) for track in self.tracks]
        owners = _Pairing(self.tracks, expected, sightings, moment).owners()
        free = [True] * len(sightings)
        kept = []
        for track, box, n in zip(self.tracks, expected, owners, strict=True):
            if n >= 0:
                free[n] = False
                track.sight(sightings[n], box, moment)
                kept.append(track)
                continue
            track.coast(box, now_s, unseen_s)
            if not self._ended(track):
                kept.append(track)
        self.tracks = kept
        self._confirm()
        self._start([s for s, is_free in zip(sightings, free, strict=True) if is_free], moment)
        self._shared = self._agreed(now_s)
        return self.tracks

    def _sightings(self, objects: Sequence[Detection]) -> list[Sighting]:
        """Boxes with an area, clipped to the picture, one for each spot."""
        found, wanted = [], self._attributes
        for thing in objects:
            x1, y1, x2, y2 = box = thing.box
            if x1 < 0.0 or y1 < 0.0 or x2 > 1.0 or y2 > 1.0:
                x1, y1, x2, y2 = box = max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)
            if x2 > x1 and y2 > y1:
                said = thing.attributes if wanted is None else _NOTHING
                if wanted:
                    said = {name: value for name, value in thing.attributes.items() if name in wanted}
                found.append(Sighting(box, thing.label[:MAX_LABEL], thing.score, said))
        if len(found) > MAX_SIGHTINGS:
            found = sorted(found, key=lambda s: -s.score)[:MAX_SIGHTINGS]
        self.ignored += len(objects) - len(found)
        return merged(found, self.settings.same_iou)

    def _ended(self, track: Track) -> bool:
        """Whether an unseen track is over: long out of sight, or gone beyond the picture's edge."""
        if not (0.0 <= track.x <= 1.0 and 0.0 <= track.y <= 1.0):
            return True
        limit_s = self.settings.lost_s
        return track.unseen_s > (limit_s if track.confirmed else min(self.settings.confirm_s, limit_s))

    def _confirm(self) -> None:
        """Believe tracks that were sighted long enough, unless they shadow a confirmed one.

        A box beside its object's own track, when detections scatter, would count the object twice.
        """
        confirm_s, same_iou = self.settings.confirm_s, self.settings.same_iou
        tracks = self.tracks
        ripe = [t for t in tracks if not t.confirmed and t.seen and reached(t.sighted_s, confirm_s)]
        row = Row([t.box for t in tracks]) if ripe else None
        for track in ripe:
            near = [tracks[n] for n in row.near(track.box, 1.0)] if row is not None else []
            track.confirmed = not any(t.confirmed and iou(t.box, track.box) >= same_iou for t in near)

    def _start(self, sightings: list[Sighting], moment: Moment) -> None:
        for sighting in sightings:
            if sighting.score < self.settings.start_score or len(self.tracks) >= MAX_TRACKS:
                continue
            self.tracks.append(Track(self.next_id, sighting, moment, self._shared))
            self.next_id += 1

    def _agreed(self, now_s: float) -> Point | None:
        """The velocity that most tracks share, None where they do not agree."""
        before_s = now_s - _SHARED_AFTER_S
        steady = [t for t in self.tracks if t.seen and t.confirmed and t.first_s <= before_s]
        if len(steady) < 2:
            return None
        x, y = median([t.vx for t in steady]), median([t.vy for t in steady])
        spread = median([abs(t.vx - x) + abs(t.vy - y) for t in steady])
        return (x, y) if spread <= 0.02 + 0.25 * math.hypot(x, y) else None


class _Pairing:
    """Gives each track its sighting, best pairs first.

    Sightings that cover where a track is expected are most of them and cheap to find; what they leave over
    is searched for farther.
    """

    def __init__(
        self, tracks: list[Track], expected: list[Box], sightings: list[Sighting], moment: Moment
    ) -> None:
        self._tracks, self._expected, self._sightings = tracks, expected, sightings
        self._moment = moment
        self._free = [True] * len(sightings)
        self._owners = [-1] * len(tracks)
        self._row = Row([s.box for s in sightings])

    def owners(self) -> list[int]:
        """Index of each track's sighting, -1 where there is none."""
        free, owners = self._free, self._owners
        for find in (self._sure, self._possible):
            for _, n, m in sorted(find(), reverse=True):
                if free[n] and owners[m] < 0:
                    free[n], owners[m] = False, n
        return owners

    def _sure(self) -> Pairs:
        """Sightings that cover where a track is expected."""
        sightings, near, found = self._sightings, self._row.near, []
        for m, (box, track) in enumerate(zip(self._expected, self._tracks, strict=True)):
            for n in near(box):
                sighting = sightings[n]
                overlap = iou(sighting.box, box)
                if overlap >= _SURE_IOU:
                    found.append((overlap + _bonus(track, sighting), n, m))
        return found

    def _possible(self) -> Pairs:
        """Lone sightings that may be a lone track's: those that overlap before those that are near."""
        found = []
        for m in [m for m, n in enumerate(self._owners) if n < 0]:
            track, box = self._tracks[m], self._expected[m]
            settled = track.settled(self._moment.now_s)
            least = _SETTLED_IOU if settled else self._moment.settings.min_iou
            for n in self._row.near(box, 1.0):
                sighting = self._sightings[n]
                overlap = iou(sighting.box, box) if self._free[n] else -1.0
                if overlap >= least:
                    found.append((1.0 + overlap + _bonus(track, sighting), n, m))
                elif overlap >= 0.0 and not settled and sighting.label == track.label:
                    likeness = closeness(sighting.box, box)
                    if likeness > 0.0:
                        found.append((likeness, n, m))
        return found


class Row:
    """Boxes in the order of their centres, left to right, so that near ones are found without looking at all.

    For 300 boxes this takes a quarter of the time of a grid of cells in a dict: slices are cheap in Python.
    """

    __slots__ = ("_across", "_down")

    def __init__(self, boxes: Sequence[Box]) -> None:
        centres = sorted([((x1 + x2) / 2.0, (y1 + y2) / 2.0, n) for n, (x1, y1, x2, y2) in enumerate(boxes)])
        self._across = [x for x, _, _ in centres]
        self._down = [(y, n) for _, y, n in centres]

    def near(self, box: Box, reach: float = 0.0) -> list[int]:
        """Indices of the boxes whose centre is in this one, or `reach` half-sizes beyond its sides."""
        x1, y1, x2, y2 = box
        if reach:
            width, height = (x2 - x1) * reach / 2.0, (y2 - y1) * reach / 2.0
            x1, y1, x2, y2 = x1 - width, y1 - height, x2 + width, y2 + height
        first, last = bisect_left(self._across, x1), bisect_right(self._across, x2)
        return [n for y, n in self._down[first:last] if y1 <= y <= y2]


def closeness(a: Box, b: Box) -> float:
    """Near 1 for boxes with one centre, 0 from one box's size apart, or where the sizes differ much."""
    aw, ah, bw, bh = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    if not (1 / _SIZES < aw / bw < _SIZES and 1 / _SIZES < ah / bh < _SIZES):
        return 0.0
    dx = (a[0] + a[2] - b[0] - b[2]) / (aw + bw)
    dy = (a[1] + a[3] - b[1] - b[3]) / (ah + bh)
    return max(1.0 - math.hypot(dx, dy), 0.0)


def merged(sightings: list[Sighting], same_iou: float) -> list[Sighting]:
    """One sighting for each spot: class-wise suppression upstream leaves a box for each class.

    The strongest box stays; what weaker ones say of the label is kept for the vote. Boxes of one label are
    left alone: how near two of them may be was decided upstream.
    """
    if same_iou >= 1.0 or len({s.label for s in sightings}) < 2:
        return sightings
    slack = 1.0 - same_iou
    ordered = sorted(sightings, key=lambda s: s.box[0])
    absorbed: set[int] = set()
    for i, one in enumerate(ordered):
        left, top, right, bottom = one.box
        reach, lean = left + slack * (right - left), (bottom - top) * slack / same_iou
        for j in range(i + 1, len(ordered)):
            other = ordered[j]
            if other.box[0] > reach:
                break
            if not -lean <= other.box[1] - top <= lean or j in absorbed or i in absorbed:
                continue
            if one.label != other.label and iou(one.box, other.box) >= same_iou:
                strong, weak = (i, j) if one.score >= other.score else (j, i)
                ordered[strong].others += [(ordered[weak].label, ordered[weak].score), *ordered[weak].others]
                absorbed.add(weak)
    return [s for n, s in enumerate(ordered) if n not in absorbed] if absorbed else ordered
