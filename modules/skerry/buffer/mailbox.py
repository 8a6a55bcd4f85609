"""Where submissions, receipts and calls wait between the bus's thread and the buffer's loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from skerry.messages import LANES, Lane, Receipt

MAX_RECEIPTS = 1000


class Offer(NamedTuple):
    """A sound submission, encoded for the store."""

    lane: Lane
    producer: str
    epoch: str
    oldest: int
    first: int
    payloads: list[bytes]
    born: list[int]
    """Per event, monotonic nanoseconds of its decision in this boot; 0 when from another."""
    times: bool
    """Some of their times disagree with the clock."""
    size: int
    """Bytes of all payloads."""
    done: Callable[[], None]
    """To be called once it was dealt with: the broker may send more."""


class Mail(NamedTuple):
    """All that waited."""

    offers: dict[Lane, list[Offer]]
    """Of the lanes that are due, the highest first."""
    receipts: list[Receipt]
    calls: set[str]


class _Queue:
    """The offers of one lane."""

    def __init__(self, linger_s: float) -> None:
        self.linger_s = linger_s
        self.offers: deque[tuple[Offer, float]] = deque()
        self.size = 0
        self.events = 0


class Mailbox:
    """Bounded in bytes and in number, for each lane on its own; thread-safe.

    Args:
        max_bytes: of payloads that may wait in one lane. One offer is taken whatever its size.
        max_events: a group is closed when it holds this many events.
        linger_s: how long the first offer of a group waits for others, by lane.
    """

    def __init__(self, max_bytes: int, max_events: int, linger_s: Mapping[Lane, float]) -> None:
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._changed = threading.Condition()
        self._queues = {lane: _Queue(linger_s[lane]) for lane in LANES}
        self._receipts: deque[Receipt] = deque(maxlen=MAX_RECEIPTS)
        self._calls: set[str] = set()

    def linger(self, linger_s: Mapping[Lane, float]) -> None:
        """Let groups wait for another time, by lane; those that wait now too."""
        with self._changed:
            for lane, queue in self._queues.items():
                queue.linger_s = linger_s[lane]
            self._changed.notify()

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        with self._changed:
            offers = any(q.offers for q in self._queues.values())
            return not (offers or self._receipts or self._calls)

    def offer(self, offer: Offer) -> bool:
        """Add a submission; False when there is no room (the producer repeats it)."""
        with self._changed:
            queue = self._queues[offer.lane]
            if queue.offers and queue.size + offer.size > self._max_bytes:
                return False
            queue.offers.append((offer, time.monotonic()))
            queue.size += offer.size
            queue.events += len(offer.payloads)
            self._changed.notify()
            return True

    def receipt(self, receipt: Receipt) -> None:
        """Add a receipt. They are cumulative, so of too many the newest count."""
        with self._changed:
            self._receipts.append(receipt)
            self._changed.notify()

    def call(self, name: str) -> None:
        """Ask the loop to do something; asking twice is asking once."""
        with self._changed:
            self._calls.add(name)
            self._changed.notify()

    def wait(self, timeout_s: float) -> Mail:
        """Wait until a group is complete, or something else has come, or the time is over."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now = time.monotonic()
                due = min(self._due(queue, now) for queue in self._queues.values())
                if due <= 0 or self._receipts or self._calls or now >= deadline:
                    return self._take(now)
                self._changed.wait(min(due, deadline - now))

    def _due(self, queue: _Queue, now: float) -> float:
        """Seconds until the waiting offers of a lane are to be committed."""
        if not queue.offers:
            return float("inf")
        if queue.events >= self._max_events or queue.size >= self._max_bytes:
            return 0.0
        return queue.offers[0][1] + queue.linger_s - now

    def _take(self, now: float) -> Mail:
        offers = {
            lane: self._group(queue) for lane, queue in self._queues.items() if self._due(queue, now) <= 0
        }
        mail = Mail(offers, list(self._receipts), self._calls)
        self._receipts.clear()
        self._calls = set()
        return mail

    def _group(self, queue: _Queue) -> list[Offer]:
        """The offers of one commit."""
        group: list[Offer] = []
        count = 0
        while queue.offers and count < self._max_events:
            offer, _ = queue.offers.popleft()
            group.append(offer)
            count += len(offer.payloads)
            queue.size -= offer.size
        queue.events -= count
        return group
