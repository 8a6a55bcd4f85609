"""The decision module: results in, events out, and each kept until the buffer has it."""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from functools import partial
from typing import Any

import structlog

from skerry.bus import Bus
from skerry.channels import ACCEPTED, DETECTIONS, EVENTS
from skerry.clock import utc
from skerry.decision.check import rule_problems
from skerry.decision.delivery import Delivery
from skerry.decision.rules import Finding
from skerry.decision.settings import DecisionSettings, Rule
from skerry.decision.watch import Watch
from skerry.errors import ConfigError
from skerry.inbox import Inbox
from skerry.messages import LANES, Accepted, Detections, Event, Lane
from skerry.outbox import Outboxes
from skerry.service import Host

log = structlog.get_logger()

_IDLE_S = 0.1
"""The loop looks at the clock and at `stopping` at least this often."""
_MARGIN_S = 0.5
"""Of the grace period, what is left for saying goodbye."""
_FPS_OVER_S = 3.0
_LATE_AFTER = 5
"""Acceptance that is silent for this many times `resend_s` is a fault."""
_LARGEST = 2**40
"""No honest frame number is beyond this: a thousand years at 30 frames a second."""
_LARGEST_NS = 2**62
_LONGEST_TEXT = 64
_MAX_SAVED = 300
"""Line totals that are kept over a restart, all rules together."""
_TIMED = 10_000
"""Events of a lane whose way to acceptance is timed at one time."""


class _Connected:
    """Said by the bus: there is a connection, and what was sent before may be lost."""


Item = Detections | Accepted | _Connected


