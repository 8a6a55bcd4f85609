"""The uplink on the bus: outbound records to the far end, in order; receipts back once it has them."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import structlog

from skerry.bus import Bus
from skerry.channels import DELIVERED, OUTBOUND, RECEIPTS
from skerry.clock import synchronised
from skerry.errors import LinkDown, Rejected
from skerry.messages import Delivered, Lane, Outbound
from skerry.service import Host
from skerry.uplink.audit import Audit
from skerry.uplink.backoff import Backoff
from skerry.uplink.circuit import STATES, Circuit
from skerry.uplink.commander import Commander
from skerry.uplink.downlink import Downlink
from skerry.uplink.expiry import Expiry, Source
from skerry.uplink.hours import Hours, zone
from skerry.uplink.lanes import Lanes
from skerry.uplink.limits import Meter
from skerry.uplink.links import Link, make
from skerry.uplink.parts import Part
from skerry.uplink.record import Flaw, Record
from skerry.uplink.settings import UplinkSettings
from skerry.uplink.shares import Shares
from skerry.uplink.shown import Shown
from skerry.uplink.steering import Steering
from skerry.uplink.window import Window

_IDLE_S = 0.1
_POLL_S = 0.005
"""While something is under way and more may be: an alarm that comes meanwhile waits no longer than this."""
_QUIET_S = 0.3
"""While stopping: no batch for this long means that the buffer has finished."""
_DRAIN_SHARE = 0.7
"""Of the grace period; the rest is for closing."""
_LAST_RETRY_S = 0.2
"""While stopping, the longest wait before the far end is tried again."""
_HOURS_EVERY_S = 1.0
_REFUSALS_S = 60.0
"""Without a refusal for this long the module is well again."""
_LONGEST_REASON = 300
_STEADY_S = 2.0
"""A link with nothing to send that stays open for this long is well again."""

log = structlog.get_logger()
Connect = Callable[[UplinkSettings, threading.Event, Downlink], Link]


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
    downlink = Downlink()
    link = connect(settings, stop, downlink)
    uplink = Uplink(settings, bus, host, link, stop)
    audit = Audit(host.state)
    commander = Commander(
        settings, bus, flushing=uplink, audit=audit, telemetry=host.telemetry,
        folder=host.state / "diagnostics",
    )  # fmt: skip
    steering = Steering(
        settings, bus, host, link=link, downlink=downlink, commands=commander, audit=audit.write
    )  # fmt: skip
    uplink.on_link(steering.link_is)
    steering.start()
    try:
        uplink.serve()
    finally:
        steering.stop()
        stop.set()
        uplink.close()


def _limit(host: Host, grace_s: float, stop: threading.Event) -> None:
    """Set `stop` when the grace period is nearly over."""
    host.stopping.wait()
    stop.wait(grace_s * _DRAIN_SHARE)
    stop.set()


class _Started(NamedTuple):
    """A batch under way, since when in monotonic seconds, or one that was refused and waits for its turn."""

    part: Part
    at: float
    refused: str


class Uplink:
    """One link on the bus. All but the handler runs on one thread."""

    def __init__(
        self, settings: UplinkSettings, bus: Bus, host: Host, link: Link, stop: threading.Event
    ) -> None:
        now, sending = time.monotonic(), settings.sending
        self._settings = settings
        self._bus = bus
        self._host = host
        self._link = link
        self._stop = stop
        self._open = False
        self._opening: threading.Thread | None = None
        self._why = ""  # the link was lost
        self._lanes = Lanes(settings.inbox_bytes)
        self._under_way: deque[_Started] = deque()
        backoff = settings.backoff
        self._circuit = Circuit(Backoff(backoff.first_s, backoff.last_s, random.random), backoff.asked_s)
        self._shares = Shares(sending.live_share)
        self._meter = Meter(settings.bounds, now)
        self._hours = Hours(sending.schedules, zone(sending.timezone))
        self._hours_at = 0.0
        self._opened_at = 0.0
        self._flush_until = 0.0
        self._held: frozenset[Lane] = frozenset()
        self._shown = Shown(now)
        kept = [Source(str(path), "certificate") for path in link.certificates]
        self._expiry = Expiry(settings.link, host, kept)
        self._trouble = ""
        self._on_link: Callable[[bool], None] = lambda _: None
        self._refused_at: float | None = None
        self._window = Window(min(sending.window, link.window), sending.queue_s)
        self._max_bytes = min(float(sending.batch_bytes), link.max_bytes)

    def adjust(self, settings: UplinkSettings) -> None:
        """Go by other settings, where they may change; what is under way is not touched."""
        now, sending, before = time.monotonic(), settings.sending, self._settings
        self._settings = settings
        if settings.bounds != before.bounds:
            self._meter = Meter(settings.bounds, now)
        if sending.live_share != before.sending.live_share:
            self._shares = Shares(sending.live_share)
        self._hours = Hours(sending.schedules, zone(sending.timezone))
        self._hours_at, self._held = 0.0, frozenset()
        self._window = Window(min(sending.window, self._link.window), sending.queue_s)
        self._max_bytes = min(float(sending.batch_bytes), self._link.max_bytes)
        backoff = settings.backoff
        if backoff != before.backoff:
            self._circuit.go_by(Backoff(backoff.first_s, backoff.last_s, random.random), backoff.asked_s)

    def on_link(self, callback: Callable[[bool], None]) -> None:
        """Call back when the link was opened, or lost, on the thread of the loop."""
        self._on_link = callback

    def flush(self, wait_s: float) -> None:
        """For this long, send whatever the hours, and try the far end without waiting. From any thread."""
        self._flush_until = time.monotonic() + wait_s

    @property
    def waiting(self) -> int:
        """Records here that the far end has not confirmed."""
        return len(self._lanes) + sum(len(started.part.records) for started in list(self._under_way))

    def serve(self) -> None:
        """Run until stopped and drained."""
        host = self._host
        host.queue = lambda: len(self._lanes)
        host.before_metrics(self._show)
        self._bus.subscribe(OUTBOUND, self._on_outbound, self._settings.name)
        # Ready with the link still down: this is what makes the buffer send again what a
        # predecessor of this process had in its hands.
        host.ready()
        while not host.stopping.is_set():
            host.remote.adjust(self.adjust)
            self._turn(_IDLE_S)
        moved = time.monotonic()
        while not self._stop.is_set() and time.monotonic() - moved < _QUIET_S:
            if self._turn(0.05) or self._busy:
                moved = time.monotonic()

    def close(self) -> None:
        """Let go of the far end, unless a thread that the process will not wait for is still opening it."""
        if self._opening is None or not self._opening.is_alive():
            self._link.close()
        self._open = False

    def _on_outbound(self, message: Outbound) -> None:
        """On the bus's thread."""
        dropped = self._lanes.put(message)
        if dropped == "repeat":
            self._host.telemetry.count("skerry_batches_repeated_total")
        elif dropped:
            self._host.telemetry.count("skerry_batches_dropped_total", reason=dropped)

    def _turn(self, timeout_s: float) -> bool:
        """Start what may be started and collect what is confirmed; whether anything moved."""
        self._host.beat()
        self._look_at_the_time()
        moved = False
        wait_s = timeout_s
        try:
            wait_s = self._start(timeout_s)
            moved = self._collect()
            self._keep_open()
        except LinkDown as error:
            self._lost(error)
        for receipt in self._lanes.receipts():
            self._bus.publish(RECEIPTS, receipt, self._settings.name)
        if not self._under_way and not moved:
            moved = self._lanes.wait(wait_s)
        return moved

    @property
    def _busy(self) -> bool:
        """Whether something is on its way, or may be sent."""
        return bool(self._under_way) or any(lane not in self._held for lane in self._lanes.waiting())

    # Out

    def _start(self, timeout_s: float) -> float:
        """Start batches while there is room; how long to wait for more, in seconds.

        Raises:
            LinkDown: the far end is lost.
        """
        while not self._stop.is_set():
            now = time.monotonic()
            if wait_s := self._circuit.wait_s(now):
                if self._host.stopping.is_set() or now < self._flush_until:
                    self._circuit.hurry(now + _LAST_RETRY_S)
                return min(wait_s, timeout_s)
            lane, wait_s = self._next_lane(now)
            if lane is None:
                return min(wait_s, timeout_s)
            self._start_one(lane, now)
        return timeout_s

    def _next_lane(self, now: float) -> tuple[Lane | None, float]:
        """Whose turn it is, or how long to wait for a turn, in seconds."""
        waiting = {lane: b for lane, b in self._lanes.waiting().items() if lane not in self._held}
        # After a failure, one batch is the probe.
        window = 1 if self._circuit.failures else self._window.size
        kept = 1 if window > 1 else 0  # for an alarm
        room = window - len(self._under_way)
        lane = self._shares.choose(waiting) if room > 0 else None
        if lane is None or (lane != "alarm" and room <= kept):
            return None, _IDLE_S
        wait_s = self._meter.wait_s(now, alarm=lane == "alarm")
        return (None, wait_s) if wait_s else (lane, 0.0)

    def _start_one(self, lane: Lane, now: float) -> None:
        most: float = self._settings.sending.batch_events
        if not self._link.whole:
            most = min(most, self._meter.messages(now))
        part = self._lanes.take(lane, most, self._max_bytes)
        records = [r for r in part.records if isinstance(r, Record)]
        first = part.records[0]
        if isinstance(first, Flaw):
            self._under_way.append(_Started(part, now, first.reason))
            return
        try:
            if not self._open:
                self._reach()
            cost = self._link.start(records)
        except LinkDown:
            self._lanes.put_back(part)
            raise
        except Rejected as error:
            if len(records) > 1:
                self._lanes.put_back(part, alone=True)  # one of them is refused: find out which
            else:
                self._under_way.append(_Started(part, now, str(error)[:_LONGEST_REASON]))
            return
        self._under_way.append(_Started(part, now, ""))
        self._shares.sent(lane, part.backlog, cost.bytes)
        self._meter.pay(cost.messages, cost.bytes, now)
        self._host.telemetry.count("skerry_link_messages_total", cost.messages)
        self._host.telemetry.count("skerry_link_bytes_total", cost.bytes)

    def _keep_open(self) -> None:
        """Be there for what comes down, with nothing to send.

        Raises:
            LinkDown: the far end is lost, or cannot be reached.
        """
        if not self._link.steered or self._under_way or self._host.stopping.is_set():
            return
        now = time.monotonic()
        if not self._open:
            if not self._circuit.wait_s(now):
                self._reach()
            return
        self._link.finish(0.0)
        if self._circuit.failures and now - self._opened_at > _STEADY_S:
            self._well()

    # Confirmed

    def _collect(self) -> bool:
        """Take note of what the far end has, oldest first; whether there was anything.

        Raises:
            LinkDown: the far end is lost.
        """
        any_yet = False
        wait_s = _POLL_S
        while self._under_way:
            part, started, reason = self._under_way[0]
            try:
                if not reason and not self._link.finish(wait_s):
                    break
            except Rejected as error:
                if len(self._under_way) > 1:
                    raise LinkDown(f"refused with others under way: {error}") from error
                reason = str(error)[:_LONGEST_REASON]
                if len(part.records) > 1:
                    self._under_way.popleft()
                    self._lanes.put_back(part, alone=True)
                    return True
            self._under_way.popleft()
            if reason:
                self._refused(part, reason)
            else:
                self._window.confirmed(started, time.monotonic())
                self._delivered(part)
            any_yet, wait_s = True, 0.0
        return any_yet

    def _refused(self, part: Part, reason: str) -> None:
        self._lanes.confirm(part, reason)
        self._host.telemetry.count("skerry_events_refused_total")
        log.error("event.refused", store=part.chain.store, offset=part.last, reason=reason)
        self._refused_at = time.monotonic()
        self._host.fault("refused", f"the far end refuses events, last: {reason}")

    def _delivered(self, part: Part) -> None:
        now_s, now_ns = time.monotonic(), time.monotonic_ns()
        records = [r for r in part.records if isinstance(r, Record)]
        self._lanes.confirm(part)
        latency = self._host.telemetry.latency("event_to_delivered")
        # Of a backlog the first and the last say enough; a hundred thousand a second would cost a tenth.
        for record in records[:: max(len(records) - 1, 1)] if part.backlog else records:
            if record.envelope.bootid == self._host.boot:
                latency.add((now_ns - record.envelope.monotonic) / 1e6)
        self._host.tally.add({"confirmed": len(records)})
        self._host.telemetry.count("skerry_events_confirmed_total", len(records))
        if picked := self._shown.pick(records, now_s):
            message = Delivered(module=self._settings.module, events=picked)
            self._bus.publish(DELIVERED, message, self._settings.name)
        self._well()

    def _well(self) -> None:
        """The far end is there."""
        before = self._circuit.state(time.monotonic())
        if self._circuit.succeeded():
            log.info("circuit.closed", link=self._settings.name, before=before)
            self._host.clear("link")

    # The far end lost, and found again

    def _reach(self) -> None:
        """Open the link on a thread: name resolution and handshakes may outlast the watchdog's patience.

        Raises:
            LinkDown: it could not be opened.
        """
        failure: list[Exception] = []
        if self._circuit.failures:
            log.info("circuit.half_open", link=self._settings.name, failures=self._circuit.failures)
            self._host.fault("link", f"{self._why} (half-open, trying now)")

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
            raise failure.pop()  # out of the list: the error knows this frame, and would keep itself alive
        self._open, self._opened_at = True, time.monotonic()
        log.info("link.open", link=self._settings.name)
        self._on_link(True)

    def _lost(self, error: LinkDown) -> None:
        """Take back all that is not confirmed, close the link and leave it in peace for a while."""
        while self._under_way:
            self._lanes.put_back(self._under_way.pop().part)
        self._on_link(False)
        self.close()
        wait_s = self._circuit.failed(time.monotonic(), error.retry_after_s)
        self._why = str(error)
        self._host.fault("link", f"{error} (open, next try in {wait_s:.1f} s)")
        self._host.telemetry.count("skerry_link_failures_total")
        if self._circuit.failures == 1:
            log.warning("circuit.open", link=self._settings.name, wait_s=round(wait_s, 1), error=str(error))

    # Time

    def _look_at_the_time(self) -> None:
        """What changes by itself: the hours of lanes, and a refusal that is long past."""
        now = time.monotonic()
        if self._expiry.due(now):
            self._expiry.step(now, time.time(), synchronised())
        if (trouble := self._link.trouble) != self._trouble:
            self._trouble = trouble
            if trouble:
                self._host.fault("steering", trouble)
            else:
                self._host.clear("steering")
        if self._refused_at is not None and now - self._refused_at > _REFUSALS_S:
            self._refused_at = None
            self._host.clear("refused")
        if not self._hours or now < self._hours_at:
            return
        self._hours_at = now + _HOURS_EVERY_S
        held = self._hours.held(time.time(), synchronised()) if now >= self._flush_until else frozenset()
        if held != self._held:
            log.info("lanes.held", lanes=sorted(held))
        self._held = held

    def _show(self) -> None:
        """Gauges, on the metrics thread."""
        now, gauge = time.monotonic(), self._host.telemetry.gauge
        state = self._circuit.state(now)
        for name in STATES:
            gauge("skerry_link_circuit", float(name == state), state=name)
        gauge("skerry_link_retry_s", round(self._circuit.wait_s(now), 1))
        gauge("skerry_batches_under_way", len(self._under_way))
        gauge("skerry_window_batches", self._window.size)
        blocked = self._lanes.blocked
        for lane, size in self._lanes.sizes().items():
            gauge("skerry_lane_bytes", size, lane=lane)
            gauge("skerry_lane_held", float(lane in self._held), lane=lane, reason="hours")
            gauge("skerry_lane_held", float(lane in blocked), lane=lane, reason="refusals")
