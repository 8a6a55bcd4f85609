"""Measures what decoding costs, for docs/adr/0007: PyAV against cv2.VideoCapture, and what comes after.

    python scripts/measure_decode.py VIDEO... [--frames N] [--rounds N] [--json]

Each way runs on the same video, round by round in turn so that a change of the machine's load meets all
of them; the figures are medians over the rounds. CPU time is of the whole process, all threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from skerry.capture.feed import Picture
from skerry.capture.geometry import Geometry
from skerry.capture.settings import Camera, FileSource
from skerry.capture.video import open_video

SMALL = (320, 180)
HALF = (0.25, 0.25, 0.75, 0.75)
Way = Callable[[str, int], int]


def decoded(path: str, frames: int, threads: str) -> Iterator[av.VideoFrame]:
    """Frames as the decoder has them, from the beginning again when the file is too short."""
    left = frames
    while left:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = threads
            for frame in itertools.islice(container.decode(stream), left):
                left -= 1
                yield frame


def pyav(use: Callable[[av.VideoFrame], object], threads: str = "SLICE") -> Way:
    def way(path: str, frames: int) -> int:
        count = 0
        for frame in decoded(path, frames, threads):
            use(frame)
            count += 1
        return count

    return way


def opencv(read: bool, copy: bool = False, resize: bool = False) -> Way:
    def way(path: str, frames: int) -> int:
        count, slot = 0, None
        while count < frames:
            capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
            while count < frames and capture.grab():
                count += 1
                if not read:
                    continue
                _, pixels = capture.retrieve()
                if resize:
                    pixels = cv2.resize(pixels, SMALL)
                if copy:
                    slot = np.empty_like(pixels) if slot is None else slot
                    np.copyto(slot, pixels)
            capture.release()
        return count

    return way


def skerry(**options: object) -> Way:
    """As capture does it: one pass of swscale, then the copy into the slot."""

    def way(path: str, frames: int) -> int:
        source = FileSource(path=path, loop=True)
        camera = Camera(name="x", source=source, **options)
        feed, slot = open_video(source, 5), None
        for _ in range(frames):
            picture: Picture | None = feed.read()
            assert picture is not None
            geometry = Geometry.of(camera, picture.width, picture.height)
            slot = np.empty(geometry.shape, np.uint8) if slot is None else slot
            picture.into(slot, geometry)
        feed.close()
        return frames

    return way


def to_i420_and_opencv() -> Callable[[av.VideoFrame], object]:
    """The way around swscale: gather the planes, and let OpenCV convert straight into the slot."""
    buffers: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def use(frame: av.VideoFrame) -> None:
        h, w = frame.height, frame.width
        if (h, w) not in buffers:
            buffers[h, w] = np.empty((h * 3 // 2, w), np.uint8), np.empty((h, w, 3), np.uint8)
        gathered, slot = buffers[h, w]
        flat, at = gathered.reshape(-1), 0
        for plane, (rows, columns) in zip(
            frame.planes, ((h, w), (h // 2, w // 2), (h // 2, w // 2)), strict=True
        ):
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            flat[at : at + rows * columns].reshape(rows, columns)[:] = lines[:rows, :columns]
            at += rows * columns
        cv2.cvtColor(gathered, cv2.COLOR_YUV2BGR_I420, dst=slot)

    return use


def reformat(threads: int) -> Callable[[av.VideoFrame], object]:
    converter = VideoReformatter()
    return lambda frame: converter.reformat(
        frame, format="bgr24", interpolation=Interpolation.BILINEAR, threads=threads
    )


def ways() -> dict[str, Way]:
    return {
        "PyAV, decode only, no threads": pyav(lambda _: None, "NONE"),
        "PyAV, decode only, SLICE": pyav(lambda _: None),
        "PyAV, decode only, AUTO (frame threads)": pyav(lambda _: None, "AUTO"),
        "cv2, grab only": opencv(read=False),
        "PyAV, to_ndarray": pyav(lambda frame: frame.to_ndarray(format="bgr24")),
        "PyAV, swscale with its own threads": pyav(reformat(0)),
        "PyAV, swscale with one thread": pyav(reformat(1)),
        "PyAV, planes, cv2.cvtColor into the slot": pyav(to_i420_and_opencv()),
        "cv2, read": opencv(read=True),
        "cv2, read, copy into the slot": opencv(read=True, copy=True),
        "capture, into the slot": skerry(),
        "cv2, read, resize, copy into the slot": opencv(read=True, copy=True, resize=True),
        "capture, resized, into the slot": skerry(width=SMALL[0], height=SMALL[1]),
        "capture, a quarter of the picture, into the slot": skerry(roi=HALF),
    }


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def in_threads(way: Way, path: str, frames: int, cameras: int) -> tuple[float, float]:
    """Frames a second, and milliseconds of CPU time a frame, with a thread for each camera.

    Never on the main thread: there glibc gives the memory of each converted frame back to the system
    and faults it in again for the next, which the camera threads do not suffer.
    """
    before, began = cpu_s(), time.perf_counter()
    threads = [threading.Thread(target=way, args=(path, frames)) for _ in range(cameras)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = cameras * frames
    return count / (time.perf_counter() - began), (cpu_s() - before) / count * 1000


def in_processes(path: str, frames: int, cameras: int) -> tuple[float, float]:
    """The same by several cameras at once, a process each; their start is not counted."""
    context = get_context("spawn")
    gate, results = context.Barrier(cameras + 1), context.SimpleQueue()
    children = [context.Process(target=_child, args=(path, frames, gate, results)) for _ in range(cameras)]
    for child in children:
        child.start()
    gate.wait()
    began = time.perf_counter()
    used = sum(results.get() for _ in children)
    took = time.perf_counter() - began
    for child in children:
        child.join()
    return cameras * frames / took, used / (cameras * frames) * 1000


def _child(path: str, frames: int, gate: Any, results: Any) -> None:
    in_threads(skerry(), path, 10, 1)
    gate.wait()
    before = cpu_s()
    in_threads(skerry(), path, frames, 1)
    results.put(cpu_s() - before)


def run(path: str, frames: int, rounds: int, cameras: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, way in ways().items():
            found.setdefault(name, []).append(in_threads(way, path, frames, 1))
        for n in dict.fromkeys((2, cameras)):
            name = f"capture, {n} cameras, a thread each"
            found.setdefault(name, []).append(in_threads(skerry(), path, frames, n))
            name = f"capture, {n} cameras, a process each"
            found.setdefault(name, []).append(in_processes(path, frames, n))
    return {
        name: {
            "fps": round(statistics.median(r[0] for r in results), 1),
            "cpu_ms": round(statistics.median(r[1] for r in results), 3),
            "cpu_ms_least": round(min(r[1] for r in results), 3),
        }
        for name, results in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", nargs="+")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for path in arguments.video:
        result = run(path, arguments.frames, arguments.rounds, arguments.cameras)
        if arguments.json:
            print(json.dumps({"video": path, "ways": result}))
            continue
        print(f"\n{path}: {arguments.frames} frames, median of {arguments.rounds} rounds")
        print(f"{'':52} {'frames/s':>9} {'CPU ms/frame':>13} {'least':>7}")
        for name, row in result.items():
            print(f"{name:52} {row['fps']:9.0f} {row['cpu_ms']:13.3f} {row['cpu_ms_least']:7.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
