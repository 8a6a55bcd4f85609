"""Where outbound records wait between the bus's thread and the uplink's loop, each lane for itself."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

import msgspec

from skerry.messages import LANES, Lane, Outbound, Receipt, Refusal
from skerry.uplink.parts import Chain, Part, joined, mismatch
from skerry.uplink.record import one_line, read_all

_CHAINS = 32
"""A site has a store a lane, and others after its disk was replaced; more are somebody's mistake."""
_MOST_REFUSED = 64
"""Refusals that the buffer does not know of: beyond it the lane waits until it does."""


class Lanes:
    """Bounded in bytes per lane, each record once, in order. Thread-safe.

    What is taken out counts until it is confirmed, so the bound is that of all that the uplink has of a
    lane. Forgetting a chain costs repeats, never a loss.

    Args:
        max_bytes: of records in each lane. One message is taken whatever its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: dict[Lane, deque[Part]] = {lane: deque() for lane in LANES}
        self._size: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._chains: OrderedDict[str, Chain] = OrderedDict()
        self._changed = threading.Condition()
        self._news = False

    def put(self, message: Outbound) -> str:
        """Take a message.

        Returns:
            "" when it was taken; `repeat` when all of it was there before; `jump` when something before
            it is missing; `full` when there is no room (the buffer sends it again, after either);
            `malformed` when it contradicts itself.
        """
        with self._changed:
            chain = self._chain(message.store, message.lane)
            if chain is None:
                return "malformed"
            for offset in [n for n in chain.refused if n <= message.base]:
                del chain.refused[offset]
            if message.last <= chain.queued:
                if message.last <= chain.confirmed:
                    chain.untold = max(chain.untold, message.last)
                self._tell()
                return "repeat"
            if message.first > max(chain.queued, message.base) + 1:
                return "jump"
        # Without the lock: only the bus's thread raises `queued`.
        part = _part(message, chain)
        if part is None:
            return "malformed"
        return self._add(part)

    def _add(self, part: Part) -> str:
        size, lane = part.size, part.chain.lane
        with self._changed:
            if self._size[lane] and self._size[lane] + size > self._max_bytes:
                return "full"
            self._waiting[lane].append(part)
            self._size[lane] += size
            part.chain.queued = part.last
            self._tell()
            return ""

    def wait(self, timeout_s: float) -> bool:
        """Wait until a message comes; whether one came since the last time."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, timeout_s)
            came, self._news = self._news, False
            return came

    def waiting(self) -> dict[Lane, bool]:
        """Lanes with something that may be sent, to whether it is a backlog."""
        with self._changed:
            return {
                lane: parts[0].backlog
                for lane, parts in self._waiting.items()
                if parts and len(parts[0].chain.refused) < _MOST_REFUSED
            }

    @property
    def blocked(self) -> list[Lane]:
        """Lanes that wait for the buffer to take note of what was refused."""
        with self._changed:
            return [
                lane for lane, parts in self._waiting.items()
                if parts and len(parts[0].chain.refused) >= _MOST_REFUSED
            ]  # fmt: skip

    def take(self, lane: Lane, most: float, max_bytes: float) -> Part:
        """The next batch of a lane that has something; see `Part.fitting` for its bounds."""
        with self._changed:
            parts = self._waiting[lane]
            taken = [parts.popleft()]
            records, size = len(taken[0].records), taken[0].size
            while parts and records < most and size < max_bytes and taken[-1].joins(parts[0]):
                taken.append(parts.popleft())
                records += len(taken[-1].records)
                size += taken[-1].size
            part = joined(taken)
            part, rest = part.split(part.fitting(most, max_bytes))
            if rest is not None:
                parts.appendleft(rest)
            return part

    def put_back(self, part: Part, *, alone: bool = False) -> None:
        """It was not sent after all; of several, the last one first. `alone`: send its records one by one."""
        with self._changed:
            if alone:
                part.chain.alone = max(part.chain.alone, part.last)
            self._waiting[part.chain.lane].appendleft(part)

    def confirm(self, part: Part, reason: str = "") -> None:
        """The far end has it, or has refused it for a reason: the next in order of its chain."""
        with self._changed:
            chain = part.chain
            self._size[chain.lane] -= part.size
            chain.confirmed = max(chain.confirmed, part.last)
            chain.untold = chain.confirmed
            if reason:
                chain.refused[part.last] = reason

    def receipts(self) -> list[Receipt]:
        """What the buffer is to be told now."""
        with self._changed:
            found = [c for c in self._chains.values() if c.untold]
            receipts = [
                Receipt(
                    store=chain.store,
                    upto=chain.untold,
                    refused=tuple(Refusal(n, r) for n, r in chain.refused.items() if n <= chain.untold),
                )
                for chain in found
            ]
            for chain in found:
                chain.untold = 0
            return receipts

    def __len__(self) -> int:
        """Records that wait."""
        with self._changed:
            return sum(len(part.records) for parts in self._waiting.values() for part in parts)

    def sizes(self) -> dict[Lane, int]:
        """Bytes of each lane, waiting or on their way."""
        with self._changed:
            return dict(self._size)

    def _tell(self) -> None:
        self._news = True
        self._changed.notify()

    def _chain(self, store: str, lane: Lane) -> Chain | None:
        """The chain of a store; None when it is of another lane. Needs the lock."""
        chain = self._chains.get(store)
        if chain is None:
            if len(self._chains) >= _CHAINS:
                self._forget()
            chain = self._chains[store] = Chain(store=store, lane=lane)
        self._chains.move_to_end(store)
        return chain if chain.lane == lane else None

    def _forget(self) -> None:
        """Give up the chain that was quiet for longest and has nothing under way. Needs the lock."""
        idle = next((s for s, c in self._chains.items() if c.queued <= c.confirmed), None)
        self._chains.pop(idle if idle is not None else next(iter(self._chains)))


def _part(message: Outbound, chain: Chain) -> Part | None:
    """The records of a message behind those that are there already; None when it contradicts itself."""
    known = chain.queued
    raws = one_line([bytes(event) for event in message.events])
    part = Part(
        chain=chain, backlog=message.backlog, first=message.first, last=message.last,
        records=read_all(raws), size=sum(map(len, raws)),
    )  # fmt: skip
    if part.last < part.first or mismatch(part):
        return None
    if part.first > known:
        return part
    if part.spans:  # a gap that begins among what is there: it stands for the rest
        return msgspec.structs.replace(part, first=known + 1)
    return part.split(known + 1 - part.first)[1]
