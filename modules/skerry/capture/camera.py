"""One camera: a thread that reads its source into the frame store, for as long as the module runs.

Whatever goes wrong with the source degrades this camera alone and is tried again. A read that never
comes back is left to itself: the camera goes on with a new thread and a new source, and what the old
one may still deliver is thrown away.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import structlog

from skerry.bus import Bus
from skerry.capture.feed import Feed, Picture, Pixels
from skerry.capture.geometry import Geometry, mask_points
from skerry.capture.pace import Limit, LiveClock, RealTime, Retry
from skerry.capture.settings import Camera, CaptureSettings, MjpegSource, RtspSource, is_live
from skerry.capture.window import Consumers, Window
from skerry.channels import CAMERAS, FRAMES
from skerry.clock import utc
from skerry.errors import SkerryError
from skerry.frames import RingWriter
from skerry.messages import CameraStatus, FrameRef
from skerry.service import Host

State = Literal["starting", "live", "degraded", "ended", "stopped"]
Open = Callable[[], Feed]

_S = 1_000_000_000
_FPS_OVER_S = 3.0
_ABANDONED = 3
"""Threads that may hang in a source at a time; more would be a leak without end."""

log = structlog.get_logger()


class Session:
    """One thread's life with a camera. `over` tells it that nobody waits for it any more."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.feed: Feed | None = None
        self.waiting_since: float | None = None
        """Monotonic time since which it has been waiting for the source, None when it is not."""
        self.corrupt_seen = 0


