"""What turns a module's `run(settings, bus, host)` into a process.

`main` is the whole of a module's `__main__`: settings from `SKERRY_SETTINGS` (JSON, or `@FILE`), the
bus, signals, status with a last will, metrics, health endpoints, the watchdog and the exit code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO, TypeVar, cast

import structlog

from skerry import __version__
from skerry.adjuster import Adjuster
from skerry.bus import Bus
from skerry.channels import METRICS, STATUS
from skerry.clock import boot_id, utc
from skerry.commands import ChangeLogLevel, Diagnostics, Ping, Restart
from skerry.desired import Check, nothing
from skerry.diagnostics import Gatherer
from skerry.errors import ConfigError, PackageError, SkerryError, Unavailable
from skerry.ledger import Tally
from skerry.logbook import LOGBOOK
from skerry.messages import Metrics, State, Status
from skerry.redact import cleaned
from skerry.remote import Remote
from skerry.settings import LogLevel, ModuleSettings, parse_json
from skerry.telemetry import Telemetry

S = TypeVar("S", bound=ModuleSettings)
Run = Callable[[S, Bus, "Host"], None]

SETTINGS = "SKERRY_SETTINGS"
RESTART_ASKED = 75
"""Exit code of a module that wants to be started again: somebody asked for it, or its settings would not do.

Source: sysexits.h, EX_TEMPFAIL. Not 0, because some supervisors only start again what failed."""
_METRICS_EVERY_S = 1.0
_LET_GO_S = 0.2
"""How long the end of the process waits for what is under way with settings, e.g. a slow disk."""
_ANSWER_S = 0.2
"""Between the answer to a command that ends the process, and its end."""

log = structlog.get_logger()


class Host:
    """What the process offers to the module that runs in it.

    Attributes:
        stopping: set when the module should drain and return.
        tally: counts that survive kill -9, in the module's state folder.
        telemetry: counters and latencies for /metrics, the bus and the screen.
        state: the module's own folder.
        remote: settings that change while it runs, and commands.
        restart_asked: whether the process should end with `RESTART_ASKED`.
    """

    def __init__(
        self, settings: ModuleSettings, kind: str, bus: Bus, adjuster: Adjuster[Any] | None = None
    ) -> None:
        self.settings = settings
        self.kind = kind
        self.bus = bus
        self.stopping = threading.Event()
        self.telemetry = Telemetry()
        self.state = Path(settings.state)
        self.tally = Tally(_writable(self.state) / "tally")
        self.remote = Remote(bus, kind, adjuster or Adjuster(settings, self.state / "desired.json"))
        self.restart_asked = False
        self.boot = boot_id()
        self._beat = time.monotonic()
        self._started = time.monotonic()
        self._ready = False
        self._faults: dict[str, str] = {}
        self._lock = threading.Lock()
        self._said: tuple[State, str] | None = None
        self._gauges: list[Callable[[], None]] = []
        self.fps: Callable[[], float] = lambda: 0.0
        self.queue: Callable[[], int] = lambda: 0

    def beat(self) -> None:
        """Tell the watchdog that the main loop moves; call it at least every few seconds."""
        self._beat = time.monotonic()

    def ready(self) -> None:
        """The module has all it needs to work."""
        self._ready = True
        self.remote.ready()
        self.announce()

    def fault(self, about: str, reason: str) -> None:
        """The module works on, degraded: `about` names what is wrong, e.g. a camera."""
        reason = cleaned(reason)  # it goes everywhere, and what a library says of an address is its own
        with self._lock:
            changed = self._faults.get(about) != reason
            self._faults[about] = reason
        if changed:
            log.warning("module.degraded", about=about, reason=reason)
            self.announce()

    def clear(self, about: str) -> None:
        """What `about` named is well again."""
        with self._lock:
            known = self._faults.pop(about, None)
        if known is not None:
            log.info("module.recovered", about=about)
            self.announce()

    def before_metrics(self, refresh: Callable[[], None]) -> None:
        """Call `refresh` before each metrics message and scrape, to set gauges."""
        self._gauges.append(refresh)

    @property
    def condition(self) -> tuple[State, str]:
        """State and reason as they are now."""
        with self._lock:
            if not self._ready:
                return "starting", "; ".join(f"{k}: {v}" for k, v in self._faults.items())
            if self._faults:
                return "degraded", "; ".join(f"{k}: {v}" for k, v in self._faults.items())
            return "ready", ""

    @property
    def alive(self) -> bool:
        """Whether the main loop has moved within the watchdog's time."""
        return time.monotonic() - self._beat < self.settings.watchdog_s

    def announce(self, always: bool = False) -> None:
        """Publish the retained status if it changed."""
        condition = self.condition
        if condition != self._said or always:
            self._said = condition if self._publish(*condition) else None

    def goodbye(self, reason: str = "") -> None:
        """Publish the last status and the last metrics."""
        self.publish_metrics()
        self._publish("stopped", reason)

    def publish_metrics(self) -> None:
        """Send what was counted so far."""
        self.refresh()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        message = Metrics(
            module=self.settings.module,
            kind=self.kind,
            uptime_s=round(time.monotonic() - self._started, 3),
            rss_mb=round(rss_mb(), 1),
            cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
            fps=round(self.fps(), 2),
            queue=self.queue(),
            counters=self.telemetry.values(),
            latency_ms=self.telemetry.quantiles(),
        )
        self.bus.publish(METRICS, message, self.settings.module)

    def refresh(self) -> None:
        """Bring gauges up to date."""
        for refresh in self._gauges:
            refresh()
        for reason, n in list(self.bus.rejected.items()):
            self.telemetry.gauge("skerry_messages_rejected_total", n, reason=reason)

    def _publish(self, state: State, reason: str) -> bool:
        status = Status(
            module=self.settings.module, kind=self.kind, state=state, reason=reason,
            time=utc(), version=__version__, pid=os.getpid(),
        )  # fmt: skip
        return self.bus.publish(STATUS, status, self.settings.module)


