"""A module's side of being steered: desired settings in, what became of them out; commands and answers.

Desired settings have a thread of their own and commands another, so that neither the bus's thread nor the
module's loop waits for a disk or a handler. The loop only takes over settings that were found to be good,
when it suits the loop.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from skerry import __version__
from skerry.adjuster import Adjuster
from skerry.bus import Bus
from skerry.channels import ANSWERS, COMMANDS, DESIRED, INVENTORY, REPORTED
from skerry.desired import Adjusted
from skerry.errors import ConfigError, SkerryError
from skerry.messages import Answer, Command, Desired, Device, Inventory, ModelInUse, Reported, Update
from skerry.redact import cleaned, without_logins
from skerry.settings import Settings, parse

Apply = Callable[[Any], object]
"""Takes the new settings, on the module's loop. Raises ConfigError, and changes nothing, if they won't do.
Returns False where that takes longer than a turn of the loop: it is asked again, with the newest settings."""

Answerer = Callable[[Any], Mapping[str, Any]]
"""Takes a command's arguments, and returns the body of the answer. `Refused` has a status of its own."""

_MOST_COMMANDS = 8
"""That may wait; more are answered with 429."""
_ENVELOPE = 1024
"""Bytes that an answer needs around its body, generously."""

log = structlog.get_logger()


