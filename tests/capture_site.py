"""A capture module's surroundings in one process: what its tests look at."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import numpy as np

from footage import number_of
from skerry.bus import MemoryBroker, MemoryBus
from skerry.capture.settings import CaptureSettings
from skerry.channels import CAMERAS, DETECTIONS, FRAMES, STATUS
from skerry.frames import RingReader
from skerry.messages import CameraStatus, Detections, FrameRef, Status
from skerry.settings import parse


def gate(source: dict, **options) -> dict:
    """A camera named `gate`."""
    return {"name": "gate", "source": source, **options}


class Site:
    """A capture module's surroundings: a bus, a frame store, and someone who looks at the frames."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames = folder / "frames"
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.other = MemoryBus(self.broker)
        self.refs: list[FrameRef] = []
        self.shown: list[int] = []
        self.pixels: np.ndarray | None = None
        self.said: list[CameraStatus] = []
        self.resolve = True
        self.in_hand = self.most_in_hand = 0
        self._counting = threading.Lock()
        self.numbers = False
        self._reader = RingReader(self.frames)
        self._to_answer: queue.SimpleQueue[FrameRef] = queue.SimpleQueue()
        threading.Thread(target=self._infer, daemon=True).start()
        self.other.subscribe(FRAMES, self._look)
        self.other.subscribe(CAMERAS, self.said.append)

    def settings(self, *cameras: dict, **options) -> CaptureSettings:
        raw = {
            "site": "test", "module": "capture", "state": str(self.folder / "state"),
            "frames": str(self.frames), "consumer_wait_s": 0, "cameras": list(cameras), **options,
        }  # fmt: skip
        for camera in cameras:
            camera.setdefault("backoff", {"first_s": 0.05, "longest_s": 0.2})
        return parse(CaptureSettings, raw, "test")

    def states(self, camera: str = "gate") -> list[str]:
        """The states of a camera, each once for as long as it lasted."""
        said = [s.state for s in list(self.said) if s.camera == camera]
        return [s for n, s in enumerate(said) if n == 0 or said[n - 1] != s]

    def state(self, camera: str = "gate") -> str:
        """The newest state of a camera."""
        return ["", *self.states(camera)][-1]

    def last(self, camera: str = "gate") -> CameraStatus:
        return [s for s in list(self.said) if s.camera == camera][-1]

    def of(self, camera: str = "gate") -> list[FrameRef]:
        return [ref for ref in list(self.refs) if ref.camera == camera]

    def say(self, kind: str, state: str) -> None:
        self.other.publish(STATUS, Status(module=kind, kind=kind, state=state), kind)

    def _look(self, ref: FrameRef) -> None:
        self.refs.append(ref)
        with self._reader.frame(ref) as pixels:
            self.pixels = pixels.copy()
            if self.numbers:
                self.shown.append(number_of(pixels))
        with self._counting:
            self.in_hand += 1
            self.most_in_hand = max(self.most_in_hand, self.in_hand)
        if self.resolve and ref.keep:
            self._to_answer.put(ref)

    def _infer(self) -> None:
        """Stands for inference: answers in order, on a thread of its own."""
        while True:
            self._answer(self._to_answer.get())

    def _answer(self, ref: FrameRef) -> None:
        """Say that the frame was inferred."""
        with self._counting:
            self.in_hand -= 1
        result = Detections(
            camera=ref.camera, number=ref.number, sequence=ref.number, status="ok", time=ref.time,
            captured_ns=ref.captured_ns, media_ns=ref.media_ns, inferred_ns=ref.captured_ns,
            width=ref.width, height=ref.height,
        )  # fmt: skip
        self.other.publish(DETECTIONS, result, ref.camera)
