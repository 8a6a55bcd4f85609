"""One lane on its way out: what is read, what is sent, and when it is sent again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec
import structlog

from skerry.buffer.chain import Batch, Chain
from skerry.buffer.gaps import Hole
from skerry.buffer.window import Window
from skerry.messages import Outbound

log = structlog.get_logger()
_INF = float("inf")
_AGES = 1000


class Ages:
    """When records were accepted, to the second, on the monotonic clock. Pure: time is an argument."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()  # (last offset by then, seconds), ascending

    def note(self, last: int, now: float) -> None:
        """Every record up to `last` was accepted by `now`."""
        if self._marks and now - self._marks[-1][1] < 1.0:
            return
        if len(self._marks) >= _AGES:  # coarser, the longer it waits
            self._marks = deque(list(self._marks)[::2])
        self._marks.append((last, now))

    def age(self, upto: int, now: float) -> float:
        """How many seconds the first record behind `upto` has waited, at least."""
        while self._marks and self._marks[0][0] <= upto:
            self._marks.popleft()
        return now - self._marks[0][1] if self._marks else 0.0


class Outflow:
    """Sends the records of one chain, in order, as far as the window allows. One thread.

    Args:
        chain: what is sent.
        window: how much may be under way.
        batch_records: records in one message.
        batch_bytes: bytes in one message; a larger record goes alone.
        backlog_s: what has waited for longer is a backlog; may be set anew.
        prepare: makes the payloads of a batch fit to be sent; None, and the record put aside, when the
            one that comes next never will be.
        tell: a hole as the payload of a gap record.
    """

    def __init__(
        self, chain: Chain, window: Window, *, batch_records: int, batch_bytes: int, backlog_s: float,
        prepare: Callable[[Chain, Batch], list[bytes] | None], tell: Callable[[Chain, Hole], bytes],
    ) -> None:  # fmt: skip
        self.chain = chain
        self.window = window
        self.ages = Ages()
        self._records = batch_records
        self._bytes = batch_bytes
        self.backlog_s = backlog_s
        self._prepare = prepare
        self._tell = tell
        if chain.last > chain.upto:
            self.ages.note(chain.last, -_INF)
        window.go_back(chain.upto)

    @property
    def idle(self) -> bool:
        """Whether the far end has everything, and knows of every hole."""
        return self.chain.upto >= self.chain.last

    def backlog(self, now: float) -> bool:
        """Whether the oldest record has waited for long."""
        return self.ages.age(self.chain.upto, now) > self.backlog_s

    def go_back(self, *, in_vain: bool = False) -> None:
        """Send again what is not receipted."""
        self.window.go_back(self.chain.upto, in_vain=in_vain)

    def send(self, publish: Callable[[Outbound], bool], now: float) -> bool:
        """Send one message; whether there was one, and room for it.

        Raises:
            StoreFault: the disk failed.
        """
        window, chain = self.window, self.chain
        if window.due(now) <= 0:
            log.info("outbound.repeated", lane=chain.lane, after=chain.upto, sent=window.sent)
            self.go_back(in_vain=True)
        if window.sent < chain.upto:
            self.go_back()
        records, size = window.room()
        if not records or window.sent >= chain.last:
            return False
        found = chain.read(window.sent + 1, min(records, self._records), min(size, self._bytes))
        if found is None:
            return False
        if isinstance(found, Hole):
            payloads, first, last = [self._tell(chain, found)], found.first, found.last
        else:
            prepared = self._prepare(chain, found)
            if prepared is None:
                return True  # what it was is a hole now
            payloads, first, last = prepared, found.first, found.first + len(prepared) - 1
        message = Outbound(
            store=chain.id, lane=chain.lane, first=first, last=last, base=chain.upto,
            backlog=self.backlog(now), events=tuple(map(msgspec.Raw, payloads)),
        )  # fmt: skip
        if not publish(message):
            return False
        window.note(last, len(payloads), sum(map(len, payloads)), now)
        return True
