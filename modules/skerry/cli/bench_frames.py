"""From a camera's frame to its event, through real processes: capture, inference, decision and a broker.

This process is in the place of the buffer: it hears every event as that would, and accepts it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from skerry.broker import BrokerProcess
from skerry.capture.settings import Camera, FileSource, SyntheticSource
from skerry.channels import ACCEPTED, DETECTIONS, EVENTS, STATUS
from skerry.cli.bench_site import peak_mb
from skerry.decision.settings import LineRule
from skerry.deploy.local import Supervisor
from skerry.deploy.plan import Part, Place, Plan, plan
from skerry.deploy.site import Site
from skerry.errors import Unavailable
from skerry.inference.settings import ModelUse
from skerry.messages import Accepted, Detections, Status, Submission
from skerry.models.benching.machine import Power
from skerry.models.benching.samples import Answer, Seen, Window, between
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings

Say = Callable[[str], None]

KINDS = ("capture", "inference", "decision")
LINES = 24
"""Across the picture, so that most frames see something cross one."""
_SITE = "bench"
_MODULE = "decision"
_START_S = 180.0
"""Until the first result: an accelerator may compile the model first."""
_SETTLE_S = 0.5
_PATIENCE_S = 20.0
"""For the first frame that leads to an event, on a machine that is very slow."""
_SAY_S = 10.0


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, and on what."""

    use: ModelUse
    cameras: tuple[str, ...]
    video: Path | None = None
    """Shown by every camera, again and again; None: the belt, drawn on the spot."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How frames come."""

    fps: float = 15.0
    """Of each camera; of a drawn one its scene's time too."""
    waiting: int = 0
    """Frames of a camera that may be without a result, each drawn as soon as it may be; 0: in real time."""


@dataclass(frozen=True)
class Run:
    """What came of one life of the processes.

    Attributes:
        window: what was measured.
        seconds: how long.
        start_s: from the start of the processes to the first result.
        memory_mib: peak of inference.
        power_w: mean, where it can be read.
        power_source: what was read.
    """

    window: Window
    seconds: float
    start_s: float
    memory_mib: float
    power_w: float | None
    power_source: str


def run(
    setup: Setup, pace: Pace, cache: Path, say: Say, *, seconds: float, warm_up_s: float, least: int = 0
) -> Run:
    """Start everything, measure, and stop it.

    Args:
        setup: what, on what.
        pace: of the frames.
        cache: where inference remembers what it measured.
        say: told what happens.
        seconds: how long, after the warm-up.
        warm_up_s: from the first result.
        least: frames with an event that it takes; it goes on for up to twice as long until there are so many,
            and a while longer for the first.

    Raises:
        ConfigError, PackageError, Unavailable: a process cannot work.
    """
    with _surroundings() as (work, frames), BrokerProcess(work / "broker") as broker:
        place = Place(
            state=str(work / "state"), frames=str(frames), output=str(work),
            bus=BusSettings(port=broker.port), cache=str(cache),
        )  # fmt: skip
        the_plan = processes(setup, pace, place)
        desk = _Desk(broker.port)
        supervisor = Supervisor(the_plan, work / "logs", None)
        try:
            began = time.monotonic()
            supervisor.start()
            start_s = desk.first_result(supervisor, began)
            say(f"first result after {start_s:.1f} s; warming up for {warm_up_s:g} s")
            _watch(supervisor, desk, warm_up_s)
            power = Power(Path("/sys"), time.monotonic())
            begin_ns = time.monotonic_ns()
            measured = _measured(
                supervisor, desk, power, say, seconds=seconds, least=least, begin_ns=begin_ns
            )
            watts = power.mean_w(time.monotonic())
            end_ns = begin_ns + int(measured * 1e9)
            _watch(supervisor, desk, _SETTLE_S)
            inference = supervisor.children["inference"].process
            memory = peak_mb(inference.pid) if inference is not None else 0.0
            if supervisor.restarts:
                raise Unavailable(f"bench: expected processes that live, {dict(supervisor.restarts)} died")
        finally:
            supervisor.stop()
            desk.close()
    due = pace.fps if not pace.waiting and setup.video is None else None
    window = between(desk.seen, setup.cameras, begin_ns, end_ns, due)
    return Run(window, measured, start_s, memory, watts, power.source)


def processes(setup: Setup, pace: Pace, place: Place) -> Plan:
    """The processes of a site without a buffer and an uplink."""
    site = Site(
        site=_SITE,
        cameras=tuple(_camera(setup, pace, name, n) for n, name in enumerate(setup.cameras)),
        models=(setup.use,),
        rules=tuple(_line(name, n) for name in setup.cameras for n in range(LINES)),
        log_level="warning",
    )
    the_plan = plan(site, place)
    parts = [_paced(part, pace) for part in the_plan.parts if part.kind in KINDS]
    return msgspec.structs.replace(the_plan, parts=tuple(parts))


