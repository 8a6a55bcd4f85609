"""A device with an updater and an inference module, somebody who publishes for it, and frames that go on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import onnx

import needs
from inference_site import Camera, Site
from publisher import Publisher
from skerry import audit
from skerry.bus import Bus, MemoryBus
from skerry.channels import ACTIVATIONS, DESIRED, INVENTORY
from skerry.desired import digest
from skerry.inference.module import run as infer
from skerry.inference.settings import InferenceSettings
from skerry.messages import Activations, Desired, Detections, Inventory, SlotUse, Update
from skerry.models import layout
from skerry.models.slots import Slots, read_slots
from skerry.mqtt import MqttBus
from skerry.service import Host
from skerry.settings import BusSettings, parse
from skerry.testing import eventually, running
from skerry.trust.packages import TrustedPackage
from skerry.updater.module import run as update
from skerry.updater.settings import UpdaterSettings
from tiny_models import bright_model, write_package

QUICK = {"shadow_frames": 3, "shadow_s": 5, "probation_s": 0.2}
SLOT = "belt"
THOROUGH = os.environ.get("SKERRY_THOROUGH") == "1"
"""Whether to try all there is: every attack, every moment to be killed at, every bad model. Takes minutes."""
WITHIN_S = 30.0
"""For anything to happen; a busy machine takes its time."""


class Maker:
    """Who makes packages, and publishes them in a folder.

    Args:
        room: for what is made; the repository is `room/repository`.
        now: when the first root is signed, POSIX seconds; None: an hour ago.
    """

    def __init__(self, room: Path, now: float | None = None, **more: Any) -> None:
        self.room = room
        self.publisher = Publisher(room / "repository", now=now or time.time() - 3600, **more)
        self.folder = self.publisher.folder

    def release(
        self,
        version: str,
        model: onnx.ModelProto | None = None,
        change: Callable[[Path], object] = lambda _: None,
        epoch: int = 0,
        said: dict[str, Any] | None = None,
        **changes: Any,
    ) -> TrustedPackage:
        """Make, pack and sign a package that runs.

        Args:
            version: of it.
            model: what it computes; `bright_model` unless another is given.
            change: what is done to the folder before it is packed.
            epoch: its security epoch.
            said: signed of it in place of the truth.
            changes: of its manifest.
        """
        folder = self.package(version, model, **changes)
        change(folder)
        packed = layout.pack(folder, self.folder, security_epoch=epoch)
        about = {
            "name": packed.config.name, "version": version, "security_epoch": epoch,
            "length": packed.listing.size, **(said or {}),
        }  # fmt: skip
        package = TrustedPackage(digest=f"sha256:{packed.listing.digest}", **about)
        self.publisher.add(package)
        return package

    def package(self, version: str, model: onnx.ModelProto | None = None, **changes: Any) -> Path:
        """The folder of a package that runs; of one version there is one of each name."""
        folder = self.room / f"{changes.get('name', 'tiny')}-{version}"
        return write_package(folder, model or bright_model(), version=version, **changes)

    def publish_root(self, device: Device) -> None:
        """Give the device the first root, as an image does."""
        device.root.write_bytes(self.publisher.anchor)


@dataclass
class Frames:
    """Frames of one camera, one after the other, until `stop`.

    Attributes:
        period_s: between two frames.
        brightness: of those that come, or what says it for each.
        kept: the source waits for the module, as a file does; else a frame may be superseded.
    """

    camera: Camera
    period_s: float = 0.02
    brightness: float | Callable[[], float] = 0.5
    kept: bool = False

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name=f"frames-{self.camera.name}", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            grey = self.brightness() if callable(self.brightness) else self.brightness
            self.camera.shoot(grey, keep=self.kept, captured_ns=time.monotonic_ns())
            due = max(due + self.period_s, time.monotonic())
            self._over.wait(due - time.monotonic())

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)


@dataclass
class Device(Site):
    """Both modules over a bus in memory, on threads.

    `path/bundled` is the package that came with it, `path/store` its model store, `path/1.root.json` what
    it was given to trust.
    """

    slots: dict[str, dict[str, Any]] = field(default_factory=lambda: {SLOT: {"model": "tiny"}})
    sources: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path.mkdir(exist_ok=True)
        super().__post_init__()
        self.root = self.path / "1.root.json"
        self.store = self.path / "store"
        self.activations: list[Activations] = []
        self._inventories: list[Inventory] = []
        self.hosts: dict[str, Host] = {}
        self.buses: list[MqttBus] = []
        """Of modules, where they are on a real broker."""
        self._frames: list[Frames] = []
        self._cameras: dict[str, Camera] = {}
        self.bus.subscribe(ACTIVATIONS, self.activations.append, "inference")
        self.bus.subscribe(INVENTORY, self._inventories.append)

    # Settings

    def use(self, slot: str = SLOT, bundled: str = "bundled", **changes: Any) -> dict[str, Any]:
        """A model of inference that has a slot."""
        return {
            "package": str(self.path / bundled), "runtime": "onnxruntime", "threads": 1, "slot": slot,
            "exchange": QUICK, **changes,
        }  # fmt: skip

    def inference_settings(self, *uses: dict[str, Any], **changes: Any) -> InferenceSettings:
        return self.settings(*(uses or (self.use(),)), store=str(self.store), **changes)

    def updater_settings(self, **changes: Any) -> UpdaterSettings:
        raw = {
            "site": "test", "module": "updater", "state": str(self.path / "updater"), "check_s": 1,
            "store": str(self.store), "root": str(self.root), "sources": self.sources, "slots": self.slots,
            "room": {"floor_bytes": 0}, **changes,
        }  # fmt: skip
        return parse(UpdaterSettings, raw, "test")

    # Running

    @contextmanager
    def on(self, *uses: dict[str, Any], updater: dict[str, Any] | None = None) -> Iterator[Device]:
        """Both modules run; frames that were begun end with them."""
        with ExitStack() as stack:
            stack.callback(self.still)
            stack.enter_context(self.inferring(*uses))
            stack.enter_context(self.updating(**(updater or {})))
            yield self

    @contextmanager
    def inferring(self, *uses: dict[str, Any]) -> Iterator[Host]:
        settings = self.inference_settings(*uses)
        with running(infer, settings, self.another_bus(), "inference") as host:
            self.hosts["inference"] = host
            eventually(lambda: host.condition[0] != "starting", 30)
            yield host

    @contextmanager
    def updating(self, **changes: Any) -> Iterator[Host]:
        with running(update, self.updater_settings(**changes), self.another_bus(), "updater") as host:
            self.hosts["updater"] = host
            eventually(lambda: host.condition[0] != "starting", 30)
            yield host

    def another_bus(self) -> Bus:
        return MemoryBus(self.bus.broker)

    def frames(self, camera: str = "gate", **changes: Any) -> Frames:
        """Have frames come from now on."""
        if camera not in self._cameras:
            self._cameras[camera] = self.camera(camera)
        frames = Frames(self._cameras[camera], **changes)
        self._frames.append(frames)
        return frames

    def still(self) -> None:
        """No frame comes any more."""
        while self._frames:
            self._frames.pop().stop()

    # What there is

    def use_of(self, slot: str = SLOT) -> SlotUse:
        """What inference said last."""
        said = self.activations[-1].slots if self.activations else ()
        return next((use for use in said if use.slot == slot), SlotUse(slot=slot, model=""))

    def named(self, slot: str = SLOT) -> Slots:
        """What the store names."""
        return read_slots(self.store, slot)

    def update(self, slot: str = SLOT) -> Update:
        """What the updater said last."""
        said = [each.updates for each in self._inventories if each.kind == "updater"]
        return next((u for u in (said[-1] if said else ()) if u.slot == slot), Update(slot=slot))

    def serves(self, package: TrustedPackage | None, slot: str = SLOT) -> bool:
        """Whether store and inference agree that it serves (None: the bundled one), and nothing is tried."""
        wanted = package.manifest.digest if package is not None else ""
        slots = self.named(slot)
        return (slots.current or "") == self.use_of(slot).digest == wanted and slots.trial is None

    def audited(self, *what: str) -> list[audit.Entry]:
        """The updater's audit entries of these kinds, or all."""
        found = audit.entries(self.path / "updater" / "audit")
        return [entry for entry in found if not what or entry.what in what]

    @property
    def ailment(self) -> str:
        """What the updater says is wrong with it."""
        return self.hosts["updater"].condition[1]

    def models(self, camera: str = "gate") -> list[str]:
        """What has given the results of a camera, one entry for each change."""
        seen = [result.model for result in list(self.results) if result.camera == camera]
        return [model for n, model in enumerate(seen) if n == 0 or model != seen[n - 1]]

    def desire(self, module: str, version: str, patch: dict[str, Any]) -> None:
        """Say what is desired of a module."""
        message = Desired(module=module, version=version, digest=digest(patch), patch=patch)
        self.bus.publish(DESIRED, message, module)

    def until(self, fact: Callable[[], object], within_s: float | None = None) -> None:
        """Wait for it, and say what there was where it does not come."""
        try:
            eventually(fact, within_s or WITHIN_S)
        except AssertionError as error:
            said = f"{self.use_of()}\n{self.update()}\n{self.named()}\n{self.ailment}"
            raise AssertionError(f"{error}\n{said}") from None


