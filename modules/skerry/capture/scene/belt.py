"""The belt without parts: its woven texture, what lies or is worn into it, and the rails beside it.

Everything here is fixed to the belt or to the camera; nothing knows the time. Columns of the belt are
counted in pixels to the right in the picture, and are negative for what has yet to arrive.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from skerry.capture.scene.sprites import Floats, Patch

Bytes = npt.NDArray[np.uint8]

_BASE = (76.0, 86.0, 54.0)
_CELL = 320.0
_STREAM = 37
_WEAVE_CELLS = 12
_SEAM_CELLS = 9
REACH = 190.0
"""No item of clutter reaches further than this from its anchor, in units."""


class Belt:
    """The belt's surface for one scene.

    Args:
        seed: what the wear and the clutter are drawn from.
        height: of the picture in pixels.
        lane: the belt's edges in pixels down from the picture's top.
        scale: pixels to a unit.
        clutter: how much lies on the belt that is no part; 1 is a working day's.
    """

    def __init__(self, seed: int, height: int, lane: tuple[int, int], scale: float, clutter: float) -> None:
        self._seed = seed
        self._lane = lane
        self._scale = scale
        self._clutter = clutter
        self._tile = _texture(np.random.default_rng([seed, _STREAM]), height, scale)
        self._items = lru_cache(maxsize=6)(self._draw_items)

    def strip(self, left: int, width: int) -> Floats:
        """(height, width, 3) BGR float32: the belt's columns from `left` on."""
        columns = np.arange(left, left + width) % self._tile.shape[1]
        strip: Floats = np.take(self._tile, columns, axis=1)
        cell = _CELL * self._scale
        first = math.floor((left - REACH * self._scale) / cell)
        last = math.floor((left + width + REACH * self._scale) / cell)
        for index in range(first, last + 1):
            for x, y, patch in self._items(index):
                lay(strip, patch, x - left, y)
        return strip

    def _draw_items(self, index: int) -> list[tuple[int, int, Patch]]:
        """The clutter anchored in cell `index`: anchor column, anchor row, picture."""
        rng = np.random.default_rng([self._seed, _STREAM, 2**31 + index])
        makers = ((_stain, 0.9), (_scratch, 2.2), (_swarf, 2.0), (_scuff, 1.2), (_dust, 2.0))
        items = []
        for make, mean in makers:
            for _ in range(int(rng.poisson(mean * self._clutter))):
                x = round((index + rng.random()) * _CELL * self._scale)
                y = round(rng.uniform(self._lane[0] + 8.0, self._lane[1] - 8.0))
                items.append((x, y, make(rng, self._scale)))
        if index % _SEAM_CELLS == 0 and self._clutter > 0.0:
            x = round((index + 0.5) * _CELL * self._scale)
            items.append((x, self._lane[0], _seam(self._lane[1] - self._lane[0], self._scale)))
        return items


def lay(canvas: Floats, patch: Patch, x: int, y: int) -> None:
    """Lays `patch`, anchored at pixel (x, y), over `canvas`, cut where it sticks out."""
    top, left = y + patch.top, x + patch.left
    height, width = patch.alpha.shape[:2]
    y0, y1 = max(top, 0), min(top + height, canvas.shape[0])
    x0, x1 = max(left, 0), min(left + width, canvas.shape[1])
    if y0 >= y1 or x0 >= x1:
        return
    inner = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    under = canvas[y0:y1, x0:x1]
    under *= 1.0 - patch.alpha[inner]
    under += patch.colour[inner]


def rails(seed: int, height: int, width: int, lane: tuple[int, int], scale: float) -> tuple[Bytes, Bytes]:
    """The aluminium rails above and below the belt: (lane[0], width, 3) and (height - lane[1], width, 3)."""
    rng = np.random.default_rng([seed, _STREAM, 1])
    top = _rail(rng, lane[0], width, scale)
    bottom = _rail(rng, height - lane[1], width, scale)
    return top, np.ascontiguousarray(bottom[::-1])


