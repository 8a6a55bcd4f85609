"""The uplink on the bus: outbound records to the far end, in order; receipts back once it has them."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from skerry.bus import Bus
from skerry.channels import DELIVERED, OUTBOUND, RECEIPTS
from skerry.clock import utc
from skerry.errors import LinkDown, Rejected
from skerry.messages import Delivered, Event, Outbound, Receipt
from skerry.service import Host
from skerry.uplink.backoff import Backoff
from skerry.uplink.batches import Batches
from skerry.uplink.links import Link, make
from skerry.uplink.progress import Progress
from skerry.uplink.quarantine import Quarantine, Quarantined
from skerry.uplink.settings import UplinkSettings

_IDLE_S = 0.1
_QUIET_S = 0.3
"""While stopping: no batch for this long means that the buffer has finished."""
_DRAIN_SHARE = 0.7
"""Of the grace period; the rest is for closing."""
_LAST_RETRY_S = 0.2
"""While stopping, the longest wait before the far end is tried again."""

log = structlog.get_logger()
Connect = Callable[[UplinkSettings, threading.Event], Link]


def run(settings: UplinkSettings, bus: Bus, host: Host, connect: Connect = make) -> None:
    """Deliver until `host.stopping` is set and nothing more comes, or the grace period is nearly over.

    Args:
        settings: of the module.
        bus: where the batches come from.
        host: of the process.
        connect: makes the link; tests give their own.
    """
    stop = threading.Event()
    threading.Thread(target=_limit, args=(host, settings.grace_s, stop), name="grace", daemon=True).start()
    uplink = Uplink(settings, bus, host, connect(settings, stop), stop)
    try:
        uplink.serve()
    finally:
        stop.set()
        uplink.close()


def _limit(host: Host, grace_s: float, stop: threading.Event) -> None:
    """Set `stop` when the grace period is nearly over."""
    host.stopping.wait()
    stop.wait(grace_s * _DRAIN_SHARE)
    stop.set()


class Uplink:
    """One link on the bus. All but the handler runs on one thread."""

    def __init__(
        self, settings: UplinkSettings, bus: Bus, host: Host, link: Link, stop: threading.Event
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._host = host
        self._link = link
        self._stop = stop
        self._open = False
        self._opening: threading.Thread | None = None
        self._batches = Batches(settings.inbox_bytes)
        self._progress = Progress()
        self._backoff = Backoff(settings.backoff.first_s, settings.backoff.last_s, random.random)
        self._quarantine = Quarantine(host.state / "quarantine.jsonl", settings.quarantine_bytes)

    def serve(self) -> None:
        """Run until stopped and drained."""
        host = self._host
        host.queue = lambda: len(self._batches)
        self._bus.subscribe(OUTBOUND, self._on_outbound, self._settings.name)
        # Ready with the link still down: this is what makes the buffer send again what a
        # predecessor of this process had in its hands.
        host.ready()
        while not host.stopping.is_set():
            self._turn(_IDLE_S)
        moved = time.monotonic()
        while not self._stop.is_set() and time.monotonic() - moved < _QUIET_S:
            if self._turn(0.05):
                moved = time.monotonic()

    def close(self) -> None:
        """Let go of the far end, unless a thread that the process will not wait for is still opening it."""
        if self._opening is None or not self._opening.is_alive():
            self._link.close()
        self._quarantine.close()

    def _on_outbound(self, message: Outbound) -> None:
        """On the bus's thread."""
        if not self._batches.put(message, len(msgspec.json.encode(message.events))):
            self._host.telemetry.count("skerry_batches_dropped_total", reason="full")

    def _turn(self, timeout_s: float) -> bool:
        """Deal with one batch; whether there was one."""
        self._host.beat()
        message = self._batches.get(timeout_s)
        if message is None:
            return False
        events = self._progress.todo(message)
        if events is None:
            self._host.telemetry.count("skerry_batches_dropped_total", reason="jump")
        elif not events:
            self._receipt(message.store, message.first + len(message.events) - 1)
        else:
            self._deliver(message, events)
        return True

    def _deliver(self, message: Outbound, events: Sequence[Event]) -> None:
        """Send until the far end has every event, or it is in quarantine, or there is no more time."""
        end = message.first + len(message.events)
        alone = False
        while events and not self._stop.is_set():
            part = events[:1] if alone else events
            try:
                self._send(part)
            except LinkDown as error:
                self._lost(error)
            except Rejected as error:
                if not alone:
                    alone = True  # one of them is refused: find out which
                elif self._set_aside(message.store, end - len(events), part[0], str(error)):
                    events = events[1:]
                    self._receipt(message.store, end - len(events) - 1)
            else:
                events = events[len(part) :]
                self._delivered(part)
                self._receipt(message.store, end - len(events) - 1)

    def _send(self, events: Sequence[Event]) -> None:
        if not self._open:
            self._reach()
        self._link.send(events)
        self._backoff.succeeded()
        self._host.clear("link")

    def _reach(self) -> None:
        """Open the link on a thread: name resolution and handshakes may outlast the watchdog's patience.

        Raises:
            LinkDown: it could not be opened.
        """
        failure: list[Exception] = []

        def attempt() -> None:
            try:
                self._link.open()
            except Exception as error:  # noqa: BLE001 - raised below, on the loop's own thread
                failure.append(error)

        thread = self._opening = threading.Thread(target=attempt, name="open", daemon=True)
        thread.start()
        while thread.is_alive():
            self._host.beat()
            thread.join(0.1)
            if self._stop.is_set():
                raise LinkDown("stopping")
        if failure:
            raise failure[0]
        self._open = True
        log.info("link.open", link=self._settings.name)

    def _lost(self, error: LinkDown) -> None:
        """Close the link and wait before it is tried again."""
        self.close()
        self._open = False
        self._host.fault("link", str(error))
        self._host.telemetry.count("skerry_link_failures_total")
        self._pause(self._backoff.failed())

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            self._host.beat()
            if self._host.stopping.is_set():
                self._stop.wait(min(left, _LAST_RETRY_S))
                return
            self._host.stopping.wait(min(left, 1.0))

    def _set_aside(self, store: str, offset: int, event: Event, reason: str) -> bool:
        """Put a refused event into quarantine; False when even that is not possible now."""
        entry = Quarantined(time=utc(), reason=reason, store=store, offset=offset, event=event)
        try:
            added = self._quarantine.add(entry)
        except OSError as error:
            self._host.fault("quarantine", f"cannot write: {error.strerror} (make room, or check the disk)")
            self._pause(self._backoff.failed())
            return False
        if added:
            self._host.tally.add({"quarantined": 1})
            self._host.telemetry.count("skerry_events_quarantined_total")
            log.error("event.quarantined", id=event.id, offset=offset, reason=reason)
        self._host.fault("quarantine", f"the far end refuses events, last: {reason}")
        return True

    def _delivered(self, events: Sequence[Event]) -> None:
        now = time.monotonic_ns()
        latency = self._host.telemetry.latency("event_to_delivered")
        for event in events:
            if event.bootid == self._host.boot:
                latency.add((now - event.monotonic) / 1e6)
        self._host.tally.add({"confirmed": len(events)})
        self._host.telemetry.count("skerry_events_confirmed_total", len(events))
        message = Delivered(module=self._settings.module, events=tuple(events))
        self._bus.publish(DELIVERED, message, self._settings.name)

    def _receipt(self, store: str, upto: int) -> None:
        known = self._progress.confirm(store, upto)
        self._bus.publish(RECEIPTS, Receipt(store=store, upto=known), self._settings.name)
