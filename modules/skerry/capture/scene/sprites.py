"""Drawing one part: a height map in its own axes, cut by its defect, lit as metal, shrunk smoothly.

Arrays are (h, w) float32 over a grid of `SUPER` samples to a pixel; lengths are in units of the layout,
so a part looks the same at every resolution. u runs along a bolt from head to tip, v across it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from skerry.capture.scene.layout import (
    BOLT_HEAD,
    BOLT_HEAD_LENGTH,
    BOLT_LENGTH,
    BOLT_SHANK,
    NUT_FLATS,
    NUT_HOLE,
    WASHER_INNER,
    WASHER_OUTER,
    Part,
    half_extents,
    hexagon,
)

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

SUPER = 2
"""Samples to a pixel in each direction."""

LIGHT = (-0.46, -0.56, 0.69)
"""Unit vector towards the lamp: x right, y down, z to the camera."""

SHADOW = (7.0, 8.5)
"""How far a part's shadow falls right and down, in units."""

_HALF = (LIGHT[0] / 1.838, LIGHT[1] / 1.838, (LIGHT[2] + 1.0) / 1.838)
_METALS = (
    (206.0, 203.0, 198.0),  # steel
    (222.0, 210.0, 196.0),  # bright zinc
    (150.0, 196.0, 222.0),  # yellow zinc
    (112.0, 172.0, 214.0),  # brass
)
_PITCH = 6.2
_CRACK = 6.4
_BITE = {"bolt": 17.0, "nut": 17.5, "washer": 19.0}


@dataclass(frozen=True)
class Patch:
    """A picture with transparency, to lay over a belt: `left`, `top` in pixels from its anchor."""

    left: int
    top: int
    colour: Floats
    """(h, w, 3) BGR already multiplied by alpha, 0 to 255."""
    alpha: Floats
    """(h, w, 1), 0 to 1."""


@dataclass(frozen=True)
class Sprite:
    """One part as drawn: its picture, its shadow, and which pixels it owns."""

    picture: Patch
    shadow: Patch
    mask: Bools
    """(h, w), over the picture's rectangle."""


@dataclass(frozen=True)
class _Grid:
    u: Floats
    v: Floats
    step: float
    """Units between samples."""


@dataclass
class _Body:
    """A part before light: height in units above the belt, where it is solid, how bright, how shiny."""

    height: Floats
    solid: Bools
    tint: Floats
    gloss: Floats


def draw(part: Part, scale: float) -> Sprite:
    """Draws `part` at `scale` pixels to a unit, anchored at its centre."""
    reach_x, reach_y = (math.ceil(half * scale) + 2 for half in half_extents(part))
    grid = _grid(part, reach_x, reach_y, scale)
    rng = np.random.default_rng(part.look)
    body = {"bolt": _bolt, "nut": _nut, "washer": _washer}[part.kind](grid, rng)
    if part.defect == "crack":
        _crack(part, grid, body, rng)
    elif part.defect == "missing":
        _bite(part, grid, body, rng)
    lit = _light(body, part, grid.step, rng)
    size = (2 * reach_x, 2 * reach_y)
    alpha = _shrink(body.solid.astype(np.float32), size)[..., None]
    colour = _shrink(lit * body.solid[..., None], size)
    picture = Patch(-reach_x, -reach_y, colour, alpha)
    return Sprite(picture, _shadow(alpha[..., 0], reach_x, reach_y, scale), alpha[..., 0] >= 0.5)


def _grid(part: Part, reach_x: int, reach_y: int, scale: float) -> _Grid:
    step = 1.0 / (SUPER * scale)
    x = (np.arange(2 * reach_x * SUPER, dtype=np.float32) + 0.5) * step - reach_x / scale
    y = (np.arange(2 * reach_y * SUPER, dtype=np.float32) + 0.5) * step - reach_y / scale
    c, s = math.cos(part.angle) / part.size, math.sin(part.angle) / part.size
    u = np.float32(c) * x[None, :] + np.float32(s) * y[:, None]
    v = np.float32(c) * y[:, None] - np.float32(s) * x[None, :]
    return _Grid(u, v, step)


