"""The other direction of a link: what an operator sets and asks on a platform."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

_MOST_REQUESTS = 32
"""Commands that may wait; more are answered with 429 at once."""

BUSY = 429
Reply = Callable[[int, bytes], None]
"""Takes a status in the manner of HTTP and a JSON document; from any thread, once; never raises."""


class Proposal(NamedTuple):
    """A desired state as a platform has it, whole, before anyone has looked at it."""

    source: str
    """What holds it: twin, shadow, configuration, topic or file."""
    version: str
    """The platform's number for it, or, where it has none, what tells it from another."""
    document: Any
    """Decoded JSON, of any shape."""


class Request(NamedTuple):
    """A command as a platform has sent it, before anyone has looked at it."""

    name: str
    body: bytes
    """A JSON document, or nothing."""
    reply: Reply


class Downlink:
    """Where a link puts what comes down, from whatever thread. Bounded, never blocks.

    Of desired states only the newest is kept: a thousand of them cost as much as one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._proposal: Proposal | None = None
        self._requests: deque[Request] = deque()
        self._woken = False

    def propose(self, source: str, version: str, document: Any) -> None:
        """The desired state is this now: the whole of it, never a difference."""
        with self._changed:
            self._proposal = Proposal(source, version, document)
            self._changed.notify_all()

    def request(self, name: str, body: bytes, reply: Reply) -> None:
        """Somebody gives a command; `reply` is called once, now or later."""
        with self._changed:
            full = len(self._requests) >= _MOST_REQUESTS
            if not full:
                self._requests.append(Request(name, body, reply))
                self._changed.notify_all()
        if full:
            reply(BUSY, b'{"error":"too many commands are waiting (try later)"}')

    def take(self, timeout_s: float) -> tuple[Proposal | None, list[Request]]:
        """What has come since the last time; waits for it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._woken or self._proposal is not None or self._requests, timeout_s
            )
            self._woken = False
            proposal, self._proposal = self._proposal, None
            requests = list(self._requests)
            self._requests.clear()
            return proposal, requests

    def wake(self) -> None:
        """End a `take` that waits."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()
