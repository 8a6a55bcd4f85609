"""`skerry run`: one site on this machine, every module a process, a ledger at the end."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
import structlog
from rich.console import Console

from skerry.broker import BrokerProcess
from skerry.cli.certs import secure
from skerry.cli.observer import Observer, Runtime
from skerry.cli.screen import Screen, print_report
from skerry.deploy.account import Counts, camera_ledger, event_ledger, read_counts, settled
from skerry.deploy.local import Supervisor
from skerry.deploy.plan import Place, Plan, plan
from skerry.deploy.site import Site
from skerry.errors import ConfigError, SkerryError, Unavailable
from skerry.ledger import CameraLedger, EventLedger, balanced
from skerry.messages import Quantiles, Update
from skerry.mqtt import MqttBus
from skerry.service import configure_logging
from skerry.settings import BusSettings

log = structlog.get_logger()

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it

_SETTLE_S = 10.0
"""After every camera has ended, how long the last frames and events may take to arrive."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run amounted to; `as_json` is the last line that `--json` prints."""

    seconds: float
    cameras: dict[str, CameraLedger]
    events: EventLedger
    latency_ms: dict[str, Quantiles]
    ledger_balanced: bool
    memory_mb: dict[str, float]
    cpu_s: dict[str, float]
    """User and system time by module, the broker's and this process's own included."""
    first_detection_s: float | None
    restarts: dict[str, int]
    runtimes: dict[str, Runtime]
    updates: dict[str, Update]
    """What the updater has made of each slot; empty without an updater."""
    out: str

    def as_json(self) -> str:
        """One JSON object, on one line."""
        return msgspec.json.encode(self).decode()


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run, apart from what the site says."""

    out: Path
    seconds: float | None = None
    json: bool = False
    pictures: bool = False
    secure: bool = False
    """Every module with a certificate of its own, and a broker that holds them to their topics."""


def run_site(site: Site, options: Options, console: Console) -> Result:
    """Run a site until its time is over, its cameras have ended, or a signal comes.

    Raises:
        SkerryError: a module or the surroundings cannot work; everything was stopped first.
    """
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_signals(stop))
        out = stack.enter_context(_output_folder(options.out))
        stack.enter_context(_own_log(out / "logs" / "run.log"))
        frames = stack.enter_context(_frames_folder(site, out))
        began = time.monotonic()
        broker = _broker(site, out)
        certificates = out / "certs"
        place = Place(
            state=str(out / "state"), frames=str(frames), output=str(out), bus=_bus_settings(site, broker),
            cache=_cache(), certificates=str(certificates / "{module}") if options.secure else "",
        )  # fmt: skip
        the_plan = plan(site, place)
        if options.secure:
            _secure(broker, the_plan, certificates)
        if broker is not None:
            stack.callback(broker.stop)
            broker.start()
        before = read_counts(the_plan)
        supervisor = Supervisor(the_plan, out / "logs", broker)
        stack.callback(supervisor.stop)
        supervisor.start()
        bus = MqttBus(place.bus_of("observer"), site.site, f"run-{os.getpid()}", will=None)
        stack.callback(bus.close)
        observer = Observer(bus, began)
        bus.connect()
        run = _Run(site, the_plan, supervisor, observer, before, began, out)
        finish_pictures = _album(stack, site, bus, frames, out) if options.pictures else None
        screen = stack.enter_context(Screen(console, the_plan, observer, f"skerry · {site.site}"))
        run.watch(stop, options.seconds, screen)
        run.drain(screen)
    result = run.result()
    (out / "summary.json").write_text(
        msgspec.json.format(result.as_json(), indent=2) + "\n", encoding="utf-8"
    )
    if finish_pictures is not None:
        with console.status("drawing the contact sheet and the clip"):
            finish_pictures()
    return result


@dataclass
class _Run:
    """A running site and what is known of it."""

    site: Site
    plan: Plan
    supervisor: Supervisor
    observer: Observer
    before: Counts
    """Every module's counts when the run began."""
    began: float
    out: Path
    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)

    def watch(self, stop: threading.Event, seconds: float | None, screen: Screen) -> None:
        """Tend the children until the time is over, every camera has ended, or `stop` is set."""
        cameras = [c.name for c in self.site.cameras]
        ended: float | None = None
        while not stop.wait(0.05):
            self.supervisor.tend(self.observer.ever_ready)
            now = time.monotonic()
            remaining = None if seconds is None else seconds - (now - self.began)
            if remaining is not None and remaining <= 0:
                return
            if self.observer.all_ended(cameras):
                ended = ended or now
                if settled(self.plan, cameras, self.before) or now - ended > _SETTLE_S:
                    return
            screen.update("settling" if ended else "running", self.supervisor.restarts, remaining)

    def drain(self, screen: Screen) -> None:
        """Stop the children in the order of the flow."""
        self.cpu_s = _own_cpu(self.supervisor.broker)
        restarts = self.supervisor.restarts
        self.supervisor.stop(lambda kind: screen.update(f"draining {kind}", restarts, None))
        self.seconds = time.monotonic() - self.began

    def result(self) -> Result:
        """Add up what every module has counted."""
        after = read_counts(self.plan)
        children = self.supervisor.children.values()
        died = any(child.died for child in children if child.part.kind in ("capture", "inference"))
        cameras = {
            c.name: camera_ledger(
                self.plan, c.name, self.before, after, died=died, fps=self.observer.fps(c.name)
            )
            for c in self.site.cameras
        }
        events = event_ledger(self.plan, self.before, after)
        return Result(
            seconds=round(self.seconds, 3),
            cameras=cameras,
            events=events,
            latency_ms=self.observer.latencies(),
            ledger_balanced=balanced(cameras, events),
            memory_mb={p.module: self.observer.peak_mb.get(p.module, 0.0) for p in self.plan.parts},
            cpu_s={**{name: m.cpu_s for name, m in self.observer.metrics.items()}, **self.cpu_s},
            first_detection_s=self.observer.first_detection_s,
            restarts=dict(self.supervisor.restarts),
            runtimes=self.observer.runtimes(),
            updates=dict(self.observer.updates),
            out=str(self.out),
        )


