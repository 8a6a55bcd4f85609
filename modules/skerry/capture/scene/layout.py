"""Which parts lie where on the belt: a pure function of (seed, place), so any place can be asked first.

Lengths here are *units*: 640 to a frame width, whatever its pixels. A place on the belt is its distance
`along` from the belt's beginning; the belt is cut into cells, and a cell draws candidates which survive
unless a candidate of higher rank, in it or next to it, lies too close (a Matern type II process).

Source: Matern, Spatial Variation (1960), section 3.6, for the hard-core process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64] | npt.NDArray[np.float32]

Kind = Literal["bolt", "nut", "washer"]
Defect = Literal["crack", "missing"]

KINDS: tuple[Kind, ...] = ("bolt", "nut", "washer")
UNITS = 640.0
"""Units in a frame width."""

CELL = 160.0
"""Length of a cell in units; no part reaches further than this from its centre."""

_CANDIDATES = 3
_GAP = 7.0
_STREAM = 23
_SLOTS = 2 * _CANDIDATES

BOLT_LENGTH, BOLT_HEAD, BOLT_HEAD_LENGTH, BOLT_SHANK = 112.0, 42.0, 24.0, 11.5
NUT_FLATS, NUT_HOLE = 62.0, 16.0
WASHER_OUTER, WASHER_INNER = 36.0, 18.5


@dataclass(frozen=True)
class Part:
    """One part on the belt.

    `along` and `across` are its centre in units: along the belt, and down from the frame's top.
    """

    id: int
    kind: Kind
    defect: Defect | None
    along: float
    across: float
    angle: float
    """Radians, clockwise in the picture."""
    size: float
    material: int
    look: int
    """Seed of what is random in its look, the shape of its defect included."""
    under: int | None = None
    """The id of the part that lies on it, where one does."""

    @property
    def defective(self) -> bool:
        """Whether it has a defect."""
        return self.defect is not None


@dataclass(frozen=True)
class _Candidate:
    rank: float
    parts: tuple[Part, ...]
    box: tuple[float, float, float, float]
    """Along from, across from, along to, across to."""


def half_extents(part: Part) -> tuple[float, float]:
    """Half the width and height, in units, of an upright rectangle that holds the part."""
    if part.kind == "washer":
        return WASHER_OUTER * part.size, WASHER_OUTER * part.size
    if part.kind == "nut":
        corner = NUT_FLATS / math.sqrt(3.0) * part.size
        return corner, corner
    c, s = abs(math.cos(part.angle)), abs(math.sin(part.angle))
    length, head = BOLT_LENGTH / 2.0 * part.size, BOLT_HEAD / 2.0 * part.size
    return length * c + head * s, length * s + head * c


class Layout:
    """The parts of an endless belt.

    Args:
        seed: what everything is drawn from.
        lane: the belt's edges, in units down from the frame's top.
        defect_rate: share of parts with a defect, 0 to 1.
        touching: share of places where two parts touch or overlap a little, 0 to 1.
        density: share of candidates that are drawn, 0 to 1.
    """

    def __init__(
        self, seed: int, lane: tuple[float, float], defect_rate: float, touching: float, density: float
    ) -> None:
        self._seed = seed
        self._lane = lane
        self._defect_rate = defect_rate
        self._touching = touching
        self._density = density
        self._candidates = lru_cache(maxsize=32)(self._draw)
        self._cell = lru_cache(maxsize=32)(self._thin)

    def between(self, start: float, end: float) -> tuple[Part, ...]:
        """The parts whose centre has `start <= along < end` (units), by id."""
        first, last = math.floor(start / CELL), math.floor(end / CELL)
        cells = (self._cell(index) for index in range(first, last + 1))
        return tuple(part for cell in cells for part in cell if start <= part.along < end)

    def _thin(self, index: int) -> tuple[Part, ...]:
        """The parts of cell `index`: its candidates that no stronger one is too close to."""
        rivals = [c for near in (index - 1, index, index + 1) for c in self._candidates(near)]
        kept = [
            mine
            for mine in self._candidates(index)
            if not any(other.rank < mine.rank and _too_close(mine, other) for other in rivals)
        ]
        return tuple(part for candidate in kept for part in candidate.parts)

    def _draw(self, index: int) -> tuple[_Candidate, ...]:
        if index < 0:
            return ()
        rng = np.random.default_rng([self._seed, _STREAM, index])
        drawn = []
        for slot in range(_CANDIDATES):
            present = rng.random() < self._density
            candidate = self._candidate(rng, index, 2 * slot)
            if present and candidate is not None:
                drawn.append(candidate)
        return tuple(drawn)

    def _candidate(self, rng: np.random.Generator, index: int, slot: int) -> _Candidate | None:
        """One part, or two that touch; None where it would not fit between the belt's edges."""
        rank = rng.random()
        first = self._part(rng, index * _SLOTS + slot + 1)
        second = self._part(rng, index * _SLOTS + slot + 2)
        pair, bearing = rng.random() < self._touching, rng.uniform(0.0, 2.0 * math.pi)
        most_hidden = rng.uniform(0.0, 0.16)
        across = rng.uniform(self._lane[0], self._lane[1])
        along = (index + rng.random()) * CELL
        parts = [replace(first, along=along, across=across)]
        if pair:
            lower = replace(parts[0], defect=None, under=second.id)
            parts = [lower, _laid_on(lower, second, bearing, most_hidden)]
        box = _bounds(parts)
        if math.floor(parts[-1].along / CELL) != index:
            return None
        if box[1] < self._lane[0] + _GAP or box[3] > self._lane[1] - _GAP:
            return None
        return _Candidate(rank, tuple(parts), box)

    def _part(self, rng: np.random.Generator, part_id: int) -> Part:
        broken, how = rng.random() < self._defect_rate, rng.random()
        return Part(
            id=part_id,
            kind=KINDS[int(rng.integers(3))],
            defect=("crack" if how < 0.5 else "missing") if broken else None,
            along=0.0,
            across=0.0,
            angle=rng.uniform(0.0, 2.0 * math.pi),
            size=rng.uniform(0.93, 1.07),
            material=int(rng.integers(4)),
            look=int(rng.integers(2**31)),
        )


