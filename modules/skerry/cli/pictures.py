"""Pictures of a run: an annotated contact sheet and a short annotated clip.

A tap on the bus, in the supervisor's process: it reads frames from the frame store after their
detections arrived, as any reader would, and never slows a module. A frame that is gone by then is
not in the album.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from skerry.bus import Bus
from skerry.channels import DELIVERED, DETECTIONS, FRAMES
from skerry.deploy.site import Site
from skerry.errors import FrameGone
from skerry.frames import RingReader
from skerry.inbox import Inbox
from skerry.messages import Delivered, Detection, Detections, Event, FrameRef

log = structlog.get_logger()

Pixels = npt.NDArray[np.uint8]

_LONGEST = 960  # pixels of a picture's longer side
_KEEP = 600  # frames of the clip, the newest
_FPS = 15.0  # frames a second of media time that are kept
_SHOWN_S = 2.0  # how long an event's line stays in the clip
_CELLS = (4, 3)  # contact sheet: columns, rows
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE_HEIGHT, _STRIP_EVENTS = 22, 3
_ALARM, _EVENT, _INK, _PAPER = (60, 60, 235), (120, 90, 30), (245, 245, 245), (24, 24, 24)
_PALETTE = (
    (231, 180, 86), (0, 158, 230), (115, 158, 0), (66, 228, 240), (178, 114, 0), (167, 121, 204),
    (180, 180, 180),
)  # fmt: skip


class Shot(msgspec.Struct, frozen=True):
    """A frame that was kept, as JPEG, with what inference said of it."""

    result: Detections
    jpeg: bytes


class Album:
    """Collects shots while a site runs and turns them into pictures afterwards.

    Args:
        site: for names, lines and zones.
        bus: a connected or connecting bus.
        frames: the frame store's folder.
        out: where the pictures go.
    """

    def __init__(self, site: Site, bus: Bus, frames: Path, out: Path) -> None:
        self._site = site
        self._out = out
        self._reader = RingReader(frames)
        self._refs: OrderedDict[tuple[str, int], FrameRef] = OrderedDict()
        self._results: Inbox[Detections] = Inbox(depth=4)
        self._shots: deque[Shot] = deque(maxlen=_KEEP)
        self._events: deque[Event] = deque(maxlen=5000)
        self._moments: OrderedDict[tuple[str, int], Shot] = OrderedDict()
        self._kept: Counter[str] = Counter()
        self._next_ns: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._collect, name="album", daemon=True)
        self._thread.start()
        bus.subscribe(FRAMES, self._on_frame)
        bus.subscribe(DETECTIONS, self._on_detections)
        bus.subscribe(DELIVERED, self._on_delivered)

    def stop(self) -> None:
        """Stop collecting; safe to call twice."""
        self._stopping.set()
        self._results.wake()
        self._thread.join(2)

    def finish(self) -> None:
        """Write `contact-sheet.jpg` and `clip.mp4`."""
        self.stop()
        self._promote()
        if not self._shots:
            log.warning("pictures.none", reason="no frame could be read in time")
            return
        sheet = self._sheet()
        cv2.imwrite(str(self._out / "contact-sheet.jpg"), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
        self._clip()

    def _on_frame(self, ref: FrameRef) -> None:
        self._refs[ref.camera, ref.number] = ref
        while len(self._refs) > 256:
            self._refs.popitem(last=False)

    def _on_detections(self, result: Detections) -> None:
        self._results.put(result, key=result.camera)

    def _on_delivered(self, message: Delivered) -> None:
        for raw in message.events:
            with contextlib.suppress(msgspec.DecodeError):  # not ours: nothing to show
                self._events.append(msgspec.json.decode(raw, type=Event))

    def _collect(self) -> None:
        while not self._stopping.is_set():
            result = self._results.get(0.2)
            if result is None:
                continue
            ref = self._refs.pop((result.camera, result.number), None)
            if ref is not None and result.media_ns >= self._next_ns.get(result.camera, result.media_ns):
                self._keep(ref, result)

    def _keep(self, ref: FrameRef, result: Detections) -> None:
        try:
            with self._reader.frame(ref) as pixels:
                jpeg = _encode(_fit(pixels))
        except FrameGone:
            return
        self._next_ns[result.camera] = result.media_ns + int(0.9e9 / _FPS)
        self._shots.append(Shot(result, jpeg))
        if len(self._shots) % 50 == 0:
            self._promote()

    def _promote(self) -> None:
        """Remember the shots at which something happened, a few a rule."""
        shots = {(s.result.camera, s.result.number): s for s in list(self._shots)}
        for event in list(self._events):
            key = str(event.data.get("camera")), int(event.data.get("frame") or 0)
            rule = event.subject
            if key in self._moments or self._kept[rule] >= 6:
                continue
            if key in shots:
                self._moments[key] = shots[key]
                self._kept[rule] += 1

    def _sheet(self) -> Pixels:
        """The most telling frames in a grid: those with events first, spread over the rules."""
        columns, rows = _CELLS
        chosen = self._chosen(columns * rows)
        height = min(s.shape[0] for s in chosen)
        cells = [_fit(s, height=height, width=chosen[0].shape[1]) for s in chosen]
        blank = np.full_like(cells[0], 24)
        cells += [blank] * (-len(cells) % columns)
        lines = [np.hstack(cells[n : n + columns]) for n in range(0, len(cells), columns)]
        sheet = np.vstack(lines)
        scale = min(1.0, 2400 / sheet.shape[1])
        return np.asarray(cv2.resize(sheet, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)

    def _chosen(self, n: int) -> list[Pixels]:
        by_rule: dict[str, list[tuple[str, int]]] = {}
        for event in self._events:
            key = str(event.data.get("camera")), int(event.data.get("frame") or 0)
            if key in self._moments:
                by_rule.setdefault(event.subject, []).append(key)
        keys: list[tuple[str, int]] = []
        for turn in range(6):
            for moments in by_rule.values():
                if turn < len(moments) and moments[turn] not in keys:
                    keys.append(moments[turn])
        shots = [self._moments[k] for k in keys[:n]]
        missing = n - len(shots)
        if missing > 0:
            spread = np.linspace(0, len(self._shots) - 1, missing).astype(int)
            shots += [self._shots[int(i)] for i in spread]
        shots.sort(key=lambda s: s.result.captured_ns)
        return [self._annotate(s) for s in shots]

    def _clip(self) -> None:
        """The kept frames of the first camera as H.264, at the pace of the stream."""
        camera = self._shots[-1].result.camera
        shots = [s for s in self._shots if s.result.camera == camera]
        height, width = _decode(shots[0].jpeg).shape[:2]
        size = width // 2 * 2, height // 2 * 2
        with av.open(str(self._out / "clip.mp4"), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=Fraction(30), options={"crf": "27", "preset": "veryfast"}
            )
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            previous = -1
            for shot in shots:
                picture = np.ascontiguousarray(self._annotate(shot)[: size[1], : size[0]])
                frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
                previous = max(previous + 1, (shot.result.media_ns - shots[0].result.media_ns) // 1_000_000)
                frame.pts, frame.time_base = previous, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    def _annotate(self, shot: Shot) -> Pixels:
        """The picture with its objects and rules, over a strip that says what was decided lately."""
        picture = _decode(shot.jpeg)
        for rule in (rule for rule in self._site.rules if rule.enabled):
            if rule.camera == shot.result.camera:
                _draw_rule(picture, rule)
        if shot.result.status == "failed":
            _tag(picture, (8, 24), f"inference failed: {shot.result.reason}", _ALARM)
        for thing in shot.result.objects:
            _draw_object(picture, thing)
        return np.vstack([picture, self._strip(shot.result, picture.shape[1])])

    def _strip(self, result: Detections, width: int) -> Pixels:
        """Camera, frame and time, and the events of the last seconds of capture time, newest first."""
        strip = np.full((_LINE_HEIGHT * (_STRIP_EVENTS + 1) + 8, width, 3), 24, np.uint8)
        _tag(strip, (8, 18), f"{result.camera}  #{result.number}  {result.time[11:23]}", _PAPER)
        recent = [
            e
            for e in self._events
            if e.data.get("camera") == result.camera
            and int(e.data.get("frame") or 0) <= result.number
            and 0 <= result.captured_ns - int(e.data.get("captured_ns") or 0) < _SHOWN_S * 1e9
        ]
        for n, event in enumerate(reversed(recent[-_STRIP_EVENTS:]), start=1):
            colour = _ALARM if event.lane == "alarm" else _EVENT
            _tag(strip, (8, 18 + _LINE_HEIGHT * n), describe(event), colour)
        return strip


def describe(event: Event) -> str:
    """An event in a few plain words."""
    words = [str(event.data.get("rule", "")), event.type.rpartition(".")[2]]
    words += [str(event.data[k]) for k in ("label", "direction") if event.data.get(k)]
    totals = event.data.get("totals")
    if isinstance(totals, dict):
        words.append(" ".join(f"{k}:{v}" for k, v in totals.items() if not isinstance(v, dict)))
    return " ".join(w for w in words if w)


def _fit(pixels: npt.NDArray[Any], height: int = _LONGEST, width: int = _LONGEST) -> Pixels:
    """Shrink to fit; a grey frame becomes BGR."""
    colour = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels
    scale = min(1.0, height / colour.shape[0], width / colour.shape[1])
    if scale < 1.0:
        colour = cv2.resize(colour, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if height != _LONGEST and colour.shape[:2] != (height, width):
        framed = np.full((height, width, 3), 24, np.uint8)
        framed[: colour.shape[0], : colour.shape[1]] = colour
        return framed
    return np.asarray(colour, np.uint8)


def _encode(picture: Pixels) -> bytes:
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def _decode(jpeg: bytes) -> Pixels:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def _draw_object(picture: Pixels, thing: Detection) -> None:
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = thing.box
    corners = (round(x1 * width), round(y1 * height)), (round(x2 * width), round(y2 * height))
    defect = thing.attributes.get("defect", 0.0)
    colour = _ALARM if defect > 0.5 else _PALETTE[zlib.crc32(thing.label.encode()) % len(_PALETTE)]
    cv2.rectangle(picture, *corners, colour, 2, cv2.LINE_AA)
    words = f"{thing.label} {thing.score:.2f}" + (f" defect {defect:.2f}" if defect > 0.5 else "")
    _tag(picture, (corners[0][0], max(14, corners[0][1] - 4)), words, colour, scale=0.42)


def _draw_rule(picture: Pixels, rule: Any) -> None:
    height, width = picture.shape[:2]
    size = np.array([width, height])
    zone: Sequence[Any] | None = getattr(rule, "zone", None)
    if zone:
        points = np.round(np.array(zone) * size).astype(np.int32)
        cv2.polylines(
            picture, [points], isClosed=True, color=(200, 200, 80), thickness=1, lineType=cv2.LINE_AA
        )
    line: Sequence[Any] | None = getattr(rule, "line", None)
    if line:
        a, b = np.round(np.array(line) * size).astype(int)
        cv2.line(picture, tuple(map(int, a)), tuple(map(int, b)), (80, 220, 255), 2, cv2.LINE_AA)
        _tag(picture, (int(a[0]) + 4, max(40, int(a[1]) + 40)), rule.name, (30, 110, 130), scale=0.42)


def _tag(
    picture: Pixels, at: tuple[int, int], words: str, colour: tuple[int, int, int], scale: float = 0.5
) -> None:
    """Words on a filled box; `at` is the baseline's left end, in pixels."""
    (w, h), base = cv2.getTextSize(words, _FONT, scale, 1)
    x, y = max(0, min(at[0], picture.shape[1] - w - 4)), at[1]
    cv2.rectangle(picture, (x - 2, y - h - 3), (x + w + 2, y + base - 1), colour, cv2.FILLED)
    luminous = 0.11 * colour[0] + 0.59 * colour[1] + 0.3 * colour[2] > 140
    cv2.putText(picture, words, (x, y), _FONT, scale, _PAPER if luminous else _INK, 1, cv2.LINE_AA)
