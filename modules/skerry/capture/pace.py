"""When a frame is taken, and what its time is: pure, with every clock an argument. All times in ns."""

from __future__ import annotations

import random
from dataclasses import dataclass

from skerry.capture.settings import Backoff

_S = 1_000_000_000


class Limit:
    """Takes at most `fps` frames a second of media time, evenly.

    A frame may come a quarter of a step early and still be taken: a camera whose rate is the limit
    itself loses nothing to its jitter, and the mean stays at the limit.
    """

    def __init__(self, fps: float | None) -> None:
        self._fps = fps
        self._step = None if fps is None else round(_S / fps)
        self._next: int | None = None
        self._last: int | None = None
        """When the last frame was due that was taken, as of the last change or without a limit."""

    def change(self, fps: float | None) -> None:
        """Go by another limit, counted from the last frame that was taken."""
        if fps == self._fps:
            return
        if self._step is not None and self._next is not None:
            self._last = self._next - self._step
        self._fps = fps
        self._step = None if fps is None else round(_S / fps)
        self._next = None if self._step is None or self._last is None else self._last + self._step

    def takes(self, media_ns: int) -> bool:
        """Whether to take the frame of this time."""
        if self._step is None:
            self._last = media_ns
            return True
        if self._next is None or media_ns < self._next - 2 * self._step:
            self._next = media_ns  # the first frame, or the media's clock went back
        if media_ns < self._next - self._step // 4:
            return False
        self._next += self._step
        if self._next <= media_ns - self._step:
            self._next = media_ns + self._step  # after a gap there is nothing to catch up
        return True


class RealTime:
    """Follows a file's clock with the monotonic one, and stays current when it cannot.

    A frame more than `late_ns` behind is to be skipped; that may be set anew at any time. After `_PATIENCE`
    of them in a row skipping evidently does not help (decoding itself is too slow): time slips, and the next
    frame is on time.
    """

    _PATIENCE = 15

    def __init__(self, late_ns: int) -> None:
        self.late_ns = late_ns
        self._base: int | None = None
        self._skipped = 0

    def lead_ns(self, media_ns: int, now_ns: int) -> int | None:
        """How long until the frame is due, 0 when it is due or a little late, None to skip it."""
        if self._base is None:
            self._base = now_ns - media_ns
        lead = self._base + media_ns - now_ns
        if lead >= -self.late_ns:
            self._skipped = 0
            return max(lead, 0)
        self._skipped += 1
        if self._skipped <= self._PATIENCE:
            return None
        self._base, self._skipped = now_ns - media_ns, 0
        return 0


@dataclass(frozen=True)
class Moment:
    """A live frame's place in time."""

    media_ns: int
    """On this machine's monotonic scale, rising for ever."""
    lag_ns: int
    """How much later than usual it arrived, 0 or more."""


class LiveClock:
    """Puts a live stream's timestamps on the monotonic scale, over reconnects and drifting clocks.

    The stream's own spacing is kept. What is usual for a frame's delay is the smallest of the last ten
    to twenty seconds; the scale is pulled towards it by at most a thousandth, which is ten times what
    quartz drifts.
    """

    _WINDOW = 10 * _S
    _JUMP = 10 * _S

    def __init__(self) -> None:
        self._last_media: int | None = None
        self.restart()

    def restart(self) -> None:
        """The stream begins again: its timestamps mean something new."""
        self._offset: int | None = None
        self._last_raw = 0
        self._last_now = 0
        self._floors: list[int] = []
        self._window_began = 0

    def of(self, raw_ns: int | None, now_ns: int) -> Moment:
        """The moment of a frame.

        Args:
            raw_ns: its presentation time in the stream, None where there is none.
            now_ns: monotonic time at which it was there.
        """
        if raw_ns is None:
            return Moment(self._rising(now_ns), 0)
        delay = now_ns - raw_ns
        if self._offset is None or raw_ns < self._last_raw or abs(delay - min(self._floors)) > self._JUMP:
            self.restart()
            self._offset, self._floors, self._window_began = delay, [delay], now_ns
        else:
            self._note(delay, now_ns)
        floor = min(self._floors)
        most = (now_ns - self._last_now) // 1000 if self._last_now else 0
        self._offset += max(-most, min(most, floor - self._offset))
        self._last_raw, self._last_now = raw_ns, now_ns
        return Moment(self._rising(raw_ns + self._offset), delay - floor)

    def _note(self, delay: int, now_ns: int) -> None:
        if now_ns - self._window_began > self._WINDOW:
            self._floors, self._window_began = [self._floors[-1], delay], now_ns
        else:
            self._floors[-1] = min(self._floors[-1], delay)

    def _rising(self, media_ns: int) -> int:
        if self._last_media is not None and media_ns <= self._last_media:
            media_ns = self._last_media + 1
        self._last_media = media_ns
        return media_ns


class Retry:
    """Waits between attempts: growing, bounded, and never the same for two cameras.

    Source: Brooker, Exponential Backoff And Jitter (2015), "equal jitter".
    """

    def __init__(self, settings: Backoff, chance: random.Random) -> None:
        self._settings = settings
        self._chance = chance
        self._attempts = 0

    def wait_s(self) -> float:
        """How long to wait before the next attempt, in seconds."""
        full = self._settings.first_s * self._settings.factor ** min(self._attempts, 64)
        self._attempts += 1
        return min(full, self._settings.longest_s) * self._chance.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """The next failure is the first again."""
        self._attempts = 0
