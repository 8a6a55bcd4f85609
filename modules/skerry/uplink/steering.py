"""The uplink's side of steering: a platform's desired states and commands, and the state of the site back.

On threads of its own: delivering events never waits for it.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from skerry import __version__, durable
from skerry.bus import Bus
from skerry.channels import DESIRED, INVENTORY, REPORTED, STATUS
from skerry.errors import LinkDown
from skerry.messages import Inventory, Reported, Status
from skerry.service import Host
from skerry.uplink.downlink import Downlink, Proposal, Request
from skerry.uplink.judgement import Judgement, Memory, fitted
from skerry.uplink.links import Link
from skerry.uplink.settings import UplinkSettings

_TURN_S = 0.1
_SETTLED_S = 15.0
"""After a start, how long modules may take to announce themselves before one that is named does not exist."""
_REPORT_EVERY_S = 2.0
"""At least this long between two reports: platforms count them."""
_REPORT_S = 10.0
"""That the platform has to confirm one."""
_AGAIN_S = 15.0
"""After a report that was not confirmed with the link up."""
_FILE_EVERY_S = 1.0
_FILE_BYTES = 64 * 1024
_MODULES = 64

log = structlog.get_logger()


class Commands(Protocol):
    """Who carries out commands."""

    def take(self, request: Request) -> None:
        """Begin with one; it is answered whatever happens."""

    def step(self, now: float) -> None:
        """Go on with those that were begun."""

    def close(self) -> None:
        """Answer all that are open: the process ends."""


class Steering:
    """What comes down, and what is told of it.

    Args:
        settings: of the uplink.
        bus: where the modules are.
        host: of the process.
        link: what to report to.
        downlink: what comes down it.
        commands: who carries them out.
        audit: is told each decision.
    """

    def __init__(
        self, settings: UplinkSettings, bus: Bus, host: Host, *, link: Link, downlink: Downlink,
        commands: Commands, audit: Callable[..., None],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._bus = bus
        self._host = host
        self._link = link
        self._downlink = downlink
        self._commands = commands
        self._audit = audit
        self._path = host.state / "site-desired.json"
        memory = durable.load(self._path, Memory) or Memory()
        self._kept = memory
        self._judgement = Judgement(memory, time.monotonic() + _SETTLED_S)
        self._lock = threading.Lock()
        self._inventories: dict[str, Inventory] = {}
        self._reports: list[Reported] = []
        self._statuses: dict[str, Status] = {}
        self._more: dict[str, Any] = {}
        self._up = False
        self._told: dict[str, Any] | None = None
        self._tell_at = 0.0
        self._file_stamp: object = None
        self._file_at = 0.0
        self._said = ""
        self._stopped = threading.Event()
        self._document: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, name="steering", daemon=True)
        self._reporter = threading.Thread(target=self._tell, name="report", daemon=True)

    def start(self) -> None:
        """Listen."""
        nobody = self._settings.remote.desired == "none" or not (
            self._link.steered or self._settings.remote.file
        )
        if nobody and self._kept.current.patches:
            # What was desired under an earlier configuration does not count any more.
            self._judgement.propose(Proposal("none", "0", {}))
        self._bus.subscribe(INVENTORY, self._on_inventory)
        self._bus.subscribe(REPORTED, self._on_reported)
        self._bus.subscribe(STATUS, self._on_status)
        self._thread.start()
        if self._link.steered:
            self._reporter.start()

    def stop(self) -> None:
        """Answer what is open, and let go. Does not wait for a report that is on its way."""
        self._stopped.set()
        self._downlink.wake()
        self._thread.join(1.0)

    def link_is(self, up: bool) -> None:
        """The link was opened, or lost. What was told over an earlier connection is told again."""
        with self._lock:
            self._up = up
            if up:
                self._told, self._tell_at = None, 0.0

    def tell(self, **more: Any) -> None:
        """Something else that belongs into the report."""
        with self._lock:
            self._more.update(more)

    # On the bus's thread

    def _on_inventory(self, message: Inventory) -> None:
        with self._lock:
            if message.module in self._inventories or len(self._inventories) < _MODULES:
                self._inventories[message.module] = message

    def _on_reported(self, message: Reported) -> None:
        with self._lock:
            self._reports.append(message)
            del self._reports[:-_MODULES]

    def _on_status(self, message: Status) -> None:
        with self._lock:
            if message.module in self._statuses or len(self._statuses) < _MODULES:
                self._statuses[message.module] = message

    # On the thread of this object

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._turn()
            except Exception as error:
                # Whatever came down, the next may be well, and events go on in any case.
                log.exception("steering.failed", error=str(error))
                self._stopped.wait(1.0)
        self._commands.close()
        for request in self._downlink.take(0.0)[1]:
            self._commands.take(request)  # which says that it is too late

    def _turn(self) -> None:
        now = time.monotonic()
        self._look_at_file(now)
        proposal, requests = self._downlink.take(_TURN_S)
        for request in requests:
            self._commands.take(request)
        now = time.monotonic()
        self._commands.step(now)
        if proposal is not None:
            self._consider(proposal)
        with self._lock:
            inventories, self._inventories = self._inventories, {}
            reports, self._reports = self._reports, []
        for inventory in inventories.values():
            self._judgement.heard(inventory)
        for report in reports:
            self._judgement.reported(report)
        for message in self._judgement.step(now):
            self._bus.publish(DESIRED, message, message.module)
        self._keep()
        self._say()
        self._document = self.document()

    def _consider(self, proposal: Proposal) -> None:
        wanted = self._settings.remote.desired
        if wanted == "none" or (proposal.source == "file") != (wanted == "file"):
            log.warning("desired.ignored", source=proposal.source, wanted=wanted)
            return
        self._host.telemetry.count("skerry_desired_states_total", source=proposal.source)
        self._judgement.propose(proposal)

    def _look_at_file(self, now: float) -> None:
        """Propose what is in the file, when it has changed."""
        name = self._settings.remote.file
        if not name or now < self._file_at:
            return
        self._file_at = now + _FILE_EVERY_S
        path = Path(name)
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
            if stamp == self._file_stamp:
                return
            with path.open("rb") as file:
                content = file.read(_FILE_BYTES + 1)
        except FileNotFoundError:
            if self._file_stamp != "missing":
                self._file_stamp = "missing"
                self._downlink.propose("file", "missing", {})
            return
        except OSError as error:
            if self._file_stamp != str(error):
                self._file_stamp = str(error)
                log.warning("desired.unreadable", path=name, error=error.strerror)
            return
        self._file_stamp = stamp
        version = hashlib.sha256(content).hexdigest()[:12]
        try:
            document = (
                json.loads(content) if len(content) <= _FILE_BYTES else f"more than {_FILE_BYTES} bytes"
            )
        except (ValueError, RecursionError) as error:
            document = f"not JSON: {error}"
        self._downlink.propose("file", version, document)

    def _keep(self) -> None:
        memory = self._judgement.memory
        if memory == self._kept:
            return
        self._kept = memory
        try:
            durable.replace(self._path, msgspec.json.encode(memory))
        except OSError as error:
            log.error(  # noqa: TRY400 - the path and the reason say all
                "desired.not_kept", path=str(self._path), error=error.strerror
            )

    def _say(self) -> None:
        """What was decided, once, in the log and the audit."""
        told = self._judgement.document()
        said = f"{told['version']} {told['state']}"
        if said == self._said:
            return
        self._said = said
        if told["state"] == "none":
            return
        about = {"version": told["version"], "state": told["state"], "errors": told.get("errors", [])}
        (log.error if told["state"] == "refused" else log.info)("desired.judged", **about)
        self._audit(what="desired", **about)
        if told["state"] == "refused":
            self._host.fault("desired", f"{told['version']} refused: {'; '.join(told['errors'])[:200]}")
        else:
            self._host.clear("desired")

    # To the platform

    def document(self) -> dict[str, Any]:
        """The state of the site."""
        with self._lock:
            statuses = sorted(self._statuses.items())
            more = dict(self._more)
        inventories = self._judgement.inventories
        here = inventories.get(self._settings.module)
        modules: dict[str, Any] = {}
        for name, status in statuses:
            modules[name] = {"kind": status.kind, "state": status.state, "version": status.version}
            if status.reason:
                modules[name]["reason"] = status.reason[:200]
        models = {
            name: [
                {"model": m.model, "digest": m.digest, "runtime": m.runtime}
                | ({"exchange": m.exchange} if m.exchange else {})
                for m in inventory.models
            ]
            for name, inventory in sorted(inventories.items())
            if inventory.models
        }
        updates = {
            u.slot: {
                name: value for name, value in msgspec.to_builtins(u).items() if value and name != "slot"
            }
            for _, inventory in sorted(inventories.items())
            for u in inventory.updates
        }
        audit = {name: inventory.audit for name, inventory in inventories.items() if inventory.audit}
        runtimes = {n: v for i in inventories.values() for n, v in sorted(i.runtimes.items())}
        found = {
            "site": self._settings.site,
            "version": __version__,
            "desired": self._judgement.document(),
            "modules": modules,
            "models": models,
            "updates": updates,
            "audit": audit,
            "runtimes": runtimes,
            "device": msgspec.to_builtins(here.device) if here is not None else {},
            **more,
        }
        most = self._link.report_bytes
        return fitted({key: value for key, value in found.items() if value not in ({}, [], "")}, most)

    def _tell(self) -> None:
        """On the reporter's thread."""
        while not self._stopped.wait(_TURN_S):
            try:
                self._report(time.monotonic())
            except Exception as error:
                log.exception("report.failed", error=str(error))

    def _report(self, now: float) -> None:
        document = self._document
        if not self._up or now < self._tell_at or document in ({}, self._told):
            return
        self._tell_at = now + _REPORT_EVERY_S
        try:
            self._link.report(document, _REPORT_S)
        except LinkDown as error:
            self._tell_at = time.monotonic() + _AGAIN_S
            self._host.telemetry.count("skerry_reports_failed_total")
            log.warning("report.failed", error=str(error))
            return
        with self._lock:
            self._told = document if self._up else None
        self._host.telemetry.count("skerry_reports_total")
