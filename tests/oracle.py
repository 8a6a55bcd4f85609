"""What must add up, whatever was killed, cut or filled in between. Shared by every test of delivery.

Every event that the buffer acknowledged is delivered, or in quarantine, or named by a gap record;
nothing else comes, nothing is changed on its way, and order holds per epoch and per key.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from skerry.messages import Event, Gap
from skerry.receiver import Watermarks

GAP = "skerry.gap"
"""Type of the events by which the buffer says what will never come."""
IN_PLACE = {"capacity", "corrupt"}
"""Reasons of the gaps that come where the missing events would have come."""

Name = tuple[str, str, int]
"""(source, epoch, seq)."""
Epoch = tuple[str, str]
"""(source, epoch)."""
Key = tuple[str, str, str]
"""(source, lane, subject): order is kept among the events of one camera and rule."""


def name_of(event: Event) -> Name:
    """What names an event for ever."""
    return event.source, event.epoch, event.seq


def gap_of(event: Event) -> Gap:
    """What a gap record says."""
    return msgspec.convert(event.data, Gap)


class Sent(NamedTuple):
    """What is remembered of an event that was sent."""

    order: int
    """Of its production, over all producers."""
    content: bytes
    """Its digest."""


@dataclass
class Account:
    """What became of the events, in the end.

    Attributes:
        sent: events that producers made.
        accepted: of these, how many the buffer acknowledged.
        delivered: different events that arrived.
        repeats: arrivals of what had arrived before.
        named: of those accepted, how many did not arrive but are named by a gap record, by reason.
        stated: what the gap records say in their `count`, by reason.
        quarantined: events in quarantine.
        qualities: delivered events by `timequality`, where they have one.
    """

    sent: int = 0
    accepted: int = 0
    delivered: int = 0
    repeats: int = 0
    named: Counter[str] = field(default_factory=Counter)
    stated: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    qualities: Counter[str] = field(default_factory=Counter)


@dataclass
class Oracle:
    """Knows what was sent and holds the rest against it.

    Attributes:
        sent: every event that a producer ever gave away.
        sources: (producer, epoch), as gap records have it, to the source of its events.
    """

    sent: dict[Name, Sent] = field(default_factory=dict)
    sources: dict[tuple[str, str], str] = field(default_factory=dict)
    last: dict[Epoch, int] = field(default_factory=dict)

    def send(self, events: Iterable[Event], producer: str = "decision") -> None:
        """Note events before they are given away."""
        for event in events:
            name = name_of(event)
            content = _digest(event)
            assert name not in self.sent or self.sent[name].content == content, f"{name} names two events"
            self.sent.setdefault(name, Sent(len(self.sent), content))
            self.sources[producer, event.epoch] = event.source
            self.last[name[:2]] = max(self.last.get(name[:2], 0), event.seq)

    def far_end(self, *, repeats: bool) -> FarEnd:
        """A far end that is told of arrivals one by one.

        Args:
            repeats: whether an event may arrive more than once.
        """
        return FarEnd(self, repeats=repeats)

    def check_far_end(self, arrived: Iterable[Event], *, repeats: bool) -> dict[Name, Event]:
        """What arrived is known, unchanged, and in order once repeats are dropped.

        Args:
            arrived: in order of arrival.
            repeats: whether an event may have arrived more than once.

        Returns:
            Each event once, without gap records.
        """
        far, once = self.far_end(repeats=repeats), {}
        for event in arrived:
            if far.take(event) and event.type != GAP:
                once[name_of(event)] = event
        return once

    def check_complete(
        self,
        arrived: Iterable[Event],
        accepted: Mapping[Epoch, int],
        *,
        repeats: bool,
        quarantined: Iterable[Event] = (),
    ) -> Account:
        """Every event that was accepted has arrived, or is in quarantine, or is named by a gap record.

        Args:
            arrived: in order of arrival.
            accepted: (source, epoch) to the watermark that its producer was told.
            repeats: whether an event may have arrived more than once.
            quarantined: what the buffer keeps in quarantine.
        """
        far = self.far_end(repeats=repeats)
        for event in arrived:
            far.take(event)
        return far.check_complete(accepted, quarantined)


class FarEnd:
    """Judges arrivals as they come. `take` each, then `check_complete`.

    Args:
        oracle: knows what was sent.
        repeats: whether an event may arrive more than once.
    """

    def __init__(self, oracle: Oracle, *, repeats: bool) -> None:
        self._oracle = oracle
        self._repeats_allowed = repeats
        self._marks = Watermarks()
        self._keys: dict[Key, tuple[int, Name]] = {}
        self._closed: dict[Epoch, int] = {}  # up to where a gap in its place says that no more will come
        self._gap_names: set[Name] = set()
        self.seen: set[Name] = set()
        self.gaps: list[Gap] = []
        self.repeats = 0
        self.retried: dict[str, Event] = {}
        """Id of a refused event to the event that repeated it."""
        self.qualities: Counter[str] = Counter()

    def take(self, event: Event) -> bool:
        """Judge one arrival; whether it is new."""
        name = name_of(event)
        fresh = self._marks.fresh(*name)
        if not fresh:
            self.repeats += 1
            assert self._repeats_allowed, f"{name} arrived twice"
            # A repeat of something never seen would be a loss that the receiver cannot notice.
            known = name in self.seen or name in self._gap_names
            assert known, f"{name} arrived after a later one of its epoch"
        if event.type == GAP:
            if fresh:
                self._take_gap(name, event)
            return fresh
        if event.retryof is not UNSET:
            self._take_retry(event, event.retryof)
            self._gap_names.add(name)
            return fresh
        sent = self._oracle.sent.get(name)
        assert sent is not None, f"nobody sent {name}"
        assert _digest(event) == sent.content, f"{name} was changed on its way"
        if fresh:
            self._in_order(name, event, sent)
            self.seen.add(name)
            if event.timequality is not UNSET:
                self.qualities[event.timequality] += 1
        return fresh

    def _take_retry(self, event: Event, id_: str) -> None:
        """An event that was refused, under a new name: it is what it was, and had never come."""
        epoch, _, seq = id_.rpartition("-")
        first = msgspec.structs.replace(event, id=id_, epoch=epoch, seq=int(seq), retryof=UNSET)
        sent = self._oracle.sent.get(name_of(first))
        assert sent is not None, f"nobody sent {id_}, which {name_of(event)} repeats"
        assert _digest(first) == sent.content, f"{id_} was changed before it was tried again"
        assert name_of(first) not in self.seen, f"{id_} had arrived before it was tried again"
        self.retried[id_] = event

    def _in_order(self, name: Name, event: Event, sent: Sent) -> None:
        closed = self._closed.get(name[:2], 0)
        assert name[2] > closed, f"{name} arrived after the gap record that says up to {closed}"
        key = event.source, event.lane, event.subject
        before, other = self._keys.get(key, (-1, name))
        assert sent.order > before, f"{name} arrived after {other}, which was made later, of the same key"
        self._keys[key] = sent.order, name

    def _take_gap(self, name: Name, event: Event) -> None:
        """A gap record names what was sent, in its place, and no more than it counts."""
        gap = gap_of(event)
        assert event.lane == gap.lane, f"gap record {name} of lane {gap.lane} came in lane {event.lane}"
        assert gap.count == sum(r.count for r in gap.ranges) or gap.reason == "corrupt", (
            f"{gap}: counts differ"
        )
        for found in gap.ranges:
            epoch = self._epoch(found.producer, found.epoch)
            assert epoch is not None, f"{gap} names an epoch that nobody sent"
            assert 1 <= found.first <= found.last <= self._oracle.last[epoch], f"{gap}: nobody sent these"
            assert found.count <= found.last - found.first + 1, f"{gap}: counts more than it names"
            if gap.reason in IN_PLACE:
                high = self._marks.seen.get(epoch, 0)
                assert high <= found.last, f"{gap} came after {high} of its epoch"
                self._closed[epoch] = max(self._closed.get(epoch, 0), found.last)
        self.gaps.append(gap)
        self._gap_names.add(name)

    def _epoch(self, producer: str, epoch: str) -> Epoch | None:
        source = self._oracle.sources.get((producer, epoch))
        return None if source is None else (source, epoch)

    def missing(self, accepted: Mapping[Epoch, int]) -> dict[Epoch, list[int]]:
        """What was accepted and did not arrive, ascending, per epoch."""
        missing: dict[Epoch, list[int]] = defaultdict(list)
        for source, epoch, seq in self._oracle.sent:
            if seq <= accepted.get((source, epoch), 0) and (source, epoch, seq) not in self.seen:
                missing[source, epoch].append(seq)
        return {epoch: sorted(seqs) for epoch, seqs in missing.items()}

    def check_complete(self, accepted: Mapping[Epoch, int], quarantined: Iterable[Event] = ()) -> Account:
        """Every event that was accepted is accounted for; what became of them."""
        sent = self._oracle.sent
        account = Account(
            sent=len(sent),
            accepted=sum(seq <= accepted.get((source, epoch), 0) for source, epoch, seq in sent),
            delivered=len(self.seen),
            repeats=self.repeats,
            qualities=self.qualities,
        )
        aside = self._check_quarantine(quarantined)
        account.quarantined = len(aside)
        for gap in self.gaps:
            account.stated[gap.reason] += gap.count
        named: dict[Name, str] = {}
        missing = self.missing(accepted)
        for gap in self.gaps:
            for found in gap.ranges:
                epoch = self._epoch(found.producer, found.epoch)
                assert epoch is not None
                inside = [n for n in missing.get(epoch, []) if found.first <= n <= found.last]
                fresh = [n for n in inside if (*epoch, n) not in named]
                assert len(fresh) <= found.count or gap.reason == "corrupt", (
                    f"{gap.reason}: {found} counts {found.count}, but {len(fresh)} of them never arrived"
                )
                named |= {(*epoch, n): gap.reason for n in fresh}
        account.named = Counter(named.values())
        lost = [
            (*epoch, n) for epoch, seqs in missing.items() for n in seqs
            if (*epoch, n) not in named and (*epoch, n) not in aside
        ]  # fmt: skip
        assert not lost, (
            f"{len(lost)} accepted events never arrived and no gap record names them, first {lost[:3]}, "
            f"last {lost[-1]}"
        )
        both = [name for name in aside if named.get(name, "quarantined") != "quarantined"]
        assert not both, f"{both[:3]} are in quarantine, and named by a gap of another reason"
        return account

    def _check_quarantine(self, quarantined: Iterable[Event]) -> set[Name]:
        """Names of what is in quarantine, which was sent, and is unchanged."""
        names = set()
        for event in quarantined:
            name = name_of(event)
            assert name in self._oracle.sent, f"in quarantine is {name}, which nobody sent"
            assert _digest(event) == self._oracle.sent[name].content, f"{name} was changed in quarantine"
            names.add(name)
        return names


def check_ledger(
    accepted: int,
    delivered: int,
    waiting: int,
    evicted: Mapping[str, int],
    *,
    lost: int | None = 0,
) -> None:
    """`accepted = delivered + waiting + evicted`, and exactly `lost` were evicted (None: any number)."""
    total = Counter(evicted).total()
    assert accepted == delivered + waiting + total, (
        f"accepted {accepted} = delivered {delivered} + waiting {waiting} + evicted {dict(evicted)}"
    )
    assert lost is None or total == lost, f"expected {lost} evicted, got {dict(evicted)}"


def check_gaps_agree(account: Account, evicted: Mapping[str, int]) -> None:
    """Once all gap records have arrived, they say what the ledger says, reason by reason."""
    for reason, count in evicted.items():
        assert account.stated[reason] == count, (
            f"{reason}: evicted {count}, but the gap records say {account.stated[reason]}"
        )


def check_dense(arrived: Iterable[Event]) -> None:
    """Without any loss: each epoch is dense from 1, in order, each event once."""
    seqs: dict[Epoch, list[int]] = defaultdict(list)
    for event in arrived:
        seqs[event.source, event.epoch].append(event.seq)
    for epoch, found in seqs.items():
        assert found[0] == 1, f"{epoch} begins with {found[0]}"
        for before, after in pairwise(found):
            assert after == before + 1, f"{epoch}: {after} came after {before}"


def _digest(event: Event) -> bytes:
    """Of all that must not change on the way: a corrected time is taken back."""
    if event.timequality is not UNSET or event.recordedtime is not UNSET:
        time = event.time if event.recordedtime is UNSET else event.recordedtime
        event = msgspec.structs.replace(event, time=time, timequality=UNSET, recordedtime=UNSET)
    return hashlib.blake2b(_encoder.encode(event), digest_size=12).digest()


_encoder = msgspec.json.Encoder(order="deterministic")