class CameraWorker:
    """Captures one camera.

    Args:
        camera: its settings.
        settings: the module's.
        bus: where frames and states are published.
        host: counts and faults.
        open_feed: opens the source; raises `Unavailable`.
        window: of a fast source, None for the others.
        consumers: who resolves frames; a fast source waits for them.

    Attributes:
        newest: the last frame that was written; None before the first.
    """

    def __init__(
        self,
        camera: Camera,
        settings: CaptureSettings,
        bus: Bus,
        host: Host,
        *,
        open_feed: Open,
        window: Window | None,
        consumers: Consumers,
    ) -> None:
        self.camera = camera
        self.name = camera.name
        self.window = window
        self._settings = settings
        self._bus = bus
        self._host = host
        self._open_feed = open_feed
        self._consumers = consumers
        self._live = is_live(camera.source)
        self._key = f"{camera.name}/captured"
        self._ring: RingWriter | None = None
        self._masks: tuple[tuple[int, int], list[Pixels]] = ((0, 0), [])
        self._limit = Limit(camera.fps)
        self._clock = LiveClock()
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._state: State = "starting"
        self._reason = ""
        self._size = (0, 0)
        self.newest: FrameRef | None = None
        self._times: deque[float] = deque(maxlen=4096)
        self._session = Session()
        self._threads: list[threading.Thread] = []

    # --- from the module's main thread -----------------------------------------------------------

    def adjust(self, camera: Camera) -> None:
        """Go by other settings from the next frame on: its `fps`, `more_masks`, `stall_s` and `late_s`.

        A frame that is being written now is finished first, as it was begun; every later one has the new
        masks.
        """
        with self._lock:
            self.camera = camera
            self._masks = (0, 0), []

    def start(self) -> None:
        """Begin to capture, on a new thread."""
        self._session = Session()
        thread = threading.Thread(
            target=self._run, args=(self._session,), name=f"camera-{self.name}", daemon=True
        )
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def watch(self, now: float) -> None:
        """Notice a source that says nothing, and leave a thread behind that does not come back."""
        session, since = self._session, self._session.waiting_since
        if since is None or session.over.is_set():
            return
        silent_s = now - since
        allowed_s = self._allowed_s(opened=session.feed is not None)
        if silent_s <= allowed_s:
            return
        feed = session.feed
        if feed is not None:
            feed.interrupt()
        if self.state != "degraded":
            self._host.telemetry.count("skerry_source_stalls_total", camera=self.name)
            self._degrade(session, f"expected a frame every {allowed_s:g} s, got none")
        if silent_s > 2 * allowed_s + 2 and len(self._threads) <= _ABANDONED:
            log.warning("camera.abandoned", camera=self.name, silent_s=round(silent_s, 1))
            session.over.set()
            self._host.telemetry.count("skerry_source_reconnects_total", camera=self.name)
            self.start()

    def end(self) -> None:
        """Tell the thread to stop; does not wait."""
        session = self._session
        session.over.set()
        feed = session.feed
        if feed is not None:
            feed.interrupt()

    def stop(self, within_s: float) -> None:
        """After `end`: wait for the thread, remove the ring, say `stopped`."""
        self._threads[-1].join(within_s)
        with self._lock:
            if self._ring is not None:
                self._ring.close()
                self._ring = None
        self._tell("stopped", self._reason if self._state == "ended" else "")

    def announce(self) -> None:
        """Publish the state as it is."""
        with self._telling:
            self._publish_status()

    @property
    def state(self) -> State:
        return self._state

    @property
    def fps(self) -> float:
        """Captured frames a second, over the last seconds."""
        times, now = list(self._times), time.monotonic()
        recent = sum(1 for t in times if now - t <= _FPS_OVER_S)
        return recent / _FPS_OVER_S

    @property
    def captured(self) -> int:
        """Number of the last frame."""
        return self._host.tally[self._key]

    # --- on the camera's own thread --------------------------------------------------------------

    def _run(self, session: Session) -> None:
        retry = Retry(self.camera.backoff, random.Random())  # noqa: S311 - jitter is no secret
        while not session.over.is_set():
            try:
                self._stream(session, retry)
            except SkerryError as error:
                reason = str(error)
            except Exception as error:
                log.exception("camera.failed", camera=self.name, error=str(error))
                reason = f"{type(error).__name__}: {error}"
            else:
                return
            finally:
                session.waiting_since = None
                _close(session)
            self._degrade(session, reason)
            session.over.wait(retry.wait_s())
            self._host.telemetry.count("skerry_source_reconnects_total", camera=self.name)

    def _stream(self, session: Session, retry: Retry) -> None:
        """Capture until the source ends, or fails, or the session is over."""
        session.waiting_since = time.monotonic()
        session.corrupt_seen = 0
        feed = self._open_feed()
        session.feed = feed
        self._clock.restart()
        pace = RealTime(round(self.camera.late_s * _S))
        while not session.over.is_set():
            picture = self._read(session, feed)
            if picture is None:
                if self._live:
                    raise SkerryError("the camera ended the stream")
                self._end(session, feed.note)
                return
            retry.succeeded()
            when = self._due(session, picture, pace)
            if when is not None:
                self._capture(session, picture, *when)

    def _read(self, session: Session, feed: Feed) -> Picture | None:
        session.waiting_since = time.monotonic()
        try:
            return feed.read()
        finally:
            session.waiting_since = None
            if feed.corrupt > session.corrupt_seen:
                self._skip("corrupt", feed.corrupt - session.corrupt_seen)
                session.corrupt_seen = feed.corrupt

    def _due(self, session: Session, picture: Picture, pace: RealTime) -> tuple[int, int] | None:
        """Wait until the frame is due.

        Returns:
            Its media time and the monotonic time at which it was there, in ns; None when it is not to be
            captured.
        """
        now, camera = time.monotonic_ns(), self.camera
        self._limit.change(camera.fps)
        late_ns = pace.late_ns = round(camera.late_s * _S)
        if self._live:
            moment = self._clock.of(picture.media_ns, now)
            media_ns = moment.media_ns
            late = moment.lag_ns > late_ns
        else:
            media_ns = now if picture.media_ns is None else picture.media_ns
            late = False
        if not self._limit.takes(media_ns):
            self._skip("fps_limit")
            return None
        if late:
            self._skip("late")
            return None
        if self.window is not None:
            picture.load()
            if not self._await_consumer(session, self.window):
                return None
            now = time.monotonic_ns()
        elif not self._live:
            if pace.lead_ns(media_ns, now) is None:
                self._skip("late")
                return None
            picture.load()  # drawn before it is due: a camera's exposure is over when its frame comes
            lead = pace.lead_ns(media_ns, time.monotonic_ns())
            session.over.wait((lead or 0) / _S)
            now = time.monotonic_ns()
        return None if session.over.is_set() else (media_ns, now)

    def _await_consumer(self, session: Session, window: Window) -> bool:
        """Wait until one more frame may be sent to whoever resolves it; whether to go on."""
        while not session.over.is_set():
            if not (self._bus.connected and self._consumers.expected()):
                session.over.wait(0.02)
                continue
            before = window.overdue
            room = window.room(0.1)
            if window.overdue > before:
                self._host.telemetry.count(
                    "skerry_results_overdue_total", window.overdue - before, camera=self.name
                )
            if room:
                return True
        return False

    def _capture(self, session: Session, picture: Picture, media_ns: int, captured_ns: int) -> None:
        """Pixels into a slot, the count, then the reference: a kill in between shows as a jump."""
        moment = time.time() - (time.monotonic_ns() - captured_ns) / _S
        geometry = Geometry.of(self.camera, picture.width, picture.height, picture.upright)
        with self._lock:
            if session.over.is_set():
                return
            ring = self._ring_for(geometry)
            with ring.slot(geometry.shape) as slot:
                picture.into(slot.pixels, geometry)
                self._mask(slot.pixels)
            self._host.tally.add({self._key: 1})
            number = self._host.tally[self._key]
        reference = FrameRef(
            camera=self.name, number=number, time=utc(moment), captured_ns=captured_ns, media_ns=media_ns,
            ring=ring.name, slot=slot.index, generation=slot.generation,
            width=geometry.width, height=geometry.height, keep=self.window is not None,
        )  # fmt: skip
        self.newest = reference
        self._send(session, reference)
        telemetry = self._host.telemetry
        telemetry.latency("capture_decode", camera=self.name).add(picture.decode_ms)
        telemetry.latency("capture_store", camera=self.name).add((time.monotonic_ns() - captured_ns) / 1e6)
        self._size = (geometry.width, geometry.height)
        self._times.append(time.monotonic())
        if self._state != "live":
            self._recover()

    def _send(self, session: Session, reference: FrameRef) -> None:
        if self.window is not None:
            self.window.sent(reference.number)
        while not self._bus.publish(FRAMES, reference, self.name):
            if self.window is None:
                self._host.telemetry.count("skerry_frames_unsent_total", camera=self.name)
                return
            if session.over.wait(0.05):  # its slot is safe: nobody else writes this ring
                return

    def _ring_for(self, geometry: Geometry) -> RingWriter:
        """The ring, made anew when the picture has outgrown it."""
        if self._ring is not None and geometry.nbytes > self._ring.slot_bytes:
            self._ring.close()
            self._ring = None
        if self._ring is None:
            folder = Path(self._settings.frames)
            self._ring = RingWriter.create(folder, self.name, self._settings.slots, geometry.nbytes)
        return self._ring

    def _mask(self, pixels: Pixels) -> None:
        """Paint the masks black, before anyone can see the slot."""
        height, width = pixels.shape[:2]
        if self._masks[0] != (width, height):
            corners = mask_points(self.camera, width, height)
            self._masks = (width, height), [np.array(c, np.int32) for c in corners]
        for polygon in self._masks[1]:  # each by itself: together, what two of them share stays bare
            cv2.fillPoly(pixels, [polygon], (0, 0, 0))

    def _skip(self, reason: str, frames: int = 1) -> None:
        self._host.telemetry.count("skerry_source_skipped_total", frames, camera=self.name, reason=reason)

    # --- what is said of it ----------------------------------------------------------------------

    def _degrade(self, session: Session, reason: str) -> None:
        if session.over.is_set():
            return
        self._host.fault(f"camera {self.name}", reason)
        self._tell("degraded", reason)

    def _recover(self) -> None:
        log.info("camera.live", camera=self.name, width=self._size[0], height=self._size[1])
        self._host.clear(f"camera {self.name}")
        self._tell("live", "")

    def _end(self, session: Session, note: str) -> None:
        log.info("camera.ended", camera=self.name, captured=self.captured, note=note)
        if not session.over.is_set():
            self._host.clear(f"camera {self.name}")
            self._tell("ended", note)

    def _tell(self, state: State, reason: str) -> None:
        with self._telling:
            self._state, self._reason = state, reason
            self._publish_status()

    def _publish_status(self) -> None:
        status = CameraStatus(
            camera=self.name, state=self._state, reason=self._reason, captured=self.captured,
            width=self._size[0], height=self._size[1], fps=round(self.fps, 2), time=utc(),
        )  # fmt: skip
        self._bus.publish(CAMERAS, status, self.name)

    def _allowed_s(self, opened: bool) -> float:
        source = self.camera.source
        if not opened and isinstance(source, RtspSource | MjpegSource):
            return self.camera.stall_s + source.timeout_s
        return self.camera.stall_s


def _close(session: Session) -> None:
    feed, session.feed = session.feed, None
    if feed is not None:
        feed.close()