def _rail(rng: np.random.Generator, height: int, width: int, scale: float) -> Bytes:
    """A brushed profile with a T-slot and a scale; its last row is beside the belt."""
    at = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    value = 146.0 + 34.0 * np.cos((at - 0.16) * 7.0) - 26.0 * at
    slot = np.clip(1.0 - np.abs(at - 0.42) / 0.13, 0.0, 1.0)
    value = value * (1.0 - 0.72 * np.sqrt(slot))
    value = np.where(at > 0.93, 46.0, value)
    value = np.where(np.abs(at - 0.80) < 0.05, 206.0, value)
    brushed = cv2.GaussianBlur(
        rng.normal(0.0, 26.0, (height, width)).astype(np.float32), (0, 0), 14.0, None, 0.4
    )
    grey = np.asarray(value + brushed, np.float32)[..., None] * np.array([1.0, 0.985, 0.955], np.float32)
    for number, x in enumerate(np.arange(0.0, width, 16.0 * scale)):
        length = 0.24 if number % 5 == 0 else 0.12
        rows = slice(round((0.74 - length) * height), round(0.74 * height))
        grey[rows, round(x) : round(x) + max(round(1.2 * scale), 1)] = 38.0
    return np.clip(grey, 0.0, 255.0).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, scale: float) -> Floats:
    """(height, period, 3) a woven belt, worn along its way, that repeats seamlessly in x."""
    pitch = max(round(5.0 * scale), 3)
    period = pitch * 2 * _WEAVE_CELLS * 6
    y, x = np.mgrid[0:height, 0:period].astype(np.float32)
    weave = np.sin(math.pi * x / pitch) * np.sin(math.pi * y / pitch)
    ribs = np.sin(math.pi * (x + y) / pitch)
    grain = rng.normal(0.0, 2.6, (height, period)).astype(np.float32)
    worn = _wrapped_blur(rng.normal(0.0, 1.0, (height, period)), 70.0 * scale, 3.0 * scale) * 34.0
    cloud = _wrapped_blur(rng.normal(0.0, 1.0, (height, period)), 26.0 * scale, 26.0 * scale) * 170.0
    value = 3.4 * weave + 1.6 * ribs + grain + np.clip(worn, -7.0, 7.0) + np.clip(cloud, -7.0, 7.0)
    return np.asarray(np.asarray(_BASE, np.float32) * (1.0 + value[..., None] / 78.0), np.float32)


def _wrapped_blur(noise: npt.NDArray[np.float64], sigma_x: float, sigma_y: float) -> Floats:
    """Blurs as if the picture's left and right edges were joined."""
    pad = noise.shape[1] // 2
    tiled = np.concatenate([noise[:, -pad:], noise, noise[:, :pad]], axis=1).astype(np.float32)
    blurred = cv2.GaussianBlur(tiled, (0, 0), sigma_x, None, sigma_y)
    return np.asarray(blurred[:, pad : pad + noise.shape[1]], np.float32)


def _tinted(alpha: Floats, bgr: tuple[float, float, float], half: tuple[int, int]) -> Patch:
    """One colour through `alpha` (h, w), anchored `half` (x, y) pixels from its corner."""
    colour = alpha[..., None] * np.asarray(bgr, np.float32)
    return Patch(-half[0], -half[1], colour, alpha[..., None])


def _stain(rng: np.random.Generator, scale: float) -> Patch:
    """A drop of oil: dark, soft, a little darker at its edge."""
    radius = rng.uniform(9.0, 42.0) * scale
    half = math.ceil(radius * 1.7)
    y, x = np.mgrid[-half:half, -half:half].astype(np.float32)
    bearing = np.arctan2(y, x)
    ragged = sum(rng.uniform(0.0, 0.10) * np.sin(n * bearing + rng.uniform(0.0, 6.3)) for n in (2, 3, 5))
    r = np.hypot(x * rng.uniform(0.75, 1.0), y) / radius + ragged
    body = np.clip((1.0 - r) * 5.0, 0.0, 1.0)
    edge = np.exp(-(((r - 0.93) / 0.09) ** 2))
    alpha = np.asarray(rng.uniform(0.20, 0.42) * body + 0.16 * edge, np.float32)
    return _tinted(alpha, (28.0, 30.0, 26.0), (half, half))


def _scuff(rng: np.random.Generator, scale: float) -> Patch:
    """A pale rubbed patch, longer along the belt."""
    half = (math.ceil(70.0 * scale), math.ceil(26.0 * scale))
    y, x = np.mgrid[-half[1] : half[1], -half[0] : half[0]].astype(np.float32)
    soft = np.exp(
        -((x / (rng.uniform(14.0, 32.0) * scale)) ** 2) - (y / (rng.uniform(3.0, 10.0) * scale)) ** 2
    )
    streaks = 0.6 + 0.4 * np.sin(y / scale * rng.uniform(1.0, 2.2) + rng.uniform(0.0, 6.0))
    alpha = np.asarray(soft * streaks * rng.uniform(0.10, 0.24), np.float32)
    return _tinted(alpha, (150.0, 156.0, 138.0), half)