def _cache() -> str:
    """Where this machine's measurements are remembered between runs; empty where there is no home."""
    folder = Path.home() / ".cache" / "skerry"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


def _own_cpu(broker: BrokerProcess | None) -> dict[str, float]:
    """CPU seconds so far of the processes that are no modules."""
    times = time.process_time()
    found = {"run": round(times, 3)}
    if broker is not None and broker.poll() is None:
        used = psutil.Process(broker.pid).cpu_times()
        found["broker"] = round(used.user + used.system, 3)
    return found


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM drains; a second one is left to the default, which ends at once."""

    def handle(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _own_log(path: Path) -> Iterator[None]:
    """The supervisor's log goes to a file, where it does not tear the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as sink:
        configure_logging("json", "info", "run", sink)
        try:
            yield
        finally:
            configure_logging("console", "info", "run")


@contextmanager
def _output_folder(out: Path) -> Iterator[Path]:
    """The output folder, made, writable, and ours alone while the run lasts."""
    out = out.resolve()
    try:
        (out / "state").mkdir(parents=True, exist_ok=True)
        lock = (out / "state" / "lock").open("w", encoding="ascii")
    except OSError as error:
        raise Unavailable(
            f"{out}: cannot write the output folder: {error.strerror} (choose another --out)"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unavailable(
                f"{out}: another run is using this folder (stop it, or choose another --out)"
            ) from error
        yield out


@contextmanager
def _frames_folder(site: Site, out: Path) -> Iterator[Path]:
    """The frame store's folder; one of our own is removed at the end, and what a killed run left first."""
    if site.frames.folder:
        folder = Path(site.frames.folder)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    root = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    folder = root / f"skerry-{site.site}-{hashlib.sha256(str(out).encode()).hexdigest()[:8]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o750)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _broker(site: Site, out: Path) -> BrokerProcess | None:
    if site.bus.host:
        return None
    kind = None if site.bus.broker == "auto" else site.bus.broker
    return BrokerProcess(out / "broker", port=site.bus.port, kind=kind)


def _secure(broker: BrokerProcess | None, the_plan: Plan, folder: Path) -> None:
    """Give everybody a certificate that lasts, and the broker its rules.

    Raises:
        ConfigError: the broker is not one that can be told.
    """
    if broker is None:
        raise ConfigError("--secure: expected a broker of our own, got one that the site names in bus.host")
    if broker.kind != "mosquitto":
        raise ConfigError(
            f"--secure: expected mosquitto, got {broker.kind} (apt-get install mosquitto, or bus.broker)"
        )
    broker.configuration = secure(
        folder, the_plan, dt.datetime.now(dt.UTC), port=broker.port, user="root" if os.geteuid() == 0 else ""
    )


def _bus_settings(site: Site, broker: BrokerProcess | None) -> BusSettings:
    values: dict[str, Any] = {name: getattr(site.bus, name) for name in BusSettings.__struct_fields__}
    if broker is not None:
        values |= {"host": "127.0.0.1", "port": broker.port}
    elif not values["port"]:
        values["port"] = 8883 if values["tls"] else 1883
    return BusSettings(**values)


def _album(stack: ExitStack, site: Site, bus: MqttBus, frames: Path, out: Path) -> Callable[[], None]:
    """Start collecting pictures; returns what finishes them."""
    from skerry.cli.pictures import Album  # noqa: PLC0415 - OpenCV, only where pictures are wanted

    album = Album(site, bus, frames, out)
    stack.callback(album.stop)
    return album.finish


def report(result: Result, options: Options, console: Console) -> int:
    """Print the result; returns the exit code: 0, or 70 when the ledger does not balance."""
    print_report(console, result.cameras, result.events, result.latency_ms, result.memory_mb)
    for model, runtime in result.runtimes.items():
        measured = ", ".join(f"{name} {ms:.1f} ms" for name, ms in sorted(runtime.measured_ms.items()))
        shown = f" (measured here: {measured})" if measured else ""
        console.print(f"Model {model} on {runtime.used}{shown}", highlight=False)
    for name, update in sorted(result.updates.items()):
        under_way = f"; {update.wanted} {update.step}: {update.reason}" if update.step else ""
        console.print(f"Slot {name}: {update.current or 'the bundled model'}{under_way}", highlight=False)
    if result.restarts:
        restarts = "  ".join(f"{name} {n}" for name, n in sorted(result.restarts.items()))
        console.print(f"Restarts: {restarts}", highlight=False)
    verdict = "[green]balanced[/]" if result.ledger_balanced else "[bold red]DOES NOT BALANCE[/]"
    console.print(f"Ledger {verdict}.  Results in {_shown(Path(result.out))}:", highlight=False)
    for name, text in _RESULTS.items():
        if (Path(result.out) / name).exists():
            console.print(f"  {name:<18} {text}", highlight=False)
    if options.json:
        sys.stdout.write(result.as_json() + "\n")
        sys.stdout.flush()
    return 0 if result.ledger_balanced else SkerryError.exit_code


_RESULTS: Mapping[str, str] = {
    "events.jsonl": "the events as the far end received them",
    "summary.json": "ledger, latencies, memory",
    "contact-sheet.jpg": "annotated frames: look here first",
    "clip.mp4": "annotated clip",
    "logs": "one log a module",
}


def _shown(path: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
