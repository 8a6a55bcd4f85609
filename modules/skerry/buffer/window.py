"""How much may be on its way to the uplink, and when to send it again: go-back-N over the bus.

Source: Tanenbaum, Wetherall: Computer Networks, 5th edition, section 3.4.2.
"""

from __future__ import annotations

from collections import deque

_SLOWEST = 8
"""Waiting for a silent uplink grows to this many times `resend_s`."""


class Window:
    """What was sent and not confirmed. Pure: time is an argument, in monotonic seconds.

    Args:
        max_records: records that may be unconfirmed.
        max_bytes: bytes that may be unconfirmed; one batch may go over it when nothing else is.
        resend_s: without a receipt for this long, all that is unconfirmed is sent again; each time
            in vain doubles it, to at most eight times.

    Attributes:
        sent: the last record sent since the last return.
        highest: the last record ever sent: no receipt can be for more.
    """

    def __init__(self, max_records: int, max_bytes: int, resend_s: float) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._resend_s = resend_s
        self._flying: deque[tuple[int, int, int]] = deque()  # (last record, records, bytes) of a batch
        self._records = 0
        self._bytes = 0
        self._patience = 1
        self._moved = 0.0
        self.sent = 0
        self.highest = 0

    def room(self) -> tuple[int, int]:
        """(records, bytes) that the next batch may have; (0, 0) when it has to wait."""
        records, size = self._max_records - self._records, self._max_bytes - self._bytes
        return (records, size) if records > 0 and size > 0 else (0, 0)

    def note(self, last: int, records: int, size: int, now: float) -> None:
        """A batch was sent."""
        if not self._flying:
            self._moved = now
        self._flying.append((last, records, size))
        self._records += records
        self._bytes += size
        self.sent = last
        self.highest = max(self.highest, last)

    def confirm(self, upto: int, now: float) -> None:
        """Records up to `upto` are confirmed, or gone."""
        if upto < self.sent and (not self._flying or upto < self._flying[0][0]):
            return
        while self._flying and self._flying[0][0] <= upto:
            _, records, size = self._flying.popleft()
            self._records -= records
            self._bytes -= size
        self.sent = max(self.sent, upto)
        self._moved = now
        self._patience = 1

    def due(self, now: float) -> float:
        """Seconds until it is time to go back; infinity when nothing is unconfirmed."""
        return self._moved + self._resend_s * self._patience - now if self._flying else float("inf")

    def go_back(self, upto: int, *, in_vain: bool = False) -> None:
        """Start again behind `upto`.

        Args:
            upto: the last record that is confirmed.
            in_vain: nobody answered; wait longer next time.
        """
        self._flying.clear()
        self._records = self._bytes = 0
        self.sent = upto
        self._patience = min(self._patience * 2, _SLOWEST) if in_vain else 1