def covers(part: Part, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
    """Whether each point (units from the part's centre, in the picture's axes) lies on its outline's inside.

    The outline is that of a whole part, without chamfers: exact to about a unit.
    """
    c, s = math.cos(part.angle) / part.size, math.sin(part.angle) / part.size
    u, v = x * c + y * s, y * c - x * s
    if part.kind == "washer":
        r = np.hypot(u, v)
        return (r < WASHER_OUTER) & (r > WASHER_INNER)
    if part.kind == "nut":
        r = np.hypot(u, v)
        return (hexagon(u, v) < NUT_FLATS / 2.0) & (r > NUT_HOLE)
    head = (np.abs(u + (BOLT_LENGTH - BOLT_HEAD_LENGTH) / 2.0) < BOLT_HEAD_LENGTH / 2.0) & (
        np.abs(v) < BOLT_HEAD / 2.0
    )
    return head | ((np.abs(u) < BOLT_LENGTH / 2.0) & (np.abs(v) < BOLT_SHANK))


def hexagon(u: Floats, v: Floats) -> Floats:
    """The largest distance to the centre along the three normals of a hexagon's flats."""
    a, b = 0.5 * u, math.sqrt(3.0) / 2.0 * v
    return np.maximum(np.abs(u), np.maximum(np.abs(a + b), np.abs(a - b)))


def _laid_on(lower: Part, upper: Part, bearing: float, most_hidden: float) -> Part:
    """`upper` moved beside `lower`, at `bearing` from it in the picture, as close as is allowed.

    Allowed is to hide the share `most_hidden` of the lower one, and that the upright boxes share 0.3.
    """
    grid = np.arange(-60.0, 61.0, 2.0)
    x, y = np.meshgrid(grid, grid)
    below = covers(lower, x, y)
    x, y = x[below], y[below]
    distance = 30.0
    while True:
        dx, dy = math.cos(bearing) * distance, math.sin(bearing) * distance
        placed = replace(upper, along=lower.along - dx, across=lower.across + dy)
        hidden = covers(placed, x - dx, y - dy).mean()
        if hidden <= most_hidden and _shared(lower, placed) <= 0.3:
            return placed
        distance += 2.0


def _bounds(parts: list[Part]) -> tuple[float, float, float, float]:
    boxes = [_box(part) for part in parts]
    return (
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    )


def _box(part: Part) -> tuple[float, float, float, float]:
    dx, dy = half_extents(part)
    return part.along - dx, part.across - dy, part.along + dx, part.across + dy


def _shared(one: Part, two: Part) -> float:
    """Intersection over union of the upright boxes."""
    a, b = _box(one), _box(two)
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def _too_close(one: _Candidate, two: _Candidate) -> bool:
    a, b = one.box, two.box
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP
