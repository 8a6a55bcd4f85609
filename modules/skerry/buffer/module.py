"""The buffer on the bus: events to disk, `accepted` back, records outbound until they are receipted."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from skerry.buffer import quarantine
from skerry.buffer.admission import Verdict, admit, flaw
from skerry.buffer.blocks import Names, Stamp
from skerry.buffer.chain import Batch, Chain
from skerry.buffer.gaps import NEVER_SUBMITTED, QUARANTINED, Hole
from skerry.buffer.mailbox import Mail, Mailbox, Offer
from skerry.buffer.outflow import Outflow
from skerry.buffer.quarantine import Entry, Quarantine
from skerry.buffer.records import OWN, Series
from skerry.buffer.seal import Seal, read_key
from skerry.buffer.settings import BufferSettings
from skerry.buffer.store import Store
from skerry.buffer.times import Anchors, corrected, wants_correction
from skerry.buffer.window import Window
from skerry.bus import Bus
from skerry.channels import ACCEPTED, EVENTS, OUTBOUND, RECEIPTS, STATUS
from skerry.clock import synchronised, utc
from skerry.errors import Unavailable
from skerry.messages import LANES, Accepted, Event, Gap, Lane, Outbound, Range, Receipt, Status, Submission
from skerry.service import Host

_IDLE_S = 0.1
_QUIET_S = 0.2
"""While stopping: nothing new for this long means that producers have finished."""
_DRAIN_SHARE = 0.7
"""Of the grace period; the rest is for closing."""
_ENVELOPE = 1024
"""Bytes that an outbound message needs around its events, generously."""
_CHORES_S = 1.0
"""How often an operator's wishes are looked for, and the clock is looked at."""
_UNREPORTED = 1000
"""Refusals that wait for room to be reported; they are in quarantine all the same."""
_WORKING = ("ready", "degraded")
_RECONNECTED, _UPLINK_READY = "reconnected", "uplink ready"

log = structlog.get_logger()


class Clock:
    """Both clocks of this boot, and whether the wall clock can be believed, as of the last second."""

    def __init__(self, boot: str, trusted: bool) -> None:
        self._boot = boot
        self._trusted = trusted
        self._synchronised = trusted or synchronised()

    def look(self) -> None:
        """Ask the kernel again."""
        self._synchronised = self._trusted or synchronised()

    def read(self) -> Stamp:
        """Now."""
        return Stamp(self._boot, time.monotonic_ns(), time.time_ns(), self._synchronised)


def run(settings: BufferSettings, bus: Bus, host: Host) -> None:
    """Keep events until the far end has them; returns when `host.stopping` is set and all is drained."""
    seal = Seal(
        compress=settings.compression == "zstd",
        key=read_key(settings.key_file) if settings.key_file else None,
        old_keys=[read_key(path) for path in settings.old_key_files],
    )
    clock = Clock(host.boot, settings.clock == "trusted")
    store = Store.open(
        host.state / "log",
        limit_bytes=settings.limit_bytes,
        segment_bytes=settings.segment_bytes,
        lanes=settings.lanes,
        seal=seal,
        stamp=clock.read,
        committed={lane: host.tally[f"accepted/{lane}"] for lane in LANES},
    )
    with contextlib.closing(store):
        Buffer(settings, bus, host, store, clock).serve()


