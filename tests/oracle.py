"""What must add up, whatever was killed, cut or filled in between. Shared by every test of delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from skerry.messages import Event
from skerry.receiver import Watermarks

Name = tuple[str, str, int]
"""(source, epoch, seq)."""


def name_of(event: Event) -> Name:
    """What names an event for ever."""
    return event.source, event.epoch, event.seq


@dataclass
class Oracle:
    """Knows what was sent and holds the rest against it.

    Attributes:
        sent: every event that a producer ever gave away.
    """

    sent: dict[Name, Event] = field(default_factory=dict)

    def send(self, events: Iterable[Event]) -> None:
        """Note events before they are given away."""
        for event in events:
            self.sent[name_of(event)] = event

    def check_far_end(self, arrived: Iterable[Event], *, repeats: bool) -> dict[Name, Event]:
        """What arrived is known, unchanged, and in order once repeats are dropped.

        Args:
            arrived: in order of arrival.
            repeats: whether an event may have arrived more than once.

        Returns:
            Each event once.
        """
        seen: dict[Name, Event] = {}
        marks = Watermarks()
        for event in arrived:
            name = name_of(event)
            assert name in self.sent, f"nobody sent {name}"
            assert event == self.sent[name], f"{name} was changed on its way"
            if marks.fresh(*name):
                seen[name] = event
            else:
                assert repeats, f"{name} arrived twice"
                # A repeat of something never seen would be a loss that the receiver cannot notice.
                assert name in seen, f"{name} arrived after a later one of its epoch"
        return seen

    def check_complete(
        self, arrived: Iterable[Event], accepted: Mapping[tuple[str, str], int], *, repeats: bool
    ) -> None:
        """Every event that was accepted has arrived.

        Args:
            arrived: in order of arrival.
            accepted: (source, epoch) to the watermark that its producer was told.
            repeats: whether an event may have arrived more than once.
        """
        seen = self.check_far_end(arrived, repeats=repeats)
        wanted = [n for n in self.sent if n[2] <= accepted.get((n[0], n[1]), 0)]
        lost = [n for n in wanted if n not in seen]
        assert not lost, f"{len(lost)} accepted events never arrived, first {lost[:3]}"


def check_ledger(
    accepted: int, delivered: int, waiting: int, evicted: Mapping[str, int], *, lost: int = 0
) -> None:
    """`accepted = delivered + waiting + evicted`, and exactly `lost` were evicted."""
    total = Counter(evicted).total()
    assert accepted == delivered + waiting + total, (
        f"accepted {accepted} = delivered {delivered} + waiting {waiting} + evicted {dict(evicted)}"
    )
    assert total == lost, f"expected {lost} evicted, got {dict(evicted)}"
