"""The target `local`: a plan as child processes of this one, supervised as a container engine would.

A child that exits is started again, with a delay that doubles from 0.1 s to 5 s and is forgotten after
10 s of health. Two kinds of exit are final, because repeating cannot help: a wrong configuration (78)
or package (65), and a child that found its surroundings unusable (69) before it was ever ready.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import structlog

from skerry.broker import BrokerProcess
from skerry.children import spawn
from skerry.deploy.plan import Part, Plan
from skerry.errors import ConfigError, PackageError, SkerryError, Unavailable

log = structlog.get_logger()

_BACKOFF_S = (0.1, 5.0)
_HEALTHY_S = 10.0
_FINAL = {ConfigError.exit_code: ConfigError, PackageError.exit_code: PackageError}
_DRAIN_S = {"capture": 1.2, "inference": 1.2, "decision": 1.2, "buffer": 1.2, "uplink": 0.9, "updater": 0.9}
"""How long each kind may take to drain. They add up to less than 5 s with the broker's end."""


class Child:
    """One process of the plan and how often it had to be started."""

    def __init__(self, part: Part, logs: Path) -> None:
        self.part = part
        self.log = logs / f"{part.module}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        self.exits: list[int] = []
        self._since = 0.0
        self._delay = _BACKOFF_S[0]
        self._due = 0.0

    @property
    def running(self) -> bool:
        """Whether the process is there now."""
        return self.process is not None and self.process.poll() is None

    @property
    def died(self) -> bool:
        """Whether its last life ended by a signal or an error and it was not started again."""
        return not self.running and bool(self.exits) and self.exits[-1] != 0

    def start(self, now: float) -> None:
        """Start the process; its standard error goes to its log file."""
        environment = {**os.environ, "SKERRY_SETTINGS": self.part.settings_json, "PYTHONUNBUFFERED": "1"}
        with self.log.open("ab") as sink:
            self.process = spawn(_command(self.part), environment, stdout=sink.fileno(), stderr=sink.fileno())
        self._since = now

    def tend(self, now: float) -> int | None:
        """Start it again when it is due.

        Returns:
            The exit code when it has just exited, else None.
        """
        if self.process is None:
            if now >= self._due:
                self.restarts += 1
                self.start(now)
            return None
        code = self.reap()
        if code is not None:
            if now - self._since > _HEALTHY_S:
                self._delay = _BACKOFF_S[0]
            self._due = now + self._delay
            self._delay = min(2 * self._delay, _BACKOFF_S[1])
        return code

    def reap(self) -> int | None:
        """Note its exit; returns the code when it has just exited, else None."""
        code = self.process.poll() if self.process is not None else None
        if code is not None:
            self.process = None
            self.exits.append(code)
        return code

    def last_error(self) -> str:
        """The last error in its log, in words."""
        for line in reversed(_tail(self.log)):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("level") in ("error", "critical"):
                return str(entry.get("problem") or entry.get("error") or entry.get("event"))
        return "no error in its log"


class Supervisor:
    """Runs a plan's processes and, where the site names none, the broker."""

    def __init__(
        self,
        plan: Plan,
        logs: Path,
        broker: BrokerProcess | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.broker = broker
        self.broker_restarts = 0
        self.children = {part.module: Child(part, logs) for part in plan.parts}
        self._plan = plan
        self._clock = clock
        self._broker_due = 0.0
        self._broker_down = False

    @property
    def restarts(self) -> Counter[str]:
        """How often each process was started again."""
        counts = Counter({name: child.restarts for name, child in self.children.items() if child.restarts})
        if self.broker_restarts:
            counts["broker"] = self.broker_restarts
        return counts

    def start(self) -> None:
        """Start the modules; the broker is running already."""
        for child in self.children.values():
            child.start(self._clock())

    def tend(self, ever_ready: Callable[[str], bool]) -> None:
        """Restart what has exited; call it a few times a second.

        Args:
            ever_ready: whether a module of this name has ever announced itself ready.

        Raises:
            ConfigError, PackageError, Unavailable: a module's exit that repeating cannot help.
        """
        now = self._clock()
        self._tend_broker(now)
        for name, child in self.children.items():
            code = child.tend(now)
            if code is None:
                continue
            log.warning("child.exited", child=name, code=code)
            if code in _FINAL:
                raise _FINAL[code](f"{name}: {child.last_error()}")
            if code == Unavailable.exit_code and not ever_ready(name):
                raise Unavailable(f"{name}: {child.last_error()}")

    def _tend_broker(self, now: float) -> None:
        if self.broker is None or self.broker.poll() is None:
            return
        if not self._broker_down:
            self._broker_down, self._broker_due = True, now + _BACKOFF_S[0]
            log.warning("child.exited", child="broker", code=self.broker.poll())
        elif now >= self._broker_due:
            self._broker_due = now + 1.0
            try:
                self.broker.start()
            except SkerryError as error:
                log.warning("broker.not_started", error=str(error))
                return
            self._broker_down = False
            self.broker_restarts += 1

    def stop(self, draining: Callable[[str], None] = lambda _: None) -> None:
        """Drain in the order of the data's flow, then end the broker. Takes less than 5 s."""
        for kind in dict.fromkeys(part.kind for part in self._plan.parts):
            draining(kind)
            self._stop([c for c in self.children.values() if c.part.kind == kind], _DRAIN_S[kind])
        if self.broker is not None:
            self.broker.stop()

    def _stop(self, children: list[Child], within_s: float) -> None:
        """End some children: ask, wait, insist."""
        alive = [c.process for c in children if c.process is not None and c.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        deadline = self._clock() + within_s
        for process in alive:
            try:
                process.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                log.warning("child.killed", pid=process.pid, reason="did not drain in time")
                process.kill()
                process.wait()
        for child in children:
            child.reap()


def _command(part: Part) -> list[str]:
    return [sys.executable, "-m", f"skerry.{part.kind}"]


def _tail(path: Path, size: int = 16384) -> list[str]:
    """The last lines of a file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
