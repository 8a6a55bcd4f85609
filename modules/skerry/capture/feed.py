"""What an open source offers, and how to open one.

`Feed` has these implementations: `video.VideoFeed` (file, RTSP, MJPEG; PyAV), `device.DeviceFeed`
(V4L2; OpenCV), `pictures.ImagesFeed` and `pictures.SyntheticFeed`. `tests/contract/test_source.py`
runs over all that need no hardware.
"""

from __future__ import annotations

import time
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from skerry.capture import settings as s
from skerry.capture.geometry import Geometry
from skerry.errors import Unavailable

Pixels = npt.NDArray[np.uint8]

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


class Unreachable(Unavailable):
    """The source cannot be opened, or its connection is lost."""


class NoFrames(Unavailable):
    """The source is there and has no picture in it."""


class Stalled(Unavailable):
    """The source is open and nothing comes."""


class Picture(Protocol):
    """One frame as the source has it: nothing is converted before it is known that it is wanted."""

    @property
    def media_ns(self) -> int | None:
        """Presentation time since the source was opened, None where the source knows none."""

    @property
    def width(self) -> int:
        """As delivered."""

    @property
    def height(self) -> int:
        """As delivered."""

    @property
    def upright(self) -> int:
        """Degrees clockwise that make it upright (a phone's video says so)."""

    @property
    def decode_ms(self) -> float:
        """Time spent decoding it."""

    def load(self) -> None:
        """Do what is left to do before pixels exist; nothing for most."""

    def into(self, out: Pixels, geometry: Geometry) -> None:
        """Write it as bgr24 into `out`, of shape `geometry.shape`."""


class Feed(Protocol):
    """An open source. One thread reads; `interrupt` may come from any other."""

    @property
    def corrupt(self) -> int:
        """Packets or files so far that could not be decoded."""

    @property
    def note(self) -> str:
        """Why it ended before it should have; empty when it did not."""

    def read(self) -> Picture | None:
        """The next frame, None at the end.

        Raises:
            Unavailable: the connection is lost, nothing comes in time, or there is no frame in it.
        """

    def interrupt(self) -> None:
        """Make a `read` that waits give up as soon as it can; never blocks."""

    def close(self) -> None:
        """Let go of everything; harmless when repeated."""


class ArrayPicture:
    """A frame that is an array already, (height, width, 3) BGR."""

    upright = 0

    def __init__(self, pixels: Pixels, media_ns: int | None, decode_ms: float) -> None:
        self.media_ns = media_ns
        self.decode_ms = decode_ms
        self.height, self.width = pixels.shape[:2]
        self._pixels = pixels

    def load(self) -> None:
        """It is there."""

    def into(self, out: Pixels, geometry: Geometry) -> None:
        place(self._pixels, out, geometry)


def place(pixels: Pixels, out: Pixels, geometry: Geometry) -> None:
    """Cut, resize and turn an array into `out`, with one pass over the pixels where one suffices."""
    g = geometry
    cut = pixels[g.top : g.top + g.cut_height, g.left : g.left + g.cut_width]
    if g.before_turning == (g.cut_width, g.cut_height):
        turn(cut, out, g.rotate)
        return
    smaller = g.before_turning[0] < g.cut_width
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    if g.rotate:
        turn(np.asarray(cv2.resize(cut, g.before_turning, interpolation=how), np.uint8), out, g.rotate)
    else:
        cv2.resize(cut, g.before_turning, dst=out, interpolation=how)


def turn(pixels: Pixels, out: Pixels, rotate: int) -> None:
    """Copy `pixels` into `out`, turned clockwise by 0, 90, 180 or 270 degrees."""
    if rotate:
        cv2.rotate(pixels, _TURNS[rotate], dst=out)
    else:
        np.copyto(out, pixels)


def milliseconds_since(start: float) -> float:
    """From a `time.perf_counter()` reading until now."""
    return (time.perf_counter() - start) * 1000


def open_feed(source: s.Source, stall_s: float) -> Feed:
    """Open a source.

    Args:
        source: its settings.
        stall_s: longest time that one read of a live source may take.

    Raises:
        Unavailable: it cannot be opened now.
    """
    # each branch imports what it needs: a site with files only never loads the rest
    match source:
        case s.FileSource() | s.RtspSource() | s.MjpegSource():
            from skerry.capture import video  # noqa: PLC0415 - loads FFmpeg

            return video.open_video(source, stall_s)
        case s.V4l2Source():
            from skerry.capture.device import DeviceFeed  # noqa: PLC0415 - rarely needed

            return DeviceFeed(source)
        case s.ImagesSource():
            from skerry.capture.pictures import ImagesFeed  # noqa: PLC0415 - rarely needed

            return ImagesFeed(source)
        case s.SyntheticSource():
            from skerry.capture.pictures import SyntheticFeed  # noqa: PLC0415 - loads the scene

            return SyntheticFeed(source)