class Decision:
    """One decision module at work. Everything but the handlers runs on the module's own thread."""

    def __init__(self, settings: DecisionSettings, bus: Bus, host: Host) -> None:
        self._settings, self._bus, self._host = settings, bus, host
        self._inbox: Inbox[Item] = Inbox(settings.queue)
        self._displaced: Counter[str] = Counter()
        """Results that made room for others, by camera; written by the bus's thread alone."""
        self._accounted: Counter[str] = Counter()
        """How many of them the tally knows; written by the loop alone."""
        self._outboxes = Outboxes.open(
            host.state,
            {rule.lane for rule in settings.rules if rule.enabled},
            f"skerry/{settings.site}/{settings.module}",
            settings.outbox_events,
            boot=host.boot,
            draw=partial(secrets.token_hex, 8),
            max_bytes=settings.outbox_bytes,
            added_before={
                lane: host.tally[f"decided/{lane}"] - host.tally[f"refused/{lane}"] for lane in LANES
            },
        )
        self._deliveries = {
            outbox.lane: Delivery(outbox, settings.module, settings.resend_s) for outbox in self._outboxes
        }
        """From the highest lane to the lowest."""
        self._watches = {
            camera: Watch(settings.rules, camera, settings.tracker, host.tally[f"{camera}/tracks"] + 1)
            for camera in settings.cameras
        }
        self._latest: dict[str, Detections] = {}
        """The last result of each camera."""
        self._on_the_way: dict[Lane, deque[tuple[str, int, int]]] = {
            lane: deque(maxlen=_TIMED) for lane in LANES
        }
        """(epoch, seq, decided_ns) of events whose acceptance will be timed."""
        self._evaluated: deque[float] = deque(maxlen=10_000)
        self._remember()
        self._level()

    def run(self) -> None:
        """Work until told to stop, then drain."""
        self._subscribe()
        self._host.fps = self._fps
        self._host.queue = self._inbox.__len__
        self._host.before_metrics(self._show)
        self._host.ready()
        while not self._host.stopping.is_set():
            self._host.beat()
            self._host.remote.adjust(self._adjust)
            self._take(self._inbox.get(_IDLE_S))
            self._send()
            self._explain_gaps()
            self._watch_acceptance()
        self._drain()

    def close(self) -> None:
        """Close the outboxes."""
        self._outboxes.close()

    def _subscribe(self) -> None:
        for camera in self._settings.cameras:
            self._bus.subscribe(DETECTIONS, partial(self._on_detections, camera), camera)
        self._bus.subscribe(ACCEPTED, self._on_accepted, self._settings.module)
        self._bus.on_connect(self._on_connect)

    def _on_connect(self) -> None:
        """On the bus's thread."""
        self._inbox.put(_Connected(), "connection")

    def _on_detections(self, camera: str, message: Detections) -> None:
        """On the bus's thread."""
        flaw = _flaw(message, camera)
        if flaw:
            self._ignore(flaw, camera=camera)
            return
        if self._inbox.put(message, f"camera {camera}") is not None:
            self._displaced[camera] += 1

    def _on_accepted(self, message: Accepted) -> None:
        """On the bus's thread."""
        if message.producer != self._settings.module:
            self._ignore("wrong_producer", producer=message.producer)
            return
        # Apart by lane: watermarks are cumulative, so newer ones may displace older ones of the same lane.
        self._inbox.put(message, f"accepted {self._outboxes.lane_of.get(message.epoch, '')}")

    def _ignore(self, reason: str, **about: str) -> None:
        self._host.telemetry.count("skerry_messages_ignored_total", reason=reason)
        log.warning("message.ignored", reason=reason, **about)

    def _take(self, item: Item | None) -> None:
        match item:
            case Detections():
                self._evaluate(item)
            case Accepted():
                self._accept(item)
            case _Connected():
                for delivery in self._deliveries.values():
                    delivery.restart()

    def _evaluate(self, message: Detections) -> None:
        """Let a camera's rules judge a result, and keep what they find."""
        camera, tally = message.camera, self._host.tally
        missed = self._missed(message)
        if missed is None:
            self._ignore("repeated", camera=camera)
            return
        started_ns = time.monotonic_ns()
        watch = self._watches[camera]
        self._latest[camera] = message
        findings = watch.step(message.media_ns, message.status, message.objects)
        kept, refused = self._keep(findings, message, message.time, started_ns)
        changes = {
            f"{camera}/evaluated": 1,
            f"{camera}/sequence": message.sequence - tally[f"{camera}/sequence"],
            f"{camera}/tracks": watch.tracker.next_id - 1 - tally[f"{camera}/tracks"],
        }
        if message.status == "failed":
            changes[f"{camera}/failed"] = 1
        if missed:
            changes[f"{camera}/unseen"] = missed
        if findings:
            changes |= _decided(kept, refused)
            changes |= self._state_changes(watch, {f.rule.name for f in findings})
        tally.add({name: n for name, n in changes.items() if n})
        self._full(refused)
        self._send()
        published = sum(count for lane, count in kept.items() if not self._deliveries[lane].unsent)
        if published:
            arrived_ms = (time.monotonic_ns() - message.captured_ns) / 1e6
            for _ in range(published):
                self._host.telemetry.latency("capture_to_event").add(arrived_ms)
                self._host.telemetry.latency("beyond_session").add(arrived_ms - message.session_ms)
        self._host.telemetry.latency("evaluate").add((time.monotonic_ns() - started_ns) / 1e6)
        self._evaluated.append(time.monotonic())

    def _adjust(self, settings: DecisionSettings) -> None:
        """Go by other rules and tracker settings, between two results; what ends with them is said now.

        Raises:
            Unavailable: a lane that was not used before cannot be; nothing has changed.
        """
        before, after = _at_work(self._settings), _at_work(settings)
        for lane in {rule.lane for rule in after.values()}:
            self._open(lane)
        touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

        def restore(name: str, watch: Watch) -> None:
            # One that was at another camera has totals alone to go on from.
            saved = self._saved_of(name).items()
            watch.restore(name, {k: n for k, n in saved if "/" in k or name not in before})

        kept: Counter[Lane] = Counter()
        refused: Counter[Lane] = Counter()
        now_ns = time.monotonic_ns()
        for camera, watch in self._watches.items():
            ended = watch.adjust(settings.rules, settings.tracker, partial(restore, watch=watch))
            counts = self._keep(ended, self._latest.get(camera), utc(), now_ns)
            kept, refused = kept + counts[0], refused + counts[1]
        changes = _decided(kept, refused)
        for name in touched:
            # What is not there is not active; totals stay, should it come again.
            changes |= {f"rule/{name}/{k}": -n for k, n in self._saved_of(name).items() if "/" not in k}
        for watch in self._watches.values():
            names = touched & watch.machines.keys()
            for key in [f"rule/{name}/{k}" for name in names for k in watch.saved(name)]:
                changes.pop(key, None)
            changes |= self._state_changes(watch, names)
        self._host.tally.add({name: n for name, n in changes.items() if n})
        self._settings = settings
        self._full(refused)
        self._send()

    def _open(self, lane: Lane) -> None:
        """Have an outbox for a lane."""
        self._outboxes.ensure(lane)
        if lane not in self._deliveries:
            fresh = Delivery(self._outboxes[lane], self._settings.module, self._settings.resend_s)
            deliveries = {**self._deliveries, lane: fresh}
            self._deliveries = {box.lane: deliveries[box.lane] for box in self._outboxes}

    def _keep(
        self, findings: list[Finding], message: Detections | None, when: str, now_ns: int
    ) -> tuple[Counter[Lane], Counter[Lane]]:
        """Make findings events, and keep them.

        Args:
            findings: of one camera.
            message: the camera's last result, where there was one.
            when: UTC, when they happened.
            now_ns: monotonic time, when they were found.

        Returns:
            How many were kept, and how many a full outbox refused, by lane.
        """
        kept: Counter[Lane] = Counter()
        refused: Counter[Lane] = Counter()
        for finding in findings:
            event = self._decide(finding, message, when, now_ns)
            (refused if event is None else kept)[finding.rule.lane] += 1
        return kept, refused

    def _explain_gaps(self) -> None:
        """Say of results that never came here how many a full queue displaced.

        The bus's thread counts a displaced result a moment after the queue has let go of it, so the gap may
        be seen before its reason.
        """
        tally = self._host.tally
        for camera, displaced in list(self._displaced.items()):
            unexplained = tally[f"{camera}/unseen"] - tally[f"{camera}/unseen/queue_full"]
            full = min(displaced - self._accounted[camera], unexplained)
            if full > 0:
                self._accounted[camera] += full
                tally.add({f"{camera}/unseen/queue_full": full})

    def _missed(self, message: Detections) -> int | None:
        """Results before this one that never came here; None for one that came before.

        A sequence that goes back means that inference has lost its state and counts anew.
        """
        last = self._host.tally[f"{message.camera}/sequence"]
        if message.sequence == last:
            return None
        missed = message.sequence - last - 1
        return missed if missed >= 0 else message.sequence - 1

    def _decide(self, finding: Finding, message: Detections | None, when: str, now_ns: int) -> Event | None:
        rule = finding.rule
        event = self._outboxes[rule.lane].add(
            type_=f"skerry.{finding.type}",
            subject=f"{rule.camera}/{rule.name}",
            time=when,
            monotonic=now_ns,
            data=_data(finding, message),
        )
        if event is not None:
            self._on_the_way[rule.lane].append((event.epoch, event.seq, now_ns))
        return event

    def _state_changes(self, watch: Watch, rules: set[str]) -> dict[str, int]:
        """What the tally must add so that the rules' state outlives this process."""
        tally, changes = self._host.tally, {}
        for name in sorted(rules):
            for key, value in watch.saved(name).items():
                full = f"rule/{name}/{key}"
                known = tally[full]
                if value != known and ("/" not in key or self._room(full)):
                    changes[full] = value - known
        return changes

    def _room(self, key: str) -> bool:
        """Whether another total may be kept; labels come from outside and must not fill the tally."""
        if key in self._saved or len(self._saved) < _MAX_SAVED:
            self._saved.add(key)
            return True
        return False

    def _remember(self) -> None:
        """Let every rule go on where an earlier life of this module stopped.

        Events are kept before the state is; where a kill came between, the last events tell.
        """
        self._saved = {name for name in self._host.tally.snapshot() if name.startswith("rule/")}
        for watch in self._watches.values():
            for name in watch.machines:
                watch.restore(name, self._saved_of(name))
        found = [event for outbox in self._outboxes for event in outbox.latest(_MAX_SAVED)]
        # A rule has one lane, but may have had another: then its events are in two outboxes.
        found.sort(key=lambda event: (event.bootid == self._host.boot, event.monotonic))
        for event in found:
            watched = self._watches.get(str(event.data.get("camera")))
            if watched is not None:
                watched.recall(event.data)

    def _saved_of(self, rule: str) -> dict[str, int]:
        """What is saved of a rule."""
        prefix, counts = f"rule/{rule}/", self._host.tally.snapshot()
        return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}

    def _level(self) -> None:
        """Make the tally agree with the outboxes: a kill may have come between the two."""
        tally, boxes = self._host.tally, self._outboxes
        levels = {"decided": boxes.added + tally["refused"], "unaccepted": boxes.waiting}
        for box in boxes:
            levels[f"decided/{box.lane}"] = box.added + tally[f"refused/{box.lane}"]
            levels[f"unaccepted/{box.lane}"] = len(box)
        tally.set(levels)

    def _accept(self, message: Accepted) -> None:
        now_s = time.monotonic()
        lane = self._outboxes.lane_of.get(message.epoch)
        freed = lane and self._deliveries[lane].accepted(message.epoch, message.seq, now_s)
        if lane is None or freed is None:
            self._ignore("watermark", epoch=message.epoch[:64], seq=str(message.seq)[:32])
            return
        if freed:
            self._host.tally.add({"unaccepted": -freed, f"unaccepted/{lane}": -freed})
            self._time_acceptance(message, lane)
            self._host.clear(f"acceptance of lane {lane}")
            self._host.clear(f"outbox of lane {lane}")

    def _time_acceptance(self, message: Accepted, lane: Lane) -> None:
        now_ns, waiting = time.monotonic_ns(), self._on_the_way[lane]
        while waiting and waiting[0][0] == message.epoch and waiting[0][1] <= message.seq:
            decided_ns = waiting.popleft()[2]
            self._host.telemetry.latency("event_to_accepted").add((now_ns - decided_ns) / 1e6)

    def _send(self) -> None:
        """Publish what may be on its way, highest lane first; what the bus does not take is tried again."""
        now_s = time.monotonic()
        for delivery in self._deliveries.values():
            while self._bus.connected and (submission := delivery.next(now_s)) is not None:
                if not self._bus.publish(EVENTS, submission, self._settings.module):
                    return
                delivery.sent(submission.events, now_s)

    def _watch_acceptance(self) -> None:
        """Say so when the buffer has been silent for long, or takes nothing of a lane."""
        now_s = time.monotonic()
        for lane, delivery in self._deliveries.items():
            if delivery.silent_s(now_s) > _LATE_AFTER * self._settings.resend_s:
                self._host.fault(
                    f"acceptance of lane {lane}", "the buffer accepts nothing of it; events wait here"
                )

    def _full(self, refused: Counter[Lane]) -> None:
        for lane in refused:
            waiting = len(self._outboxes[lane])
            self._host.fault(
                f"outbox of lane {lane}", f"full with {waiting} events; new ones are refused and counted"
            )

    def _drain(self) -> None:
        """Evaluate what waits, send it, and wait for acceptance while the grace period lasts."""
        deadline_s = time.monotonic() + max(self._settings.grace_s - _MARGIN_S, 0.0)
        while time.monotonic() < deadline_s:
            self._host.beat()
            item = self._inbox.get(0.02 if self._outboxes.waiting else 0.0)
            self._take(item)
            self._send()
            if item is None and not len(self._inbox) and not (self._outboxes.waiting and self._bus.connected):
                break
        self._explain_gaps()
        log.info("decision.drained", unaccepted=self._outboxes.waiting, unevaluated=len(self._inbox))

    def _fps(self) -> float:
        since_s = time.monotonic() - _FPS_OVER_S
        return sum(t >= since_s for t in list(self._evaluated)) / _FPS_OVER_S

    def _show(self) -> None:
        """Set the gauges; on the metrics thread."""
        counts, show = self._host.tally.snapshot(), self._host.telemetry.gauge
        show("skerry_events_decided_total", counts.get("decided", 0))
        show("skerry_events_refused_total", counts.get("refused", 0))
        show("skerry_events_unaccepted", counts.get("unaccepted", 0))
        show("skerry_events_resends_total", sum(d.repeats for d in self._deliveries.values()))
        for lane in self._deliveries:
            show("skerry_outbox_refused_total", counts.get(f"refused/{lane}", 0), lane=lane)
            show("skerry_outbox_events", counts.get(f"unaccepted/{lane}", 0), lane=lane)
        for camera, watch in self._watches.items():
            full = counts.get(f"{camera}/unseen/queue_full", 0)
            lost = counts.get(f"{camera}/unseen", 0) - full
            show("skerry_results_evaluated_total", counts.get(f"{camera}/evaluated", 0), camera=camera)
            show("skerry_results_unseen_total", full, camera=camera, reason="queue_full")
            show("skerry_results_unseen_total", lost, camera=camera, reason="not_received")
            show("skerry_objects_ignored_total", watch.tracker.ignored, camera=camera)
            show("skerry_tracks", len(watch.tracker.tracks), camera=camera)
            show("skerry_stream_restarts_total", watch.restarts, camera=camera)


