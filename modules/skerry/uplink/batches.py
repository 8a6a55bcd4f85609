"""Where outbound messages wait between the bus's thread and the uplink's loop."""

from __future__ import annotations

import threading
from collections import OrderedDict

from skerry.messages import Outbound


class Batches:
    """Bounded in bytes, each batch once, in the order in which they came. Thread-safe.

    Args:
        max_bytes: of batches that may wait. One is taken whatever its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[tuple[str, int], tuple[Outbound, int]] = OrderedDict()
        self._size = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)

    def put(self, batch: Outbound, size: int) -> bool:
        """Add a batch of `size` bytes; a repeat takes the place of what it repeats.

        Returns:
            False when there is no room: the buffer sends it again.
        """
        key = batch.store, batch.first
        with self._changed:
            before = self._waiting.get(key, (batch, 0))[1]
            if self._waiting and self._size - before + size > self._max_bytes:
                return False
            self._waiting[key] = batch, size
            self._size += size - before
            self._changed.notify()
            return True

    def get(self, timeout_s: float) -> Outbound | None:
        """Take the batch that came first; None when none comes within `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting, timeout_s):
                return None
            _, (batch, size) = self._waiting.popitem(last=False)
            self._size -= size
            return batch
