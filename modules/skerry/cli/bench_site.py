"""The buffer as producers see it: a process of its own behind a broker, one producer, and its clock."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from skerry.broker import BrokerProcess
from skerry.channels import ACCEPTED, EVENTS, RECEIPTS, STATUS
from skerry.children import end, spawn
from skerry.cli.bench_appends import LANE, PAYLOAD
from skerry.clock import boot_id, utc
from skerry.errors import Unavailable
from skerry.messages import Accepted, Event, Quantiles, Receipt, Status, Submission
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.telemetry import Latency

SITE, PRODUCER, EPOCH, LINK = "bench", "decision", "bench", "uplink"
_SOURCE = f"/skerry/{SITE}/{PRODUCER}"
_IN_FLIGHT = 2000
_KINDS = 1000


class Events:
    """Events of about `PAYLOAD` bytes of JSON, as a decision module makes them: no two alike.

    Args:
        seed: of the boxes in them.
    """

    def __init__(self, seed: int = 1) -> None:
        draw = random.Random(seed)  # noqa: S311 - repeatable events, no secret
        self._boot = boot_id()
        self._time = utc()
        self.data = [_data(draw, PAYLOAD - 330) for _ in range(_KINDS)]
        self._encoded = [msgspec.json.encode(data) for data in self.data]
        self._head = (
            f'"source":"{_SOURCE}","type":"io.skerry.line","time":"{self._time}","subject":"gate/line",'
            f'"lane":"{LANE}","epoch":"{EPOCH}","bootid":"{self._boot}","specversion":"1.0",'
            '"datacontenttype":"application/json"'
        ).encode()

    def event(self, seq: int) -> Event:
        """The event of that number, decided now."""
        return Event(
            id=f"{EPOCH}-{seq}", source=_SOURCE, type="io.skerry.line", time=self._time,
            subject="gate/line", lane=LANE, epoch=EPOCH, seq=seq, bootid=self._boot,
            monotonic=time.monotonic_ns(), data=self.data[seq % _KINDS],
        )  # fmt: skip

    def encoded(self, seq: int) -> bytes:
        """The JSON of the event of that number, made a hundred times faster."""
        return b'{"id":"%s-%d","seq":%d,"monotonic":%d,%s,"data":%s}' % (
            EPOCH.encode(), seq, seq, 1_000_000_000 + seq, self._head, self._encoded[seq % _KINDS],
        )  # fmt: skip


def _data(draw: random.Random, size: int) -> dict[str, Any]:
    """What an event says: some objects and their boxes, about `size` bytes of JSON."""
    objects: list[dict[str, Any]] = []
    data = {"count": draw.randint(1, 9999), "objects": objects}
    while True:
        box = [round(draw.random(), 4) for _ in range(4)]
        objects.append({"label": draw.choice(("bolt", "nut", "washer")), "box": box})
        if len(msgspec.json.encode(data)) >= size - 40:
            return data


class Desk:
    """One producer on the bus: sends events, learns of their acceptance and of what the far end has.

    Args:
        port: of the broker.
    """

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.receipts: list[tuple[float, int]] = []
        """When the far end was known to have how many."""
        self.latency = Latency()
        """Milliseconds from when an event was due until its acceptance was back."""
        self._due: deque[tuple[int, float]] = deque()
        self._states: dict[str, str] = {}
        self._moved = threading.Condition()
        self._events = Events()
        self._bus = MqttBus(BusSettings(port=port), SITE, "producer")
        self._bus.subscribe(ACCEPTED, self._on_accepted, PRODUCER)
        self._bus.subscribe(STATUS, self._on_status)
        self._bus.subscribe(RECEIPTS, self._on_receipt, LINK)
        self._bus.connect()

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()

    def wait_ready(self, child: Child) -> None:
        """Wait until a module says that it is ready."""
        self._wait(lambda: child.ended or self._states.get(child.kind) == "ready", 30, f"{child.kind}: ready")
        if child.ended:
            raise Unavailable(f"bench: {child.kind} ended: {child.last_words()}")

    def steady(self, rate: int, seconds: float) -> Quantiles:
        """One event at a time at a steady rate, whether or not the one before was accepted."""
        began, first = time.monotonic(), self.accepted + 1
        count = int(rate * seconds)
        for n in range(count):
            due = began + n / rate
            time.sleep(max(due - time.monotonic(), 0.0))
            self._due.append((first + n, due))
            self._send(first + n, 1)
        self.wait_accepted(first + count - 1)
        return self.latency.quantiles()

    def flood(self, count: int, size: int) -> float:
        """Events a second from the first publish to the last acceptance, `size` events a message."""
        began, last = time.monotonic(), self.accepted + count
        for first in range(self.accepted + 1, last + 1, size):
            self._send(first, size)
            self.wait_accepted(first - _IN_FLIGHT)
        self.wait_accepted(last)
        return count / (time.monotonic() - began)

    def wait_accepted(self, seq: int) -> None:
        """Wait until the buffer has accepted the event of that number."""
        self._wait(lambda: self.accepted >= seq, 30, f"{seq} accepted")

    def wait_receipts(self, seconds: float, last: int) -> float:
        """Events a second at the far end, from its first receipt on, until it has `last` of them.

        Args:
            seconds: how long to watch at most.
            last: how many there are.
        """
        self.receipts.clear()
        self._wait(lambda: bool(self.receipts), 30, "delivered")
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.receipts[-1][1] < last:
            time.sleep(0.02)
        (began, first), (ended, most) = self.receipts[0], self.receipts[-1]
        return (most - first) / max(ended - began, 1e-9)

    def _send(self, first: int, count: int) -> None:
        events = tuple(self._events.event(first + n) for n in range(count))
        message = Submission(producer=PRODUCER, epoch=EPOCH, oldest=1, events=events)
        if not self._bus.publish(EVENTS, message, PRODUCER):
            raise Unavailable("bench: the broker took no more")

    def _wait(self, fact: Any, timeout_s: float, what: str) -> None:
        until = time.monotonic() + timeout_s
        with self._moved:
            while not self._moved.wait_for(fact, 0.2):  # not all that is waited for wakes us
                if time.monotonic() > until:
                    raise Unavailable(f"bench: not {what} within {timeout_s:g} s (accepted: {self.accepted})")

    def _on_accepted(self, message: Accepted) -> None:
        now = time.monotonic()
        with self._moved:
            self.accepted = max(self.accepted, message.seq)
            while self._due and self._due[0][0] <= self.accepted:
                self.latency.add((now - self._due.popleft()[1]) * 1000)
            self._moved.notify_all()

    def _on_status(self, message: Status) -> None:
        with self._moved:
            self._states[message.module] = message.state
            self._moved.notify_all()

    def _on_receipt(self, message: Receipt) -> None:
        with self._moved:
            if not self.receipts or message.upto > self.receipts[-1][1]:
                self.receipts.append((time.monotonic(), message.upto))
                self._moved.notify_all()


def peak_mb(pid: int) -> float:
    """The most memory that a process had resident so far, in MB.

    Source: proc(5), /proc/PID/status, VmHWM.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return round(next(int(x.split()[1]) for x in lines if x.startswith("VmHWM:")) / 1024, 1)


