"""The buffer against the disk it writes to, and through a broker as producers see it.

Every durable figure stands beside the raw limit that was measured in the same run, a moment before or
after: the same bytes, one write and one fdatasync a batch. Flushes of a virtual or shared disk vary by
a factor of ten within minutes, so only the ratios mean much.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from skerry.broker import BrokerProcess
from skerry.buffer.blocks import Stamp
from skerry.buffer.store import Record, Store
from skerry.channels import ACCEPTED, EVENTS, METRICS, STATUS
from skerry.children import end, spawn
from skerry.clock import boot_id, utc
from skerry.errors import Unavailable
from skerry.messages import Accepted, Event, Metrics, Status, Submission
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.telemetry import Latency
from skerry.uplink.links.file import FileLink

PAYLOAD = 512
"""Bytes of a record: an event with a few fields of data."""
_SEGMENT = 8 * 1024 * 1024
_LIMIT = 1024 * 1024 * 1024
_WAITING = 100_000
_IN_FLIGHT = 2000
_SITE = "bench"


def run(*, seconds: float = 1.5, runs: int = 3, folder: Path | None = None) -> dict[str, Any]:
    """Measure everything `runs` times.

    Args:
        seconds: of each measurement of appends.
        runs: repetitions; medians are reported.
        folder: on the disk to measure; a temporary one when None.

    Returns:
        Durable appends per second in batches of 1 and 100 beside the raw limits, and their ratios;
        drain, opening, and a real buffer behind a broker.
    """
    home = folder or Path.cwd()
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=home) as name:
        place = Path(name)
        appends = {f"batch_{batch}": _appends(place, batch, seconds, runs) for batch in (1, 100)}
        return {
            "payload_bytes": PAYLOAD,
            "runs": runs,
            "appends_per_s": appends,
            "life": _life(place),
            "bus": _bus(place),
        }


def _appends(place: Path, batch: int, seconds: float, runs: int) -> dict[str, float]:
    """The store between two raw writers, in turn."""
    rounds = [
        {
            "raw_growing": _raw(place / "raw", batch, seconds, ahead=False),
            "store": _store(place / "store", batch, seconds),
            "raw_prezeroed": _raw(place / "raw", batch, seconds, ahead=True),
        }
        for _ in range(runs)
    ]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    ratios = {
        f"store_to_{name}": round(statistics.median(r["store"] / r[name] for r in rounds), 3)
        for name in ("raw_growing", "raw_prezeroed")
    }
    return {**{name: round(value) for name, value in medians.items()}, **ratios}


def _raw(path: Path, batch: int, seconds: float, *, ahead: bool) -> float:
    """Records per second of one write and one fdatasync a batch, and nothing else.

    Args:
        path: the file.
        batch: records a write.
        seconds: how long.
        ahead: overwrite blocks that are on disk already, instead of making the file longer.
    """
    content = b"x" * (PAYLOAD * batch)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if ahead:
            os.write(file, bytes(_SEGMENT))
            os.fsync(file)
        at = count = 0
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if at + len(content) > _SEGMENT:
                at = 0
                if not ahead:
                    os.ftruncate(file, 0)
            os.pwrite(file, content, at)
            os.fdatasync(file)
            at += len(content)
            count += batch
        return count / (time.monotonic() - began)
    finally:
        os.close(file)
        path.unlink()


def _stamp() -> Stamp:
    return Stamp(boot_id(), time.monotonic_ns(), time.time_ns())


def _store(folder: Path, batch: int, seconds: float) -> float:
    """Records per second of `Store.append`."""
    boot = boot_id()
    store = Store.open(
        folder, limit_bytes=_LIMIT, stamp=lambda: Stamp(boot, time.monotonic_ns(), time.time_ns())
    )
    payload = b"x" * PAYLOAD
    began, seq = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        store.append([Record("p", "e", seq + n + 1, payload) for n in range(batch)])
        seq += batch
    rate = seq / (time.monotonic() - began)
    store.close()
    shutil.rmtree(folder)
    return rate


def _life(place: Path) -> dict[str, Any]:
    """Open a store with records waiting, and drain it into a file."""
    folder = place / "life"
    store = Store.open(folder, limit_bytes=_LIMIT, stamp=_stamp)
    payloads = [msgspec.json.encode(_event(n)) for n in range(1, _WAITING + 1)]
    for first in range(0, _WAITING, 1000):
        chunk = payloads[first : first + 1000]
        store.append([Record("p", "e", first + n + 1, p) for n, p in enumerate(chunk)])
    store.close()
    size = sum(len(p) for p in payloads)
    began = time.monotonic()
    store = Store.open(folder, limit_bytes=_LIMIT, stamp=_stamp)
    opened = time.monotonic() - began
    link = FileLink(place / "far.jsonl")
    link.open()
    decoder = msgspec.json.Decoder(Event)
    began = time.monotonic()
    while (batch := store.read(store.upto + 1, 100, 128 * 1024)) is not None:
        link.send([decoder.decode(p) for p in batch.payloads])
        store.receipt(batch.first + len(batch.payloads) - 1)
    drained = time.monotonic() - began
    link.close()
    store.close()
    shutil.rmtree(folder)
    return {
        "waiting_records": _WAITING,
        "waiting_mb": round(size / 2**20, 1),
        "open_s": round(opened, 3),
        "drain_to_file_per_s": round(_WAITING / drained),
    }


def _event(seq: int, *, boot: str = "bench", now_ns: int = 0) -> Event:
    return Event(
        id=f"e-{seq}", source="/skerry/bench/decision", type="io.skerry.line", time=utc(0),
        subject="gate/line", lane="event", epoch="e", seq=seq, bootid=boot, monotonic=now_ns,
        data={"count": seq, "label": "bolt", "box": [0.1, 0.2, 0.3, 0.4], "pad": "x" * 200},
    )  # fmt: skip


class _Producer:
    """Sends events and learns of their acceptance."""

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.ready = threading.Event()
        self.rss_mb = 0.0
        self._boot = boot_id()
        self._moved = threading.Condition()
        self._bus = MqttBus(BusSettings(port=port), _SITE, "producer")
        self._bus.subscribe(ACCEPTED, self._on_accepted)
        self._bus.subscribe(STATUS, self._on_status)
        self._bus.subscribe(METRICS, self._on_metrics)
        self._bus.connect()

    def close(self) -> None:
        self._bus.close()

    def send(self, first: int, count: int) -> None:
        now = time.monotonic_ns()
        events = tuple(_event(first + n, boot=self._boot, now_ns=now) for n in range(count))
        message = Submission(producer="p", epoch="e", oldest=1, events=events)
        if not self._bus.publish(EVENTS, message, "p"):
            raise Unavailable("bench: the broker took no more")

    def wait_for(self, seq: int, timeout_s: float) -> None:
        with self._moved:
            if not self._moved.wait_for(lambda: self.accepted >= seq, timeout_s):
                raise Unavailable(f"bench: {seq} not accepted within {timeout_s:g} s, {self.accepted} are")

    def _on_accepted(self, message: Accepted) -> None:
        with self._moved:
            self.accepted = max(self.accepted, message.seq)
            self._moved.notify()

    def _on_status(self, message: Status) -> None:
        if message.state == "ready":
            self.ready.set()

    def _on_metrics(self, message: Metrics) -> None:
        self.rss_mb = max(self.rss_mb, message.rss_mb)


def _bus(place: Path) -> dict[str, Any]:
    """One producer, a broker, and a buffer as a process of its own."""
    with BrokerProcess(place / "broker") as broker, _buffer(place, broker.port):
        producer = _Producer(broker.port)
        try:
            if not producer.ready.wait(20):
                raise Unavailable("bench: the buffer was not ready within 20 s")
            latency = _steady(producer, rate=200, seconds=5.0)
            return {
                "broker": broker.kind,
                "ack_ms_at_200_per_s": msgspec.to_builtins(latency.quantiles()),
                "events_per_s": round(_flood(producer, producer.accepted, 30_000)),
                "buffer_rss_mb": producer.rss_mb,
            }
        finally:
            producer.close()


@contextmanager
def _buffer(place: Path, port: int) -> Iterator[None]:
    settings = {"site": _SITE, "module": "buffer", "state": str(place / "buffer"), "bus": {"port": port}}
    environment = {**os.environ, "SKERRY_SETTINGS": json.dumps({**settings, "log_level": "warning"})}
    with (place / "buffer.log").open("wb") as log:
        child = spawn([sys.executable, "-m", "skerry.buffer"], environment, stderr=log.fileno())
    try:
        yield
    finally:
        end(child, 5)


def _steady(producer: _Producer, rate: int, seconds: float) -> Latency:
    """Milliseconds from just before an event is published until its acceptance is back."""
    latency, next_at = Latency(), time.monotonic()
    for seq in range(1, int(rate * seconds) + 1):
        time.sleep(max(next_at - time.monotonic(), 0.0))
        next_at += 1 / rate
        began = time.monotonic()
        producer.send(seq, 1)
        producer.wait_for(seq, 10)
        latency.add((time.monotonic() - began) * 1000)
    return latency


def _flood(producer: _Producer, before: int, count: int) -> float:
    """Events per second, from the first publish to the last acceptance, 10 events a message."""
    began = time.monotonic()
    for first in range(before + 1, before + count + 1, 10):
        producer.send(first, 10)
        producer.wait_for(first - _IN_FLIGHT, 10)
    producer.wait_for(before + count, 30)
    return count / (time.monotonic() - began)
