"""The store under the recorder: everything it does in a life, and what must be there after any cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

from msgspec import Raw
from structlog.testing import capture_logs

from faults.power.mortal import Killed, Mortal
from skerry.buffer.blocks import Stamp
from skerry.buffer.chain import Chain
from skerry.buffer.gaps import Hole
from skerry.buffer.quarantine import Entry, Quarantine, entries
from skerry.buffer.seal import Seal
from skerry.buffer.settings import LaneSettings
from skerry.buffer.store import Batch, Record, Store, StoreFull
from skerry.messages import LANES, Lane
from unit.buffer.stores import kill

OFTEN: tuple[Lane, ...] = "alarm", "event", "event", "event", "telemetry", "bulk"
STEPS = 260
LIFE = 70
"""Steps after which the producers begin anew."""
MORTALITY = 0.08
"""Of the steps, how many the process may not outlive."""
SEGMENT = 64 * 1024
LIMIT = 20 * SEGMENT
TELEMETRY_LIMIT = 4 * SEGMENT
KEY = bytes(range(32))
_SOME = 0.2
"""Share of the cuts after which the store is worked with as well."""

Name = tuple[str, int, int]
"""Epoch, seq, size of the payload: it says what the payload is."""


@dataclass
class Known:
    """Of one lane, what was promised.

    Attributes:
        records: by offset.
        last: highest offset that `append` returned.
        upto: highest offset that a receipt was given for.
        evicted: records given up at the limit.
        marks: highest seq accepted, by epoch.
        told: holes that were read, from and to.
    """

    records: dict[int, Name] = field(default_factory=dict)
    last: int = 0
    upto: int = 0
    evicted: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    told: set[tuple[int, int]] = field(default_factory=set)


class Plain:
    """Group commits, receipts, eviction, restarts.

    A fact is {"records": {lane: [[epoch, first seq, count, size], ...]}, "aside": [lane, event],
    "told": [[lane, first, last], ...], "state": {lane: [last, upto, evicted]}}: the records were appended
    to their lanes, one was put in quarantine, holes were read, and then this was the state of the store.
    """

    options = "noauto_da_alloc"  # the store must not need it
    compress = False
    key: bytes | None = None
    segment = SEGMENT
    limit = LIMIT
    quarantine = 4 << 20

    def __init__(self) -> None:
        self.known = {lane: Known() for lane in LANES}
        self.aside: tuple[Any, ...] = ()
        self.disk = Mortal()

    def open(self, folder: Path) -> Store:
        return Store.open(
            folder / "log", limit_bytes=self.limit, segment_bytes=self.segment,
            lanes={"telemetry": LaneSettings(limit_bytes=TELEMETRY_LIMIT)},
            seal=Seal(compress=self.compress, key=self.key), stamp=lambda: Stamp("boot", 1, 2, True),
            disk=self.disk,
        )  # fmt: skip

    # At work

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        def say(fact: dict[str, Any]) -> None:
            promise(fact)
            self.note(fact)

        store = self.open(folder)
        self._adopt(store, say)
        for n in range(STEPS):
            self.disk.calls_left = draw.randint(0, 5) if draw.random() < MORTALITY else inf
            try:
                restarted = self._step(store, say, draw, n // LIFE)
            except Killed:
                restarted = True
            if restarted:
                self.disk.calls_left = inf
                kill(store)
                store = self.open(folder)
                self._adopt(store, say)

    def _step(
        self, store: Store, say: Callable[[dict[str, Any]], None], draw: random.Random, life: int
    ) -> bool:
        """One thing that a store does; whether it was the last, because it is opened anew."""
        what = draw.random()
        if what < 0.65:
            self._append(store, say, draw, life)
        elif what < 0.92:
            self._drain(store, say, draw)
        elif what < 0.97:
            store.prepare()
        else:
            if what < 0.985:
                store.close()
            return True
        return False

    def _adopt(self, store: Store, say: Callable[[dict[str, Any]], None]) -> None:
        """What was under way at the end of the last life, and came through, counts from now on."""
        came: dict[Lane, list[list[Any]]] = {}
        for lane in LANES:
            found = contents(store.chain(lane))[0]
            names = [_name(found[n]) for n in sorted(found) if n > self.known[lane].last]
            came[lane] = [[epoch, seq, 1, size] for epoch, seq, size in names]
        say({"records": came, "state": _state(store)})

    def _append(
        self, store: Store, say: Callable[[dict[str, Any]], None], draw: random.Random, life: int
    ) -> None:
        lane: Lane = draw.choice(OFTEN)
        runs = []
        for producer in draw.choice((("a",), ("b",), ("a", "b"))):
            epoch = f"{lane}-{producer}-{life}"
            seq = (store.chain(lane).watermark("p", epoch) or 0) + draw.choice((1, 1, 1, 1, 7))
            count, size = draw.choice((1, 1, 1, 3, 10, 40)), draw.choice((80, 300, 300, 1500, 5000))
            if draw.random() < 0.02:
                count, size = 3, 60_000  # a commit of several blocks, and nearly more than a segment holds
            runs.append((epoch, seq, count, size))
        records = [
            Record("p", epoch, n, payload(epoch, n, size))
            for epoch, seq, count, size in runs
            for n in range(seq, seq + count)
        ]
        try:
            store.append(lane, records, times=draw.random() < 0.1)
        except StoreFull:  # larger than what its lane may hold
            runs = []
        say({"records": {lane: runs}, "state": _state(store)})

    def _drain(self, store: Store, say: Callable[[dict[str, Any]], None], draw: random.Random) -> None:
        chain = store.chain(draw.choice(LANES))
        at, told = chain.upto + 1, []
        refused: list[int] = []
        aside = ""
        for _ in range(draw.choice((1, 3, 12))):
            found = chain.read(at, 50, 20_000)
            if found is None:
                break
            if isinstance(found, Hole):
                told.append([chain.lane, found.first, found.last])
            elif not refused and draw.random() < 0.1:
                refused, aside = [found.first], self._set_aside(store, chain, found)
            at = found.last + 1
        if at > chain.upto + 1:
            upto = at - 1 if draw.random() < 0.7 else draw.randint(chain.upto + 1, at - 1)
            chain.receipt(upto, refused)
        say({"state": _state(store), "aside": aside and [chain.lane, aside], "told": told})

    def _set_aside(self, store: Store, chain: Chain, found: Batch) -> str:
        """The far end refuses the first record of a batch; the id of its event, if it is there now."""
        epoch, seq, _ = _name(found.payloads[0])
        quarantine = Quarantine(store.folder, store.disk, self.quarantine)
        entry = Entry(
            id=f"{epoch}/{seq}", time="", lane=chain.lane, chain=chain.id, offset=found.first,
            reason="no", event=Raw(found.payloads[0]),
        )  # fmt: skip
        with closing(quarantine):
            return entry.id if quarantine.add(entry) else ""

    # After the cut

    def note(self, fact: Any) -> None:
        if fact.get("aside"):
            self.aside = tuple(fact["aside"])
        for lane, first, last in fact.get("told", ()):
            self.known[lane].told.add((first, last))
        for lane, (last, upto, evicted) in fact["state"].items():
            known, names = self.known[lane], _named(fact, lane)
            known.records.update(enumerate(names, last - len(names) + 1))
            for epoch, seq, _ in names:
                known.marks[epoch] = max(known.marks.get(epoch, 0), seq)
            known.last, known.upto = last, max(known.upto, upto)
            known.evicted = max(known.evicted, evicted)

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        with capture_logs() as said, closing(self.open(folder)) as store:
            lost = sum(self._check_lane(store.chain(lane), ahead) for lane in LANES)
            if lost:
                return lost
            self._check_aside(store)
            used = sum(p.stat().st_size for p in store.folder.iterdir() if "quarantine" not in p.name)
            assert used <= store.bytes_on_disk <= self.limit, f"{used} bytes of {store.bytes_on_disk}"
            alarms = [entry for entry in said if entry["log_level"] in {"error", "critical"}]
            assert not alarms, f"nothing is wrong, and an operator is told {alarms[0]}"
            before = _before(store)
            if draw.random() >= _SOME:
                return 0
            taken = [lane for lane in LANES if _takes_another(store, lane)]
        with closing(self.open(folder)) as store:
            for lane in taken:
                _check_goes_on(store.chain(lane), *before[lane])
        return 0

    def _check_aside(self, store: Store) -> None:
        """What the far end refused, and the cursor has passed, is in quarantine."""
        there = [item.entry for item in entries(store.folder)]
        assert self.aside in [(), *((e.lane, e.id) for e in there)], f"{self.aside} is not in quarantine"
        if self.quarantine < 1 << 20:
            return  # the oldest may be gone
        for chain in store.chains:
            kept = sum(e.lane == chain.lane for e in there)
            assert chain.evicted.get("quarantined", 0) <= kept, f"{chain.lane}: {kept} in quarantine"

    def _check_lane(self, chain: Chain, ahead: Any) -> int:
        lane, known = chain.lane, self.known[chain.lane]
        state = (ahead or {}).get("state", {}).get(lane, [known.last, known.upto, known.evicted])
        under_way = _named(ahead, lane)
        found, holes = contents(chain)
        told = {n for hole in holes for n in range(max(hole.first, chain.upto + 1), hole.last + 1)}
        evicted = {n for h in holes if h.reason == "capacity" for n in range(h.first, h.last + 1)}
        lost = sum(n > chain.upto and n not in found and n not in evicted for n in known.records)
        if lost:
            return lost
        assert {hole.reason for hole in holes} <= {"capacity"}, f"{lane}: {_brief(holes)}"
        assert set(chain.evicted) <= {"capacity", "quarantined"}, f"{lane}: {chain.evicted}"
        assert sum(chain.evicted.values()) <= max(known.evicted, state[2]), (
            f"{lane}: {chain.evicted} of {known.evicted}, {state}, upto {chain.upto} of {known.upto},"
            f" {_brief(holes)}"
        )
        assert chain.upto <= max(known.upto, state[1]), f"{lane}: upto {chain.upto} of {known.upto}"
        assert chain.last <= max(known.last, state[0]), f"{lane}: last {chain.last} of {known.last}"
        there = sorted([*told, *found])
        assert there == list(range(chain.upto + 1, chain.last + 1)), f"{lane}: a hole that is not told"
        marks = dict(known.marks)
        for n, content in found.items():
            epoch, seq, size = known.records.get(n) or under_way[n - known.last - 1]
            assert content == payload(epoch, seq, size), f"{lane}: record {n} is {content[:40]!r}"
            marks[epoch] = max(marks.get(epoch, 0), seq)
        for epoch in {*marks, *(name[0] for name in under_way)}:
            # Lower, and what is here would be accepted twice; higher, and what is not would be dropped.
            assert (chain.watermark("p", epoch) or 0) == marks.get(epoch, 0), f"{lane}: {marks}"
        for first, last in known.told:
            same = last <= chain.upto or (first, last) in {(h.first, h.last) for h in holes}
            assert same, f"{lane}: told of {first} to {last}, and now {_brief(holes)}"
        assert chain.accepted == chain.delivered + chain.waiting + sum(chain.evicted.values()), (
            f"{lane}: accepted {chain.accepted} = delivered {chain.delivered} + waiting {chain.waiting}"
            f" + evicted {chain.evicted}"
        )
        assert chain.recount() == chain.waiting, f"{lane}: {chain.recount()} of {chain.waiting} can be read"
        return 0


class Sealed(Plain):
    """Compressed and encrypted."""

    compress = True
    key = KEY


class Careless(Plain):
    """On a disk that forgets one of its calls, `sync` or `sync_folder`."""

    def __init__(self, forgotten: str) -> None:
        super().__init__()
        setattr(self.disk, forgotten, lambda _: None)


class Wide(Plain):
    """Larger segments, and a small quarantine."""

    segment = 256 * 1024
    limit = 20 * segment
    quarantine = 4096  # it is begun anew all the time


@lru_cache(maxsize=8192)
def payload(epoch: str, seq: int, size: int) -> bytes:
    """That of a record, of about `size` bytes; it says which it is, and how long."""
    draw = random.Random(seq)
    text = f'{{"epoch":"{epoch}","seq":{seq},"size":{size},"x":"'
    return (text + f"{draw.getrandbits(256):x}" * (1 + size // 64))[
        : max(size - 2, len(text))
    ].encode() + b'"}'


def _before(store: Store) -> dict[Lane, tuple[dict[int, bytes], int]]:
    """What waits, and how many were evicted, by lane."""
    return {c.lane: (contents(c)[0], sum(c.evicted.values())) for c in store.chains}


def _takes_another(store: Store, lane: Lane) -> bool:
    try:
        store.append(lane, [Record("q", "after", 1, payload("after", 1, 300))])
    except StoreFull:  # of higher lanes
        return False
    return True


def _check_goes_on(chain: Chain, before: dict[int, bytes], evicted: int) -> None:
    """It took a record after the cut and kept it, and what it had."""
    after, _ = contents(chain)
    assert chain.watermark("q", "after") == 1, f"{chain.lane}: what was appended after the cut is gone"
    assert after[chain.last] == payload("after", 1, 300), f"{chain.lane}: and something else is there"
    missing = [n for n in before if after.get(n) != before[n]]
    evicted = sum(chain.evicted.values()) - evicted
    assert len(missing) == evicted, f"{chain.lane}: {len(missing)} are gone, {evicted} were evicted"


def contents(chain: Chain) -> tuple[dict[int, bytes], list[Hole]]:
    """All that waits, by offset, and what is told to be missing."""
    found: dict[int, bytes] = {}
    holes: list[Hole] = []
    at = 1
    while (here := chain.read(at, 200, 200_000)) is not None:
        assert here.first >= at or isinstance(here, Hole), "a record came twice"
        if isinstance(here, Hole):
            holes.append(here)
        else:
            found.update(enumerate(here.payloads, here.first))
        at = here.last + 1
    return found, holes


def _name(content: bytes) -> Name:
    said = json.loads(content)
    return said["epoch"], said["seq"], said["size"]


def _named(fact: Any, lane: Lane) -> list[Name]:
    """The records of a lane that a fact, if there is one, tells of."""
    runs = (fact or {}).get("records", {}).get(lane, [])
    return [(epoch, n, size) for epoch, first, count, size in runs for n in range(first, first + count)]


def _state(store: Store) -> dict[str, list[int]]:
    return {c.lane: [c.last, c.upto, sum(c.evicted.values())] for c in store.chains}


def _brief(holes: list[Hole]) -> list[str]:
    return [f"{h.first} to {h.last} {h.reason} {h.detail}" for h in holes[:5]]
