"""What light and the sensor make of a picture: level, colour, passing shadows, noise. Fixed to the camera."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

_COARSE = 20
"""Pixels between the samples of the light, which is smooth."""

_UNITY = 128.0
"""The factor 1 in the 8-bit field of light."""

_SWEEP_S = 9.0
_STREAM = 53
_SPARE = 64


class Light:
    """The light of one scene, a pure function of (settings, time).

    Args:
        seed: what its changes are drawn from.
        width: of the picture, pixels.
        height: of the picture, pixels.
        level: mean brightness, 1 as the metals were drawn.
        flicker: slow change of the level, as a share of it.
        warmth: -1 (blue) to 1 (yellow).
        shade: how much a passing shadow takes, 0 to 1.
    """

    def __init__(
        self,
        seed: int,
        width: int,
        height: int,
        *,
        level: float,
        flicker: float,
        warmth: float,
        shade: float,
    ) -> None:
        self._seed = seed
        self._size = (width, height)
        self._level = level
        self._flicker = flicker
        self._warmth = warmth
        self._shade = shade
        self._phases = np.random.default_rng([seed, _STREAM]).uniform(0.0, 2.0 * math.pi, 4)
        coarse = (height // _COARSE + 1, width // _COARSE + 1)
        self._y = np.linspace(0.0, 1.0, coarse[0], dtype=np.float32)[:, None]
        self._x = np.linspace(0.0, 1.0, coarse[1], dtype=np.float32)[None, :]
        lamp = (self._x - 0.42) ** 2 * 0.55 + (self._y - 0.40) ** 2 * 0.42
        self._lamps = np.asarray(1.10 - lamp, np.float32)
        self._sweep = lru_cache(maxsize=4)(self._draw_sweep)

    def apply(self, picture: Bytes, t_s: float) -> Bytes:
        """(h, w, 3) `picture` in the light of time `t_s`."""
        field = cv2.resize(self._field(t_s), self._size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.multiply(picture, field, None, 1.0 / _UNITY), np.uint8)

    def level(self, t_s: float) -> float:
        """The lamp's brightness at `t_s`."""
        a, b, _, _ = self._phases
        slow = math.sin(2.0 * math.pi * t_s / 23.0 + a)
        quick = math.sin(2.0 * math.pi * t_s / 6.1 + b)
        return self._level * (1.0 + self._flicker * (0.65 * slow + 0.35 * quick))

    def _field(self, t_s: float) -> Bytes:
        """(coarse h, coarse w, 3) factors, `_UNITY` for 1."""
        warmth = self._warmth + 0.25 * math.sin(2.0 * math.pi * t_s / 41.0 + self._phases[2])
        colour = np.array([1.0 - 0.10 * warmth, 1.0, 1.0 + 0.08 * warmth], np.float32)
        grey = self._lamps * np.float32(self.level(t_s) * _UNITY) * self._shadow(t_s)
        return np.asarray(np.clip(grey[..., None] * colour, 0.0, 255.0), np.uint8)

    def _shadow(self, t_s: float) -> Floats:
        """(coarse h, coarse w) what a passer-by leaves of the light."""
        number = math.floor(t_s / _SWEEP_S)
        present, depth, lean, breadth, way = self._sweep(number)
        if not present:
            return np.ones_like(self._lamps)
        at = (t_s / _SWEEP_S - number) * 2.4 - 0.7
        at = at if way > 0.0 else 1.0 - at
        off = (self._x - at + lean * (self._y - 0.5)) / breadth
        return np.asarray(1.0 - depth * np.exp(-(off**4)), np.float32)

    def _draw_sweep(self, number: int) -> tuple[bool, float, float, float, float]:
        rng = np.random.default_rng([self._seed, _STREAM, 2**31 + number])
        present = bool(rng.random() < 0.45) and self._shade > 0.0
        depth = self._shade * rng.uniform(0.5, 1.0)
        return present, depth, rng.uniform(-0.4, 0.4), rng.uniform(0.14, 0.30), rng.choice([-1.0, 1.0])


class Noise:
    """The sensor's noise: one large drawn tile, read from another place in every picture.

    Args:
        seed: what it is drawn from.
        width: of the picture, pixels.
        height: of the picture, pixels.
        sigma: standard deviation in grey levels, 0 for none.
    """

    def __init__(self, seed: int, width: int, height: int, sigma: float) -> None:
        self._seed = seed
        self._sigma = sigma
        rng = np.random.default_rng([seed, _STREAM, 1])
        tile = rng.normal(0.0, max(sigma, 0.0), (height + _SPARE, width + _SPARE, 3)).astype(np.float32)
        self._brighter = np.clip(np.round(tile), 0.0, 255.0).astype(np.uint8)
        self._darker = np.clip(np.round(-tile), 0.0, 255.0).astype(np.uint8)

    def apply(self, picture: Bytes, t_s: float) -> Bytes:
        """(h, w, 3) `picture` with the noise of time `t_s`, in place."""
        if self._sigma <= 0.0:
            return picture
        rng = np.random.default_rng([self._seed, _STREAM, 2, 2**40 + round(t_s * 1e6)])
        x, y = rng.integers(0, _SPARE, 2)
        height, width = picture.shape[:2]
        cut = np.s_[y : y + height, x : x + width]
        cv2.add(picture, self._brighter[cut], picture)
        cv2.subtract(picture, self._darker[cut], picture)
        return picture
