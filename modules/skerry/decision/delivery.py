"""When to send which events again: go-back-N from the oldest that is not accepted."""

from __future__ import annotations

from skerry.messages import Event, Name, Submission
from skerry.outbox import Outbox

WINDOW = 500
"""Events of a lane that may be on their way at one time."""
WINDOW_BYTES = 2 * 1024 * 1024
"""Bytes of them. Three lanes at once leave room for the highest in what the bus holds for a slow broker."""
CHUNK = 100
"""Events in one message."""
CHUNK_BYTES = 192 * 1024
"""Bytes of events in one message: below what a broker takes by default, with room for the envelope."""


class Delivery:
    """Decides what of one lane to send next. Time comes in; nothing is published here.

    Args:
        outbox: holds the lane's events.
        producer: the name that acceptance comes back to.
        resend_s: go back to the oldest when nothing was accepted for this long.
    """

    def __init__(self, outbox: Outbox, producer: Name, resend_s: float) -> None:
        self._outbox, self._producer, self._resend_s = outbox, producer, resend_s
        self._sent = 0
        self._moved_s = 0.0
        self._progress_s: float | None = None
        self.repeats = 0
        """How often it went back because nothing was accepted."""

    @property
    def unsent(self) -> int:
        """Events that wait to be sent, for the first time or again."""
        return len(self._outbox) - self._sent

    def silent_s(self, now_s: float) -> float:
        """How long events have waited without one being accepted, in seconds; call it every now and then."""
        if self._progress_s is None or not len(self._outbox):
            self._progress_s = now_s
        return now_s - self._progress_s

    def restart(self) -> None:
        """Begin again at the oldest: nothing that was sent before is known to have arrived."""
        self._sent = 0

    def next(self, now_s: float) -> Submission | None:
        """The next events to send, None while there are none or enough are on their way.

        Args:
            now_s: monotonic seconds.
        """
        if self._sent and now_s - self._moved_s >= self._resend_s:
            self._sent = 0
            self.repeats += 1
        room = min(WINDOW - self._sent, CHUNK)
        if room <= 0 or not self.unsent:
            return None
        room_bytes = WINDOW_BYTES - self._outbox.size(self._sent)
        if room_bytes <= 0:
            return None
        events = tuple(self._outbox.pending(room, self._sent, min(CHUNK_BYTES, room_bytes)))
        epoch = events[0].epoch
        return Submission(
            producer=self._producer, epoch=epoch, oldest=self._outbox.first_of(epoch), events=events
        )

    def sent(self, events: tuple[Event, ...], now_s: float) -> None:
        """Take note that the broker has what `next` gave."""
        if self._sent == 0:
            self._moved_s = now_s
        self._sent += len(events)

    def accepted(self, epoch: str, seq: int, now_s: float) -> int | None:
        """Take a watermark; how many events it freed, None when it cannot be true."""
        freed = self._outbox.accepted(epoch, seq)
        if freed:
            self._sent = max(self._sent - freed, 0)
            self._moved_s = self._progress_s = now_s
        return freed