def _bolt(grid: _Grid, rng: np.random.Generator) -> _Body:
    """A hexagon bolt on its side: head with three facets, flange, plain shank, thread, chamfered tip."""
    u, v = grid.u, np.abs(grid.v)
    left, right = -BOLT_LENGTH / 2.0, BOLT_LENGTH / 2.0
    neck = left + BOLT_HEAD_LENGTH
    chamfer = np.maximum(left + 6.0 - u, 0.0)
    in_head = (u > left) & (u < neck - 3.0) & (v < BOLT_HEAD / 2.0 - 0.8 * chamfer)
    head = 25.0 - np.maximum(v - 11.0, 0.0) * 0.75 - 0.9 * chamfer
    in_flange = (u >= neck - 3.0) & (u < neck) & (v < BOLT_HEAD / 2.0 - 1.0)
    flange = np.sqrt(np.maximum(21.0**2 - v * v, 1.0))
    thread_from = neck + rng.uniform(20.0, 30.0)
    turn = np.abs(((u + 0.22 * grid.v) / _PITCH) % 1.0 * 2.0 - 1.0)
    cut = np.where(u > thread_from, 2.6 * turn, 0.6).astype(np.float32)
    tip = np.maximum(u - (right - 5.0), 0.0)
    radius = BOLT_SHANK - 0.55 * cut - 0.9 * tip
    in_shank = (u >= neck) & (u < right) & (v < radius)
    shank = 11.0 + np.sqrt(np.maximum(radius**2 - v * v, 0.0)) - 0.5 * cut
    height = np.where(in_head, head, np.where(in_flange, flange, np.where(in_shank, shank, 0.0)))
    tint = np.where(in_shank & (u > thread_from), 0.98 - 0.36 * turn, 1.0)
    tint = np.where(in_shank, tint * (0.72 + 0.28 * np.clip((u - neck) / 6.0, 0.0, 1.0)), tint)
    solid = in_head | in_flange | in_shank
    return _Body(height.astype(np.float32), solid, tint.astype(np.float32), np.ones_like(u))


def _nut(grid: _Grid, rng: np.random.Generator) -> _Body:
    """A hexagon nut lying flat: bevelled corners, countersunk hole whose wall shows its thread."""
    r = np.hypot(grid.u, grid.v)
    flat = NUT_FLATS / 2.0
    edge = hexagon(grid.u, grid.v)
    solid = (edge < flat) & (r > NUT_HOLE - 1.5)
    height = 16.0 - np.maximum(r - (flat - 1.5), 0.0) * 0.55 - np.maximum(edge - (flat - 2.2), 0.0) * 1.1
    height = height - np.maximum(NUT_HOLE + 4.2 - r, 0.0) * 0.95
    wall = np.clip((NUT_HOLE + 1.6 - r) / 1.6, 0.0, 1.0)
    tint = 1.0 - 0.62 * wall + 0.10 * np.sin(r * 5.2) * (r < NUT_HOLE + 4.2)
    turned = 0.05 * np.sin(r * (4.0 + rng.random()))
    return _Body((height + turned).astype(np.float32), solid, tint.astype(np.float32), np.ones_like(grid.u))


def _washer(grid: _Grid, rng: np.random.Generator) -> _Body:
    """A flat ring, turned on a lathe: fine circles, rounded edges, a fan of reflected light."""
    r = np.hypot(grid.u, grid.v)
    solid = (r < WASHER_OUTER) & (r > WASHER_INNER)
    outer = np.maximum(r - (WASHER_OUTER - 2.6), 0.0)
    inner = np.maximum(WASHER_INNER + 2.2 - r, 0.0)
    height = 6.0 - 0.32 * outer**2 - 0.34 * inner**2
    turned = 0.07 * np.sin(r * (3.4 + rng.random())) + 0.04 * np.sin(r * 7.3)
    tint = 0.94 + 0.03 * np.sin(r * 2.1 + rng.uniform(0.0, 6.0))
    gloss = np.full_like(grid.u, 0.7)
    return _Body((height + turned).astype(np.float32), solid, tint.astype(np.float32), gloss)


