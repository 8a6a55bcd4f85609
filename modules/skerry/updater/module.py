"""The updater: what is desired becomes what is trusted, fetched, proved on the device, and served.

One thread does all of it; a fetch that takes hours looks after the slots between two pieces. Whatever moment
this process is killed at, the store names one whole package for each slot, and what inference serves goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import structlog

from skerry.audit import AuditLog, What
from skerry.bus import Bus
from skerry.channels import ACTIVATIONS, OFFERS
from skerry.clock import boot_id
from skerry.errors import PackageError, SkerryError, Unavailable
from skerry.messages import Activations, Offer, OfferedModel, SlotUse, Update
from skerry.service import Host
from skerry.trust.device import Trust
from skerry.trust.packages import TrustedPackage
from skerry.trust.refusals import Untrusted
from skerry.trust.times import Running
from skerry.updater.memory import Confirmed, Memory
from skerry.updater.rollout import Next, Scene, next_step
from skerry.updater.settings import SlotSettings, UpdaterSettings
from skerry.updater.store import Store
from skerry.updater.supply import Supply, chosen, read_root

log = structlog.get_logger()

_TURN_S = 0.2
_AGAIN_S = 15.0
"""Before something that failed by accident is tried once more; doubles up to the time between two checks."""
_SCRUB_BYTES_PER_S = 20_000_000
"""A scrub takes no more of the disk than that."""
_TRIES = 3
"""Of a package that is here and cannot be taken; it may be fetched anew between them."""


@dataclass
class _Slot:
    """One slot on its way.

    Attributes:
        attempt: which try of the offered package goes on.
        again_at: not before, monotonic seconds.
        wait_s: the last wait.
        drift: what drifted when the package was offered.
        tries: how often a package that is here could not be taken.
        seen: what inference said last: digest, step and reason.
        step, reason: what to report.
        wanted: name@version that `step` is about.
    """

    attempt: int = 0
    again_at: float = 0.0
    wait_s: float = 0.0
    drift: tuple[str, ...] = ()
    tries: int = 0
    seen: tuple[str, str, str] = ("", "", "")
    wanted: str = ""
    step: str = ""
    reason: str = ""


class _Stopping(Exception):  # noqa: N818 - nobody's fault
    """The module stops; what was under way goes on at the next start."""


def run(settings: UpdaterSettings, bus: Bus, host: Host) -> None:
    """Keep the slots at what is desired, until `host.stopping`."""
    store = Store.open(Path(settings.store), settings.room)
    try:
        Updater(settings, bus, host, store).run()
    finally:
        store.close()


class Updater:
    """State of the module. The bus's thread calls `_on_activations`; all else runs on the loop's thread."""

    def __init__(self, settings: UpdaterSettings, bus: Bus, host: Host, store: Store) -> None:
        self._settings = settings
        self._bus = bus
        self._host = host
        self._store = store
        store.pace = self._paced
        self._trust = Trust(host.state / "trust", read_root(Path(settings.root)))
        self._audit = AuditLog(host.state / "audit", settings.audit_bytes)
        self._supply = Supply(settings, self._trust, store, self._audit, host)
        self._memory = Memory(host.state / "updates.json")
        self._slots = {name: _Slot() for name in settings.slots}
        self._boot = boot_id()
        self._uses: dict[str, SlotUse] = {}
        """What inference said last."""
        self._names: dict[str, dict[str, str]] = {}
        """Name and version by digest."""
        self._inbox: SimpleQueue[Activations | None] = SimpleQueue()
        """None: the broker is there again, and has forgotten what it retained."""
        self._offered: Offer | None = None
        self._told: tuple[Update, ...] = ()
        self._told_at = 0.0
        self._check_at = 0.0
        self._scrub_at = time.monotonic() + settings.scrub_s

    def run(self) -> None:
        host = self._host
        host.before_metrics(self._refresh_metrics)
        for found in self._store.found:
            self._audit.append(
                "fell_back" if found.action == "fell_back" else "scrubbed",
                slot=found.model, digest=found.digest, reason=found.text,
            )  # fmt: skip
        self._bus.subscribe(ACTIVATIONS, self._on_activations, self._settings.inference)
        self._bus.on_connect(lambda: self._inbox.put(None))
        self._offer()
        self._report()
        host.ready()
        try:
            while not host.stopping.is_set():
                self._turn()
                host.stopping.wait(_TURN_S)
        except _Stopping:
            log.info("updater.stopped_under_way")
        finally:
            self._audit.close()

    # One turn

    def _turn(self) -> None:
        self._host.beat()
        self._host.remote.adjust(self._adjust)
        self._hear()
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + self._settings.check_s
            self._supply.check(self._boot)
            # A crash may have come between a confirmation and this.
            self._as_the_disk_allows("epochs", self._settle_epochs)
        for name in list(self._slots):
            self._see_to(name, fetching=True)
        if now >= self._scrub_at:
            whole = self._as_the_disk_allows("store", lambda: self._scrub("the time for it"))
            self._scrub_at = now + (self._settings.scrub_s if whole else self._settings.check_s)
        self._offer()
        self._see_to_audit()
        self._report()

    def _see_to_audit(self) -> None:
        """What the disk did not take waits in memory; somebody should know, and it is tried again."""
        self._audit.flush()
        if self._audit.fault is not None:
            self._host.fault("audit", self._audit.fault)
        else:
            self._host.clear("audit")

    def _as_the_disk_allows(self, about: str, act: Callable[[], object]) -> bool:
        """Do something; whether it was done. Where the disk fails that is said, and what serves goes on."""
        try:
            act()
        except Unavailable as error:
            self._host.fault(about, str(error))
            return False
        self._host.clear(about)
        return True

    def _adjust(self, settings: UpdaterSettings) -> None:
        """Take over what may change while it runs."""
        again = settings.slots != self._settings.slots
        self._settings = settings
        self._slots = {name: self._slots.get(name, _Slot()) for name in settings.slots}
        if again:
            self._check_at = 0.0
            for slot in self._slots.values():
                slot.again_at = 0.0

    def _hear(self) -> None:
        """What inference said since."""
        while not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                self._offered = None
                self._told = ()
                continue
            self._uses = {use.slot: use for use in message.slots}
            for use in message.slots:
                slot = self._slots.get(use.slot)
                if slot is not None:
                    # A try that this process did not begin goes on.
                    slot.attempt = max(slot.attempt, use.attempt)
                    self._note_step(slot, use)
                    self._memory.note_drift(use.slot, use.drift, watched=use.watched)

    def _note_step(self, slot: _Slot, use: SlotUse) -> None:
        seen = use.offered, use.step, use.reason
        if slot.seen == seen or not use.step:
            return
        slot.seen = seen
        self._audit.append(
            "step", slot=use.slot, digest=use.offered, step=use.step, reason=use.reason,
            **self._about(use.offered),
        )  # fmt: skip

    # Slots

    def _see_to(self, name: str, *, fetching: bool) -> None:
        """Do what comes next for a slot.

        Args:
            name: of the slot.
            fetching: whether a fetch may begin; not while one goes on.
        """
        slot, wanted = self._slots[name], self._settings.slots[name]
        if time.monotonic() < slot.again_at:
            return
        package, why_not = self._chosen(name)
        step = Next("stay")
        slot.wanted = package.title if package is not None else ""
        try:
            step = next_step(self._scene(name, slot, wanted, package))
            self._do(name, slot, step, package, fetching=fetching)
        except PackageError as error:
            self._no_good(name, slot, step, error)
        except Unavailable as error:
            self._later(slot)
            slot.reason = str(error)
            self._host.fault(f"slot {name}", str(error))
        else:
            if step.step not in ("fetch", "heal"):
                self._host.clear(f"slot {name}")
            if step.step == "stay":
                slot.step = "refused" if step.reason and step.digest else ""
                slot.reason = step.reason or why_not

    def _chosen(self, name: str) -> tuple[TrustedPackage | None, str]:
        """The package that a slot should have; or none, and why."""
        try:
            return chosen(self._trust, self._settings, name, self._store.slots(name).current), ""
        except Untrusted as error:
            return None, str(error)

    def _scene(self, name: str, slot: _Slot, wanted: SlotSettings, package: TrustedPackage | None) -> Scene:
        slots = self._store.slots(name)
        confirmed = self._memory.confirmed(name, slots.current)
        age_s = confirmed.age_s(time.time(), self._running()) if confirmed is not None else math.inf
        return Scene(
            wanted=wanted, slots=slots, use=self._uses.get(name), chosen=package,
            here=frozenset(self._store.packages()), failed=self._memory.failed(name), attempt=slot.attempt,
            fresh=age_s < wanted.drift_within_s, drifted=confirmed.drift if confirmed is not None else (),
        )  # fmt: skip

    def _do(
        self, name: str, slot: _Slot, step: Next, package: TrustedPackage | None, *, fetching: bool
    ) -> None:
        match step.step:
            case "stay" | "wait":
                slot.step, slot.reason = ("", "") if step.step == "stay" else self._progress(name)
            case "fetch" if fetching and package is not None:
                self._fetch(slot, package)
            case "offer" if package is not None:
                self._begin(name, slot, package)
            case "confirm":
                self._confirm(name, slot, step)
            case "again":
                slot.attempt += 1
                self._later(slot)
                slot.step, slot.reason = "waiting", step.reason
            case "fail":
                self._store.withdraw(name)
                self._failed(name, step.digest, step.reason)
            case "withdraw":
                self._store.withdraw(name)
                self._say("withdrawn", name, step)
            case "roll_back":
                self._roll_back(name, slot, step)
            case "heal":
                self._scrub(f"slot {name}: {step.reason}")
                slot.attempt += 1
                self._later(slot)
            case _:
                pass

    def _progress(self, name: str) -> tuple[str, str]:
        use = self._uses.get(name)
        trial = self._store.slots(name).trial
        if use is None or use.offered != trial or not use.step:
            return "offered", ""
        return use.step, use.reason

    def _fetch(self, slot: _Slot, package: TrustedPackage) -> None:
        slot.step, slot.reason = "fetching", ""
        self._report()
        self._supply.bring(package, self._settings.fetch, self._meanwhile)
        slot.wait_s = 0.0

    def _begin(self, name: str, slot: _Slot, package: TrustedPackage) -> None:
        digest = package.manifest.digest
        self._store.offer(name, digest, package.name)
        slot.attempt += 1
        slot.wait_s = 0.0
        slot.step, slot.reason = "offered", ""
        slot.drift = self._memory.drift(name)
        self._say("offered", name, Next("offer", digest))
        log.info("model.offered", slot=name, model=package.title, digest=digest)

    def _confirm(self, name: str, slot: _Slot, step: Next) -> None:
        self._store.confirm(name, self._settings.slots[name].model)
        slot.step = slot.reason = ""
        self._say("confirmed", name, step)
        log.info("model.confirmed", slot=name, digest=step.digest, **self._about(step.digest))
        self._host.telemetry.count("skerry_updates_total", outcome="confirmed")
        self._memory.confirm(
            name,
            Confirmed(digest=step.digest, utc_s=time.time(), running=self._running(), drift=slot.drift),
        )
        self._settle_epochs()

    def _settle_epochs(self) -> None:
        """What serves has proved itself: nothing of an earlier epoch is gone back to."""
        trusted = {p.manifest.digest: p for p in self._trust.packages}
        for name in self._slots:
            slots = self._store.slots(name)
            package = trusted.get(slots.current or "")
            if package is not None and package.security_epoch > self._trust.epoch(package.name):
                self._trust.confirm(package)
        for name in self._slots:
            previous = self._store.slots(name).previous
            if previous is None:
                continue
            try:
                config = self._store.config(previous)
            except PackageError:
                continue  # damaged: nothing is served with it
            if config.security_epoch < self._trust.epoch(config.name):
                self._store.forget_previous(name)

    def _roll_back(self, name: str, slot: _Slot, step: Next) -> None:
        self._failed(name, step.digest, step.reason)
        self._store.roll_back(name)
        slot.attempt += 1
        self._say("rolled_back", name, step)

    def _no_good(self, name: str, slot: _Slot, step: Next, error: PackageError) -> None:
        """A package that is here or comes is no good: damaged, which may be mended, or for good."""
        slot.tries += 1
        if step.step != "fetch" and slot.tries < _TRIES:
            self._later(slot)
            slot.step, slot.reason = "waiting", str(error)
            self._host.fault(f"slot {name}", str(error))
            return
        slot.tries = 0
        self._store.withdraw(name)
        self._failed(name, step.digest, str(error))

    def _failed(self, name: str, digest: str, reason: str) -> None:
        """A package is not tried in this slot any more."""
        slot = self._slots[name]
        slot.step, slot.reason = "refused", reason
        self._memory.fail(name, digest, reason)
        self._say("refused", name, Next("fail", digest, reason))
        log.error("model.refused", slot=name, digest=digest, reason=reason, **self._about(digest))
        self._host.telemetry.count("skerry_updates_total", outcome="refused")

    def _running(self) -> Running:
        return Running(self._boot, time.monotonic())

    def _later(self, slot: _Slot) -> None:
        slot.wait_s = min(max(2 * slot.wait_s, _AGAIN_S), self._settings.check_s)
        slot.again_at = time.monotonic() + slot.wait_s

    def _scrub(self, why: str) -> None:
        found = self._store.scrub(self._scrubbed)
        text = "; ".join(f"{f.action} {f.digest[:16]}: {f.text}" for f in found) or "nothing"
        self._audit.append("scrubbed", reason=f"{why}: found {text}"[:1000])
        for each in found:
            if each.action == "fell_back":
                self._audit.append("fell_back", slot=each.model, digest=each.digest, reason=each.text)
        self._host.telemetry.count("skerry_store_findings_total", len(found))

    # While something takes its time

    def _paced(self, _size: int) -> None:
        self._host.beat()
        if self._host.stopping.is_set():
            raise _Stopping

    def _scrubbed(self, size: int) -> None:
        self._paced(size)
        self._host.stopping.wait(size / _SCRUB_BYTES_PER_S)

    def _meanwhile(self, seconds: float) -> None:
        """Between two pieces of a fetch: look after the slots; wait as the bandwidth budget says."""
        until = time.monotonic() + seconds
        while True:
            self._paced(0)
            if not self._inbox.empty():
                self._hear()
                for name in list(self._slots):
                    self._see_to(name, fetching=False)
                self._offer()
            self._report()
            left = until - time.monotonic()
            if left <= 0:
                return
            self._host.stopping.wait(min(left, _TURN_S))

    # Telling

    def _on_activations(self, message: Activations) -> None:
        """On the bus's thread."""
        self._inbox.put(message)

    def _offer(self) -> None:
        """Say what should serve, where that has changed."""
        if not self._uses:
            return  # nobody is there, or has not said what it is busy with
        models = tuple(self._offer_of(name, slot) for name, slot in sorted(self._slots.items()))
        offer = Offer(module=self._settings.inference, models=models)
        if offer != self._offered and self._bus.publish(OFFERS, offer, self._settings.inference):
            self._offered = offer

    def _offer_of(self, name: str, slot: _Slot) -> OfferedModel:
        slots, wanted = self._store.slots(name), self._settings.slots[name]
        digest = slots.trial or slots.current or ""
        about = self._about(digest)
        return OfferedModel(
            slot=name, digest=digest, attempt=slot.attempt,
            model=f"{about['model']}@{about['version']}" if about else "",
            back=slots.trial is None or slots.trial == slots.previous,
            force=bool(wanted.force) and digest.startswith(wanted.force),
        )  # fmt: skip

    def _about(self, digest: str) -> dict[str, str]:
        """Name and version of a package that is here; empty where it is not."""
        if digest and digest not in self._names:
            try:
                config = self._store.config(digest)
            except SkerryError:
                return {}
            self._names[digest] = {"model": config.name, "version": config.version}
        return self._names.get(digest, {})

    def _say(self, what: What, name: str, step: Next) -> None:
        fields = {"slot": name, "digest": step.digest, **self._about(step.digest)}
        if step.reason:
            fields["reason"] = step.reason
        self._audit.append(what, **fields)

    def _report(self) -> None:
        """Say what has become of what is desired, at most once a second where only little changed."""
        updates = tuple(self._update(name, slot) for name, slot in sorted(self._slots.items()))
        now = time.monotonic()
        soon = now - self._told_at < 1.0 and len(updates) == len(self._told)
        if updates == self._told or soon:
            return
        self._told, self._told_at = updates, now
        self._host.remote.describe(updates=updates, audit=str(self._audit.head))

    def _update(self, name: str, slot: _Slot) -> Update:
        current = self._store.slots(name).current or ""
        about = self._about(current)
        return Update(
            slot=name, current=f"{about['model']}@{about['version']}" if about else "", digest=current,
            wanted=slot.wanted, step=slot.step, reason=slot.reason[:500],
        )  # fmt: skip

    def _refresh_metrics(self) -> None:
        at = self._supply.refreshed_at
        if at is not None:
            self._host.telemetry.gauge("skerry_updater_refresh_age_seconds", round(time.monotonic() - at, 1))
        for name, slot in list(self._slots.items()):
            self._host.telemetry.gauge("skerry_update_under_way", float(bool(slot.step)), slot=name)
