"""What a perfect observer of a scene would count: line crossings, parts in a zone, over a span of time.

All are computed from the belt's motion, not from pictures, so they do not depend on a frame rate. A
part's position is the middle of the box of its uncovered pixels, unclipped by the picture's edge.
"""

from __future__ import annotations

from dataclasses import dataclass

from skerry.capture.scene.layout import Defect, Kind, Part
from skerry.capture.scene.view import Box, Scene


@dataclass(frozen=True)
class Crossing:
    """A part's middle reaches a line."""

    id: int
    kind: Kind
    defective: bool
    defect: Defect | None
    at_s: float
    """When, seconds of scene time."""
    centre: tuple[float, float]
    """The middle of its box then, fractions of the picture."""


@dataclass(frozen=True)
class ZoneCount:
    """From `since_s` until the next one's, `count` parts have their middle in the zone."""

    since_s: float
    count: int


def crossings(scene: Scene, line: float, t0_s: float, t1_s: float) -> tuple[Crossing, ...]:
    """The parts whose middle crosses the vertical line with t0_s <= time < t1_s, in order of time.

    Args:
        scene: the scene.
        line: the line's x as a fraction of the width, 0 to 1.
        t0_s: seconds of scene time.
        t1_s: seconds of scene time.
    """
    found = []
    for part in scene.parts(t0_s, t1_s):
        x, y = scene.centre(part)
        at_s = scene.motion.when(line - x)
        if t0_s <= at_s < t1_s:
            found.append(Crossing(part.id, part.kind, part.defective, part.defect, at_s, (line, y)))
    return tuple(sorted(found, key=lambda crossing: (crossing.at_s, crossing.id)))


def in_zone(scene: Scene, zone: Box, t_s: float) -> tuple[Part, ...]:
    """The parts whose middle is in the zone (x1, y1, x2, y2 as fractions) at `t_s`, by id."""
    moved = scene.motion.distance(t_s)
    return tuple(part for part in scene.parts(t_s, t_s) if _holds(zone, scene.centre(part), moved))


def zone_counts(scene: Scene, zone: Box, t0_s: float, t1_s: float) -> tuple[ZoneCount, ...]:
    """How many parts are in the zone from t0_s to t1_s: a first count at `t0_s`, then every change."""
    changes: dict[float, int] = {}
    for edge, change in ((zone[0], 1), (zone[2], -1)):
        for crossing in crossings(scene, edge, t0_s, t1_s):
            if zone[1] <= crossing.centre[1] < zone[3] and crossing.at_s > t0_s:
                changes[crossing.at_s] = changes.get(crossing.at_s, 0) + change
    counts = [ZoneCount(t0_s, len(in_zone(scene, zone, t0_s)))]
    for at_s in sorted(changes):
        counts.append(ZoneCount(at_s, counts[-1].count + changes[at_s]))
    return tuple(counts)


def _holds(zone: Box, centre: tuple[float, float], moved: float) -> bool:
    return zone[0] <= centre[0] + moved < zone[2] and zone[1] <= centre[1] < zone[3]