class Refused(SkerryError):  # noqa: N818 - an answer, not a failure
    """A command is not carried out.

    Args:
        status: in the manner of HTTP.
        message: why, for who gave it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Remote:
    """What a module offers to those who steer it.

    Args:
        bus: of the module.
        kind: capture, inference, decision, buffer, uplink or updater.
        adjuster: its settings.
    """

    def __init__(self, bus: Bus, kind: str, adjuster: Adjuster[Any]) -> None:
        self._bus = bus
        self._kind = kind
        self._adjuster = adjuster
        self._name = adjuster.deployed.module
        self._changed = threading.Condition()
        self._desired: Desired | None = None
        self._pending: tuple[Desired, Adjusted] | None = None
        self._slow = False
        """The loop needs time for what is pending; something newer takes its place."""
        self._instead: Desired | None = None
        """What took the place of something slow."""
        self._outcome: tuple[Desired, Adjusted, Sequence[str]] | None = None
        self._ready = False
        self._unannounced = False
        self._commands: deque[tuple[Command, float]] = deque()
        self._answerers: dict[str, tuple[type[Settings], Answerer]] = {}
        self._watchers: list[Callable[[Any], None]] = []
        self._runtimes: dict[str, str] = {}
        self._models: tuple[ModelInUse, ...] = ()
        self._updates: tuple[Update, ...] = ()
        self._audit = ""
        self._stopped = False
        self._threads: tuple[threading.Thread, ...] = ()

    # For the module

    def adjust(self, apply: Apply) -> bool:
        """Give the loop settings that were changed from outside, if there are any. Call it each turn.

        Returns:
            Whether there are settings that the loop is not done with. False where something that took
            longer was taken back meanwhile.
        """
        pending = self._pending
        if pending is None:
            return False
        errors: Sequence[str] = ()
        done = True
        try:
            done = apply(pending[1].live) is not False
        except ConfigError as error:
            errors = error.problems
        except SkerryError as error:
            errors = (str(error),)
        except Exception as error:
            # It would come again after a crash, and again: the broker and the uplink repeat it.
            log.exception("desired.failed", version=pending[0].version)
            errors = (f"internal: {type(error).__name__}: {error}",)
        with self._changed:
            self._slow = not done
            if done:
                if self._pending is not pending and self._desired is None:
                    # Taken back in this very moment, by the settings before; now it is judged by these.
                    self._desired = self._instead
                self._pending = None
                self._outcome = (*pending, errors)
            self._changed.notify_all()
            return self._pending is not None

    def answer(self, name: str, arguments: type[Settings], answerer: Answerer) -> None:
        """Let `answerer` answer a command. It runs on the commands' thread and may take its time."""
        self._answerers[name] = (arguments, answerer)

    def describe(
        self,
        runtimes: Mapping[str, str] | None = None,
        models: tuple[ModelInUse, ...] | None = None,
        updates: tuple[Update, ...] | None = None,
        audit: str | None = None,
    ) -> None:
        """Say more of what the module is; what is left out stays."""
        with self._changed:
            self._runtimes = dict(runtimes) if runtimes is not None else self._runtimes
            self._models = models if models is not None else self._models
            self._updates = updates if updates is not None else self._updates
            self._audit = audit if audit is not None else self._audit
        self._announce()

    # For the process

    @property
    def settings(self) -> Any:
        """What the module goes by now."""
        return self._adjuster.now

    @property
    def report(self) -> Reported | None:
        """What became of the last desired settings; None before there were any."""
        return self._adjuster.report

    @property
    def inventory(self) -> Inventory:
        """What the module is."""
        with self._changed:
            runtimes, models = self._runtimes, self._models
            updates, audit = self._updates, self._audit
        return Inventory(
            module=self._name, kind=self._kind, version=__version__, python=platform.python_version(),
            device=_device(), settings=without_logins(msgspec.to_builtins(self._adjuster.deployed)),
            runtimes=runtimes, models=models, updates=updates, audit=audit,
        )  # fmt: skip

    def watch(self, watcher: Callable[[Any], None]) -> None:
        """Call back with the settings after each change, on a thread of this object."""
        self._watchers.append(watcher)

    def start(self) -> None:
        """Listen."""
        self._bus.subscribe(DESIRED, self._on_desired, self._name)
        self._bus.subscribe(COMMANDS, self._on_command, self._name)
        self._bus.on_connect(self._announce)
        self._threads = (
            threading.Thread(target=self._run, name="remote", daemon=True),
            threading.Thread(target=self._run_commands, name="commands", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float = 0.0) -> None:
        """Let go; wait for what is under way for at most this long, in seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))

    def ready(self) -> None:
        """The module has become ready."""
        with self._changed:
            self._ready = True
            self._changed.notify_all()

    # On the bus's thread

    def _on_desired(self, message: Desired) -> None:
        if message.module != self._name:
            return
        with self._changed:
            self._desired = message  # only the newest matters
            self._changed.notify_all()

    def _on_command(self, message: Command) -> None:
        if message.module != self._name:
            return
        with self._changed:
            full = len(self._commands) >= _MOST_COMMANDS
            if not full:
                self._commands.append((message, time.monotonic()))
                self._changed.notify_all()
        if full:
            self._say(message, 429, {"error": "too many commands are waiting (try later)"})

    def _announce(self) -> None:
        """Have inventory and report said, on the one thread that says them: the newest must be the last."""
        with self._changed:
            self._unannounced = True
            self._changed.notify_all()

    # On the thread for desired settings

    def _run(self) -> None:
        while self._wait():
            try:
                self._step()
            except Exception as error:
                # Whatever it was, the next one may be well.
                log.exception("remote.failed", error=str(error))

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped
                    or self._outcome is not None
                    or self._ready
                    or self._unannounced
                    or (self._desired is not None and (self._pending is None or self._slow))
                )
            )
            return not self._stopped

    def _step(self) -> None:
        with self._changed:
            ready, self._ready = self._ready, False
            unannounced, self._unannounced = self._unannounced, False
            outcome, self._outcome = self._outcome, None
            message = None
            before = self._pending
            # While the loop has one in its hands, the next waits: each is judged by what counts then.
            if (before is None or self._slow) and outcome is None:
                message, self._desired = self._desired, None
        if ready and self._adjuster.on_trial:
            self._adjuster.ready()
            self._tell()
        if unannounced:
            self._bus.publish(INVENTORY, self.inventory, self._name)
            self._report()
        if outcome is not None:
            self._settle(*outcome)
        if message is not None:
            self._consider(message, before)

    def _consider(self, message: Desired, before: tuple[Desired, Adjusted] | None) -> None:
        """Judge a message; it takes the place of `before`, which the loop is slow with."""
        made = self._adjuster.look_at(message)
        with self._changed:
            if self._pending is not before:  # the loop was done with it meanwhile: that is settled first
                self._desired = self._desired or message
                return
            self._pending = None if made is None else (message, made)
            self._instead = message
        if made is None:
            self._tell()

    def _settle(self, message: Desired, made: Adjusted, errors: Sequence[str]) -> None:
        if errors:
            self._adjuster.refused(message, errors)
        else:
            self._adjuster.applied(message, made)
        self._tell()

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher(self._adjuster.now)
        self._report()

    def _report(self) -> None:
        if self._adjuster.report is not None:
            self._bus.publish(REPORTED, self._adjuster.report, self._name)

    # On the thread for commands

    def _run_commands(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._commands)
                if self._stopped:
                    return
                command = self._commands.popleft()
            try:
                self._carry_out(*command)
            except Exception as error:
                log.exception("command.unanswered", error=str(error))

    def _carry_out(self, command: Command, came_at: float) -> None:
        waited_s = time.monotonic() - came_at
        if waited_s > command.timeout_s:
            # Whoever gave it was told that there was no answer, and may have given it again.
            log.warning("command.overdue", command=command.name, waited_s=round(waited_s, 1))
            return
        kind = self._answerers.get(command.name)
        if kind is None:
            known = ", ".join(sorted(self._answerers))
            self._say(command, 404, {"error": f"{self._name} has no such command (known: {known})"})
            return
        started = time.monotonic()
        try:
            arguments = parse(kind[0], command.arguments, command.name)
            status, body = 200, dict(kind[1](arguments))
            if len(msgspec.json.encode(body)) > ANSWERS.max_bytes - _ENVELOPE:
                raise Refused(500, f"the answer is larger than {ANSWERS.max_bytes} bytes")
        except ConfigError as error:
            status, body = 400, {"error": "; ".join(error.problems)}
        except Refused as error:
            status, body = error.status, {"error": str(error)}
        except Exception as error:
            log.exception("command.failed", command=command.name)
            status, body = 500, {"error": cleaned(f"{type(error).__name__}: {error}")}
        log.info(
            "command.done", command=command.name, status=status,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip
        self._say(command, status, body)

    def _say(self, command: Command, status: int, body: dict[str, Any]) -> None:
        self._bus.publish(
            ANSWERS, Answer(module=self._name, id=command.id, status=status, body=body), self._name
        )


def _device() -> Device:
    """Source: proc(5), /proc/cpuinfo and /proc/meminfo; sched_getaffinity(2)."""
    processor = _field(Path("/proc/cpuinfo"), "model name") or _field(Path("/proc/cpuinfo"), "Model")
    memory = _field(Path("/proc/meminfo"), "MemTotal").split()
    return Device(
        machine=platform.machine(),
        processor=processor,
        cores=len(os.sched_getaffinity(0)),
        memory_mb=int(memory[0]) // 1024 if memory else 0,
    )


def _field(path: Path, name: str) -> str:
    """The first value of a field in a file of the kernel's; empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        return ""
    return ""