def _scratch(rng: np.random.Generator, scale: float) -> Patch:
    """A thin line, light or dark, nearly straight."""
    length, bearing = rng.uniform(24.0, 170.0), rng.normal(0.0, 0.5)
    t = np.linspace(-0.5, 0.5, 12)
    bend = rng.normal(0.0, 6.0) * (t * t * 4.0)
    x = t * length * math.cos(bearing) - bend * math.sin(bearing)
    y = t * length * math.sin(bearing) + bend * math.cos(bearing)
    bright = rng.random() < 0.6
    alpha, half = _line(x, y, scale, rng.uniform(0.8, 1.5))
    strength = np.float32(rng.uniform(0.20, 0.5))
    return _tinted(alpha * strength, (150.0, 160.0, 138.0) if bright else (24.0, 26.0, 20.0), half)


def _swarf(rng: np.random.Generator, scale: float) -> Patch:
    """A small bright curl of metal with its shadow."""
    turns, radius = rng.uniform(0.3, 1.7), rng.uniform(3.0, 8.0)
    t = np.linspace(0.0, 1.0, 24)
    bearing = rng.uniform(0.0, 6.3) + t * turns * 2.0 * math.pi
    drift = rng.uniform(2.0, 15.0)
    x = radius * (1.0 - 0.4 * t) * np.cos(bearing) + drift * t
    y = radius * (1.0 - 0.4 * t) * np.sin(bearing) + rng.normal(0.0, 5.0) * t
    alpha, half = _line(x, y, scale, rng.uniform(1.0, 1.9))
    shift = max(round(2.0 * scale), 1)
    dark = np.roll(alpha, (shift, shift), (0, 1)) * np.float32(0.5)
    light = (alpha * np.float32(0.9))[..., None]
    sheen = (0.72 + 0.28 * np.sin(np.arange(alpha.shape[1], dtype=np.float32) / (2.0 * scale)))[None, :, None]
    colour = light * sheen * np.array([206.0, 212.0, 214.0], np.float32)
    return Patch(-half[0], -half[1], colour.astype(np.float32), light + (1.0 - light) * dark[..., None])


def _dust(rng: np.random.Generator, scale: float) -> Patch:
    """A scatter of fine grains."""
    half = math.ceil(46.0 * scale)
    alpha = np.zeros((2 * half, 2 * half), np.float32)
    count = int(rng.integers(8, 40))
    places = np.clip(rng.normal(half, 0.36 * half, (count, 2)), 0, 2 * half - 1).astype(np.int64)
    alpha[places[:, 1], places[:, 0]] = rng.uniform(0.2, 0.75, count)
    soft = np.asarray(cv2.GaussianBlur(alpha, (3, 3), 0.5), np.float32)
    return _tinted(soft, (172.0, 182.0, 178.0), (half, half))


def _seam(height: int, scale: float) -> Patch:
    """Where the belt's ends are joined: a slanting line of vulcanised fingers over the whole lane."""
    half = math.ceil(60.0 * scale)
    y, x = np.mgrid[0:height, -half:half].astype(np.float32)
    pitch = 26.0 * scale
    finger = np.abs((y / pitch) % 1.0 * 2.0 - 1.0) * 22.0 * scale
    off = np.abs(x - (y - height / 2.0) * 0.10 - finger + 11.0 * scale)
    alpha = np.asarray(
        0.5 * np.clip(1.6 - off / scale, 0.0, 1.0) + 0.10 * np.exp(-((off / (9.0 * scale)) ** 2)), np.float32
    )
    return _tinted(alpha, (26.0, 30.0, 22.0), (half, 0))


def _line(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], scale: float, width: float
) -> tuple[Floats, tuple[int, int]]:
    """(h, w) coverage of a polyline in units, drawn at four times the size, and its anchor (x, y)."""
    fine = 4
    half = (math.ceil((np.abs(x).max() + 4.0) * scale), math.ceil((np.abs(y).max() + 4.0) * scale))
    canvas = np.zeros((2 * half[1] * fine, 2 * half[0] * fine), np.uint8)
    points = np.stack([(x * scale + half[0]) * fine, (y * scale + half[1]) * fine], axis=1)
    cv2.polylines(
        canvas, [np.round(points).astype(np.int32)], False, (255,), max(round(width * scale * fine), 1)
    )
    small = cv2.resize(canvas, (2 * half[0], 2 * half[1]), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255.0), half
