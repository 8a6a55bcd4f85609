"""Commands from outside: looked at, handed to the modules, and answered, each exactly once.

One thread calls `take`, `step` and `close`; what modules say comes in on the bus's thread and waits for
the next step. Nothing here waits for anything.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from skerry import __version__
from skerry.bus import Bus
from skerry.channels import ANSWERS, COMMANDS
from skerry.clock import utc
from skerry.commands import (
    KINDS,
    MOST_ANSWER_BYTES,
    ChangeLogLevel,
    Diagnostics,
    Flush,
    Ping,
    Restart,
    Snapshot,
)
from skerry.errors import SkerryError
from skerry.messages import Answer, Command
from skerry.redact import cleaned, redacted
from skerry.remote import Refused
from skerry.settings import Settings
from skerry.telemetry import Telemetry
from skerry.uplink import asked, bundle
from skerry.uplink.audit import Audit
from skerry.uplink.bucket import Bucket
from skerry.uplink.downlink import BUSY, Request
from skerry.uplink.roster import Roster
from skerry.uplink.settings import UplinkSettings

_OK, _FAILED, _AWAY, _LATE = 200, 500, 503, 504

_MOST_UNDER_WAY = 16
_ALONE = frozenset({"diagnostics", "flush"})
"""Of these one at a time: the first holds what all modules tell, the second is the same for all."""
_BURST_S = 10.0
"""As many commands as are allowed in this time may come at once."""
_CALM_S = 1.5
"""Where no buffer says how much waits: nothing in the uplink for this long is nothing at all."""
_REFUSALS_S = 60.0
"""What the rate turned away is put into the audit once in this time, not line by line."""

log = structlog.get_logger()
T = TypeVar("T")
Outcome = tuple[int, dict[str, Any]]
"""Status in the manner of HTTP, and the body of the answer."""


class Flushing(Protocol):
    """What sends the records."""

    def flush(self, wait_s: float) -> None:
        """For this long, send whatever the hours, and try the far end without waiting; returns at once."""

    @property
    def waiting(self) -> int:
        """Records in the uplink that the far end has not confirmed."""


class _Errand:
    """A command under way.

    Attributes:
        waiting: command id on the bus to the module that has not answered it yet.
        answers: of those that have.
        missing: why there is none of the others.
        unsent: there was no bus to ask them over.
        outcome: what to answer, at a time in monotonic seconds; None while there is nothing to answer yet.
    """

    def __init__(self, number: int, name: str, arguments: Settings, request: Request, now: float) -> None:
        self.number = number
        self.name = name
        self.arguments = arguments
        self.request = request
        self.began = now
        self.deadline = now + KINDS[name].timeout_s
        self.waiting: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}
        self.missing: dict[str, str] = {}
        self.unsent = False
        self.outcome: Callable[[float], Outcome | None] = lambda _: None


class Commander:
    """Carries out what somebody outside asks for.

    Args:
        settings: of the uplink.
        bus: where the modules are.
        flushing: what sends the records.
        audit: is told each command before it is carried out, and what came of it.
        telemetry: counts them.
        folder: where bundles of diagnostics are kept.
        clock: monotonic seconds, the same that `step` is given.
    """

    def __init__(
        self, settings: UplinkSettings, bus: Bus, *, flushing: Flushing, audit: Audit, telemetry: Telemetry,
        folder: Path, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._bus = bus
        self._flushing = flushing
        self._audit = audit
        self._telemetry = telemetry
        self._folder = folder
        self._clock = clock
        self._link = settings.link.__struct_config__.tag
        remote = settings.remote
        self._bucket = Bucket(remote.commands_per_min, remote.commands_per_min / 60 * _BURST_S, clock())
        self._errands: list[_Errand] = []
        self._expected: dict[str, _Errand] = {}
        # Ids of an earlier life of this process must not be taken for ours.
        self._life = secrets.token_hex(6)
        self._number = 0
        self._turned_away = 0
        self._audit_at = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}
        self._arrived: list[Answer] = []
        self._roster = Roster(bus, clock)
        bus.subscribe(ANSWERS, self._on_answer)

    # From the uplink's thread

    def take(self, request: Request) -> None:
        """Begin with a command; it is answered whatever happens, now or after some steps."""
        now = self._clock()
        self._number += 1
        if self._closed:
            self._reply(request, _AWAY, {"error": "the uplink stops (try later)"})
            return
        wait_s = self._bucket.take(now)
        if wait_s:
            self._turn_away(request, wait_s)
            return
        try:
            arguments = asked.read(request.name, request.body, self._settings.remote.commands)
            errand = _Errand(self._number, request.name, arguments, request, now)
            self._begin(errand)
        except Refused as error:
            self._refuse(request, error)
        except Exception as error:
            log.exception("command.failed", command=request.name)
            self._refuse(request, Refused(_FAILED, f"{type(error).__name__}: {error}"))

    def step(self, now: float) -> None:
        """Take what has come, and answer what is done or overdue.

        Args:
            now: monotonic seconds.
        """
        with self._lock:
            arrived, self._arrived = self._arrived, []
        for answer in arrived:
            errand = self._expected.pop(answer.id, None)
            if errand is not None:
                errand.answers[errand.waiting.pop(answer.id)] = answer
        for errand in list(self._errands):
            self._look_at(errand, now)
        self._tell_turned_away(now)

    def close(self) -> None:
        """Answer all that are open: the uplink stops."""
        self._closed = True
        for errand in list(self._errands):
            self._end(errand, (_AWAY, {"error": "the uplink stopped before there was an answer"}))
        self._tell_turned_away(float("inf"))

    # On the bus's thread

    def _on_answer(self, answer: Answer) -> None:
        with self._lock:
            known = self._open.get(answer.id) == answer.module
            if known:
                del self._open[answer.id]
                self._arrived.append(answer)
        if not known:
            # Late, repeated, meant for others, or invented.
            self._telemetry.count("skerry_answers_ignored_total")

    # A command begins

    def _begin(self, errand: _Errand) -> None:
        """Ask whom it is for.

        Raises:
            Refused: it is not begun.
        """
        if len(self._errands) >= _MOST_UNDER_WAY:
            raise Refused(BUSY, f"{_MOST_UNDER_WAY} commands are under way (try later)")
        if errand.name in _ALONE and any(other.name == errand.name for other in self._errands):
            raise Refused(BUSY, f"another {errand.name} is under way (try later)")
        match errand.arguments:
            case Ping(module=None):
                errand.outcome = lambda _: self._all_well()
            case Ping(module=str(module)) | Restart(module=module) | ChangeLogLevel(module=str(module)):
                self._one(errand, module)
            case Snapshot(camera=camera):
                self._one(errand, self._module_of(camera))
            case ChangeLogLevel():
                self._several(errand, ())
                errand.outcome = lambda _: self._joined(errand)
            case Diagnostics(modules=modules):
                self._several(errand, modules)
                errand.outcome = lambda _: self._bundled(errand)
            case Flush(wait_s=wait_s):
                self._roster.watch_buffers()
                self._flushing.flush(wait_s)
                errand.deadline = errand.began + wait_s
                errand.outcome = lambda now: self._flushed(errand, now)
        self._write("command.begun", errand)
        self._errands.append(errand)
        for command_id, module in list(errand.waiting.items()):
            self._ask(errand, command_id, module)

    def _one(self, errand: _Errand, module: str) -> None:
        self._expect(errand, module)
        if module in errand.missing:
            raise Refused(_AWAY, f"expected {module} to be there, but it is {errand.missing[module]}")
        errand.outcome = lambda _: self._single(errand, module)

    def _several(self, errand: _Errand, modules: Sequence[str]) -> None:
        """All of them, or those that are named."""
        for module in dict.fromkeys(modules or self._roster.names()):
            self._expect(errand, module)

    def _expect(self, errand: _Errand, module: str) -> None:
        """Mean to ask a module, if it is there."""
        try:
            away = self._roster.away(module)
        except KeyError:
            raise _unknown("module", module, self._roster.names()) from None
        if away:
            errand.missing[module] = away
        else:
            errand.waiting[f"{self._life}-{errand.number}-{len(errand.waiting)}"] = module

    def _module_of(self, camera: str) -> str:
        try:
            return self._roster.module_of(camera)
        except KeyError:
            raise _unknown("camera", camera, self._roster.cameras()) from None

    def _ask(self, errand: _Errand, command_id: str, module: str) -> None:
        arguments = msgspec.to_builtins(errand.arguments)
        if isinstance(errand.arguments, Diagnostics):
            arguments["modules"] = []
        command = Command(
            module=module, id=command_id, name=errand.name, arguments=arguments,
            timeout_s=KINDS[errand.name].timeout_s,
        )  # fmt: skip
        with self._lock:
            self._open[command_id] = module
        self._expected[command_id] = errand
        if not self._bus.publish(COMMANDS, command, module):
            self._miss(errand, command_id, "the bus is not connected (try later)")
            errand.unsent = True

    # A command ends

    def _look_at(self, errand: _Errand, now: float) -> None:
        for command_id, module in list(errand.waiting.items()):
            if away := self._roster.away(module):
                self._miss(errand, command_id, f"it went away: {away}")
            elif now >= errand.deadline:
                self._miss(errand, command_id, f"it did not answer within {KINDS[errand.name].timeout_s:g} s")
        try:
            outcome = errand.outcome(now)
        except Exception as error:
            log.exception("command.failed", command=errand.name)
            outcome = _FAILED, {"error": f"{type(error).__name__}: {error}"}
        if outcome is not None:
            self._end(errand, outcome)

    def _end(self, errand: _Errand, outcome: Outcome) -> None:
        self._errands.remove(errand)
        self._forget(*errand.waiting)
        status, body = self._reply(errand.request, *outcome)
        seconds = round(self._clock() - errand.began, 3)
        log.info("command.answered", command=errand.name, status=status, seconds=seconds)
        self._write("command.answered", errand, status=status, seconds=seconds, **_error(body))

    def _miss(self, errand: _Errand, command_id: str, reason: str) -> None:
        """Wait for this module no longer."""
        self._forget(command_id)
        errand.missing[errand.waiting.pop(command_id)] = reason

    def _forget(self, *command_ids: str) -> None:
        with self._lock:
            for command_id in command_ids:
                self._open.pop(command_id, None)
        for command_id in command_ids:
            self._expected.pop(command_id, None)

    def _reply(self, request: Request, status: int, body: dict[str, Any]) -> Outcome:
        """Answer; what was said in the end."""
        if status >= 400:
            body = redacted(body)
        content = msgspec.json.encode(body)
        if len(content) > MOST_ANSWER_BYTES:
            body = {"error": f"the answer has {len(content)} bytes, expected at most {MOST_ANSWER_BYTES}"}
            status, content = _FAILED, msgspec.json.encode(body)
        self._telemetry.count("skerry_commands_total", status=str(status))
        try:
            request.reply(status, content)
        except Exception as error:
            # A link's mistake; the others wait for theirs.
            log.exception("answer.failed", command=request.name[:64], error=str(error))
        return status, body

    def _refuse(self, request: Request, error: Refused) -> None:
        status, body = self._reply(request, error.status, {"error": str(error)})
        log.warning("command.refused", command=request.name[:64], status=status, error=body.get("error"))
        self._audit.write(
            what="command.refused", id=self._number, link=self._link, command=request.name[:64],
            arguments=cleaned(request.body[:256].decode(errors="replace")), status=status, **_error(body),
        )  # fmt: skip

    def _turn_away(self, request: Request, wait_s: float) -> None:
        per_min = self._settings.remote.commands_per_min
        error = (
            f"expected at most {per_min:g} commands a minute, got more (the setting remote.commands_per_min)"
        )
        self._reply(request, BUSY, {"error": error, "retry_after_s": round(wait_s, 1)})
        self._turned_away += 1

    def _tell_turned_away(self, now: float) -> None:
        if self._turned_away and now >= self._audit_at:
            self._audit_at = now + _REFUSALS_S
            log.warning("commands.turned_away", count=self._turned_away)
            self._audit.write(
                what="commands.turned_away", link=self._link, status=BUSY, count=self._turned_away
            )
            self._turned_away = 0

    def _write(self, what: str, errand: _Errand, **more: Any) -> None:
        self._audit.write(
            what=what, id=errand.number, link=self._link, command=errand.name,
            arguments=msgspec.to_builtins(errand.arguments), **more,
        )  # fmt: skip

    # What came of it

    def _single(self, errand: _Errand, module: str) -> Outcome | None:
        if answer := errand.answers.get(module):
            return answer.status if answer.status >= _OK else _FAILED, answer.body
        reason = errand.missing.get(module)
        if reason is None:
            return None
        return _AWAY if errand.unsent else _LATE, {
            "error": f"{module}: {reason}",
            "missing": {module: reason},
        }

    def _joined(self, errand: _Errand) -> Outcome | None:
        if errand.waiting:
            return None
        found = self._good(errand, dict[str, Any])
        if not found:
            return self._nobody(errand)
        return _OK, {"modules": found, "missing": errand.missing}

    def _bundled(self, errand: _Errand) -> Outcome | None:
        if errand.waiting:
            return None
        found = self._good(errand, bundle.Told)
        if not found:
            return self._nobody(errand)
        about = {"modules": sorted(found), "missing": errand.missing}
        time_text = utc()
        site = {**self._all_well()[1], "time": time_text, "missing": errand.missing}
        seconds = int(datetime.fromisoformat(time_text).timestamp())
        content = bundle.packed(found, site, seconds)
        name = f"{self._settings.site}-{time_text[:19].replace(':', '')}-{errand.number}"
        body = {
            **about, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
            **self._keep(name, content),
        }  # fmt: skip
        whole = {**body, "encoding": "base64", "content": base64.b64encode(content).decode()}
        if len(msgspec.json.encode(whole)) <= MOST_ANSWER_BYTES:
            return _OK, whole
        wanted = f"expected at most {MOST_ANSWER_BYTES} bytes of answer, got {len(content)} before base64"
        return _OK, {**body, "hint": f"{wanted} (fetch the file, or ask for fewer lines or modules)"}

    def _keep(self, name: str, content: bytes) -> dict[str, str]:
        try:
            return {"file": str(bundle.keep(self._folder, name, content))}
        except OSError as error:
            log.warning("diagnostics.not_kept", folder=str(self._folder), error=error.strerror)
            return {"not_kept": f"{self._folder}: cannot write it: {error.strerror or error}"}

    def _flushed(self, errand: _Errand, now: float) -> Outcome | None:
        # What the uplink holds waits in the buffer, too, until its receipt has come there.
        buffered = self._roster.buffered(errand.began)
        waiting = max(self._flushing.waiting, buffered or 0)
        told = buffered is not None or (not self._roster.watch_buffers() and now - errand.began > _CALM_S)
        if now < errand.deadline and (waiting or not told):
            return None
        return _OK, {"done": not waiting and told, "waiting": waiting}

    def _all_well(self) -> Outcome:
        site = self._settings.site
        return _OK, {"site": site, "version": __version__, "modules": self._roster.overview()}

    def _nobody(self, errand: _Errand) -> Outcome:
        status = _AWAY if errand.unsent else _LATE
        return status, {"error": "no module did it (see missing)", "missing": errand.missing}

    def _good(self, errand: _Errand, kind: type[T]) -> dict[str, T]:
        """The bodies of those that did it; the others are missing."""
        found: dict[str, T] = {}
        for module, answer in sorted(errand.answers.items()):
            try:
                if answer.status != _OK:
                    raise SkerryError(f"{answer.status}: {answer.body.get('error', 'no reason given')}")
                found[module] = msgspec.convert(answer.body, kind)
            except (SkerryError, msgspec.ValidationError) as error:
                errand.missing[module] = cleaned(str(error)[:300])
        return found


def _error(body: Mapping[str, Any]) -> dict[str, str]:
    return {"error": str(body["error"])[:300]} if "error" in body else {}


def _unknown(what: str, name: str, known: Sequence[str]) -> Refused:
    names = ", ".join(known)[:500] or "none"
    return Refused(asked.UNKNOWN, f"{what}: expected one of {names}, got {asked.shown(name)}")
