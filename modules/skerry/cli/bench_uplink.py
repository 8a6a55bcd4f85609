"""The uplink alone: a process between two brokers, fed as fast as it takes, and alarms in a backlog."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from skerry.broker import HOST, BrokerProcess
from skerry.channels import METRICS, OUTBOUND, RECEIPTS, STATUS
from skerry.cli.bench_site import LINK, SITE, Events, module
from skerry.errors import Unavailable
from skerry.messages import Lane, Metrics, Outbound, Receipt, Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings

_A_MESSAGE = 100
_WINDOW = 16
"""Outbound messages of a lane that may be unconfirmed."""
_ALARM_EVERY_S = 0.02
_BATCHES = {"format": "batch"}


def run(*, runs: int = 3, count: int = 200_000) -> dict[str, Any]:
    """Drain `count` events through each link, `runs` times.

    Returns:
        Per link: events a second, CPU microseconds an event and peak memory of the uplink (medians),
        and in milliseconds how long an alarm took to be receipted meanwhile.
    """
    links: dict[str, dict[str, Any]] = {
        "file": {"kind": "file"},
        "mqtt_zstd_batches": {"kind": "mqtt", **_BATCHES, "compression": "zstd"},
        "mqtt_gzip_batches": {"kind": "mqtt", **_BATCHES, "compression": "gzip"},
        "mqtt_batches": {"kind": "mqtt", **_BATCHES},
        "mqtt_events": {"kind": "mqtt"},
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in links}
    for _ in range(runs):
        for name, link in links.items():
            some = count // 10 if name == "mqtt_events" else count
            with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=Path.cwd()) as folder:
                found[name].append(_drain(Path(folder), link, some))
    return {
        "runs": runs,
        **{name: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for name, rows in found.items()},
    }


def _drain(folder: Path, link: dict[str, Any], count: int) -> dict[str, float]:
    with BrokerProcess(folder / "bus") as broker, BrokerProcess(folder / "far") as far:
        there = (
            {"path": str(folder / "far.jsonl")}
            if link["kind"] == "file"
            else {"host": HOST, "port": far.port}
        )
        with module(folder, "uplink", broker.port, name=LINK, link={**link, **there}) as uplink:
            feeder = Feeder(broker.port)
            try:
                feeder.wait_ready()
                took_s, alarms_ms = feeder.drain(count)
                spent = feeder.metrics_after()
            finally:
                feeder.close()
            counters = spent.counters
            return {
                "events_per_s": round(count / took_s),
                "cpu_us_per_event": round(spent.cpu_s / count * 1e6, 2),
                "bytes_per_event": round(counters["skerry_link_bytes_total"] / count, 1),
                "alarm_p50_ms": round(statistics.median(alarms_ms), 1),
                "alarm_max_ms": round(max(alarms_ms), 1),
                "rss_mb": uplink.peak_mb(),
            }


class Feeder:
    """Plays the buffer: a backlog of telemetry, and an alarm every now and then.

    Args:
        port: of the broker.
    """

    def __init__(self, port: int) -> None:
        self._events = Events()
        self._upto: dict[str, int] = {}
        self._sent = 0
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._metrics: list[Metrics] = []
        self._bus = MqttBus(BusSettings(port=port), SITE, "feeder")
        self._bus.subscribe(RECEIPTS, self._on_receipt, LINK)
        self._bus.subscribe(STATUS, self._on_status)
        self._bus.subscribe(METRICS, self._metrics.append)
        self._bus.connect()

    def close(self) -> None:
        """Leave the bus."""
        self._bus.close()

    def wait_ready(self) -> None:
        """Wait until the uplink says that it is ready."""
        if not self._ready.wait(30):
            raise Unavailable("bench: the uplink is not ready within 30 s")

    def drain(self, count: int) -> tuple[float, list[float]]:
        """Seconds until `count` events are receipted, and milliseconds of each alarm meanwhile."""
        stop, alarms_ms = threading.Event(), []
        messages = [self._message("telemetry", n, _A_MESSAGE) for n in range(1, count, _A_MESSAGE)]

        def alarms() -> None:
            number = 0
            while not stop.wait(_ALARM_EVERY_S):
                number += 1
                began = time.monotonic()
                self._send(self._message("alarm", number, 1))
                self._wait("alarm", number)
                alarms_ms.append((time.monotonic() - began) * 1000)

        watch = threading.Thread(target=alarms, daemon=True)
        began = time.monotonic()
        watch.start()
        for message in messages:
            self._wait("telemetry", message.first - 1 - (_WINDOW - 1) * _A_MESSAGE)
            self._send(message)
        self._wait("telemetry", count)
        took_s = time.monotonic() - began
        stop.set()
        watch.join(30)
        return took_s, alarms_ms or [float("nan")]

    def offer(self, count: int) -> None:
        """Hand over `count` more events, as fast as they are taken, in messages of a hundred."""
        for _ in range(0, count, _A_MESSAGE):
            self._wait("telemetry", self._sent - (_WINDOW - 1) * _A_MESSAGE)
            self._send(self._message("telemetry", self._sent + 1, _A_MESSAGE))
            self._sent += _A_MESSAGE

    def wait_all(self, within_s: float = 60.0) -> None:
        """Wait until all that was offered is receipted."""
        self._wait("telemetry", self._sent, within_s)

    def metrics_after(self) -> Metrics:
        """The uplink's next metrics but one: of after everything that was sent."""
        seen = len(self._metrics)
        until = time.monotonic() + 10
        while len(self._metrics) < seen + 2:
            if time.monotonic() > until:
                raise Unavailable("bench: no metrics of the uplink within 10 s")
            time.sleep(0.05)
        return self._metrics[-1]

    def _message(self, lane: Lane, first: int, count: int) -> Outbound:
        raws = tuple(
            msgspec.Raw(
                self._events.encoded(first + n).replace(b'"lane":"event"', b'"lane":"%s"' % lane.encode())
            )
            for n in range(count)
        )
        return Outbound(
            store=lane, lane=lane, first=first, last=first + count - 1, backlog=lane != "alarm", events=raws
        )

    def _send(self, message: Outbound) -> None:
        while not self._bus.publish(OUTBOUND, message, LINK):
            time.sleep(0.001)

    def _wait(self, lane: Lane, upto: int, within_s: float = 60.0) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._upto.get(lane, 0) >= upto, within_s):
                raise Unavailable(f"bench: {lane} {upto} not receipted within {within_s:g} s")

    def _on_receipt(self, receipt: Receipt) -> None:
        with self._changed:
            self._upto[receipt.store] = receipt.upto
            self._changed.notify_all()

    def _on_status(self, status: Status) -> None:
        if status.kind == "uplink" and status.state == "ready":
            self._ready.set()
