"""Cameras of this machine, through Video4Linux."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import cv2
import numpy as np

from skerry.capture.feed import ArrayPicture, NoFrames, Stalled, Unreachable, milliseconds_since
from skerry.capture.settings import V4l2Source

_RAW_PIXELS = 640 * 480
"""Above this many pixels a USB 2 camera reaches its frame rate only as Motion JPEG."""


class DeviceFeed:
    """A V4L2 device, by OpenCV, which waits for a frame for at most 10 seconds.

    The driver may give another size or rate than asked for; what comes is what counts.

    Raises:
        Unreachable: no such device, no permission, in use, or not a camera.
    """

    corrupt = 0
    note = ""

    def __init__(self, source: V4l2Source) -> None:
        self._device = source.device
        _refuse_what_is_no_device(source.device)
        self._capture = cv2.VideoCapture(source.device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise Unreachable(f"{source.device}: expected a camera, cannot open it as one (is it in use?)")
        self._ask_for(source)
        self._frames = 0

    def _ask_for(self, source: V4l2Source) -> None:
        capture = self._capture
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
        if source.width and source.height and source.width * source.height > _RAW_PIXELS:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        if source.width:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, source.width)
        if source.height:
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, source.height)
        if source.fps:
            capture.set(cv2.CAP_PROP_FPS, source.fps)

    def read(self) -> ArrayPicture | None:
        if not self._capture.grab():
            lost = Stalled if self._frames else NoFrames
            raise lost(f"{self._device}: expected a frame, got none (unplugged?)")
        start = time.perf_counter()
        ok, pixels = self._capture.retrieve()
        if not ok:
            raise Stalled(f"{self._device}: expected a picture, got one that cannot be decoded")
        self._frames += 1
        stamp_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC)  # the driver's, of the frame's arrival
        media_ns = round(stamp_ms * 1_000_000) if stamp_ms > 0 else None
        return ArrayPicture(np.asarray(pixels, np.uint8), media_ns, milliseconds_since(start))

    def interrupt(self) -> None:
        """`grab` gives up by itself; closing a device under it is not safe."""

    def close(self) -> None:
        self._capture.release()


def _refuse_what_is_no_device(path: str) -> None:
    """OpenCV says only that it failed; a person wants to know why."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise Unreachable(f"{path}: {error.strerror} (is the camera plugged in?)") from error
    if not stat.S_ISCHR(mode):
        raise Unreachable(f"{path}: expected a video device, got something else")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Unreachable(f"{path}: no permission for uid {os.getuid()} (add it to the group `video`)")
