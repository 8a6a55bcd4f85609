"""The scene: a conveyor belt with parts seen from above, rendered for any time, with exact truth.

A picture depends on (seed, conditions, size, time) alone: whatever was rendered before, or left out,
the same time has the same pixels. What is kept between pictures is a bounded cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from skerry.capture.scene.belt import Belt, lay, rails
from skerry.capture.scene.layout import CELL, UNITS, Defect, Kind, Layout, Part
from skerry.capture.scene.light import Light, Noise
from skerry.capture.scene.motion import Motion, Stop
from skerry.capture.scene.sprites import Sprite, draw
from skerry.errors import ConfigError

Bytes = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

_STRIP = 80.0
_RAIL = 0.085
_REACH = 120.0
_SMALLEST = (160, 120)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What may differ from one scene to another; the defaults are the demo's."""

    speed: float = 0.16
    """Mean belt speed, frame widths per second."""
    stopping: bool = True
    """Whether the belt sometimes stands still."""
    density: float = 0.9
    """How full the belt is, 0 to 1."""
    defect_rate: float = 0.14
    """Share of parts with a defect, 0 to 1."""
    touching: float = 0.10
    """Share of places where two parts touch or overlap a little, 0 to 1."""
    clutter: float = 1.0
    """Stains, scratches, swarf; 0 for a clean belt."""
    light: float = 1.0
    """Mean brightness."""
    flicker: float = 0.07
    """How much the brightness changes slowly, as a share of it."""
    warmth: float = 0.0
    """Colour of the light, -1 (blue) to 1 (yellow)."""
    shade: float = 0.30
    """How dark the shadows of passers-by are, 0 to 1."""
    noise: float = 4.0
    """Standard deviation of the sensor's noise, grey levels."""
    exposure_s: float = 0.012
    """Exposure time in seconds: the belt moves meanwhile, which blurs."""


@dataclass(frozen=True)
class PartView:
    """One part as one picture shows it."""

    id: int
    kind: Kind
    defective: bool
    defect: Defect | None
    box: Box
    """x1, y1, x2, y2 of its visible pixels, fractions of the picture."""
    visible: float
    """Share of the part's pixels that the picture shows: not outside it, not under another part."""


@dataclass(frozen=True)
class Outline:
    """Where a part's uncovered pixels are, column by column, relative to its centre."""

    left: int
    top: npt.NDArray[np.int64]
    """(columns,) first row from the picture's top."""
    bottom: npt.NDArray[np.int64]
    """(columns,) one past the last row."""
    count: npt.NDArray[np.int64]
    """(columns,) pixels; 0 where top and bottom mean nothing."""
    total: int
    """Pixels of the part, covered or not."""


