"""Where messages wait between the bus's thread and a module's loop. Always bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Fair between keys, bounded per key: the oldest item of a full key makes room for the newest.

    With a depth of 1 this is keep-latest: what a reader takes is always the newest there is.

    Args:
        depth: items that may wait per key, 1 or more.
    """

    def __init__(self, depth: int = 1) -> None:
        self.depth = depth
        self._waiting: OrderedDict[str, deque[tuple[T, bool]]] = OrderedDict()
        self._changed = threading.Condition()
        self._wakes = 0

    def __len__(self) -> int:
        with self._changed:
            return sum(len(q) for q in self._waiting.values())

    def put(self, item: T, key: str = "", keep: bool = False) -> T | None:
        """Add an item; never blocks.

        Args:
            item: what to hand over.
            key: the camera, or "" where there is one queue.
            keep: the item must not be displaced; its producer bounds how many it sends.

        Returns:
            The item that was displaced, for the caller to count, or None.
        """
        with self._changed:
            queue = self._waiting.setdefault(key, deque())
            queue.append((item, keep))
            self._changed.notify()
            loose = [n for n, (_, kept) in enumerate(queue) if not kept]
            if len(loose) <= self.depth:
                return None
            displaced = queue[loose[0]][0]
            del queue[loose[0]]
            return displaced

    def get(self, timeout_s: float) -> T | None:
        """Take the oldest item of the key that has waited for its turn longest.

        Returns:
            None when nothing came in time, or when `wake` was called meanwhile.
        """
        with self._changed:
            wakes = self._wakes
            self._changed.wait_for(lambda: self._waiting or self._wakes != wakes, timeout_s)
            if not self._waiting:
                return None
            key, queue = next(iter(self._waiting.items()))
            item, _ = queue.popleft()
            del self._waiting[key]
            if queue:
                self._waiting[key] = queue
            return item

    def wake(self) -> None:
        """End every wait in `get` now."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()
