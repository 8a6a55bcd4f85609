"""The uplink as a process that is killed again and again, without a buffer: this plays its part."""

import random
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from bus_process import ModuleProcess, given
from events import event
from records import outbound
from skerry.channels import METRICS, OUTBOUND, RECEIPTS
from skerry.messages import LANES, Event, Lane, Metrics, Receipt
from skerry.mqtt import MqttBus
from skerry.receiver import Account
from skerry.settings import BusSettings
from skerry.testing import eventually

_PER_BATCH, _WINDOW, _RESEND_S = 50, 8, 0.5
_PACE_S = 0.04
"""Between two batches of a lane: all of it takes 2.4 s at least, so that the kills come meanwhile."""


class Buffer:
    """Sends records of every lane, and again what is not receipted: go-back-N, as the buffer does."""

    def __init__(self, port: int, records: dict[Lane, int]) -> None:
        self.upto: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self.metrics: list[Metrics] = []
        self._want = records
        self._changed = threading.Condition()
        self._bus = MqttBus(BusSettings(port=port), "t", "buffer")
        self._bus.subscribe(RECEIPTS, self._on_receipt)
        self._bus.subscribe(METRICS, self.metrics.append)
        self._bus.connect()
        eventually(lambda: self._bus.connected)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(lane,), daemon=True) for lane in records]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(5)
        self._bus.close()

    @property
    def done(self) -> bool:
        return all(self.upto[lane] == n for lane, n in self._want.items())

    def _on_receipt(self, receipt: Receipt) -> None:
        lane: Any = receipt.store
        with self._changed:
            assert receipt.upto <= self._want[lane]
            self.upto[lane] = max(self.upto[lane], receipt.upto)
            self._changed.notify_all()

    def _send(self, lane: Lane) -> None:
        sent, moved, seen = 0, time.monotonic(), 0
        while not self._stopping.is_set() and self.upto[lane] < self._want[lane]:
            now, upto = time.monotonic(), self.upto[lane]
            if upto > seen:
                seen, moved = upto, now
            if now - moved > _RESEND_S:
                sent, moved = upto, now
            sent = max(sent, upto)
            if sent - upto >= _WINDOW * _PER_BATCH or sent >= self._want[lane]:
                with self._changed:
                    self._changed.wait(0.05)
                continue
            last = min(sent + _PER_BATCH, self._want[lane])
            content = [event(n, lane=lane, epoch=lane) for n in range(sent + 1, last + 1)]
            message = outbound(sent + 1, content, store=lane, lane=lane, base=upto, backlog=lane == "bulk")
            if self._bus.publish(OUTBOUND, message, "uplink"):
                sent = last
            time.sleep(_PACE_S)


def killed_under_load(folder: Path, port: int, link: dict[str, Any], kills: int) -> Buffer:
    """Deliver 12,000 records of four lanes through an uplink that is killed every now and then."""
    settings = given("uplink", folder, port, "t", link=link, backoff={"first_s": 0.05, "last_s": 0.2})
    uplink = ModuleProcess("uplink", settings, folder / "uplink.log")
    buffer = Buffer(port, dict.fromkeys(LANES, 3000))
    draw = random.Random(7)
    uplink.start()
    buffer.start()
    meanwhile = 0
    try:
        for _ in range(kills):
            time.sleep(draw.uniform(0.3, 0.9))  # the moment of the kill is what is random here
            meanwhile += not buffer.done
            uplink.kill()
            uplink.start()
        assert meanwhile >= 3
        eventually(lambda: buffer.done, 90)
        eventually(lambda: buffer.metrics)
    finally:
        buffer.stop()
        uplink.stop()
    return buffer


def check(arrived: list[Event], *, repeats: bool) -> None:
    """All of it arrived, in order; repeats only where the far end shows them."""
    account, seen = Account(), dict.fromkeys(LANES, 0)
    for e in arrived:
        fresh = account.take(msgspec.to_builtins(e))
        assert fresh or repeats
        assert e == event(e.seq, lane=e.lane, epoch=e.lane)
        if fresh:
            assert e.seq == seen[e.lane] + 1
            seen[e.lane] = e.seq
    assert seen == dict.fromkeys(LANES, 3000)
    assert account.unexplained() == {}
