"""What the far end has, per store, and which part of an outbound message is still to be sent."""

from __future__ import annotations

from collections import OrderedDict

from skerry.messages import Event, Outbound

_STORES = 8
"""A site has one store, and another after its disk was replaced; more are somebody's mistake."""


class Progress:
    """Pure; knows only what this process has seen. Forgetting costs repeats, never a loss."""

    def __init__(self) -> None:
        self._upto: OrderedDict[str, int] = OrderedDict()

    def todo(self, message: Outbound) -> tuple[Event, ...] | None:
        """The events of a message that are still to be sent; empty when all are confirmed.

        None when something before them is missing: a message was lost on the bus, and the buffer
        will send it again, and this one after it.
        """
        known = max(self._upto.get(message.store, 0), message.base)
        if message.first > known + 1:
            return None
        return message.events[known + 1 - message.first :]

    def confirm(self, store: str, upto: int) -> int:
        """The far end has every record of `store` up to here; returns the highest known."""
        self._upto[store] = max(self._upto.pop(store, 0), upto)
        while len(self._upto) > _STORES:
            self._upto.popitem(last=False)
        return self._upto[store]
