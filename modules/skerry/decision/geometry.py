"""Points, polygons and lines in fractions of the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""


class Area:
    """A simple polygon that knows what is inside.

    Source: Shimrat, Algorithm 112, CACM 5 (1962): count the edges that a ray to the right meets.
    """

    __slots__ = ("_edges", "bottom", "left", "right", "top", "upright")

    def __init__(self, corners: Sequence[Point]) -> None:
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        self.left, self.top, self.right, self.bottom = min(xs), min(ys), max(xs), max(ys)
        self._edges = [(*a, *b) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)]
        box = {(x, y) for x in (self.left, self.right) for y in (self.top, self.bottom)}
        along = all(a == c or b == d for a, b, c, d in self._edges)
        self.upright = len(corners) == 4 and set(corners) == box and along
        """Whether it is a rectangle along the picture's sides, so that its bounds say all."""

    def holds(self, x: float, y: float) -> bool:
        """Whether the point is inside; of two opposite edges, one belongs to the area."""
        if not (self.left <= x < self.right and self.top <= y < self.bottom):
            return False
        if self.upright:
            return True
        inside = False
        for x1, y1, x2, y2 in self._edges:
            if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
                inside = not inside
        return inside


class Line:
    """A segment with two sides."""

    __slots__ = ("_ax", "_ay", "_dx", "_dy", "_length")

    def __init__(self, a: Point, b: Point) -> None:
        self._ax, self._ay = a
        self._dx, self._dy = b[0] - a[0], b[1] - a[1]
        self._length = math.hypot(self._dx, self._dy)

    def side(self, x: float, y: float) -> float:
        """Signed distance from the endless line: above 0 on the left hand of one who walks a to b."""
        return (self._dy * (x - self._ax) - self._dx * (y - self._ay)) / self._length

    def meets(self, start: Point, end: Point) -> bool:
        """Whether the way from `start` to `end`, on opposite sides, passes between the line's two points."""
        before, after = self.side(*start), self.side(*end)
        share = before / (before - after) if before != after else 0.0
        x, y = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
        along = ((x - self._ax) * self._dx + (y - self._ay) * self._dy) / self._length**2
        return 0.0 <= along <= 1.0


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = (ax2 if ax2 < bx2 else bx2) - (ax1 if ax1 > bx1 else bx1)  # noqa: FURB136 - a third of min and max
    if width <= 0.0:
        return 0.0
    height = (ay2 if ay2 < by2 else by2) - (ay1 if ay1 > by1 else by1)  # noqa: FURB136 - as above
    if height <= 0.0:
        return 0.0
    shared = width * height
    if shared <= 0.0:  # sizes so small that their product is none; a hostile message may hold them
        return 0.0
    return shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)


def crosses_itself(corners: Sequence[Point]) -> bool:
    """Whether two edges of the polygon that are not neighbours touch, or two neighbours fold back."""
    count = len(corners)
    edges = [(corners[n], corners[(n + 1) % count]) for n in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            if j == i + 1 or (i == 0 and j == count - 1):
                continue
            if _touch(*edges[i], *edges[j]):
                return True
    return any(_folds(corners[n - 1], corners[n], corners[(n + 1) % count]) for n in range(count))


def area(corners: Sequence[Point]) -> float:
    """Area of a simple polygon, at least 0 (the shoelace formula)."""
    following = [*corners[1:], corners[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, following, strict=True))) / 2.0


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _within(a: Point, b: Point, p: Point) -> bool:
    """Whether p, on the line through a and b, lies between them."""
    return min(a[0], b[0]) <= p[0] <= max(a[0], b[0]) and min(a[1], b[1]) <= p[1] <= max(a[1], b[1])


def _touch(a: Point, b: Point, c: Point, d: Point) -> bool:
    t1, t2, t3, t4 = _turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)
    if (t1 > 0) != (t2 > 0) and (t3 > 0) != (t4 > 0) and 0.0 not in (t1, t2, t3, t4):
        return True
    ends = ((t1, a, b, c), (t2, a, b, d), (t3, c, d, a), (t4, c, d, b))
    return any(turn == 0.0 and _within(start, end, p) for turn, start, end, p in ends)


def _folds(a: Point, b: Point, c: Point) -> bool:
    """Whether the way a, b, c turns back on itself at b, or stands still."""
    forward = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1])
    return _turn(a, b, c) == 0.0 and forward <= 0.0
