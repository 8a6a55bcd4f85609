"""Events as the uplink carries them."""

import msgspec

from events import event
from skerry.messages import Event, Lane, Outbound
from skerry.uplink.record import Record, read


def record(seq: int, *, lane: Lane = "event", size: int = 0, source: str = "/a", epoch: str = "e1") -> Record:
    """An event that can be told from all others; `size` more bytes of data."""
    return of(event(seq, lane=lane, size=size, source=source, epoch=epoch))


def of(item: Event) -> Record:
    """An event as its bytes and its envelope."""
    found = read(msgspec.json.encode(item))
    assert isinstance(found, Record)
    return found


def records(
    first: int, last: int, *, source: str = "/skerry/test/decision", epoch: str = "e1"
) -> list[Record]:
    """Events `first` to `last`."""
    return [record(n, source=source, epoch=epoch) for n in range(first, last + 1)]


def outbound(
    first: int, events: list[Event], *, store: str = "s", lane: Lane = "event", base: int = 0,
    last: int | None = None, backlog: bool = False,
) -> Outbound:  # fmt: skip
    """What the buffer sends: events from offset `first`."""
    raws = tuple(msgspec.Raw(msgspec.json.encode(e)) for e in events)
    return Outbound(
        store=store, lane=lane, first=first, last=first + len(raws) - 1 if last is None else last,
        base=base, backlog=backlog, events=raws,
    )  # fmt: skip
