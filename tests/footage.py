"""Pictures that carry their number, and videos of them: what tests of capture look at."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np

BITS = 8
SIZE = (320, 240)
"""Width and height in pixels."""


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture whose upper half shows `number` as eight bars, and whose lower half is blue, green, red."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255
    for channel in range(3):
        picture[height // 2 :, channel * width // 3 : (channel + 1) * width // 3, channel] = 220
    return picture


def number_of(pixels: np.ndarray) -> int:
    """The number that a picture shows; raises where a bar is neither black nor white."""
    height, width = pixels.shape[:2]
    number = 0
    for bit in range(BITS):
        bar = pixels[: height // 2, bit * width // BITS : (bit + 1) * width // BITS]
        middle = bar[bar.shape[0] // 4 : bar.shape[0] * 3 // 4, bar.shape[1] // 4 : bar.shape[1] * 3 // 4]
        level = float(middle.mean())
        assert level < 60 or level > 195, f"bar {bit} is neither black nor white: {level}"
        number |= int(level > 128) << bit
    return number


def write_video(
    path: Path,
    frames: int,
    *,
    fps: int = 10,
    size: tuple[int, int] = SIZE,
    gop: int = 10,
    bframes: int = 2,
    faststart: bool = True,
) -> Path:
    """An H.264 file of numbered pictures, 0 to `frames` - 1; `faststart` puts an MP4's index first."""
    options = {"movflags": "faststart"} if faststart and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(gop), "bf": str(bframes), "crf": "18", "preset": "veryfast"}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number % 256, size), format="bgr24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def write_images(folder: Path, count: int, size: tuple[int, int] = SIZE) -> Path:
    """A folder of numbered PNG pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        assert cv2.imwrite(str(folder / f"{number:04}.png"), numbered(number, size))
    return folder


def jpeg(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """A numbered picture as JPEG."""
    ok, data = cv2.imencode(".jpg", numbered(number, size))
    assert ok
    return data.tobytes()