def last_will(settings: ModuleSettings, kind: str) -> Status:
    """What the broker says of a module that vanished."""
    return Status(
        module=settings.module,
        kind=kind,
        state="lost",
        reason="connection lost",
        version=__version__,
        pid=os.getpid(),
    )


def load(kind: type[S], environment: Mapping[str, str] | None = None) -> S:
    """The module's settings, from `SKERRY_SETTINGS`: JSON, or `@FILE` that holds it.

    The only place that reads the environment.

    Raises:
        ConfigError: unset, unreadable or wrong; every problem is named.
    """
    text = (os.environ if environment is None else environment).get(SETTINGS, "")
    if not text:
        raise ConfigError(f"{SETTINGS}: expected JSON or @FILE, got nothing (set the variable)")
    where = SETTINGS
    if text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{where}: cannot read the settings: {error.strerror}") from error
    return parse_json(kind, text, where)


def main(kind: str, settings_type: type[S], run: Run[S], check: Check[S] = nothing) -> int:
    """Run one module as this process; returns its exit code.

    Args:
        kind: capture, inference, decision, buffer, uplink or updater.
        settings_type: of the module.
        run: the module.
        check: what types cannot see in settings that are changed from outside.
    """
    configure_logging("json", "info", kind)
    adjuster: Adjuster[S] | None = None
    try:
        deployed = load(settings_type)
        configure_logging(deployed.log, deployed.log_level, deployed.module)
        adjuster = Adjuster(deployed, _writable(Path(deployed.state)) / "desired.json", check)
        return _serve(kind, adjuster, run)
    except (ConfigError, PackageError) as error:
        if adjuster is not None and adjuster.on_trial:
            adjuster.failed(str(error))
            return RESTART_ASKED
        return _ended(error)
    except SkerryError as error:
        return _ended(error)
    except Exception as error:
        log.exception("module.crashed", error=str(error))
        return SkerryError.exit_code


def _ended(error: SkerryError) -> int:
    """Say why the module ends; its exit code."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            log.error("config.wrong", problem=problem)
            print(problem, file=sys.stderr)
    else:
        log.error("module.failed", error=str(error), kind=type(error).__name__)
    return error.exit_code


def _serve(kind: str, adjuster: Adjuster[S], run: Run[S]) -> int:
    from skerry.mqtt import MqttBus  # noqa: PLC0415 - tests of a module need no MQTT client

    settings = adjuster.now
    configure_logging(settings.log, settings.log_level, settings.module)
    levels = Levels(settings)
    bus = MqttBus(settings.bus, settings.site, settings.module, will=(STATUS, last_will(settings, kind)))
    started: list[Host] = []
    try:
        host = Host(settings, kind, bus, adjuster)
        started.append(host)
        # Not Event.set: a handler that interrupts Event.wait on this thread would wait for its own lock.
        asked: SimpleQueue[int] = SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: asked.put(received))
        bus.on_connect(lambda: host.announce(always=True))
        _answer(host, levels)
        host.remote.watch(levels.settings)
        host.remote.start()
        bus.connect()
        threading.Thread(target=_watch, args=(host, asked), name="watchdog", daemon=True).start()
        threading.Thread(target=_report, args=(host,), name="metrics", daemon=True).start()
        if settings.http_port is not None:
            from skerry.health import serve  # noqa: PLC0415 - costs memory, and only where it is asked for

            serve(host, settings.http_host, settings.http_port)
        log.info("module.started", kind=kind, version=__version__, pid=os.getpid())
        try:
            run(settings, bus, host)
        except Exception as error:
            host.goodbye(cleaned(f"{type(error).__name__}: {error}"))
            raise
        host.goodbye("asked to restart" if host.restart_asked else "")
        log.info("module.stopped", kind=kind)
        return RESTART_ASKED if host.restart_asked else 0
    finally:
        for each in started:
            each.remote.stop(_LET_GO_S)  # from here on the adjuster is the caller's alone
        bus.close()


class Levels:
    """How much is logged: what the settings say, and for a time what a command says."""

    def __init__(self, settings: ModuleSettings) -> None:
        self._settings = settings
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._shown = settings.log_level

    def settings(self, settings: ModuleSettings) -> None:
        """The settings are these now."""
        with self._lock:
            self._settings = settings
            if self._timer is None:
                self._set(settings.log_level)

    def for_a_time(self, level: LogLevel, seconds: float) -> None:
        """Log at this level, then as before."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._set(level)
            self._timer = threading.Timer(seconds, self._back)
            self._timer.daemon = True
            self._timer.start()

    def _back(self) -> None:
        with self._lock:
            if threading.current_thread() is self._timer:
                self._timer = None
                self._set(self._settings.log_level)

    def _set(self, level: LogLevel) -> None:
        if level != self._shown:
            self._shown = level
            configure_logging(self._settings.log, level, self._settings.module)


