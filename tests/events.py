"""Events for tests of delivery."""

from skerry.messages import Event, Lane, Submission

WHEN = "2026-03-01T12:00:00.000Z"


def event(
    seq: int, *, epoch: str = "e1", source: str = "/skerry/test/decision", lane: Lane = "event",
    size: int = 0, bootid: str = "another", monotonic: int = 1,
) -> Event:  # fmt: skip
    """An event that can be told from all others; `size` more bytes of data."""
    return Event(
        id=f"{epoch}-{seq}", source=source, type="io.skerry.count", time=WHEN, subject="gate/line", lane=lane,
        epoch=epoch, seq=seq, bootid=bootid, monotonic=monotonic, data={"seq": seq, "pad": "x" * size},
    )  # fmt: skip


def events(
    first: int, last: int, *, epoch: str = "e1", source: str = "/skerry/test/decision", lane: Lane = "event"
) -> tuple[Event, ...]:
    """Events `first` to `last`."""
    return tuple(event(n, epoch=epoch, source=source, lane=lane) for n in range(first, last + 1))


def submission(
    first: int, last: int, *, oldest: int | None = None, producer: str = "decision", epoch: str = "e1",
    lane: Lane = "event",
) -> Submission:  # fmt: skip
    """What a producer sends that holds `oldest` and on."""
    return Submission(
        producer=producer, epoch=epoch, oldest=first if oldest is None else oldest,
        events=events(first, last, epoch=epoch, source=f"/skerry/test/{producer}", lane=lane),
    )  # fmt: skip
