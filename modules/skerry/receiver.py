"""For far ends: tell a repeat from an event that is new.

Delivery is at least once. `(source, epoch, seq)` is dense and ascending per source and epoch, so one
number for each is enough to make the effect exactly once:

    marks = Watermarks()
    for event in arrived:
        if marks.fresh(event.source, event.epoch, event.seq):
            store(event)
"""

from __future__ import annotations

from collections.abc import Mapping


class Watermarks:
    """The highest seq seen per (source, epoch).

    Args:
        known: what an earlier run had seen; keep `seen` together with what it stands for.
    """

    def __init__(self, known: Mapping[tuple[str, str], int] | None = None) -> None:
        self._high = dict(known or {})

    @property
    def seen(self) -> dict[tuple[str, str], int]:
        """A copy: (source, epoch) to its highest seq."""
        return dict(self._high)

    def repeated(self, source: str, epoch: str, seq: int) -> bool:
        """Whether this event, or one after it, was seen before. Changes nothing."""
        return seq <= self._high.get((source, epoch), 0)

    def fresh(self, source: str, epoch: str, seq: int) -> bool:
        """Whether this event is new; it counts as seen from now on."""
        if self.repeated(source, epoch, seq):
            return False
        self._high[source, epoch] = seq
        return True
