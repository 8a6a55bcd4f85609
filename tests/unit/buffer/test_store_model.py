"""The log against a model of it: any sequence of appends, receipts, kills, failures and damage."""

import errno
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from disks import FailingDisk
from oracle import check_ledger
from skerry.errors import Unavailable
from unit.buffer.stores import contents, kill, open_store, payload, record

PRODUCERS = [("a", "x"), ("a", "y"), ("b", "x")]


class StoreModel(RuleBasedStateMachine):
    """`kept` is what was appended, by offset; `gone` is what damage may have cost."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="skerry-model-"))
        self.disk = FailingDisk()
        self.kept: dict[int, bytes] = {}
        self.marks: dict[tuple[str, str], int] = {}
        self.damaged = False
        self.store = open_store(self.folder, disk=self.disk)

    def teardown(self) -> None:
        kill(self.store)
        shutil.rmtree(self.folder)

    def _reopen(self) -> None:
        self.disk = FailingDisk()
        self.store = open_store(self.folder, disk=self.disk, committed=len(self.kept))

    @initialize(seed=st.integers(0, 2**16))
    def seed(self, seed: int) -> None:
        self.draw = random.Random(seed)

    @rule(
        who=st.sampled_from(PRODUCERS),
        count=st.integers(1, 40),
        skip=st.integers(0, 2),
        size=st.integers(40, 300),
    )
    def append(self, who: tuple[str, str], count: int, skip: int, size: int) -> None:
        first = max(self.marks.get(who, 0), self.store.watermark(*who) or 0) + 1 + skip
        records = [record(n, *who, size) for n in range(first, first + count)]
        last = self.store.append(records)
        assert last == len(self.kept) + count
        for n, item in enumerate(records):
            self.kept[last - count + 1 + n] = item.payload
        self.marks[who] = first + count - 1

    @rule(call=st.sampled_from(["write", "sync", "create", "rename", "truncate"]), full=st.booleans())
    def refused(self, call: str, full: bool) -> None:
        self.disk.fails = lambda name, _: (errno.ENOSPC if full else errno.EIO) if name == call else 0
        who = PRODUCERS[0]
        seq = max(self.marks.get(who, 0), self.store.watermark(*who) or 0) + 1
        try:
            last = self.store.append([record(seq, *who)])
        except Unavailable:
            assert self.store.last == len(self.kept)
        else:
            self.kept[last] = payload(seq, *who)
            self.marks[who] = seq
        self.disk.fails = lambda *_: 0

    @precondition(lambda self: self.store.upto < self.store.last)
    @rule(share=st.floats(0, 1))
    def receipt(self, share: float) -> None:
        before, delivered = self.store.waiting, self.store.delivered
        upto = self.store.upto + 1 + int(share * (self.store.last - self.store.upto - 1))
        count = self.store.receipt(upto)
        assert (before - count, delivered + count) == (self.store.waiting, self.store.delivered)

    @rule()
    def kill_and_reopen(self) -> None:
        kill(self.store)
        self._reopen()

    @rule()
    def close_and_reopen(self) -> None:
        self.store.close()
        self._reopen()

    @rule(flips=st.integers(1, 3))
    def damage_and_reopen(self, flips: int) -> None:
        kill(self.store)
        self.damaged = True
        for _ in range(flips):
            path = self.draw.choice(sorted(self.folder.glob("*.segment")))
            content = bytearray(path.read_bytes())
            if content:
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
                path.write_bytes(content)
        self._reopen()

    @invariant()
    def it_adds_up(self) -> None:
        store = self.store
        lost = sum(store.evicted.values())
        check_ledger(store.accepted, store.delivered, store.waiting, store.evicted, lost=lost)
        assert store.accepted == len(self.kept)
        assert store.bytes_on_disk <= 64 * 1024

    @invariant()
    def what_waits_is_what_was_kept(self) -> None:
        store = self.store
        found = contents(store)
        assert len(found) == store.waiting == store.recount()
        assert all(self.kept[offset] == content for offset, content in found.items())
        if not self.damaged:
            assert list(found) == list(range(store.upto + 1, store.last + 1))
            assert set(store.evicted) <= {"capacity"}
            assert all(store.watermark(*who) == seq for who, seq in self.marks.items())


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
