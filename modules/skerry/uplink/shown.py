"""What screens are shown of what was delivered: all of it at a pace that somebody can follow."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from skerry.uplink.limits import Bucket
from skerry.uplink.record import Record

_PER_S = 200.0
_AT_ONCE = 50
_MOST_BYTES = 256 * 1024


class Shown:
    """Lets through what a screen can use. Pure.

    Args:
        now: monotonic time, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(_PER_S, now)

    def pick(self, records: Sequence[Record], now: float) -> tuple[msgspec.Raw, ...]:
        """The newest of the records that may be shown now, in order; none while there were too many."""
        if self._bucket.wait_s(now):
            return ()
        picked: list[msgspec.Raw] = []
        room = _MOST_BYTES
        for record in reversed(records):
            room -= len(record.raw)
            if len(picked) >= _AT_ONCE or room < 0:
                break
            picked.append(msgspec.Raw(record.raw))
        self._bucket.pay(len(picked), now)
        return tuple(reversed(picked))
