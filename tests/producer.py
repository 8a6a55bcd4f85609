"""A producer as the decision module is one in each lane: keeps an event until the buffer has accepted it."""

from __future__ import annotations

import threading
import time

from events import event
from oracle import Oracle
from skerry.bus import Bus
from skerry.channels import ACCEPTED, EVENTS
from skerry.messages import Accepted, Event, Lane, Submission

WINDOW = 200


class Producer:
    """Sends and repeats on a thread of its own until stopped.

    Args:
        bus: connected or not.
        oracle: told of each event before it is sent.
        epoch: of all its events; each lane of a producer is a `Producer` of the same name and another epoch.
        lane: of all its events.
    """

    def __init__(
        self, bus: Bus, oracle: Oracle, name: str = "decision", epoch: str = "e1", lane: Lane = "event"
    ) -> None:
        self._bus = bus
        self._oracle = oracle
        self.name = name
        self.epoch = epoch
        self.lane: Lane = lane
        self.source = f"/skerry/test/{name}"
        self.accepted = 0
        self.made = 0
        self._held: dict[int, Event] = {}
        self._sent = 0
        self._moved = time.monotonic()
        self._changed = threading.Condition()
        self._stopping = False
        bus.subscribe(ACCEPTED, self._on_accepted, name)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def marks(self) -> dict[tuple[str, str], int]:
        """(source, epoch) to what was accepted of it."""
        return {(self.source, self.epoch): self.accepted}

    def make(self, count: int) -> None:
        """Decide `count` more events."""
        with self._changed:
            fresh = [
                event(self.made + n + 1, epoch=self.epoch, source=self.source, lane=self.lane, size=200)
                for n in range(count)
            ]
            self._oracle.send(fresh)
            self._held |= {e.seq: e for e in fresh}
            self.made += count
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(5)

    def _on_accepted(self, message: Accepted) -> None:
        if message.epoch != self.epoch:
            return
        with self._changed:
            assert message.seq <= self.made, "accepted what was never sent"
            if message.seq > self.accepted:
                for seq in range(self.accepted + 1, message.seq + 1):
                    self._held.pop(seq, None)
                self.accepted = message.seq
                self._sent = max(self._sent, message.seq)
                self._moved = time.monotonic()
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                if time.monotonic() - self._moved > 0.5:
                    self._sent, self._moved = self.accepted, time.monotonic()
                last = min(self._sent + 50, self.accepted + WINDOW, self.made)
                batch = tuple(self._held[n] for n in range(self._sent + 1, last + 1) if n in self._held)
                oldest = self.accepted + 1
            if not batch:
                with self._changed:
                    self._changed.wait(0.05)
                continue
            message = Submission(producer=self.name, epoch=self.epoch, oldest=oldest, events=batch)
            if self._bus.publish(EVENTS, message, self.name):
                with self._changed:
                    self._sent = max(self._sent, batch[-1].seq)
            else:
                time.sleep(0.02)
