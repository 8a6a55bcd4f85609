"""How the belt moves: an exact speed, distance and stop list at any time, without history.

Time is cut into periods of `PERIOD_S`. The belt covers the same distance in every period, so the
distance at any time needs only the period it falls in: a period with a stop catches up before and
after it. Within a period the speed is linear between knots, so distance is its exact integral.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PERIOD_S = 20.0
KNOT_S = 0.05
_KNOTS = round(PERIOD_S / KNOT_S)
_RAMP_KNOTS = round(0.8 / KNOT_S)
_MARGIN_KNOTS = round(2.0 / KNOT_S)
_STREAM = 11


@dataclass(frozen=True)
class Stop:
    """The belt stands still from `start_s` to `end_s` (seconds of scene time, both exact)."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Period:
    start_s: float
    speed: Floats
    """(knots + 1,) speed at each knot, frame widths per second."""
    distance: Floats
    """(knots + 1,) distance since the period began, frame widths."""
    stop: Stop | None


class Motion:
    """The belt's motion, a pure function of (seed, mean speed, time).

    Args:
        seed: what the stops and the ripple of the speed are drawn from.
        mean_speed: mean speed over any period, frame widths per second, above 0.
        stopping: whether the belt ever stops.
    """

    def __init__(self, seed: int, mean_speed: float, stopping: bool = True) -> None:
        self._seed = seed
        self._mean = mean_speed
        self._stopping = stopping
        self._phase = np.random.default_rng([seed, _STREAM]).uniform(0.0, 2.0 * math.pi)
        self._period = lru_cache(maxsize=8)(self._make_period)

    def speed(self, t_s: float) -> float:
        """Speed at `t_s`, frame widths per second, at least 0."""
        period, knot, rest = self._locate(t_s)
        before, after = period.speed[knot], period.speed[knot + 1]
        return float(before + (after - before) * rest / KNOT_S)

    def distance(self, t_s: float) -> float:
        """Distance covered since time 0, frame widths."""
        period, knot, rest = self._locate(t_s)
        before, after = period.speed[knot], period.speed[knot + 1]
        within = period.distance[knot] + before * rest + (after - before) * rest * rest / (2.0 * KNOT_S)
        return float(within) + round(period.start_s / PERIOD_S) * self._mean * PERIOD_S

    def when(self, distance: float) -> float:
        """The first time in seconds at which the belt has covered `distance` frame widths."""
        number = math.floor(distance / (self._mean * PERIOD_S))
        period = self._period(number)
        rest = distance - number * self._mean * PERIOD_S
        knot = int(np.clip(np.searchsorted(period.distance, rest, side="left") - 1, 0, _KNOTS - 1))
        before, after = float(period.speed[knot]), float(period.speed[knot + 1])
        gap = max(rest - float(period.distance[knot]), 0.0)
        slope = (after - before) / KNOT_S
        root = math.sqrt(max(before * before + 2.0 * slope * gap, 0.0))
        step = 2.0 * gap / (before + root) if gap > 0.0 else 0.0
        return period.start_s + knot * KNOT_S + min(step, KNOT_S)

    def stops(self, until_s: float) -> Iterator[Stop]:
        """Every stop that begins before `until_s`, in order."""
        for number in range(math.ceil(until_s / PERIOD_S)):
            stop = self._period(number).stop
            if stop is not None and stop.start_s < until_s:
                yield stop

    def _locate(self, t_s: float) -> tuple[_Period, int, float]:
        number = math.floor(t_s / PERIOD_S)
        within = t_s - number * PERIOD_S
        knot = min(int(within / KNOT_S), _KNOTS - 1)
        return self._period(number), knot, within - knot * KNOT_S

    def _make_period(self, number: int) -> _Period:
        start_s = number * PERIOD_S
        between = self._stop_knots(number)
        times = start_s + np.arange(_KNOTS + 1) * KNOT_S
        envelope = _envelope(between)
        ripple = 1.0 + 0.16 * np.sin(2.0 * math.pi * times / 17.3 + self._phase)
        speed = self._mean * ripple * envelope
        catch_up = _catch_up() * envelope
        missing = self._mean * PERIOD_S - _integral(speed)[-1]
        speed = speed + catch_up * (missing / _integral(catch_up)[-1])
        stop = None
        if between is not None:
            stop = Stop(start_s + between[0] * KNOT_S, start_s + between[1] * KNOT_S)
        return _Period(start_s, speed, _integral(speed), stop)

    def _stop_knots(self, number: int) -> tuple[int, int] | None:
        """The knots between which period `number` stands still: every odd period, some even ones."""
        if not self._stopping or number < 0:
            return None
        rng = np.random.default_rng([self._seed, _STREAM, number])
        if number % 2 == 0 and rng.random() > 0.25:
            return None
        length = int(rng.integers(round(2.5 / KNOT_S), round(5.0 / KNOT_S) + 1))
        edge = _MARGIN_KNOTS + _RAMP_KNOTS
        start = int(rng.integers(edge, _KNOTS - edge - length + 1))
        return start, start + length


def _envelope(between: tuple[int, int] | None) -> Floats:
    """(knots + 1,) factor from 1 down to exactly 0 in the stop and back."""
    if between is None:
        return np.ones(_KNOTS + 1)
    knots = np.arange(_KNOTS + 1)
    away = np.maximum(between[0] - knots, knots - between[1])
    return _smoothstep(away / _RAMP_KNOTS)


def _catch_up() -> Floats:
    """(knots + 1,) where in a period speed may be added: nowhere at its ends, so speed is continuous."""
    knots = np.arange(_KNOTS + 1)
    return _smoothstep(np.minimum(knots, _KNOTS - knots) / (_KNOTS / 8.0))


def _smoothstep(x: Floats) -> Floats:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _integral(speed: Floats) -> Floats:
    """(knots + 1,) cumulative trapezoids, from 0."""
    return np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) * (KNOT_S / 2.0))])
