"""The newest picture of a camera for somebody outside, as far as the camera's privacy setting goes.

A snapshot is made where the command is answered, never on a camera's own thread; capturing does not wait.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from skerry.capture.feed import Pixels
from skerry.capture.settings import Camera
from skerry.commands import MOST_ANSWER_BYTES, Snapshot
from skerry.errors import FrameGone, SkerryError
from skerry.frames import RingReader
from skerry.messages import FrameRef
from skerry.remote import Refused

_COARSE = 32
"""Pixels that are left of the longer side of a blurred picture: a person is a blot then."""
_QUALITIES = (85, 70, 55)
_SHRINK = 0.8
_SMALLEST = 32
_REST_BYTES = 1024
"""Of the answer, for all but the picture."""
_TRIES = 5
_FORBIDDEN, _UNKNOWN, _NONE_YET = 403, 404, 503


class Shown(Protocol):
    """A camera that is captured."""

    camera: Camera

    @property
    def newest(self) -> FrameRef | None:
        """The last frame that was written; None before the first."""

    @property
    def state(self) -> str:
        """How the camera is."""


def answer(asked: Snapshot, cameras: Iterable[Shown], folder: Path) -> dict[str, Any]:
    """The body of the answer.

    Args:
        asked: the command.
        cameras: that are captured here.
        folder: of the frame store.

    Raises:
        Refused: with 403 where the site file does not allow it, with 404 where there is no such camera,
            with 503 where it has no picture.
    """
    shown = {one.camera.name: one for one in cameras}
    camera = shown.get(asked.camera)
    if camera is None:
        known = ", ".join(sorted(shown))
        raise Refused(_UNKNOWN, f"camera: expected one of {known}, got {asked.camera!r}")
    allowed = camera.camera.snapshots
    if allowed == "never":
        raise Refused(
            _FORBIDDEN,
            f"camera {asked.camera}: its setting `snapshots` is never "
            "(set blurred or allowed in the site file, and deploy it)",
        )
    ref, pixels = _newest(camera, folder)
    _paint(pixels, camera.camera)
    made = picture(pixels, asked.width, MOST_ANSWER_BYTES - _REST_BYTES, blurred=allowed == "blurred")
    return {
        "camera": asked.camera, "time": ref.time, "number": ref.number, "state": camera.state,
        "age_s": round((time.monotonic_ns() - ref.captured_ns) / 1e9, 3), "blurred": allowed == "blurred",
        **made.fields,
    }  # fmt: skip


def _newest(camera: Shown, folder: Path) -> tuple[FrameRef, Pixels]:
    """A copy of the newest frame. It reads as inference does: the writer never waits for it."""
    reader = RingReader(folder)
    name, state = camera.camera.name, camera.state
    for _ in range(_TRIES):
        ref = camera.newest
        if ref is None:
            raise Refused(_NONE_YET, f"camera {name} has no picture yet, it is {state} (try later)")
        try:
            with reader.frame(ref) as pixels:
                copy = pixels.copy()
        except FrameGone:
            continue  # written over meanwhile: there is a newer one
        return ref, copy
    raise Refused(_NONE_YET, f"camera {name}: each picture was gone before it was copied (try later)")


def _paint(pixels: Pixels, camera: Camera) -> None:
    """Masks that were set after the frame was captured count as well."""
    height, width = pixels.shape[:2]
    for polygon in (*camera.masks, *camera.more_masks):
        corners = np.array([(round(x * width), round(y * height)) for x, y in polygon], np.int32)
        cv2.fillPoly(pixels, [corners], (0, 0, 0))


class Picture:
    """A picture that is ready to be sent: `jpeg`, and its `width` and `height` in pixels."""

    def __init__(self, jpeg: bytes, width: int, height: int) -> None:
        self.jpeg = jpeg
        self.width = width
        self.height = height

    @property
    def fields(self) -> dict[str, Any]:
        """As a part of an answer."""
        return {
            "width": self.width, "height": self.height, "format": "jpeg",
            "image": base64.b64encode(self.jpeg).decode(),
        }  # fmt: skip


def picture(pixels: Pixels, width: int, most_bytes: int, *, blurred: bool) -> Picture:
    """A JPEG at most `width` wide, smaller and coarser until it fits.

    Args:
        pixels: bgr24, masks painted.
        width: in pixels; nothing is made wider than it is.
        most_bytes: of the JPEG in base64.
        blurred: take out what could tell one person from another.

    Raises:
        SkerryError: it does not fit at any size.
    """
    full = pixels.shape[1], pixels.shape[0]
    if blurred:
        pixels = _resized(pixels, _scaled(full, min(1.0, _COARSE / max(full))))
    size = _scaled(full, min(1.0, width / full[0]))
    while True:
        shown = _resized(pixels, size)
        for quality in _QUALITIES:
            done, encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, quality])
            if done and -(-encoded.size // 3) * 4 <= most_bytes:
                return Picture(encoded.tobytes(), *size)
        if max(size) <= _SMALLEST:
            raise SkerryError(f"expected a picture of at most {most_bytes} bytes, got more at any size")
        size = _scaled(size, _SHRINK)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """(width, height), each 1 or more."""
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    have = pixels.shape[1], pixels.shape[0]
    if have == size:
        return pixels
    smaller = size[0] <= have[0] and size[1] <= have[1]
    out = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.asarray(out, np.uint8)
