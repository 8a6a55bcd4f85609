"""The far end is a list, for tests of ours and yours: it can be down, slow to confirm, or refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from skerry.errors import LinkDown, Rejected
from skerry.messages import Event
from skerry.receiver import Watermarks


class MemoryLink:
    """A far end under the test's control.

    Attributes:
        down: `open` and `send` raise `LinkDown`.
        forgetful: this many sends take the batch but do not confirm it.
        refuse: the reason to reject an event, or "".
        arrived: all that came, repeats too.
        received: each event once.
        opened: how often the link was opened.
    """

    def __init__(self, refuse: Callable[[Event], str] = lambda _: "") -> None:
        self.down = False
        self.forgetful = 0
        self.refuse = refuse
        self.arrived: list[Event] = []
        self.received: list[Event] = []
        self.opened = 0
        self._open = False
        self._seen = Watermarks()

    def open(self) -> None:
        if self.down:
            raise LinkDown("memory: the far end is down (set down to False)")
        self.opened += 1
        self._open = True

    def send(self, batch: Sequence[Event]) -> None:
        if self.down or not self._open:
            raise LinkDown("memory: the far end is down (set down to False, and open the link)")
        for event in batch:
            reason = self.refuse(event)
            if reason:
                raise Rejected(f"memory: {event.id}: {reason}")
        for event in batch:
            self.arrived.append(event)
            if self._seen.fresh(event.source, event.epoch, event.seq):
                self.received.append(event)
        if self.forgetful > 0:
            self.forgetful -= 1
            raise LinkDown("memory: taken, not confirmed")

    def close(self) -> None:
        self._open = False
