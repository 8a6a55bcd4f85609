"""How many frames of a fast source may be without a result: what keeps `pace: fast` from losing any."""

from __future__ import annotations

import threading
import time
from collections import deque

from skerry.messages import Status


class Window:
    """Frames sent and not yet resolved, of one camera. Thread-safe.

    Args:
        size: frames that may be unresolved at a time, 1 or more.
        wait_s: how long a frame may stay unresolved before it is given up as overdue: its result may
            have been lost with a broker.
    """

    def __init__(self, size: int, wait_s: float) -> None:
        self._size = size
        self._wait_s = wait_s
        self._sent: deque[tuple[int, float]] = deque()
        self._changed = threading.Condition()
        self.overdue = 0

    def __len__(self) -> int:
        with self._changed:
            return len(self._sent)

    def sent(self, number: int) -> None:
        """A frame went out."""
        with self._changed:
            self._sent.append((number, time.monotonic()))

    def resolved(self, upto: int) -> None:
        """The results of all frames up to and including this number are known."""
        with self._changed:
            while self._sent and self._sent[0][0] <= upto:
                self._sent.popleft()
            self._changed.notify_all()

    def room(self, timeout_s: float) -> bool:
        """Wait for room for one more frame, for at most `timeout_s`; whether there is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(self._sent) >= self._size:
                now = time.monotonic()
                oldest_ends = self._sent[0][1] + self._wait_s
                if now >= oldest_ends:
                    self._sent.popleft()
                    self.overdue += 1
                elif now >= deadline:
                    return False
                else:
                    self._changed.wait(min(oldest_ends, deadline) - now)
            return True


CONSUMERS = ("inference", "decision")
"""Kinds of modules that a result goes through; one that nobody hears is lost, however long a frame waits."""


class Consumers:
    """Which modules are ready for what comes of a frame. Thread-safe.

    Args:
        wait_s: how long to wait for the first of a kind to say so; without one, frames go out all the same.
    """

    def __init__(self, wait_s: float) -> None:
        self._until = time.monotonic() + wait_s
        self._ready: frozenset[tuple[str, str]] = frozenset()
        self._seen: frozenset[str] = frozenset()

    def note(self, status: Status) -> None:
        """Take in the state of a module."""
        if status.kind not in CONSUMERS:
            return
        if status.state in ("ready", "degraded"):
            self._ready |= {(status.kind, status.module)}
            self._seen |= {status.kind}
        else:
            self._ready -= {(status.kind, status.module)}

    def expected(self) -> bool:
        """Whether what comes of a frame that is sent now can be expected to be taken.

        One that was there and went away is waited for as long as it takes: it is being restarted.
        """
        missing = set(CONSUMERS) - {kind for kind, _ in self._ready}
        return not missing or (not missing & self._seen and time.monotonic() > self._until)
