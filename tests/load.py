"""A producer as a process, to be killed: decides events at a rate, as the decision module does.

It has an outbox per lane, so a life after kill -9 goes on where the last one was. What it is about to
send it first appends to a file, so whoever killed it knows what may arrive.

    python load.py '{"port": 1883, "state": "/tmp/x", ...}'      (see `Settings`)

While there is a file `quiet` in its folder it decides nothing, and goes on delivering. SIGTERM ends it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

import msgspec

from skerry.bus import Bus
from skerry.channels import ACCEPTED, EVENTS
from skerry.clock import boot_id, utc
from skerry.decision.delivery import Delivery
from skerry.messages import LANES, Accepted, Event, Lane
from skerry.mqtt import MqttBus
from skerry.outbox import Outbox, Outboxes
from skerry.service import configure_logging
from skerry.settings import BusSettings

CYCLE: tuple[Lane, ...] = ("event", "telemetry", "event", "event", "bulk", "event", "telemetry", "alarm")
"""Which lane the next event is of."""
_TAIL = 256 * 1024
"""Bytes of the log in which the last event of every lane is."""
CAMERAS = ("gate", "yard", "hall")


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What it is told."""

    port: int
    state: str
    site: str = "t"
    name: str = "decision"
    rate: float = 200.0
    """Events a second, all lanes together."""
    pad: int = 200
    big_every: int = 0
    """One event in so many has 20 times the padding; 0: none."""
    lanes: tuple[Lane, ...] = LANES
    outbox: int = 50_000
    resend_s: float = 0.5


class SentLog:
    """Every event before it is given away, one a line; survives kill -9."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: set[str] = set()
        if path.exists():
            with path.open("rb+") as file:
                file.seek(max(path.stat().st_size - _TAIL, 0))
                start, content = file.tell(), file.read()
                whole = content.rfind(b"\n") + 1
                file.truncate(start + whole)  # the last life may have been killed in the middle of a line
            lines = content[:whole].splitlines()[1 if start else 0 :]
            self._known = {msgspec.json.decode(line, type=Event).id for line in lines}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def add(self, event: Event) -> None:
        os.write(self._file, msgspec.json.encode(event) + b"\n")

    def catch_up(self, waiting: list[Event]) -> None:
        """What the last life put into its outbox just before it was killed."""
        for event in waiting[-1:]:
            if event.id not in self._known:
                self.add(event)


def run(settings: Settings, bus: Bus, asked: SimpleQueue[int]) -> None:
    log = SentLog(Path(settings.state) / "sent.jsonl")
    outboxes = Outboxes.open(
        Path(settings.state), settings.lanes, f"/skerry/{settings.site}/{settings.name}", settings.outbox,
        boot=boot_id(), draw=partial(secrets.token_hex, 8),
    )  # fmt: skip
    for outbox in outboxes:
        log.catch_up(outbox.latest(1))
    deliveries = {box.lane: Delivery(box, settings.name, settings.resend_s) for box in outboxes}
    inbox: SimpleQueue[Accepted | None] = SimpleQueue()
    bus.subscribe(ACCEPTED, inbox.put, settings.name)
    bus.on_connect(lambda: inbox.put(None))
    cycle = [lane for lane in CYCLE if lane in settings.lanes] or list(settings.lanes)
    made, began, quiet = 0, time.monotonic(), Path(settings.state) / "quiet"
    while asked.empty():
        if quiet.exists():
            made, began = 0, time.monotonic()
        due = int((time.monotonic() - began) * settings.rate)
        while made < due:
            made += 1
            big = settings.big_every and made % settings.big_every == 0
            _decide(outboxes[cycle[made % len(cycle)]], made, settings.pad * (20 if big else 1), log)
        with suppress(Empty):
            message = inbox.get(timeout=0.01)
            while True:
                for lane, delivery in deliveries.items():
                    if message is None:
                        delivery.restart()
                    elif outboxes.lane_of.get(message.epoch) == lane:
                        delivery.accepted(message.epoch, message.seq, time.monotonic())
                message = inbox.get_nowait()
        for delivery in deliveries.values():
            while bus.connected and (submission := delivery.next(time.monotonic())) is not None:
                if not bus.publish(EVENTS, submission, settings.name):
                    break
                delivery.sent(submission.events, time.monotonic())


def _decide(outbox: Outbox, number: int, pad: int, log: SentLog) -> None:
    subject = f"{CAMERAS[number % len(CAMERAS)]}/{outbox.lane}-{number % 2}"
    event = outbox.add(
        type_="skerry.test", subject=subject, time=utc(),
        monotonic=time.monotonic_ns(), data={"n": number, "pad": "x" * pad},
    )  # fmt: skip
    if event is not None:
        log.add(event)


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    configure_logging("json", "info", settings.name)
    asked: SimpleQueue[int] = SimpleQueue()
    signal.signal(signal.SIGTERM, lambda number, _: asked.put(number))
    bus = MqttBus(BusSettings(port=settings.port), settings.site, settings.name)
    bus.connect()
    run(settings, bus, asked)
    bus.close()


if __name__ == "__main__":
    main()