class Scene:
    """A conveyor belt with bolts, nuts and washers that move from left to right for ever.

    Args:
        seed: from which everything random is drawn, at least 0.
        width: of the pictures, pixels, at least 160.
        height: of the pictures, pixels, at least 120.
        conditions: light, speed, noise and the rest.

    Raises:
        ConfigError: for a picture too small to draw in, or a speed that is not above 0.
    """

    def __init__(
        self, seed: int = 1, width: int = 640, height: int = 480, conditions: Conditions | None = None
    ) -> None:
        look = conditions or Conditions()
        if width < _SMALLEST[0] or height < _SMALLEST[1]:
            raise ConfigError(
                f"scene: expected at least {_SMALLEST[0]}x{_SMALLEST[1]} pixels, got {width}x{height} "
                "(ask for a larger picture)"
            )
        if look.speed <= 0.0:
            raise ConfigError(f"scene: expected a speed above 0, got {look.speed} (set stopping instead)")
        self.seed, self.width, self.height, self.conditions = seed, width, height, look
        self._scale = min(width / UNITS, height / (UNITS * 0.75))
        self._lane = (round(height * _RAIL), height - round(height * _RAIL))
        self.motion = Motion(seed, look.speed, look.stopping)
        lane = (self._lane[0] / self._scale, self._lane[1] / self._scale)
        self._layout = Layout(seed, lane, look.defect_rate, look.touching, look.density)
        self._belt = Belt(seed, height, self._lane, self._scale, look.clutter)
        self._rails = rails(seed, height, width, self._lane, self._scale)
        self._light = Light(
            seed,
            width,
            height,
            level=look.light,
            flicker=look.flicker,
            warmth=look.warmth,
            shade=look.shade,
        )
        self._noise = Noise(seed, width, height, look.noise)
        self._strip_width = max(round(_STRIP * self._scale), 1)
        strips = 2 * (math.ceil(width / self._strip_width) + 2)
        self._strip = lru_cache(maxsize=strips)(self._draw_strip)
        self._sprite = lru_cache(maxsize=96)(lambda part: draw(part, self._scale))
        self._outline = lru_cache(maxsize=96)(self._trace)

    def render(self, t_s: float) -> Bytes:
        """The picture at `t_s` seconds: (height, width, 3) uint8 BGR, a new array each time."""
        picture = self._blurred(t_s)
        picture[: self._lane[0]] = self._rails[0]
        picture[self._lane[1] :] = self._rails[1]
        return self._noise.apply(self._light.apply(picture, t_s), t_s)

    def truth(self, t_s: float) -> tuple[PartView, ...]:
        """Every part of which the picture at `t_s` shows a pixel, by id."""
        views = (self._view(part, self._shift(t_s)) for part in self._near(t_s, t_s))
        return tuple(view for view in views if view is not None)

    def parts(self, t0_s: float, t1_s: float) -> tuple[Part, ...]:
        """Every part of which some picture with t0_s <= t <= t1_s shows a pixel, by id."""
        shown = []
        for part in self._near(t0_s, t1_s):
            outline = self._outline(part)
            left = self._column(part) + outline.left
            if left + self._shift(t0_s) < self.width and left + len(outline.count) + self._shift(t1_s) > 0:
                shown.append(part)
        return tuple(shown)

    def belt_speed(self, t_s: float) -> float:
        """Speed of the belt at `t_s`, frame widths per second; exactly 0 within a stop."""
        return self.motion.speed(t_s)

    def stops(self, until_s: float) -> tuple[Stop, ...]:
        """Every stop of the belt that begins before `until_s`."""
        return tuple(self.motion.stops(until_s))

    def centre(self, part: Part) -> tuple[float, float]:
        """The middle of the box of the part's uncovered pixels when all of it is in the picture.

        Returns:
            (x, y): x as a fraction of the width at belt distance 0, so the part's x at any time is this
            plus the distance covered; y as a fraction of the height.
        """
        outline = self._outline(part)
        used = np.flatnonzero(outline.count)
        middle = self._column(part) + outline.left + (used[0] + used[-1] + 1) / 2.0
        rows = float(outline.top[used].min() + outline.bottom[used].max()) / 2.0
        return float(middle) / self.width, rows / self.height

    def _near(self, t0_s: float, t1_s: float) -> tuple[Part, ...]:
        """The parts that could be in a picture between the two times, and some more."""
        newest = self.motion.distance(t1_s) * self._units_wide + _REACH
        oldest = (self.motion.distance(t0_s) - 1.0) * self._units_wide - _REACH
        return self._layout.between(oldest + self._units_wide, newest + self._units_wide)

    @property
    def _units_wide(self) -> float:
        return self.width / self._scale

    def _shift(self, t_s: float) -> int:
        """By how many pixels the belt has moved to the right at `t_s`."""
        return round(self.motion.distance(t_s) * self.width)

    def _column(self, part: Part) -> int:
        """The column of the part's centre when the belt has not moved: the belt begins at the right edge."""
        return self.width - round(part.along * self._scale)

    def _blurred(self, t_s: float) -> Bytes:
        """(height, width, 3) the belt at `t_s`, averaged over what passes during the exposure."""
        travel = self.motion.speed(t_s) * self.conditions.exposure_s * self.width
        smear = max(round(travel), 1)
        shift = self._shift(t_s)
        margin = smear // 2
        canvas = self._window(-shift - margin, self.width + 2 * margin)
        if smear == 1:
            return canvas
        blurred = cv2.blur(canvas, (smear, 1))
        return np.asarray(blurred[:, margin : margin + self.width], np.uint8)

    def _window(self, left: int, width: int) -> Bytes:
        """(height, width, 3) the belt's columns from `left` on, parts included."""
        canvas = np.empty((self.height, width, 3), np.uint8)
        step = self._strip_width
        for index in range(left // step, (left + width - 1) // step + 1):
            begin = index * step - left
            x0, x1 = max(begin, 0), min(begin + step, width)
            canvas[:, x0:x1] = self._strip(index)[:, x0 - begin : x1 - begin]
        return canvas

    def _draw_strip(self, index: int) -> Bytes:
        """(height, strip width, 3) columns `index * strip width` on: belt, shadows, parts."""
        left = index * self._strip_width
        strip = self._belt.strip(left, self._strip_width)
        drawn = list(self._sprites_between(left, left + self._strip_width))
        for sprite, x, y in drawn:
            lay(strip, sprite.shadow, x - left, y)
            lay(strip, sprite.picture, x - left, y)
        return np.asarray(np.clip(strip + 0.5, 0.0, 255.0), np.uint8)

    def _sprites_between(self, left: int, right: int) -> Iterator[tuple[Sprite, int, int]]:
        """The sprites that may touch the columns, lowest first, with their centres."""
        start = (self.width - right) / self._scale - _REACH
        end = (self.width - left) / self._scale + _REACH
        for part in self._layout.between(start, end):
            yield self._sprite(part), self._column(part), round(part.across * self._scale)

    def _trace(self, part: Part) -> Outline:
        sprite = self._sprite(part)
        mask = sprite.mask.copy()
        y = round(part.across * self._scale) + sprite.picture.top
        for above in self._layout.between(part.along - CELL, part.along + CELL):
            if above.id == part.under:
                self._uncover(mask, part, above)
        count = mask.sum(axis=0)
        top = mask.argmax(axis=0) + y
        bottom = y + mask.shape[0] - mask[::-1].argmax(axis=0)
        return Outline(sprite.picture.left, top, bottom, count, int(sprite.mask.sum()))

    def _uncover(self, mask: npt.NDArray[np.bool_], part: Part, above: Part) -> None:
        """Clears in `mask` the pixels of `part` that `above` hides."""
        lower, upper = self._sprite(part).picture, self._sprite(above)
        rows = round(above.across * self._scale) - round(part.across * self._scale)
        dx = self._column(above) - self._column(part) + upper.picture.left - lower.left
        dy = rows + upper.picture.top - lower.top
        x0, x1 = max(dx, 0), min(dx + upper.mask.shape[1], mask.shape[1])
        y0, y1 = max(dy, 0), min(dy + upper.mask.shape[0], mask.shape[0])
        if x0 < x1 and y0 < y1:
            mask[y0:y1, x0:x1] &= ~upper.mask[y0 - dy : y1 - dy, x0 - dx : x1 - dx]

    def _view(self, part: Part, shift: int) -> PartView | None:
        outline = self._outline(part)
        left = self._column(part) + outline.left + shift
        first, last = max(-left, 0), min(self.width - left, len(outline.count))
        used = first + np.flatnonzero(outline.count[first:last]) if first < last else np.empty(0, np.int64)
        if used.size == 0:
            return None
        box = (
            (left + int(used[0])) / self.width,
            int(outline.top[used].min()) / self.height,
            (left + int(used[-1]) + 1) / self.width,
            int(outline.bottom[used].max()) / self.height,
        )
        visible = float(outline.count[used].sum() / outline.total)
        return PartView(part.id, part.kind, part.defective, part.defect, box, visible)
