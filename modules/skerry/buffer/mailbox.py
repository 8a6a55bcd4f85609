"""Where submissions, receipts and calls wait between the bus's thread and the buffer's loop."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

from skerry.messages import Receipt

MAX_RECEIPTS = 1000


class Offer(NamedTuple):
    """A sound submission, encoded for the store."""

    producer: str
    epoch: str
    oldest: int
    first: int
    payloads: list[bytes]
    born: list[int]
    """Per event, monotonic nanoseconds of its decision in this boot; 0 when from another."""
    urgent: bool
    """Holds an alarm: commit at once."""
    size: int
    """Bytes of all payloads."""


class Mail(NamedTuple):
    """All that waited."""

    offers: list[Offer]
    receipts: list[Receipt]
    calls: set[str]


class Mailbox:
    """Bounded in bytes and in number; thread-safe.

    Args:
        max_bytes: of payloads that may wait. One offer is taken whatever its size.
        max_events: a group is closed when it holds this many events.
        linger_s: how long the first offer of a group waits for others.
    """

    def __init__(self, max_bytes: int, max_events: int, linger_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_events = max_events
        self._linger_s = linger_s
        self._changed = threading.Condition()
        self._offers: deque[tuple[Offer, float]] = deque()
        self._receipts: deque[Receipt] = deque(maxlen=MAX_RECEIPTS)
        self._calls: set[str] = set()
        self._size = 0
        self._events = 0
        self._urgent = 0

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        with self._changed:
            return not (self._offers or self._receipts or self._calls)

    def offer(self, offer: Offer) -> bool:
        """Add a submission; False when there is no room (the producer repeats it)."""
        with self._changed:
            if self._offers and self._size + offer.size > self._max_bytes:
                return False
            self._offers.append((offer, time.monotonic()))
            self._size += offer.size
            self._events += len(offer.payloads)
            self._urgent += offer.urgent
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
                due = self._due(now)
                if due <= 0 or self._receipts or self._calls or now >= deadline:
                    return self._take(take_offers=due <= 0)
                self._changed.wait(min(due, deadline - now))

    def _due(self, now: float) -> float:
        """Seconds until the waiting offers are to be committed."""
        if not self._offers:
            return float("inf")
        if self._urgent or self._events >= self._max_events or self._size >= self._max_bytes:
            return 0.0
        return self._offers[0][1] + self._linger_s - now

    def _take(self, *, take_offers: bool) -> Mail:
        offers: list[Offer] = []
        count = 0
        while take_offers and self._offers and count < self._max_events:
            offer, _ = self._offers.popleft()
            offers.append(offer)
            count += len(offer.payloads)
            self._size -= offer.size
            self._urgent -= offer.urgent
        self._events -= count
        mail = Mail(offers, list(self._receipts), self._calls)
        self._receipts.clear()
        self._calls = set()
        return mail