@dataclass
class Wired(Device):
    """A device on a real broker, so that one of its modules can be a process."""

    port: int = 0
    name: str = "test"

    def another_bus(self) -> Bus:
        bus = MqttBus(BusSettings(port=self.port), self.name, f"bus-{len(self.buses)}")
        bus.connect()
        self.buses.append(bus)
        return bus

    def given(self, kind: str, **changes: Any) -> dict[str, Any]:
        """Settings of one of the modules, as a process gets them."""
        own = self.inference_settings(self.use()) if kind == "inference" else self.updater_settings(**changes)
        return msgspec.to_builtins(own) | {"site": self.name, "bus": {"port": self.port}}

    def process(self, kind: str, moment: str, **changes: Any) -> subprocess.Popen[bytes]:
        """One of the modules, which kills itself at a moment; see `delivered`."""
        file = self.path / f"{kind}.json"
        file.write_bytes(msgspec.json.encode(self.given(kind, **changes)))
        command = [sys.executable, str(needs.ROOT / "tests" / "delivered.py"), str(file), kind]
        environment = {**os.environ, "PYTHONPATH": str(needs.ROOT / "tests")}
        with (self.path / f"{kind}.log").open("ab") as log:
            return subprocess.Popen([*command, *moment.split()], env=environment, stdout=log, stderr=log)