def _paced(part: Part, pace: Pace) -> Part:
    if part.kind != "capture" or not pace.waiting:
        return part
    settings: Any = msgspec.structs.replace(part.settings, fast_window=pace.waiting)
    return msgspec.structs.replace(part, settings=settings)


def _camera(setup: Setup, pace: Pace, name: str, n: int) -> Camera:
    how: Any = "fast" if pace.waiting else "realtime"
    if setup.video is not None:
        cap = None if pace.waiting else pace.fps
        return Camera(name=name, source=FileSource(path=str(setup.video), loop=True, pace=how), fps=cap)
    return Camera(name=name, source=SyntheticSource(seed=1 + n, fps=pace.fps, stopping=False, pace=how))


def _line(camera: str, n: int) -> LineRule:
    x = 0.08 + 0.84 * n / (LINES - 1)
    return LineRule(name=f"{camera}-{n}", camera=camera, line=((x, 0.0), (x, 1.0)))


@contextmanager
def _surroundings() -> Iterator[tuple[Path, Path]]:
    """A folder for what is written, and one in memory for frames; both end with this."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    work = Path(tempfile.mkdtemp(prefix="skerry-bench-"))
    frames = Path(
        tempfile.mkdtemp(prefix="skerry-bench-", dir=shared if os.access(shared, os.W_OK) else None)
    )
    try:
        yield work, frames
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(frames, ignore_errors=True)


def _measured(
    supervisor: Supervisor, desk: _Desk, power: Power, say: Say, *, seconds: float, least: int, begin_ns: int
) -> float:
    """Wait until enough was seen; how many seconds that was."""
    told = time.monotonic()
    while True:
        _watch(supervisor, desk, min(1.0, seconds / 4))
        power.sample()
        now = time.monotonic()
        past = now - begin_ns / 1e9
        count = desk.frames_since(begin_ns)
        if past >= (seconds if count >= least else 2 * seconds + (0 if count else _PATIENCE_S)):
            return past
        if now - told >= _SAY_S:
            told = now
            say(f"{past:4.0f} of {seconds:g} s  {count} frames with events")


def _watch(supervisor: Supervisor, desk: _Desk, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        supervisor.tend(desk.ever_ready)
        time.sleep(min(0.1, left))


class _Desk:
    """The buffer's end of the bus, with a clock."""

    def __init__(self, port: int) -> None:
        self.seen = Seen()
        self._first_ns: int | None = None
        self._ready: set[str] = set()
        self._lock = threading.Lock()
        self._bus = MqttBus(BusSettings(port=port), _SITE, "buffer")
        self._bus.subscribe(EVENTS, self._on_events, _MODULE)
        self._bus.subscribe(DETECTIONS, self._on_detections)
        self._bus.subscribe(STATUS, self._on_status)
        self._bus.connect()

    def close(self) -> None:
        self._bus.close()

    def ever_ready(self, module: str) -> bool:
        """Whether a module has said that it is ready."""
        return module in self._ready

    def first_result(self, supervisor: Supervisor, began: float) -> float:
        """Wait for it; seconds since then.

        Raises:
            Unavailable: there is none.
        """
        while self._first_ns is None:
            if time.monotonic() - began > _START_S:
                said = supervisor.children["inference"].last_error()
                raise Unavailable(f"bench: expected a result within {_START_S:g} s, got none ({said})")
            _watch(supervisor, self, 0.05)
        return self._first_ns / 1e9 - began

    def frames_since(self, begin_ns: int) -> int:
        """Frames that led to an event, of those taken since then."""
        with self._lock:
            return sum(captured >= begin_ns for captured, _ in self.seen.events.values())

    def _on_events(self, message: Submission) -> None:
        here = time.monotonic_ns()
        with self._lock:
            upto = self.seen.submitted(message.epoch, ((e.seq, e.data) for e in message.events), here)
        self._bus.publish(ACCEPTED, Accepted(producer=_MODULE, epoch=message.epoch, seq=upto), _MODULE)

    def _on_detections(self, message: Detections) -> None:
        if self._first_ns is None and message.status == "ok":
            self._first_ns = time.monotonic_ns()
        self.seen.answers[message.camera].append(
            Answer(message.number, message.captured_ns, message.session_ms, message.status == "ok")
        )

    def _on_status(self, message: Status) -> None:
        if message.state in ("ready", "degraded"):
            self._ready.add(message.module)