class Buffer:
    """One store on the bus. All but the handlers runs on one thread."""

    def __init__(self, settings: BufferSettings, bus: Bus, host: Host, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._bus = bus
        self._host = host
        self._store = store
        self._clock = clock
        self._source = f"skerry/{settings.site}/{settings.module}"
        self._mailbox = Mailbox(settings.inbox_bytes // 4, settings.max_batch, _lingers(settings))
        self._anchors = Anchors(store.folder / "anchors", store.disk)
        self._quarantine = Quarantine(store.folder, store.disk, settings.quarantine_bytes)
        self._outflows = {lane: self._outflow(store.chain(lane)) for lane in LANES}
        self._uplinks: dict[str, tuple[int, str]] = {}
        self._evicted: dict[str, int] = {}
        self._unreported: deque[tuple[Chain, Names, str]] = deque(maxlen=_UNREPORTED)
        self._chores_at = 0.0
        self._decoder = msgspec.json.Decoder(Event)
        self._encoder = msgspec.json.Encoder()

    def _outflow(self, chain: Chain) -> Outflow:
        settings = self._settings
        window = Window(
            settings.batch_records * settings.window_batches,
            settings.batch_bytes * settings.window_batches,
            settings.resend_s,
        )
        return Outflow(
            chain, window, batch_records=settings.batch_records, batch_bytes=settings.batch_bytes,
            backlog_s=settings.backlog_s, prepare=self._prepared, tell=self._told,
        )  # fmt: skip

    def serve(self) -> None:
        """Run until stopped and drained."""
        host, bus = self._host, self._bus
        host.queue = lambda: self._store.waiting
        host.before_metrics(self._show)
        self._chores()
        self._account()
        bus.subscribe_settling(EVENTS, self._on_events)
        bus.subscribe(RECEIPTS, self._on_receipt, self._settings.link)
        bus.subscribe(STATUS, self._on_status)
        bus.on_connect(lambda: self._mailbox.call(_RECONNECTED))
        host.ready()
        while not host.stopping.is_set():
            host.remote.adjust(self._adjust)
            self._turn(_IDLE_S)
        self._drain()
        self._account()
        self._quarantine.close()

    def _adjust(self, settings: BufferSettings) -> None:
        """Go by other settings, between two commits."""
        self._mailbox.linger(_lingers(settings))
        for outflow in self._outflows.values():
            outflow.backlog_s = settings.backlog_s
        if settings.lanes != self._settings.lanes:
            try:
                self._store.adjust(settings.lanes)
            except (OSError, Unavailable) as error:
                log.warning("limits.not_kept", error=str(error), consequence="the next commit tries again")
            self._account()
        self._settings = settings

    def _turn(self, timeout_s: float) -> bool:
        """One round of the loop; whether anything came in."""
        self._host.beat()
        now = time.monotonic()
        due = min(outflow.window.due(now) for outflow in self._outflows.values())
        mail = self._mailbox.wait(min(timeout_s, max(due, 0.0)))
        for lane, offers in mail.offers.items():
            self._commit(lane, offers)
        for receipt in mail.receipts:
            self._confirm(receipt)
        self._answer(mail.calls)
        self._send()
        self._rest(mail)
        return bool(mail.offers or mail.receipts)

    def _rest(self, mail: Mail) -> None:
        """What can wait until nothing else is to be done, and what cannot wait for ever."""
        if not (mail.offers or mail.receipts):
            self._store.prepare()
        if time.monotonic() >= self._chores_at:
            self._chores()

    def _drain(self) -> None:
        """Commit what waits, and go on until the far end has all of it or the time is nearly over."""
        deadline = time.monotonic() + self._settings.grace_s * _DRAIN_SHARE
        moved = time.monotonic()
        while time.monotonic() < deadline:
            if self._turn(0.05):
                moved = time.monotonic()
            quiet = self._mailbox.empty and time.monotonic() - moved > _QUIET_S
            hopeless = not self._bus.connected or not self._uplink_works
            if quiet and (all(outflow.idle for outflow in self._outflows.values()) or hopeless):
                break
        log.info("buffer.drained", waiting=self._store.waiting)

    # From the bus's thread

    def _on_events(self, submission: Submission, done: Callable[[], None]) -> None:
        problem = flaw(submission)
        if problem:
            self._host.telemetry.count("skerry_submissions_refused_total", reason=problem)
            log.warning("submission.refused", producer=submission.producer, flaw=problem)
            done()
            return
        payloads = [self._encoder.encode(event) for event in submission.events]
        stamp = self._clock.read()
        offer = Offer(
            lane=submission.events[0].lane,
            producer=submission.producer,
            epoch=submission.epoch,
            oldest=submission.oldest,
            first=submission.events[0].seq,
            payloads=payloads,
            born=[e.monotonic if e.bootid == self._host.boot else 0 for e in submission.events],
            times=any(wants_correction(event, stamp) for event in submission.events),
            size=sum(map(len, payloads)),
            done=done,
        )
        if not self._mailbox.offer(offer):
            self._host.telemetry.count("skerry_submissions_refused_total", reason="busy")
            done()

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

    def _commit(self, lane: Lane, offers: list[Offer]) -> None:
        """Keep what is new, then say so. Nothing is said of what is not on disk."""
        chain = self._store.chain(lane)
        marks: dict[tuple[str, str], int] = {}
        series: list[Series] = []
        born: list[int] = []
        for offer in offers:
            series.extend(self._judge(chain, offer, marks, born, sum(len(s.payloads) for s in series)))
        times = any(offer.times for offer in offers)
        kept = not series or self._append(chain, series, times=times, alone=len(offers) == 1)
        if not kept and len(offers) > 1:  # together they may be too much for what room there is
            for offer in offers:
                self._commit(lane, [offer])
            return
        for offer in offers:
            offer.done()
        if not kept:
            return
        now = time.monotonic_ns()
        latency = self._host.telemetry.latency("event_to_accepted")
        for moment in born:
            if moment:
                latency.add((now - moment) / 1e6)
        for producer, epoch in dict.fromkeys((o.producer, o.epoch) for o in offers):
            self._announce(chain, producer, epoch)
        self._account()

    def _judge(
        self, chain: Chain, offer: Offer, marks: dict[tuple[str, str], int], born: list[int], ahead: int
    ) -> list[Series]:
        """What of an offer is to be kept.

        Args:
            chain: of its lane.
            offer: a submission.
            marks: watermarks that this commit will raise; brought up to date.
            born: when each record was decided; added to.
            ahead: records of this commit that come before it.
        """
        key = offer.producer, offer.epoch
        known = marks.get(key, chain.watermark(*key))
        verdict = admit(known, offer.oldest, offer.first, len(offer.payloads))
        self._count(offer, verdict)
        if verdict.jump:
            return []
        first = offer.first + verdict.repeats
        series = []
        if verdict.gap:
            last = offer.oldest - 1
            names = [Names(*key, last - verdict.gap + 1, last, verdict.gap)]
            series.append(self._stated(chain, chain.last + ahead + 1, NEVER_SUBMITTED, names))
        if verdict.taken:
            marks[key] = first + verdict.taken - 1
            series.append(Series(*key, first, offer.payloads[verdict.repeats :]))
            born += offer.born[verdict.repeats :]
        return series

    def _count(self, offer: Offer, verdict: Verdict) -> None:
        count = self._host.telemetry.count
        if verdict.repeats:
            count("skerry_events_repeated_total", verdict.repeats)
        if verdict.jump:
            count("skerry_submissions_refused_total", reason="jump")
        if verdict.gap:
            count("skerry_events_never_submitted_total", verdict.gap)
            log.warning("submission.gap", producer=offer.producer, epoch=offer.epoch, events=verdict.gap)

    def _append(self, chain: Chain, series: list[Series], *, times: bool = False, alone: bool = True) -> bool:
        """Keep records; False when they cannot be kept now.

        Args:
            chain: of their lane.
            series: the records.
            times: their times want correction.
            alone: less would not help, so it is a fault.
        """
        began = time.monotonic()
        about = f"append {chain.lane}"
        try:
            chain.commit(series, times=times)
        except Unavailable as error:
            # Not accepted: the producers keep these events and repeat them.
            if alone:
                self._host.fault(about, str(error))
                self._host.telemetry.count("skerry_submissions_refused_total", reason="disk")
            return False
        self._host.telemetry.latency("commit").add((time.monotonic() - began) * 1000)
        self._host.clear(about)
        self._outflows[chain.lane].ages.note(chain.last, time.monotonic())
        return True

    def _announce(self, chain: Chain, producer: str, epoch: str) -> None:
        """Tell a producer how far it is accepted."""
        seq = chain.watermark(producer, epoch)
        if seq is not None:
            self._bus.publish(ACCEPTED, Accepted(producer=producer, epoch=epoch, seq=seq), producer)

    def _answer(self, calls: set[str]) -> None:
        if _RECONNECTED in calls:
            for chain in self._store.chains:
                newest = dict(chain.watermarks().keys())  # (producer, epoch): the last one of each
                for producer, epoch in newest.items():
                    self._announce(chain, producer, epoch)
        if calls:
            for outflow in self._outflows.values():
                outflow.go_back()

    # Outbound

    def _confirm(self, receipt: Receipt) -> None:
        """Take a receipt that can be one of ours."""
        outflow = next((o for o in self._outflows.values() if o.chain.id == receipt.store), None)
        if outflow is None or receipt.upto > min(outflow.window.highest, outflow.chain.last):
            self._host.telemetry.count("skerry_receipts_ignored_total")
            return
        chain = outflow.chain
        before = chain.upto
        refused = {r.offset: r.reason for r in receipt.refused if before < r.offset <= receipt.upto}
        if not self._set_aside(chain, refused):
            return  # the uplink says it again with its next receipt
        try:
            chain.receipt(receipt.upto, refused)
            self._host.clear("cursor")
        except Unavailable as error:  # it counts all the same
            self._host.fault("cursor", str(error))
        self._report()
        if chain.upto > before:
            outflow.window.confirm(chain.upto, time.monotonic())
            self._account()

    def _send(self) -> None:
        """Send as much as the windows hold, the highest lane first."""
        for outflow in self._outflows.values():
            try:
                while self._bus.connected and outflow.send(self._publish, time.monotonic()):
                    continue
                self._host.clear("read")
            except Unavailable as error:
                self._host.fault("read", str(error))

    def _publish(self, message: Outbound) -> bool:
        return self._bus.publish(OUTBOUND, message, self._settings.link)

    def _prepared(self, chain: Chain, batch: Batch) -> list[bytes] | None:
        """The payloads of a batch as they are sent, up to the first that never can be.

        Where that is the first of all, it is put aside and counted.
        """
        payloads: list[bytes] = []
        most = OUTBOUND.max_bytes - _ENVELOPE
        for n, payload in enumerate(batch.payloads):
            ready, reason = payload, ""
            if batch.times:
                try:
                    ready = corrected(payload, self._anchors)
                except msgspec.DecodeError:
                    reason = "unreadable"
            if len(ready) > most:
                reason = "too large for the bus"
            if reason:
                if not payloads:
                    self._give_up(chain, batch.first + n, payload, reason)
                break
            payloads.append(ready)
        return payloads or None

    def _give_up(self, chain: Chain, offset: int, payload: bytes, reason: str) -> None:
        """Put a record aside that can never be sent; its place becomes a hole."""
        try:
            self._keep_aside(chain, offset, payload, reason)
        except OSError as error:
            raise Unavailable(f"quarantine: cannot write: {error.strerror} (make room)") from error
        chain.skip(offset, QUARANTINED, reason)
        self._account()

    def _told(self, chain: Chain, hole: Hole) -> bytes:
        """A hole as a gap record."""
        gap = _gap(chain.lane, hole.reason, hole.count, hole.names, hole.detail)
        gap = msgspec.structs.replace(
            gap, bytes=hole.bytes, time_from=_when(hole.from_ns), time_to=_when(hole.to_ns)
        )
        return self._encoder.encode(self._own(chain.lane, hole.epoch, hole.seq, gap))

    def _stated(self, chain: Chain, offset: int, reason: str, names: list[Names], detail: str = "") -> Series:
        """A gap record that is kept like any other, for what was never on disk here or has left it."""
        gap = _gap(chain.lane, reason, sum(n.count for n in names), names, detail)
        payload = self._encoder.encode(self._own(chain.lane, chain.id, offset, gap))
        return Series(OWN, chain.id, offset, [payload])

    def _own(self, lane: Lane, epoch: str, seq: int, gap: Gap) -> Event:
        return Event(
            id=f"{epoch}-{seq}", source=self._source, type="skerry.gap", time=utc(), subject=lane, lane=lane,
            epoch=epoch, seq=seq, bootid=self._host.boot, monotonic=time.monotonic_ns(),
            data=msgspec.to_builtins(gap),
        )  # fmt: skip

    # Quarantine

    def _set_aside(self, chain: Chain, refused: dict[int, str]) -> bool:
        """Put what the far end refuses into quarantine and say so upstream; False when it has to wait."""
        try:
            for offset, reason in sorted(refused.items()):
                found = chain.read(offset, 1, 1)
                if not isinstance(found, Batch) or found.first != offset:
                    continue  # gone in the meantime, and counted as that
                self._keep_aside(chain, offset, found.payloads[0], reason)
                self._note(chain, found.payloads[0], reason)
            self._host.clear("quarantine")
        except OSError as error:
            self._host.fault("quarantine", f"cannot write: {error.strerror} (make room, or check the disk)")
            return False
        except Unavailable as error:  # it cannot be read now
            self._host.fault("quarantine", str(error))
            return False
        return True

    def _keep_aside(self, chain: Chain, offset: int, payload: bytes, reason: str) -> None:
        try:
            name = msgspec.json.decode(payload, type=_Name)
        except msgspec.DecodeError:
            name, payload = _Name(id=f"{chain.id}-{offset}"), b"null"
        entry = Entry(
            id=name.id, time=utc(), lane=chain.lane, chain=chain.id, offset=offset, reason=reason,
            event=msgspec.Raw(payload),
        )  # fmt: skip
        if self._quarantine.add(entry):
            self._host.telemetry.count("skerry_events_quarantined_total")
            log.error("event.quarantined", id=entry.id, lane=chain.lane, offset=offset, reason=reason)

    def _note(self, chain: Chain, payload: bytes, reason: str) -> None:
        """Remember to say upstream what the far end will not get; but not of a gap record, without end."""
        try:
            event = self._decoder.decode(payload)
        except msgspec.DecodeError:
            return
        if event.source != self._source:
            producer = event.source.rpartition("/")[2]
            names = Names(producer, event.epoch, event.seq, event.seq, 1)
            self._unreported.append((chain, names, reason))

    def _report(self) -> None:
        """Say it, as soon as there is room for it."""
        while self._unreported:
            chain, names, reason = self._unreported[0]
            record = self._stated(chain, chain.last + 1, QUARANTINED, [names], reason)
            if not self._append(chain, [record]):
                return
            self._unreported.popleft()

    def _retry(self, entry: Entry) -> None:
        """Send an event from the quarantine again, as a new one: repeats of the old are dropped by all."""
        chain = self._store.chain(entry.lane)
        event = self._decoder.decode(entry.event)
        seq = chain.last + 1
        again = msgspec.structs.replace(
            event, id=f"{chain.id}-{seq}", epoch=chain.id, seq=seq, retryof=event.id
        )
        record = Series(OWN, chain.id, seq, [self._encoder.encode(again)])
        if self._append(chain, [record], times=True):
            self._quarantine.retried(entry.id, again.id, utc())
            log.info("event.retried", id=entry.id, again=again.id)

    # Once a second

    def _chores(self) -> None:
        self._chores_at = time.monotonic() + _CHORES_S
        self._clock.look()
        self._anchors.note(self._clock.read())
        for path, request in quarantine.requests(self._store.folder):
            try:
                for entry in self._quarantine.wanted(request):
                    self._retry(entry)
                self._store.disk.unlink(path)
                self._host.clear("retry")
            except (OSError, Unavailable, msgspec.DecodeError) as error:
                self._host.fault("retry", f"{path.name}: {error}")
        self._report()
        self._account()

    # The ledger

    def _account(self) -> None:
        """Bring the counts that survive a kill to what the store says."""
        store = self._store
        self._evicted = store.evicted
        terms = {f"evicted/{reason}": n for reason, n in self._evicted.items()}
        lanes = {f"accepted/{chain.lane}": chain.accepted for chain in store.chains}
        self._host.tally.set(
            {
                "accepted": store.accepted, "delivered": store.delivered, "waiting": store.waiting,
                "stated": store.stated, **terms, **lanes,
            }
        )  # fmt: skip

    def _show(self) -> None:
        """Gauges, on the metrics thread: whole numbers and a dict that is replaced, never changed."""
        store, gauge = self._store, self._host.telemetry.gauge
        gauge("skerry_events_accepted_total", store.accepted)
        gauge("skerry_events_delivered_total", store.delivered)
        gauge("skerry_events_stated_total", store.stated)
        for chain in store.chains:
            gauge("skerry_events_waiting", chain.waiting, lane=chain.lane)
        gauge("skerry_buffer_bytes", store.bytes_on_disk)
        for reason, count in self._evicted.items():
            gauge("skerry_events_evicted_total", count, reason=reason)


def _lingers(settings: BufferSettings) -> dict[Lane, float]:
    """How long a group waits for more, in seconds, by lane."""
    lingers: dict[Lane, float] = dict.fromkeys(LANES, settings.linger_ms / 1000)
    return {**lingers, "alarm": 0.0}


class _Name(msgspec.Struct, frozen=True):
    id: str


def _gap(lane: Lane, reason: str, count: int, names: list[Names], detail: str) -> Gap:
    ranges = tuple(
        Range(producer=n.producer, epoch=n.epoch, first=n.first, last=n.last, count=n.count)
        for n in names
        if n.producer != OWN
    )
    return Gap(lane=lane, reason=reason, detail=detail, count=count, bytes=0, ranges=ranges)


def _when(wall_ns: int) -> str:
    return utc(wall_ns / 1e9) if wall_ns else ""