def run(settings: DecisionSettings, bus: Bus, host: Host) -> None:
    """Run the module until `host.stopping` is set and it has drained.

    Raises:
        ConfigError: rules that cannot work, all problems at once.
    """
    found = rule_problems(settings.rules, settings.cameras, {})
    if found:
        raise ConfigError([f"settings: {path}: {text}" for path, text in found])
    decision = Decision(settings, bus, host)
    try:
        decision.run()
    finally:
        decision.close()


def _decided(kept: Counter[Lane], refused: Counter[Lane]) -> dict[str, int]:
    """What the tally must add for events that were decided, in all and by lane."""
    changes = {
        "decided": kept.total() + refused.total(), "refused": refused.total(), "unaccepted": kept.total(),
    }  # fmt: skip
    for lane in kept.keys() | refused.keys():
        changes[f"decided/{lane}"] = kept[lane] + refused[lane]
        changes[f"refused/{lane}"] = refused[lane]
        changes[f"unaccepted/{lane}"] = kept[lane]
    return changes


def _flaw(message: Detections, camera: str) -> str:
    """Why a result cannot be what it says it is; empty when it can."""
    if message.camera != camera:
        return "wrong_camera"
    numbers = max(message.sequence, message.number) <= _LARGEST
    times = max(abs(message.media_ns), message.captured_ns) <= _LARGEST_NS
    texts = all(len(text) <= _LONGEST_TEXT and text.isascii() for text in (message.time, message.trace))
    return "" if numbers and times and texts else "implausible"


def _at_work(settings: DecisionSettings) -> dict[str, Rule]:
    """Rules by name."""
    return {rule.name: rule for rule in settings.rules if rule.enabled}


def _data(finding: Finding, message: Detections | None) -> dict[str, Any]:
    """An event's data: where and when, then what the rule says."""
    rule = finding.rule
    said: dict[str, Any] = {
        "camera": rule.camera,
        "rule": rule.name,
        "kind": type(rule).__struct_config__.tag,
        "severity": rule.severity,
    }
    if message is not None:
        said |= {
            "frame": message.number, "captured_ns": message.captured_ns, "media_ns": message.media_ns,
        }  # fmt: skip
    if message is not None and message.trace:
        said["trace"] = message.trace
    return said | finding.data