class Child:
    """A module as a process of its own."""

    def __init__(self, kind: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.kind = kind
        self._process = process
        self._log = log

    @property
    def ended(self) -> bool:
        """Whether it has, of itself."""
        return self._process.poll() is not None

    def peak_mb(self) -> float:
        """The most memory that it had resident so far, in MB."""
        return peak_mb(self._process.pid)

    def last_words(self) -> str:
        """The last line of its log, or the beginning of it."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


@contextmanager
def module(
    place: Path, kind: str, port: int, environment: Mapping[str, str] | None = None, **settings: Any
) -> Iterator[Child]:
    """A module as a process of its own while the context lasts; its state is in `place/kind`."""
    given = {
        "site": SITE, "module": kind, "state": str(place / kind), "bus": {"port": port},
        "log_level": "warning", **settings,
    }  # fmt: skip
    full = {**os.environ, **(environment or {}), "SKERRY_SETTINGS": json.dumps(given)}
    path = place / f"{kind}.log"
    with path.open("ab") as log:
        child = spawn([sys.executable, "-m", f"skerry.{kind}"], full, stderr=log.fileno())
    try:
        yield Child(kind, child, path)
    finally:
        end(child, 5)


def accept(place: Path, *, steady_s: float, count: int) -> dict[str, Any]:
    """Bus, disk, and back: one producer, a broker, and a buffer as a process of its own.

    Args:
        place: where all of it keeps its files.
        steady_s: seconds at 200 events a second.
        count: events of a flood; twice, one and ten a message.
    """
    place.mkdir()
    with BrokerProcess(place / "broker") as broker, module(place, "buffer", broker.port) as buffer:
        desk = Desk(broker.port)
        try:
            desk.wait_ready(buffer)
            desk.flood(200, 1)  # connections, caches, the first segment
            latency = desk.steady(200, steady_s)
            return {
                "broker": broker.kind,
                "ack_ms_at_200_per_s": msgspec.to_builtins(latency),
                "events_per_s": round(desk.flood(count, 1)),
                "events_per_s_ten_a_message": round(desk.flood(count, 10)),
                "buffer_rss_mb": buffer.peak_mb(),
            }
        finally:
            desk.close()