@contextmanager
def wired(path: Path, port: int, site: str) -> Iterator[Wired]:
    """A device on a broker, that came with version 1.0.0; its source is `repository` beside it."""
    bus = MqttBus(BusSettings(port=port), site, "rest")
    bus.connect()
    device = Wired(path, bus=bus, port=port, name=site)  # type: ignore[arg-type]  # another kind of bus
    device.sources = [{"kind": "folder", "path": str(path.parent / "repository")}]
    write_package(path / "bundled", bright_model(), version="1.0.0")
    try:
        yield device
    finally:
        device.still()
        for each in (*device.buses, bus):
            each.close()


def gaps(results: list[Detections], camera: str) -> list[float]:
    """Seconds between each two results of a camera."""
    times = [result.inferred_ns / 1e9 for result in results if result.camera == camera]
    return [after - before for before, after in pairwise(times)]


def balanced(terms: dict[str, int]) -> bool:
    """Whether every frame that came is accounted for, once."""
    known = terms["received"] + terms.get("base", 0)
    return known == sum(n for term, n in terms.items() if term not in ("received", "base"))


@contextmanager
def bundled(path: Path, maker: Maker, **changes: Any) -> Iterator[Device]:
    """A device that came with version 1.0.0, and is on; frames come."""
    device = Device(path, **changes)
    write_package(path / "bundled", bright_model(), version="1.0.0")
    maker.publish_root(device)
    device.sources = device.sources or [{"kind": "folder", "path": str(maker.folder)}]
    with device.on():
        device.frames()
        yield device
