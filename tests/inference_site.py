"""An inference module over the bus in memory, with cameras that capture into a real frame store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry.bus import MemoryBus
from skerry.channels import CAMERAS, DETECTIONS, FRAMES
from skerry.frames import RingWriter
from skerry.inference.module import run
from skerry.inference.settings import InferenceSettings
from skerry.ledger import Tally
from skerry.messages import CameraStatus, Detections, FrameRef
from skerry.service import Host
from skerry.settings import parse
from skerry.testing import eventually, running
from tiny_models import frame


@dataclass
class Camera:
    """Captures pictures into a real ring and says so on the bus."""

    folder: Path
    bus: MemoryBus
    name: str = "gate"
    number: int = 0
    ring: RingWriter = field(init=False)

    def __post_init__(self) -> None:
        self.ring = RingWriter.create(self.folder, self.name, slots=8, slot_bytes=64 * 64 * 3)

    def shoot(self, brightness: float = 0.5, **changes: Any) -> FrameRef:
        """Capture and publish one frame."""
        return self.publish(self.capture(brightness, **changes))

    def capture(self, brightness: float = 0.5, **changes: Any) -> FrameRef:
        self.number += 1
        picture = frame(brightness)
        slot, generation = self.ring.write(picture)
        values = {
            "camera": self.name, "number": self.number, "time": "2026-01-01T00:00:00.000Z", "captured_ns": 1,
            "media_ns": 7, "ring": self.ring.name, "slot": slot, "generation": generation,
            "width": picture.shape[1], "height": picture.shape[0], "keep": True, "trace": "00-a-b-01",
        }  # fmt: skip
        return FrameRef(**(values | changes))

    def publish(self, ref: FrameRef) -> FrameRef:
        self.bus.publish(FRAMES, ref, self.name)
        return ref

    def say(self, state: Any, captured: int | None = None) -> None:
        last = self.number if captured is None else captured
        self.bus.publish(CAMERAS, CameraStatus(camera=self.name, state=state, captured=last), self.name)


@dataclass
class Site:
    """A place with one inference module, a bus and what came out."""

    path: Path
    bus: MemoryBus = field(default_factory=MemoryBus)
    results: list[Detections] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.path / "frames").mkdir()
        self.bus.subscribe(DETECTIONS, self.results.append)

    def camera(self, name: str = "gate", number: int = 0) -> Camera:
        return Camera(self.path / "frames", self.bus, name, number)

    def settings(self, *models: dict[str, Any], **changes: Any) -> InferenceSettings:
        used = models or ({"package": str(self.path / "package"), "runtime": "onnxruntime"},)
        raw = {
            "site": "test", "module": "inference", "state": str(self.path / "state"), "grace_s": 2.0,
            "frames": str(self.path / "frames"), "models": list(used), "retry_s": 0.01,
        }  # fmt: skip
        return parse(InferenceSettings, raw | changes, "test")

    @contextmanager
    def running(self, *models: dict[str, Any], **changes: Any) -> Iterator[Host]:
        with running(run, self.settings(*models, **changes), MemoryBus(self.bus.broker), "inference") as host:
            eventually(lambda: host.condition[0] == "ready")
            yield host

    def terms(self, camera: str = "gate") -> dict[str, int]:
        with Tally(self.path / "state" / "tally") as tally:
            counts = tally.snapshot()
        return {
            k.removeprefix(f"{camera}/"): n for k, n in counts.items() if k.startswith(f"{camera}/") and n
        }
