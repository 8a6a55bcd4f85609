"""The far end is a list, for tests of ours and yours: it can be down, slow to confirm, or refuse."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from skerry.errors import LinkDown, Rejected
from skerry.messages import Event
from skerry.receiver import Watermarks
from skerry.uplink.links import Cost, Link
from skerry.uplink.record import Record


class MemoryLink(Link):
    """A far end under the test's control.

    Args:
        refuse: the reason to reject an event, or "".
        window: batches that may be under way.
        late: a refusal comes with `finish`, not with `start`; for a window of 1.
        steered: desired states and commands come down: the test puts them into the downlink itself.

    Attributes:
        down: `open`, `start` and `finish` raise `LinkDown`.
        forgetful: this many finishes find the connection broken, with everything taken.
        slow: nothing is confirmed.
        arrived: all that came, repeats too.
        raw: the bytes of each.
        received: each event once.
        batches: how many events each batch had.
        opened: how often the link was opened.
        most: the most batches that ever were under way.
        reports: every report that was taken.
        deaf: reports are not confirmed.
    """

    def __init__(
        self,
        refuse: Callable[[Event], str] = lambda _: "",
        *,
        window: int = 4,
        late: bool = False,
        steered: bool = False,
    ) -> None:
        self.window = window
        self.steered = steered
        self.reports: list[dict[str, Any]] = []
        self.deaf = False
        self.down = False
        self.forgetful = 0
        self.slow = False
        self.refuse = refuse
        self.arrived: list[Event] = []
        self.raw: list[bytes] = []
        self.received: list[Event] = []
        self.batches: list[int] = []
        self.opened = 0
        self.most = 0
        self._late = late
        self._open = False
        self._under_way: deque[str] = deque()
        self._seen = Watermarks()

    def open(self) -> None:
        if self.down:
            raise LinkDown("memory: the far end is down (set down to False)")
        self.opened += 1
        self._under_way.clear()
        self._open = True

    def start(self, batch: Sequence[Record]) -> Cost:
        self._check()
        events = [msgspec.json.decode(r.raw, type=Event) for r in batch]
        reason = next((f"memory: {e.id}: {why}" for e in events if (why := self.refuse(e))), "")
        if reason and not self._late:
            raise Rejected(reason)
        self._under_way.append(reason)
        self.most = max(self.most, len(self._under_way))
        if not reason:
            self.batches.append(len(events))
            self.raw += [r.raw for r in batch]
            for event in events:
                self.arrived.append(event)
                if self._seen.fresh(event.source, event.epoch, event.seq):
                    self.received.append(event)
        return Cost(1, sum(len(r.raw) for r in batch))

    def finish(self, timeout_s: float = 0.1) -> bool:
        self._check()
        if not self._under_way:
            return False
        if self.slow:
            time.sleep(min(timeout_s, 0.01))
            return False
        if self.forgetful > 0:
            self.forgetful -= 1
            self._open = False
            raise LinkDown("memory: taken, not confirmed")
        reason = self._under_way.popleft()
        if reason:
            raise Rejected(reason)
        return True

    def report(self, document: dict[str, Any], timeout_s: float) -> None:
        if self.deaf or not self._open:
            raise LinkDown(f"memory: not confirmed within {timeout_s:g} s")
        self.reports.append(document)

    def close(self) -> None:
        self._open = False

    def _check(self) -> None:
        if self.down or not self._open:
            self._open = False
            raise LinkDown("memory: the far end is down (set down to False, and open the link)")