def _crack(part: Part, grid: _Grid, body: _Body, rng: np.random.Generator) -> None:
    """A dark jagged gap from edge to edge, with a bright burr along one side."""
    points = _crack_path(part, rng)
    gap = _stroke(grid, part, points, _CRACK)
    burr = _stroke(grid, part, points + np.array([1.6, 1.9]), _CRACK + 1.0) & ~gap
    body.tint[burr] *= 1.18
    body.tint[gap] = 0.07
    body.gloss[gap] = 0.0
    body.height[gap] = np.minimum(body.height[gap], 4.0)


def _crack_path(part: Part, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(n, 2) points u, v of a zigzag across the part."""
    if part.kind == "bolt":
        at = rng.uniform(-8.0, 26.0)
        lean = rng.choice([-1.0, 1.0]) * rng.uniform(4.0, 10.0)
        v = np.linspace(-BOLT_SHANK - 3.0, BOLT_SHANK + 3.0, 6)
        u = at + np.linspace(-lean, lean, 6) + _zigzag(6, 3.6, rng)
        return np.stack([u, v], axis=1)
    inner, outer = (NUT_HOLE - 4.0, 38.0) if part.kind == "nut" else (WASHER_INNER - 2.0, WASHER_OUTER + 2.0)
    r = np.linspace(inner, outer, 6)
    bearing = rng.uniform(0.0, 2.0 * math.pi)
    aside = _zigzag(6, 3.8, rng) + np.linspace(0.0, rng.uniform(-6.0, 6.0), 6)
    c, s = math.cos(bearing), math.sin(bearing)
    return np.stack([r * c - aside * s, r * s + aside * c], axis=1)


def _zigzag(count: int, most: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    signs = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    return signs * rng.uniform(0.4 * most, most, count)


def _stroke(grid: _Grid, part: Part, points: npt.NDArray[np.float64], width: float) -> Bools:
    """Where the polyline `points` (u, v in units) of `width` units falls on the grid."""
    c, s = math.cos(part.angle) * part.size, math.sin(part.angle) * part.size
    x = points[:, 0] * c - points[:, 1] * s
    y = points[:, 0] * s + points[:, 1] * c
    shape = grid.u.shape
    pixels = np.stack([x / grid.step + shape[1] / 2.0, y / grid.step + shape[0] / 2.0], axis=1)
    canvas = np.zeros(shape, np.uint8)
    thick = max(round(width * part.size / grid.step), 1)
    cv2.polylines(canvas, [np.round(pixels).astype(np.int32)], False, (255,), thick)
    return canvas > 0


def _bite(part: Part, grid: _Grid, body: _Body, rng: np.random.Generator) -> None:
    """A piece broken out of the outline: a ragged hole whose rim is rough and dull."""
    u0, v0 = _bite_centre(part, rng)
    du, dv = grid.u - u0, grid.v - v0
    bearing = np.arctan2(dv, du)
    phases = rng.uniform(0.0, 2.0 * math.pi, 3)
    ragged = sum(
        a * np.sin(n * bearing + p) for a, n, p in zip((1.5, 1.1, 0.8), (5, 9, 14), phases, strict=True)
    )
    away = np.hypot(du, dv) - (_BITE[part.kind] + ragged)
    body.solid &= away > 0.0
    rim = (away > 0.0) & (away < 3.0)
    grain = rng.normal(0.0, 0.16, grid.u.shape).astype(np.float32)
    body.tint[rim] = np.clip(0.50 + grain[rim], 0.15, 1.0)
    body.gloss[rim] = 0.1
    body.height -= np.where(away < 3.0, (3.0 - away) * 1.2, 0.0).astype(np.float32)


def _bite_centre(part: Part, rng: np.random.Generator) -> tuple[float, float]:
    if part.kind == "bolt":
        side = rng.choice([-1.0, 1.0])
        if rng.random() < 0.5:
            return -BOLT_LENGTH / 2.0 + rng.uniform(6.0, 12.0), side * (BOLT_HEAD / 2.0 - 6.0)
        return rng.uniform(-4.0, 22.0), side * (BOLT_SHANK + 3.5)
    radius = NUT_FLATS / 2.0 + 0.5 if part.kind == "nut" else WASHER_OUTER - 1.0
    bearing = rng.uniform(0.0, 2.0 * math.pi)
    return radius * math.cos(bearing), radius * math.sin(bearing)


def _light(body: _Body, part: Part, step: float, rng: np.random.Generator) -> Floats:
    """(h, w, 3) BGR: the body lit by the lamp and by a room with a bright ceiling and a dark horizon."""
    nx, ny, nz = _normals(body.height, part.size, step)
    toward = np.maximum(nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2], 0.0)
    half = np.maximum(nx * _HALF[0] + ny * _HALF[1] + nz * _HALF[2], 0.0)
    room = 0.5 + 0.5 * np.cos(5.2 * (0.55 * nx + 0.83 * ny) + 0.9)
    shine = half**28 * 0.75
    if part.kind == "washer":
        shine = shine * 0.3 + _fan(body.height.shape)
    value = (0.24 + 0.46 * toward + 0.26 * room) * body.tint
    grain = rng.normal(0.0, 0.018, value.shape).astype(np.float32)
    metal = np.asarray(_METALS[part.material], np.float32)
    lit = (value + grain * body.gloss)[..., None] * metal + (shine * body.gloss)[..., None] * np.float32(
        165.0
    )
    return np.asarray(np.clip(lit, 4.0, 255.0), np.float32)


def _normals(height: Floats, size: float, step: float) -> tuple[Floats, Floats, Floats]:
    smooth = np.asarray(cv2.GaussianBlur(height * np.float32(size), (0, 0), 0.55 / step), np.float32)
    k = np.float32(0.5 / step)
    dx = np.zeros_like(smooth)
    dy = np.zeros_like(smooth)
    dx[:, 1:-1] = (smooth[:, 2:] - smooth[:, :-2]) * k
    dy[1:-1] = (smooth[2:] - smooth[:-2]) * k
    length = np.asarray(1.0 / np.sqrt(dx * dx + dy * dy + 1.0), np.float32)
    return np.asarray(-dx * length), np.asarray(-dy * length), length


def _fan(shape: tuple[int, ...]) -> Floats:
    """(h, w) the two bright wedges that a lathe-turned face shows across the direction of the light."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] - (shape[0] - 1) / 2.0
    x = np.arange(shape[1], dtype=np.float32)[None, :] - (shape[1] - 1) / 2.0
    bearing = np.arctan2(y, x) - math.atan2(LIGHT[1], LIGHT[0])
    return np.asarray(np.abs(np.cos(bearing)) ** 14 * 0.62, np.float32)


def _shrink(samples: npt.NDArray[np.generic], size: tuple[int, int]) -> Floats:
    """Averages SUPER x SUPER samples; `size` is (width, height) in pixels."""
    small = cv2.resize(samples.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def _shadow(alpha: Floats, reach_x: int, reach_y: int, scale: float) -> Patch:
    """What the part takes from the light around it: a cast shadow and a darker contact line."""
    margin = math.ceil(16.0 * scale)
    solid = cv2.copyMakeBorder(alpha, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    move = np.array([[1.0, 0.0, SHADOW[0] * scale], [0.0, 1.0, SHADOW[1] * scale]])
    cast = cv2.warpAffine(solid, move, (solid.shape[1], solid.shape[0]), flags=cv2.INTER_LINEAR)
    cast = cv2.GaussianBlur(cast, (0, 0), 3.2 * scale)
    contact = cv2.GaussianBlur(solid, (0, 0), 2.0 * scale)
    dark = np.clip(0.52 * cast + 0.30 * contact, 0.0, 0.72).astype(np.float32)[..., None]
    return Patch(-reach_x - margin, -reach_y - margin, np.zeros((*dark.shape[:2], 3), np.float32), dark)
