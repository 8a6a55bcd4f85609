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
from skerry.decision.check import rule_problems
from skerry.decision.delivery import Delivery
from skerry.decision.rules import Finding
from skerry.decision.settings import DecisionSettings
from skerry.decision.watch import Watch
from skerry.errors import ConfigError
from skerry.inbox import Inbox
from skerry.messages import Accepted, Detections, Event
from skerry.outbox import Outbox
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
"""Events whose way to acceptance is timed at one time."""


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
        self._outbox = Outbox.open(
            host.state,
            f"skerry/{settings.site}/{settings.module}",
            settings.outbox_events,
            boot=host.boot,
            draw=partial(secrets.token_hex, 8),
            max_bytes=settings.outbox_bytes,
            added_before=host.tally["decided"] - host.tally["refused"],
        )
        self._delivery = Delivery(self._outbox, settings.module, settings.resend_s)
        self._watches = {
            camera: Watch(settings.rules, camera, settings.tracker, host.tally[f"{camera}/tracks"] + 1)
            for camera in settings.cameras
        }
        self._on_the_way: deque[tuple[str, int, int]] = deque(maxlen=_TIMED)
        """(epoch, seq, decided_ns) of events whose acceptance will be timed."""
        self._progress_s = time.monotonic()
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
            self._take(self._inbox.get(_IDLE_S))
            self._send()
            self._explain_gaps()
            self._watch_acceptance()
        self._drain()

    def close(self) -> None:
        """Close the outbox."""
        self._outbox.close()

    def _subscribe(self) -> None:
        for camera in self._settings.cameras:
            self._bus.subscribe(DETECTIONS, partial(self._on_detections, camera), camera)
        self._bus.subscribe(ACCEPTED, self._on_accepted, self._settings.module)
        self._bus.on_connect(self._on_connect)

    def _on_connect(self) -> None:
        """On the bus's thread."""
        self._inbox.put(_Connected(), "control")

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
        self._inbox.put(message, "control")

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
                self._delivery.restart()

    def _evaluate(self, message: Detections) -> None:
        """Let a camera's rules judge a result, and keep what they find."""
        camera, tally = message.camera, self._host.tally
        missed = self._missed(message)
        if missed is None:
            self._ignore("repeated", camera=camera)
            return
        started_ns = time.monotonic_ns()
        watch = self._watches[camera]
        findings = watch.step(message.media_ns, message.status, message.objects)
        refused = sum(self._decide(finding, message, started_ns) is None for finding in findings)
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
            changes |= {"decided": len(findings), "refused": refused, "unaccepted": len(findings) - refused}
            changes |= self._state_changes(watch, {f.rule.name for f in findings})
        tally.add({name: n for name, n in changes.items() if n})
        self._full(refused)
        self._send()
        if len(findings) > refused and not self._delivery.unsent:
            arrived_ms = (time.monotonic_ns() - message.captured_ns) / 1e6
            for _ in range(len(findings) - refused):
                self._host.telemetry.latency("capture_to_event").add(arrived_ms)
                self._host.telemetry.latency("beyond_session").add(arrived_ms - message.session_ms)
        self._host.telemetry.latency("evaluate").add((time.monotonic_ns() - started_ns) / 1e6)
        self._evaluated.append(time.monotonic())

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

    def _decide(self, finding: Finding, message: Detections, now_ns: int) -> Event | None:
        rule = finding.rule
        event = self._outbox.add(
            type_=f"skerry.{finding.type}",
            subject=f"{rule.camera}/{rule.name}",
            time=message.time,
            lane=rule.lane,
            monotonic=now_ns,
            data=_data(finding, message),
        )
        if event is not None:
            self._on_the_way.append((event.epoch, event.seq, now_ns))
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
        counts = self._host.tally.snapshot()
        self._saved = {name for name in counts if name.startswith("rule/")}
        for watch in self._watches.values():
            for name in watch.machines:
                prefix = f"rule/{name}/"
                watch.restore(
                    name, {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
                )
        for event in self._outbox.latest(_MAX_SAVED):
            watched = self._watches.get(str(event.data.get("camera")))
            if watched is not None:
                watched.recall(event.data)

    def _level(self) -> None:
        """Make the tally agree with the outbox: a kill may have come between the two."""
        tally = self._host.tally
        decided = self._outbox.added + tally["refused"]
        tally.set({"decided": decided, "unaccepted": len(self._outbox)})

    def _accept(self, message: Accepted) -> None:
        now_s = time.monotonic()
        freed = self._delivery.accepted(message.epoch, message.seq, now_s)
        if freed is None:
            self._ignore("watermark", epoch=message.epoch[:64], seq=str(message.seq)[:32])
            return
        if freed:
            self._progress_s = now_s
            self._host.tally.add({"unaccepted": -freed})
            self._time_acceptance(message)
            self._host.clear("acceptance")
            self._host.clear("outbox")

    def _time_acceptance(self, message: Accepted) -> None:
        now_ns, waiting = time.monotonic_ns(), self._on_the_way
        while waiting and waiting[0][0] == message.epoch and waiting[0][1] <= message.seq:
            decided_ns = waiting.popleft()[2]
            self._host.telemetry.latency("event_to_accepted").add((now_ns - decided_ns) / 1e6)

    def _send(self) -> None:
        """Publish what may be on its way; what the bus does not take is tried again."""
        now_s = time.monotonic()
        while self._bus.connected:
            submission = self._delivery.next(now_s)
            if submission is None or not self._bus.publish(EVENTS, submission, self._settings.module):
                return
            self._delivery.sent(submission.events, now_s)

    def _watch_acceptance(self) -> None:
        """Say so when the buffer has been silent for long."""
        now_s = time.monotonic()
        if not len(self._outbox):
            self._progress_s = now_s
        silent_s = now_s - self._progress_s
        if silent_s > _LATE_AFTER * self._settings.resend_s:
            self._host.fault("acceptance", "the buffer accepts nothing; events wait here")

    def _full(self, refused: int) -> None:
        if refused:
            waiting = len(self._outbox)
            self._host.fault("outbox", f"full with {waiting} events; new ones are refused and counted")

    def _drain(self) -> None:
        """Evaluate what waits, send it, and wait for acceptance while the grace period lasts."""
        deadline_s = time.monotonic() + max(self._settings.grace_s - _MARGIN_S, 0.0)
        while time.monotonic() < deadline_s:
            self._host.beat()
            item = self._inbox.get(0.02 if len(self._outbox) else 0.0)
            self._take(item)
            self._send()
            if item is None and not len(self._inbox) and not (len(self._outbox) and self._bus.connected):
                break
        self._explain_gaps()
        left = len(self._outbox)
        log.info("decision.drained", unaccepted=left, unevaluated=len(self._inbox))

    def _fps(self) -> float:
        since_s = time.monotonic() - _FPS_OVER_S
        return sum(t >= since_s for t in list(self._evaluated)) / _FPS_OVER_S

    def _show(self) -> None:
        """Set the gauges; on the metrics thread."""
        counts, show = self._host.tally.snapshot(), self._host.telemetry.gauge
        show("skerry_events_decided_total", counts.get("decided", 0))
        show("skerry_events_refused_total", counts.get("refused", 0))
        show("skerry_events_unaccepted", counts.get("unaccepted", 0))
        show("skerry_events_resends_total", self._delivery.repeats)
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


def _flaw(message: Detections, camera: str) -> str:
    """Why a result cannot be what it says it is; empty when it can."""
    if message.camera != camera:
        return "wrong_camera"
    numbers = max(message.sequence, message.number) <= _LARGEST
    times = max(abs(message.media_ns), message.captured_ns) <= _LARGEST_NS
    texts = all(len(text) <= _LONGEST_TEXT and text.isascii() for text in (message.time, message.trace))
    return "" if numbers and times and texts else "implausible"


def _data(finding: Finding, message: Detections) -> dict[str, Any]:
    """An event's data: where and when, then what the rule says."""
    rule = finding.rule
    said: dict[str, Any] = {
        "camera": rule.camera,
        "rule": rule.name,
        "kind": type(rule).__struct_config__.tag,
        "severity": rule.severity,
        "frame": message.number,
        "captured_ns": message.captured_ns,
        "media_ns": message.media_ns,
    }
    if message.trace:
        said["trace"] = message.trace
    return said | finding.data