def _answer(host: Host, levels: Levels) -> None:
    """What every module answers."""

    def ping(_: Ping) -> dict[str, Any]:
        state, reason = host.condition
        return {"module": host.settings.module, "state": state, "reason": reason, "version": __version__}

    def log_level(asked: ChangeLogLevel) -> dict[str, Any]:
        levels.for_a_time(asked.level, asked.seconds)
        return {"level": asked.level, "seconds": asked.seconds}

    def restart(_: Restart) -> dict[str, Any]:
        host.restart_asked = True
        # After the answer is on its way; draining says it again, should it be lost.
        threading.Timer(_ANSWER_S, host.stopping.set).start()
        return {"restarting": host.settings.module}

    gatherer = Gatherer(host, LOGBOOK)

    def diagnostics(asked: Diagnostics) -> dict[str, Any]:
        return gatherer.gather(asked.lines)

    host.remote.answer("ping", Ping, ping)
    host.remote.answer("diagnostics", Diagnostics, diagnostics)
    host.remote.answer("log_level", ChangeLogLevel, log_level)
    host.remote.answer("restart", Restart, restart)


def _watch(host: Host, asked: SimpleQueue[int]) -> None:
    """Pass on signals; end the process when its main loop stalls or outlives its grace.

    Ending it is all there is to do: supervisors act only on exits.
    """
    stopping_since: float | None = None
    while True:
        with contextlib.suppress(Empty):
            log.info("module.stopping", signal=signal.Signals(asked.get(timeout=0.25)).name)
            host.stopping.set()
        if host.stopping.is_set() and stopping_since is None:
            stopping_since = time.monotonic()
        if stopping_since is not None and time.monotonic() - stopping_since > host.settings.grace_s + 1:
            log.error("module.grace_exceeded", grace_s=host.settings.grace_s)
            os._exit(SkerryError.exit_code)
        if not host.alive and stopping_since is None:
            log.error("module.stalled", watchdog_s=host.settings.watchdog_s)
            os._exit(SkerryError.exit_code)


def _report(host: Host) -> None:
    while not host.stopping.wait(_METRICS_EVERY_S):
        try:
            host.publish_metrics()
        except Exception as error:
            # A wrong gauge must not end the metrics for good.
            log.exception("metrics.failed", error=str(error))


def _writable(folder: Path) -> Path:
    """The folder, made if missing and proven writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unavailable(
            f"{folder}: cannot write the state folder: {error.strerror} "
            f"(make it writable for uid {os.getuid()})"
        ) from error
    return folder


def rss_mb() -> float:
    """Resident memory of this process, in MiB.

    Source: proc(5), /proc/self/statm, second field, in pages.
    """
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def _without_secrets(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what looks like a secret: libraries put addresses with logins into their errors."""
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = cleaned(value)
    return entry


class _Forgiving:
    """A sink that is allowed to fail: a full disk or a closed stream must not end what is logged about.

    Args:
        sink: where lines go.
    """

    def __init__(self, sink: TextIO) -> None:
        self._sink = sink

    def write(self, text: str) -> int:
        """Pass it on, if it can be; half a line may stay behind."""
        with contextlib.suppress(OSError, ValueError):
            self._sink.write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with contextlib.suppress(OSError, ValueError):
            self._sink.flush()


def configure_logging(form: str, level: str, module: str, sink: TextIO | None = None) -> None:
    """Send structured logs to `sink`, else standard error: JSON in containers, colours on a terminal.

    The last of them are kept in `LOGBOOK` as well.
    """

    def named(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        entry.setdefault("module", module)  # in every thread
        return entry

    shared: list[structlog.types.Processor] = [
        named,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _without_secrets,
    ]
    last: list[structlog.types.Processor] = (
        [LOGBOOK.rendered] if form == "json" else [LOGBOOK, structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Forgiving(sink or sys.stderr))),
        cache_logger_on_first_use=False,
    )
