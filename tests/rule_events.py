"""Events as rules make them."""

from typing import Any

from events import WHEN
from records import of
from skerry.messages import Event, Lane
from skerry.uplink.record import Record


def rule_event(
    seq: int, kind: str, what: str, *, rule: str = "crowd", camera: str = "gate", epoch: str = "e1",
    bootid: str = "b1", monotonic: int | None = None, lane: Lane = "event", **data: Any,
) -> Event:  # fmt: skip
    """What the rule of a camera says, such as `presence` `started`."""
    said = {"camera": camera, "rule": rule, "kind": kind, "severity": "info", "frame": seq, "captured_ns": 5}
    return Event(
        id=f"{epoch}-{seq}", source="/skerry/test/decision", type=f"skerry.{kind}.{what}", time=WHEN,
        subject=f"{camera}/{rule}", lane=lane, epoch=epoch, seq=seq, bootid=bootid,
        monotonic=seq if monotonic is None else monotonic, data=said | data,
    )  # fmt: skip


def rule_record(seq: int, kind: str, what: str, **more: Any) -> Record:
    """The same as it is on its way."""
    return of(rule_event(seq, kind, what, **more))


def presence(seq: int, active: bool, **more: Any) -> Record:
    """Somebody is there, or nobody any more."""
    what = "started" if active else "ended"
    return rule_record(seq, "presence", what, active=active, count=int(active), **more)


def crossing(seq: int, way: str, totals: dict[str, int], **more: Any) -> Record:
    """A line was crossed."""
    return rule_record(
        seq,
        "line",
        "crossed",
        direction=way,
        totals=totals,
        total=sum(totals.values()),
        label="person",
        **more,
    )
