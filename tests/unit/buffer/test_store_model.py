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
from unit.buffer.stores import contents, holes, kill, open_chain, payload, record

LIMIT = 224 * 1024
"""Twenty segments or so."""
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
        self.store, self.chain = open_chain(self.folder, limit=LIMIT, disk=self.disk)

    def teardown(self) -> None:
        kill(self.store)
        shutil.rmtree(self.folder)

    def _reopen(self) -> None:
        self.disk = FailingDisk()
        self.store, self.chain = open_chain(
            self.folder, limit=LIMIT, disk=self.disk, committed=len(self.kept)
        )

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
        first = max(self.marks.get(who, 0), self.chain.watermark(*who) or 0) + 1 + skip
        records = [record(n, *who, size) for n in range(first, first + count)]
        last = self.chain.append(records)
        assert last == len(self.kept) + count
        for n, item in enumerate(records):
            self.kept[last - count + 1 + n] = item.payload
        self.marks[who] = first + count - 1

    @rule(call=st.sampled_from(["write", "sync", "create", "rename", "truncate"]), full=st.booleans())
    def refused(self, call: str, full: bool) -> None:
        self.disk.fails = lambda name, _: (errno.ENOSPC if full else errno.EIO) if name == call else 0
        who = PRODUCERS[0]
        seq = max(self.marks.get(who, 0), self.chain.watermark(*who) or 0) + 1
        try:
            last = self.chain.append([record(seq, *who)])
        except Unavailable:
            assert self.chain.last == len(self.kept)
        else:
            self.kept[last] = payload(seq, *who)
            self.marks[who] = seq
        self.disk.fails = lambda *_: 0

    @precondition(lambda self: self.chain.upto < self.chain.last)
    @rule(share=st.floats(0, 1))
    def receipt(self, share: float) -> None:
        before = self.chain.delivered
        upto = self.chain.upto + 1 + int(share * (self.chain.last - self.chain.upto - 1))
        count = self.chain.receipt(upto)
        assert before + count == self.chain.delivered

    @rule()
    def read(self) -> None:
        """What waits is what was kept; what does not is told, in its place."""
        chain = self.chain
        found = contents(chain)
        assert all(self.kept[offset] == content for offset, content in found.items())
        assert len(found) == chain.waiting == chain.recount()
        told = [n for first, last, _ in holes(chain) for n in range(first, last + 1) if n > chain.upto]
        assert sorted([*found, *told]) == list(range(chain.upto + 1, chain.last + 1))

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
            path = self.draw.choice(sorted(self.folder.glob("event*")))
            content = bytearray(path.read_bytes())
            if content:
                content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
                path.write_bytes(content)
        self._reopen()

    @invariant()
    def it_adds_up(self) -> None:
        chain = self.chain
        lost = sum(chain.evicted.values())
        check_ledger(chain.accepted, chain.delivered, chain.waiting, chain.evicted, lost=lost)
        assert chain.accepted == len(self.kept)
        assert self.store.bytes_on_disk <= LIMIT

    @invariant()
    def nothing_is_lost_without_damage(self) -> None:
        if not self.damaged:
            assert self.chain.waiting == self.chain.recount()
            assert set(self.chain.evicted) <= {"capacity"}
            assert all(self.chain.watermark(*who) == seq for who, seq in self.marks.items())


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
