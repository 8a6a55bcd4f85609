"""The buffer on the bus: events to disk, `accepted` back, records outbound until they are receipted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec
import structlog

from skerry.buffer.admission import admit, flaw
from skerry.buffer.blocks import Stamp
from skerry.buffer.mailbox import Mailbox, Offer
from skerry.buffer.settings import BufferSettings
from skerry.buffer.store import Batch, Record, Store
from skerry.buffer.window import Window
from skerry.bus import Bus
from skerry.channels import ACCEPTED, EVENTS, OUTBOUND, RECEIPTS, STATUS
from skerry.errors import Unavailable
from skerry.messages import Accepted, Event, Outbound, Receipt, Status, Submission
from skerry.service import Host

_IDLE_S = 0.1
_QUIET_S = 0.2
"""While stopping: nothing new for this long means that producers have finished."""
_DRAIN_SHARE = 0.7
"""Of the grace period; the rest is for closing."""
_ENVELOPE = 1024
"""Bytes that an outbound message needs around its events, generously."""
_WORKING = ("ready", "degraded")
_RECONNECTED, _UPLINK_READY = "reconnected", "uplink ready"

log = structlog.get_logger()


def run(settings: BufferSettings, bus: Bus, host: Host) -> None:
    """Keep events until the far end has them; returns when `host.stopping` is set and all is drained."""
    store = Store.open(
        host.state / "log",
        limit_bytes=settings.limit_bytes,
        segment_bytes=settings.segment_bytes,
        stamp=lambda: Stamp(host.boot, time.monotonic_ns(), time.time_ns()),
        committed=host.tally["accepted"],
    )
    with contextlib.closing(store):
        Buffer(settings, bus, host, store).serve()


class Buffer:
    """One store on the bus. All but the handlers runs on one thread."""

    def __init__(self, settings: BufferSettings, bus: Bus, host: Host, store: Store) -> None:
        self._settings = settings
        self._bus = bus
        self._host = host
        self._store = store
        self._mailbox = Mailbox(settings.inbox_bytes, settings.max_batch, settings.linger_ms / 1000)
        self._window = Window(
            settings.batch_records * settings.window_batches,
            settings.batch_bytes * settings.window_batches,
            settings.resend_s,
        )
        self._window.go_back(store.upto)
        self._uplinks: dict[str, tuple[int, str]] = {}
        self._evicted: dict[str, int] = {}
        self._decoder = msgspec.json.Decoder(Event)
        self._encoder = msgspec.json.Encoder()

    def serve(self) -> None:
        """Run until stopped and drained."""
        host, bus = self._host, self._bus
        host.queue = lambda: self._store.waiting
        host.before_metrics(self._show)
        self._account()
        bus.subscribe(EVENTS, self._on_events)
        bus.subscribe(RECEIPTS, self._on_receipt, self._settings.link)
        bus.subscribe(STATUS, self._on_status)
        bus.on_connect(lambda: self._mailbox.call(_RECONNECTED))
        host.ready()
        while not host.stopping.is_set():
            self._turn(_IDLE_S)
        self._drain()
        self._account()

    def _turn(self, timeout_s: float) -> bool:
        """One round of the loop; whether anything came in."""
        self._host.beat()
        mail = self._mailbox.wait(min(timeout_s, max(self._window.due(time.monotonic()), 0.0)))
        if mail.offers:
            self._commit(mail.offers)
        for receipt in mail.receipts:
            self._confirm(receipt)
        self._answer(mail.calls)
        self._send()
        return bool(mail.offers or mail.receipts)

    def _drain(self) -> None:
        """Commit what waits, and go on until the far end has all of it or the time is nearly over."""
        deadline = time.monotonic() + self._settings.grace_s * _DRAIN_SHARE
        moved = time.monotonic()
        while time.monotonic() < deadline:
            if self._turn(0.05):
                moved = time.monotonic()
            quiet = self._mailbox.empty and time.monotonic() - moved > _QUIET_S
            hopeless = not self._bus.connected or not self._uplink_works
            if quiet and (self._store.waiting == 0 or hopeless):
                break
        log.info("buffer.drained", waiting=self._store.waiting)

    # From the bus's thread

    def _on_events(self, submission: Submission) -> None:
        problem = flaw(submission)
        if problem:
            self._host.telemetry.count("skerry_submissions_refused_total", reason=problem)
            log.warning("submission.refused", producer=submission.producer, flaw=problem)
            return
        payloads = [self._encoder.encode(event) for event in submission.events]
        offer = Offer(
            producer=submission.producer,
            epoch=submission.epoch,
            oldest=submission.oldest,
            first=submission.events[0].seq,
            payloads=payloads,
            born=[e.monotonic if e.bootid == self._host.boot else 0 for e in submission.events],
            urgent=any(e.lane == "alarm" for e in submission.events),
            size=sum(map(len, payloads)),
        )
        if not self._mailbox.offer(offer):
            self._host.telemetry.count("skerry_submissions_refused_total", reason="busy")

    def _on_receipt(self, receipt: Receipt) -> None:
        self._mailbox.receipt(receipt)

    def _on_status(self, status: Status) -> None:
        """Notice an uplink that begins, or begins again: it may know nothing of what was sent."""
        if status.kind != "uplink":
            return
        before = self._uplinks.get(status.module)
        if before is None and len(self._uplinks) >= 100:
            return
        self._uplinks[status.module] = status.pid, status.state
        fresh = before is None or before[0] != status.pid or before[1] not in _WORKING
        if fresh and status.state in _WORKING:
            self._mailbox.call(_UPLINK_READY)

    @property
    def _uplink_works(self) -> bool:
        return any(state in _WORKING for _, state in list(self._uplinks.values()))

    # Acceptance

    def _commit(self, offers: list[Offer]) -> None:
        """Keep what is new, then say so. Nothing is said of what is not on disk."""
        marks: dict[tuple[str, str], int] = {}
        records: list[Record] = []
        born: list[int] = []
        for offer in offers:
            records.extend(self._judge(offer, marks, born))
        if records and not self._append(records):
            return
        now = time.monotonic_ns()
        latency = self._host.telemetry.latency("event_to_accepted")
        for moment in born:
            if moment:
                latency.add((now - moment) / 1e6)
        for producer, epoch in dict.fromkeys((o.producer, o.epoch) for o in offers):
            self._announce(producer, epoch)
        self._account()

    def _judge(self, offer: Offer, marks: dict[tuple[str, str], int], born: list[int]) -> Iterator[Record]:
        """The records of an offer that are to be kept.

        Args:
            offer: a submission.
            marks: watermarks that this commit will raise; brought up to date.
            born: when each record was decided; added to.
        """
        key = offer.producer, offer.epoch
        known = marks.get(key, self._store.watermark(*key))
        verdict = admit(known, offer.oldest, offer.first, len(offer.payloads))
        count = self._host.telemetry.count
        if verdict.repeats:
            count("skerry_events_repeated_total", verdict.repeats)
        if verdict.jump:
            count("skerry_submissions_refused_total", reason="jump")
        if verdict.gap:
            count("skerry_events_never_submitted_total", verdict.gap)
            log.warning("submission.gap", producer=offer.producer, epoch=offer.epoch, events=verdict.gap)
        first = offer.first + verdict.repeats
        if verdict.taken:
            marks[key] = first + verdict.taken - 1
            born += offer.born[verdict.repeats :]
        for n, payload in enumerate(offer.payloads[verdict.repeats : verdict.repeats + verdict.taken]):
            yield Record(offer.producer, offer.epoch, first + n, payload)

    def _append(self, records: list[Record]) -> bool:
        began = time.monotonic()
        try:
            self._store.append(records)
        except Unavailable as error:
            # Not accepted: the producers keep these events and repeat them.
            self._host.fault("append", str(error))
            self._host.telemetry.count("skerry_submissions_refused_total", reason="disk")
            return False
        self._host.telemetry.latency("commit").add((time.monotonic() - began) * 1000)
        self._host.clear("append")
        return True

    def _announce(self, producer: str, epoch: str) -> None:
        """Tell a producer how far it is accepted."""
        seq = self._store.watermark(producer, epoch)
        if seq is not None:
            self._bus.publish(ACCEPTED, Accepted(producer=producer, epoch=epoch, seq=seq), producer)

    def _answer(self, calls: set[str]) -> None:
        if _RECONNECTED in calls:
            newest = dict(self._store.watermarks().keys())  # (producer, epoch): the last one of each
            for producer, epoch in newest.items():
                self._announce(producer, epoch)
        if calls:
            self._window.go_back(self._store.upto)

    # Outbound

    def _confirm(self, receipt: Receipt) -> None:
        """Take a receipt that can be one of ours."""
        if receipt.store != self._store.id or receipt.upto > min(self._window.highest, self._store.last):
            self._host.telemetry.count("skerry_receipts_ignored_total")
            return
        before = self._store.upto
        try:
            self._store.receipt(receipt.upto)
            self._host.clear("cursor")
        except Unavailable as error:  # it counts all the same
            self._host.fault("cursor", str(error))
        if self._store.upto > before:
            self._window.confirm(self._store.upto, time.monotonic())
            self._account()

    def _send(self) -> None:
        """Send as much as the window holds."""
        now = time.monotonic()
        window, store = self._window, self._store
        if window.due(now) <= 0:
            log.info("outbound.repeated", after=store.upto, sent=window.sent)
            window.go_back(store.upto, in_vain=True)
        if window.sent < store.upto:  # evicted under way
            window.go_back(store.upto)
        while self._bus.connected:
            records, size = window.room()
            if not records or window.sent >= store.last:
                return
            batch = self._next_batch(min(records, self._settings.batch_records), size)
            if batch is None or not self._publish(batch, time.monotonic()):
                return

    def _next_batch(self, records: int, size: int) -> Batch | None:
        try:
            batch = self._store.read(self._window.sent + 1, records, min(size, self._settings.batch_bytes))
            self._host.clear("read")
        except Unavailable as error:
            self._host.fault("read", str(error))
            return None
        if batch is not None and batch.first != self._window.sent + 1 and self._store.upto != batch.first - 1:
            # Behind a hole: the uplink takes it only once it knows that nothing is to come before it,
            # and that is when all before the hole is confirmed.
            return None
        return batch

    def _publish(self, batch: Batch, now: float) -> bool:
        events = self._decode(batch)
        if not events:
            self._account()
            return True
        message = Outbound(
            store=self._store.id, first=batch.first, base=self._store.upto, events=tuple(events)
        )
        if not self._bus.publish(OUTBOUND, message, self._settings.link):
            return False
        size = sum(len(p) for p in batch.payloads[: len(events)])
        self._window.note(batch.first + len(events) - 1, len(events), size, now)
        return True

    def _decode(self, batch: Batch) -> list[Event]:
        """Its events, up to the first that can never be sent; that one is given up, and counted."""
        events: list[Event] = []
        for n, payload in enumerate(batch.payloads):
            reason = "oversized" if len(payload) > OUTBOUND.max_bytes - _ENVELOPE else ""
            try:
                event = self._decoder.decode(payload)
            except msgspec.DecodeError:
                reason = "unreadable"
            if reason:
                log.error("record.given_up", offset=batch.first + n, reason=reason, bytes=len(payload))
                self._store.skip(batch.first + n, reason)
                break
            events.append(event)
        return events

    # The ledger

    def _account(self) -> None:
        """Bring the counts that survive a kill to what the store says."""
        store = self._store
        self._evicted = store.evicted
        terms = {f"evicted/{reason}": n for reason, n in self._evicted.items()}
        self._host.tally.set(
            {"accepted": store.accepted, "delivered": store.delivered, "waiting": store.waiting, **terms}
        )

    def _show(self) -> None:
        """Gauges, on the metrics thread: whole numbers and a dict that is replaced, never changed."""
        store, gauge = self._store, self._host.telemetry.gauge
        gauge("skerry_events_accepted_total", store.accepted)
        gauge("skerry_events_delivered_total", store.delivered)
        gauge("skerry_events_waiting", store.waiting)
        gauge("skerry_buffer_bytes", store.bytes_on_disk)
        for reason, count in self._evicted.items():
            gauge("skerry_events_evicted_total", count, reason=reason)
